"""Moments of parts are those of the whole, in any order, on any number of processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffax import metrics

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys, jax, numpy as np
from diffax import metrics
port, index, out = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))
x = np.load(out + "/x.npy")
found = metrics.gather(metrics.moments(x[:11] if index == "0" else x[11:]))
np.savez(out + f"/{index}.npz", *found)
"""


@pytest.fixture(scope="module")
def x():
    """Far from the origin, where E[x^2] - E[x]^2 has no digits left."""
    rng = np.random.default_rng(0)
    return 1e6 + rng.standard_normal((500, 12)) @ rng.standard_normal((12, 12))


def check(found, x, rtol=1e-12):
    assert found.count == len(x)
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-14)
    exact = np.cov(x - 1e6, rowvar=False) * (len(x) - 1)
    np.testing.assert_allclose(found.scatter, exact, rtol=rtol, atol=rtol * np.abs(exact).max())
    assert found.scatter.dtype == found.mean.dtype == np.float64


def test_moments_are_mean_and_covariance(x):
    check(metrics.moments(x), x)


def test_parts_of_any_size_in_any_order_are_the_whole(x):
    parts = [metrics.moments(part) for part in np.split(x, [1, 2, 40, 41, 300])]
    check(metrics.merge(*parts), x, 1e-9)
    check(metrics.merge(*reversed(parts)), x, 1e-9)
    check(metrics.merge(metrics.merge(*parts[3:]), parts[1], metrics.merge(parts[2], parts[0])), x, 1e-9)
    assert metrics.merge(parts[0]) is parts[0]


def test_a_stream_of_batches_is_the_whole(x):
    check(metrics.fold(x[i : i + 7] for i in range(0, len(x), 7)), x, 1e-9)
    check(metrics.fold([x]), x)


def test_float32_features_are_summed_in_float64():
    x = np.random.default_rng(0).standard_normal((1000, 3)).astype(np.float32)
    exact = x.astype(np.float64) - x.astype(np.float64).mean(0)
    np.testing.assert_allclose(metrics.moments(x).scatter, exact.T @ exact, rtol=1e-13, atol=1e-11)


def test_one_process_gathers_its_own(x):
    own = metrics.moments(x)
    found = metrics.gather(own)
    assert found.count == own.count and isinstance(found.count, int)
    np.testing.assert_array_equal(found.mean, own.mean)
    np.testing.assert_array_equal(found.scatter, own.scatter)


@pytest.mark.slow
def test_processes_gather_the_whole_to_the_last_digit(x, tmp_path):
    np.save(tmp_path / "x.npy", x)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(port), str(i), str(tmp_path)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    expected = metrics.merge(metrics.moments(x[:11]), metrics.moments(x[11:]))
    for i in range(2):
        with np.load(tmp_path / f"{i}.npz") as found:
            assert found["arr_0"] == len(x)
            np.testing.assert_array_equal(found["arr_1"], expected.mean)
            np.testing.assert_array_equal(found["arr_2"], expected.scatter)


@pytest.mark.parametrize("shape", [(3,), (3, 0), (2, 2, 2)])
def test_features_are_rows(shape):
    with pytest.raises(ValueError, match="must be"):
        metrics.moments(np.zeros(shape))


def test_a_part_of_no_rows_changes_nothing():
    x, none = metrics.moments(np.random.default_rng(0).normal(size=(5, 3))), metrics.moments(np.zeros((0, 3)))
    for merged in (metrics.merge(x, none), metrics.merge(none, none, x)):
        assert merged.count == 5
        np.testing.assert_array_equal(merged.mean, x.mean)
        np.testing.assert_array_equal(merged.scatter, x.scatter)
    assert metrics.merge(none, none).count == 0
    with pytest.raises(ValueError, match="needs at least 2"):
        metrics.frechet_distance(x, none)


def test_what_does_not_merge_is_named():
    x = np.ones((3, 2))
    with pytest.raises(ValueError, match="1 of 6 values are not finite"):
        metrics.moments(np.where(np.arange(6).reshape(3, 2) == 4, np.nan, x))
    with pytest.raises(ValueError, match="2 and 1 features"):
        metrics.merge(metrics.moments(x), metrics.moments(x[:, :1]))
    with pytest.raises(ValueError, match="at least one"):
        metrics.merge()
    with pytest.raises(ValueError, match="at least one"):
        metrics.fold([])
