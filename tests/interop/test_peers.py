"""Tests that need an optional package are skipped without it, but not where it has to be there."""

import pytest

from tests.interop.peers import peer


def test_a_missing_package_is_a_skip(monkeypatch):
    monkeypatch.delenv("DIFFAX_PEERS", raising=False)
    with pytest.raises(pytest.skip.Exception):
        peer("no_such_package")


def test_a_missing_package_is_a_failure_where_it_has_to_be_there(monkeypatch):
    monkeypatch.setenv("DIFFAX_PEERS", "1")
    with pytest.raises(ImportError):
        peer("no_such_package")
