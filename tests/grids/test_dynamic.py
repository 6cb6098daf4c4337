"""Grids by dynamic programming."""

import itertools

import jax
import numpy as np
import pytest

import diffax as dx
from diffax.grids.dynamic import shortest_path


@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_shortest_path_against_all_paths(n):
    cost = np.random.default_rng(n).exponential(size=(6, 7))

    def length(path):
        return sum(cost[i, j] for i, j in itertools.pairwise(path))

    every = [(0, *inner, 6) for inner in itertools.combinations(range(1, 6), n - 1)]
    assert tuple(shortest_path(cost, n)) == min(every, key=length)


def test_costs_are_the_stray_of_an_euler_step():
    """For Gaussian data x(sigma) = x(80) r(sigma) / r(80), r^2 = sigma^2 + c^2, so that cost[i, j] is proportional to
    |r_i + (s_j - s_i) s_i / r_i - r_j| / r_j; the path through such costs is the grid."""
    c, n = 0.5, 5
    x = 80 * jax.random.normal(jax.random.key(0), (64, 3))
    levels = np.float64(dx.schedules.sigmas(dx.schedules.karras(), 40))
    r = np.sqrt(levels**2 + c**2)
    euler = r[:-1, None] + (levels - levels[:-1, None]) * (levels / r)[:-1, None]
    expected = levels[shortest_path(np.abs(euler - r) / r, n)]
    got = dx.grids.dynamic(lambda x, s: x * c**2 / (c**2 + s**2), x, n, fine=40)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_the_grid_is_the_same_with_64_bits():
    x = np.float32(80 * np.random.default_rng(0).normal(size=(16, 2)))

    def denoise(x, s):
        return x / (1 + 4 * s**2)

    want = dx.grids.dynamic(denoise, x, 4, fine=20)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        got = dx.grids.dynamic(denoise, x, 4, fine=20)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    got[1] *= 1.0


def test_it_helps_euler():
    denoise = dx.gaussian_mixture([[-1.0, 0.5], [0.3, -0.8], [1.2, 1.0]], 0.3)
    pilots, x = (80 * jax.random.normal(jax.random.key(k), (count, 2)) for k, count in ((0, 32), (1, 256)))
    exact = dx.sample(denoise, x, dx.grids.plain(300))

    def error(sigmas):
        return float(np.mean(np.abs(dx.sample(denoise, x, sigmas, solver=dx.solvers.euler()) - exact)))

    for n in (6, 12):
        assert error(dx.grids.dynamic(denoise, pilots, n)) < 0.75 * error(dx.schedules.sigmas(dx.schedules.karras(), n))


def test_all_levels_and_bad_input():
    denoise, x = dx.gaussian_mixture([[0.0]], 1.0), np.ones((4, 1))
    levels = dx.schedules.sigmas(dx.schedules.karras(), 12)
    np.testing.assert_allclose(dx.grids.dynamic(denoise, x, 12, fine=12), levels, rtol=1e-6)
    for n in (0, 13, True, 2.5):
        with pytest.raises(ValueError, match=f"n = {n}"):
            dx.grids.dynamic(denoise, x, n, fine=12)
    for change, words in (
        ({"denoise": None}, "denoise = None: must be a function"),
        ({"denoise": lambda x, s: x[:, 0]}, r"denoise gave shape \(4,\)"),
        ({"x": np.ones((4, 1), np.uint8)}, "x is of uint8"),
        ({"x": np.ones(())}, r"x has shape \(\)"),
        ({"fine": 10**5}, "fine = 100000: must be an integer from 1 to 2000"),
        ({"sigma_min": "a"}, "sigma_min = 'a'"),
        ({"sigma_min": 90.0}, "sigma_min = 90.0: must be less than sigma_max = 80.0"),
    ):
        with pytest.raises(ValueError, match=words):
            dx.grids.dynamic(**{"denoise": denoise, "x": x, "n": 3} | change)
    with pytest.raises(ValueError, match="sigma_data = 0"):
        dx.grids.dynamic(denoise, x, 3, sigma_data=0)
    with pytest.raises(ValueError, match="NaN or infinity on the pilots"):
        dx.grids.dynamic(lambda x, s: x * np.nan, x, 3, fine=12)
