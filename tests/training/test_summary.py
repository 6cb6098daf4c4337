"""The fingerprint against hashlib over bytes laid out by hand; JSON written whole."""

import hashlib
import json
import struct

import jax.numpy as jnp
import pytest

from diffax.training.summary import fingerprint, write_json


def test_fingerprint_is_sha256_of_sorted_little_endian_leaves():
    tree = {"b": jnp.array([1.5, -2.0], jnp.float32), "a": {"z": jnp.array(7, jnp.int32), "y": jnp.array([True])}}
    raw = b"\x01" + struct.pack("<i", 7) + struct.pack("<2f", 1.5, -2.0)  # a/y, a/z, b
    assert fingerprint(tree) == hashlib.sha256(raw).hexdigest()


def test_a_single_bit_changes_it():
    assert fingerprint({"a": jnp.float32(1.0)}) != fingerprint({"a": jnp.float32(1.0000001)})


def test_json_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["x.json"]
