"""The network denoiser against its formula, the exact one against numerical integration."""

import jax
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


# ---- levels: at the limits, and per pixel ---------------------------------------------------------------------------


def exact_v(c):
    """The v of N(0, c^2) data: E[alpha n - sigma_t x_0 | x_t] = alpha sigma_t (1 - c^2) x_t / (alpha^2 c^2 + sigma_t^2)

    alpha^2 / sigma_t^2 = exp(logsnr) = exp(-8 c_noise), so that it is (1 - c^2) x_t / (c^2 e^h + e^-h), h = logsnr / 2.
    """

    def apply(params, x, c_noise, cond):
        half = -4 * c_noise[:, None]
        return (1 - c**2) * x / (c**2 * jnp.exp(half) + jnp.exp(-half))

    return apply


def test_sampling_from_almost_no_signal_at_all():
    """From sigma = 1e17 (logSNR -78) down, where sqrt(sigmoid(logsnr)) has few digits left and later none."""
    denoise = dx.denoiser(exact_v(0.5), None, dx.preconditioning.v())
    x = 1e17 * np.random.default_rng(0).normal(size=(6, 3))
    np.testing.assert_allclose(denoise(jnp.float32(x), 1e17), 0.25 * x / (0.25 + 1e34), rtol=1e-4)
    sigmas = np.append(np.geomspace(1e17, 1e-3, 400), 0.0)
    got = dx.sample(denoise, jnp.float32(x), sigmas, solver=dx.solvers.heun())
    np.testing.assert_allclose(got, 0.5 * x / np.hypot(0.5, 1e17), rtol=0.02)


@pytest.mark.parametrize("name", ["edm", "v", "eps", "flow", "score"])
def test_without_noise_there_is_nothing_to_remove(name):
    x = jnp.float32([[1.5, -2.0]])
    denoise = dx.denoiser(lambda p, x, c, cond: x + c[:, None], None, getattr(dx.preconditioning, name)())
    np.testing.assert_allclose(denoise(x, 0.0), x, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(denoise)(x, 0.0), x, rtol=1e-6)


def test_a_network_with_a_level_per_pixel():
    pre, sigma = dx.preconditioning.edm(0.5), np.array([[[0.3], [4.0]], [[1.0], [0.02]]])
    x = np.random.default_rng(0).normal(size=(2, 2, 3))
    d = dx.denoiser(lambda p, x, c, cond: 0.5 * x + c, None, pre)(jnp.float32(x), jnp.float32(sigma))
    var = sigma**2 + 0.25
    output = 0.5 * x / np.sqrt(var) + np.log(sigma) / 4
    np.testing.assert_allclose(d, 0.25 / var * x + sigma * 0.5 / np.sqrt(var) * output, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 3), (4, 1)])
def test_mixture_with_a_level_per_pixel_is_the_posterior_mean(shape):
    """Each dimension has a level of its own, so the density of a component is a product of unequal normals."""
    random = np.random.default_rng(0)
    means, std, weights = random.normal(size=(2, 3)), np.array([0.3, 0.8]), np.array([1.0, 3.0])
    x, sigma = random.normal(size=(4, 3)), random.uniform(0.1, 2.0, shape)
    each = np.broadcast_to(sigma, x.shape)
    exact = np.zeros_like(x)
    for i in range(4):
        var = std[:, None] ** 2 + each[i] ** 2
        p = weights * np.prod(scipy.stats.norm.pdf(x[i], means, np.sqrt(var)), -1)
        exact[i] = (p[:, None] * (means + std[:, None] ** 2 / var * (x[i] - means))).sum(0) / p.sum()
    denoise = dx.gaussian_mixture(means, std, weights)
    np.testing.assert_allclose(denoise(jnp.float32(x), jnp.float32(sigma)), exact, rtol=1e-4, atol=1e-6)
    whole = denoise(jnp.float32(x), jnp.full((4, 1), 0.7))
    np.testing.assert_allclose(whole, denoise(jnp.float32(x), 0.7), rtol=1e-4, atol=1e-6)
    image = dx.gaussian_mixture(means.reshape(2, 3, 1), std, weights)(jnp.float32(x[..., None]), sigma[..., None])
    np.testing.assert_allclose(image[..., 0], exact, rtol=1e-4, atol=1e-6)


def test_with_x64_a_denoiser_keeps_the_dtype_of_x():
    mixture = dx.gaussian_mixture(np.array([[0.0, 1.0]]), 0.5)
    denoise = dx.denoiser(exact_v(0.5), None, dx.preconditioning.v())
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            x = jnp.ones((2, 2), dtype)
            for f, sigma in ((denoise, 1), (denoise, np.full(2, 0.7)), (mixture, 0.7), (mixture, np.full((2, 2), 0.7))):
                assert jax.eval_shape(f, x, sigma).dtype == dtype
            assert denoise(x, 0.7).dtype == mixture(x, 0.7).dtype == dtype
        exact = np.float64([[0.25, 0.25 + 0.49]]) / 0.74
        np.testing.assert_allclose(mixture(jnp.ones((1, 2), jnp.float64), 0.7), [[exact[0, 0], 1.0]], rtol=1e-12)


def test_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        x = jnp.ones((2, 2))
        for denoise in (dx.gaussian_mixture([[0, 1]], 0.5), dx.denoiser(exact_v(0.5), None, dx.preconditioning.v())):
            np.testing.assert_array_equal(denoise(x, 1), denoise(x, jnp.ones(2)))


# ---- mistakes -------------------------------------------------------------------------------------------------------

X = jnp.ones((64, 1), jnp.float32)
V = dx.preconditioning.v()


def network(apply=lambda p, x, c, cond: x, pre=V):
    return dx.denoiser(apply, None, pre)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: network(lambda p, x, c, cond: x[:, 0])(X, 1.0), "apply gave shape (64,) for x of shape (64, 1)"),
        (lambda: network(lambda p, x, c, cond: None)(X, 1.0), "apply gave None: must be an array"),
        (lambda: network(None), "apply = None: must be a function apply(params, x, c_noise, cond)"),
        (lambda: network(pre=dx.preconditioning.v), "preconditioning = v: is a function: did you forget the parenth"),
        (lambda: network(pre="v"), "preconditioning = 'v': must be a Preconditioning"),
        (lambda: network()(X, np.inf), "sigma = inf: must be finite and >= 0, for x = x_0 + sigma n has no finite"),
        (lambda: network()(X, np.full(64, np.inf)), "truncate the schedule"),
        (lambda: network()(X, -1.0), "sigma = -1.0: must be finite and >= 0"),
        (lambda: network()(X, np.nan), "sigma = nan: must be finite and >= 0"),
        (lambda: network()(X, None), "sigma = None: must be finite and >= 0"),
        (lambda: network()(X, "1"), "sigma = '1': must be finite and >= 0"),
        (lambda: network()(X, jnp.ones(3)), "sigma has shape (3,) for x of shape (64, 1)"),
        (lambda: network()(X, jnp.ones((1, 1))), "sigma has shape (1, 1) for x of shape (64, 1)"),
        (lambda: network()(X.astype(jnp.int32), 1.0), "x is of int32: must be floating-point numbers"),
        (lambda: network()(jnp.float32(1.0), 1.0), "x has shape (): must be [batch, ...]"),
        (lambda: network()(None, 1.0), "x is of object: must be floating-point numbers"),
        (lambda: dx.gaussian_mixture(np.full((2, 1), np.nan), 1.0), "means: 2 of 2 values are not finite"),
        (lambda: dx.gaussian_mixture([[np.nan]], 1.0), "means = [[nan]]: must be finite"),
        (lambda: dx.gaussian_mixture(np.zeros((0, 1)), 1.0), "means has shape (0, 1): must be [components, ...]"),
        (lambda: dx.gaussian_mixture(np.float32(1), 1.0), "must be [components, ...]"),
        (lambda: dx.gaussian_mixture(None, 1.0), "means = None: must be finite"),
        (lambda: dx.gaussian_mixture("a", 1.0), "means = 'a': must be finite"),
        (lambda: dx.gaussian_mixture(np.zeros((2, 1)), np.ones(3)), "std has shape (3,): must be a number or [compo"),
        (lambda: dx.gaussian_mixture(np.zeros((2, 1)), "1"), "std = '1': must be positive"),
        (lambda: dx.gaussian_mixture(np.zeros((2, 1)), 1.0, 1.0), "weights has shape (): must be [components] = (2,)"),
        (lambda: dx.gaussian_mixture(np.zeros((2, 1)), 1.0, [1.0]), "weights has shape (1,): must be"),
        (lambda: dx.gaussian_mixture(np.zeros((2, 1)), 1.0, [1.0, np.nan]), "must be positive"),
        (lambda: dx.gaussian_mixture(np.zeros((2, 1)), 1.0)(jnp.ones((3, 2)), 1.0), "with samples of shape (1,)"),
        (lambda: dx.gaussian_mixture(np.zeros((2, 1)), 1.0)(X, np.inf), "truncate the schedule"),
        (lambda: dx.gaussian_mixture(np.zeros((2, 1), np.float32), 1.0)(X, 1e30), "whose square a float32 holds"),
        (lambda: dx.gaussian_mixture(np.zeros((2, 1)), 1.0)(X, jnp.ones(2)), "sigma has shape (2,) for x of shape"),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_bad_input_is_named(call, words, compiled):
    if compiled and "whose square" in words:
        pytest.skip("rounded by a compiled operation: traced")
    with pytest.raises(ValueError) as error:
        (jax.jit(call) if compiled else call)()
    assert words in str(error.value)
