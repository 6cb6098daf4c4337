"""The network denoiser against its formula, the exact one against numerical integration."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import diffax as dx


def test_network_denoiser_is_the_preconditioned_network():
    pre = dx.preconditioning.edm(0.5)
    seen = {}

    def apply(params, x, c_noise, cond):
        seen.update(x=x, c_noise=c_noise, cond=cond)
        return params * jnp.ones_like(x)

    x = jnp.float32(np.random.default_rng(0).normal(size=(2, 3)))
    sigma = np.array([0.3, 4.0])
    d = dx.denoiser(apply, 2.0, pre, cond="c")(x, jnp.float32(sigma))
    s, var = sigma[:, None], sigma[:, None] ** 2 + 0.25
    np.testing.assert_allclose(d, 0.25 / var * x + s * 0.5 / np.sqrt(var) * 2, rtol=1e-5)
    np.testing.assert_allclose(seen["x"], x / np.sqrt(var), rtol=1e-5)
    np.testing.assert_allclose(seen["c_noise"], np.log(sigma) / 4, rtol=1e-5)
    assert seen["cond"] == "c"


def test_scalar_and_per_sample_sigma_agree():
    denoise = dx.gaussian_mixture(np.float32([[0, 1], [2, -1]]), 0.3)
    x = jnp.float32([[1.0, 0.5], [-1.0, 2.0]])
    np.testing.assert_array_equal(denoise(x, 0.7), denoise(x, jnp.full(2, 0.7)))
    other = denoise(x, jnp.array([0.7, 3.0]))
    np.testing.assert_array_equal(other[0], denoise(x, 0.7)[0])


def test_bfloat16_networks_are_summed_in_float32():
    d = dx.denoiser(lambda p, x, c, cond: x.astype(jnp.bfloat16), None, dx.preconditioning.v())
    x = jnp.float32([[1.2345678, 0.1]])
    out = d(x, 1.0)  # c_skip = 1/2, c_out = -sqrt(1/2), F = sqrt(1/2) x rounded to bfloat16
    rounded = np.float64(np.asarray(jnp.asarray(np.sqrt(0.5) * x, jnp.bfloat16), np.float32))
    np.testing.assert_allclose(out, 0.5 * np.float64(x) - np.sqrt(0.5) * rounded, rtol=1e-4, atol=1e-7)
    assert out.dtype == jnp.float32


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_mixture_denoiser_is_the_posterior_mean(sigma):
    means, std, weights = np.array([-1.0, 0.2, 2.0]), np.array([0.1, 0.3, 0.2]), np.array([1.0, 2.0, 0.5])
    denoise = dx.gaussian_mixture(means[:, None], std, weights)
    x = np.array([-1.5, 0.0, 0.9, 3.0])
    # E[x_0 | x] by quadrature over x_0 in float64
    grid = np.linspace(-4, 5, 200_001)
    prior = sum(w / s * np.exp(-((grid - m) ** 2) / (2 * s**2)) for m, s, w in zip(means, std, weights, strict=True))
    posterior = prior * np.exp(-((x[:, None] - grid) ** 2) / (2 * sigma**2))
    exact = (posterior * grid).sum(1) / posterior.sum(1)
    np.testing.assert_allclose(denoise(jnp.float32(x[:, None]), sigma)[:, 0], exact, rtol=1e-4, atol=1e-5)


def test_mixture_denoiser_is_stable_far_away_and_near():
    denoise = dx.gaussian_mixture(np.random.default_rng(0).normal(size=(5, 2)), 0.01)
    x = jnp.float32([[1e3, -1e3], [0.0, 0.0]])
    for sigma in (1e-4, 1.0, 1e4):
        assert np.isfinite(denoise(x, sigma)).all()


def test_mixture_takes_lists_of_integers():
    exact = dx.gaussian_mixture(np.array([[-1.0, 0.0], [1.0, 0.0]]), 0.5, np.array([0.3, 0.7]))
    loose = dx.gaussian_mixture([[-1, 0], [1, 0]], 0.5, [0.3, 0.7])
    x = jnp.float32([[0.2, 0.1]])
    np.testing.assert_array_equal(loose(x, 0.5), exact(x, 0.5))


def test_mixture_in_several_dimensions_weighs_unequal_widths_right():
    # two components in 3-D: the posterior probability by scipy's densities in float64
    means, std = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]), np.array([0.2, 0.6])
    x, sigma = np.array([[0.4, 0.5, 0.3]]), 0.3
    total = std**2 + sigma**2
    parts = zip(means, total, strict=True)
    p = np.array([scipy.stats.multivariate_normal(m, t * np.eye(3)).pdf(x[0]) for m, t in parts])
    posterior = means + (std**2 / total)[:, None] * (x - means)
    exact = (p[:, None] * posterior).sum(0) / p.sum()
    np.testing.assert_allclose(dx.gaussian_mixture(means, std)(jnp.float32(x), sigma)[0], exact, rtol=1e-5)


def test_bad_mixtures_are_named():
    with pytest.raises(ValueError, match="std = 0"):
        dx.gaussian_mixture(np.zeros((2, 1)), 0)
    with pytest.raises(ValueError, match="weights"):
        dx.gaussian_mixture(np.zeros((2, 1)), 1.0, np.array([1.0, -1.0]))
