"""The plain grid is the law that its docstring states."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import diffax as dx


@pytest.mark.parametrize("n", [2, 3, 10, 50])
def test_levels_are_even_in_the_stated_density(n):
    def density(log):
        return 1 + 1.5 * np.exp(-((log - np.log(0.6)) ** 2) / (2 * 1.5**2))

    sigmas = dx.grids.plain(n)
    assert sigmas.shape == (n + 1,) and sigmas[0] == 80 and sigmas[-1] == 0
    np.testing.assert_allclose(sigmas[-2], 0.3 / n, rtol=1e-5)
    shares = [quad(density, np.log(b), np.log(a))[0] for a, b in itertools.pairwise(sigmas[:-1])]
    np.testing.assert_allclose(shares, np.mean(shares), rtol=1e-4)


def test_it_scales_with_the_data():
    np.testing.assert_allclose(dx.grids.plain(9, 80 * 7, 7.0), 7 * dx.grids.plain(9), rtol=1e-5)


def test_one_step_and_use_under_jit():
    assert dx.grids.plain(1).tolist() == [80, 0]
    denoise = dx.gaussian_mixture([[-1.0], [1.0]], 0.1)
    x = 80 * jax.random.normal(jax.random.key(0), (8, 1))

    def solve(x):
        return dx.sample(denoise, x, dx.grids.plain(8))

    np.testing.assert_allclose(jax.jit(solve)(x), solve(x), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0,), "n = 0"),
        ((5, -1.0), "sigma_max = -1.0"),
        ((5, 80.0, 0.0), "sigma_data = 0.0"),
        ((5, 1e-3), "sigma_max = 0.001"),
        ((10**7,), "n = 10000000: must be an integer from 1 to 100000"),
        (("5",), "n = '5'"),
        ((5, "80"), "sigma_max = '80'"),
        ((5, np.ones(3)), "sigma_max has shape"),
        ((5, 80.0, None), "sigma_data = None"),
        ((5, 1e300), "sigma_max = 1e.300: must lie in"),
    ],
)
def test_bad_input_is_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        dx.grids.plain(*arguments)


def test_it_serves_data_of_order_one_better_than_karras():
    """Which is what it is for: the default solver on it, against the usual grid, at equal evaluations."""
    denoise = dx.gaussian_mixture([[-1.0, 0.5], [0.3, -0.8], [1.2, 1.0]], 0.1)
    x = 80 * jax.random.normal(jax.random.key(1), (256, 2))
    exact = dx.sample(denoise, x, dx.schedules.sigmas(dx.schedules.karras(), 400), solver=dx.solvers.exponential_ab(4))

    def error(sigmas):
        return jnp.mean(jnp.sqrt(jnp.mean((dx.sample(denoise, x, sigmas) - exact) ** 2, 1)))

    for n in (6, 10, 20):
        assert error(dx.grids.plain(n)) < 0.7 * error(dx.schedules.sigmas(dx.schedules.karras(), n))
