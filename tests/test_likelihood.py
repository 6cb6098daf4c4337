"""Likelihoods against truths computed in numpy float64: Gaussians, mixtures, data on levels.

Estimates by random draws are held to four standard errors, which the tests also require to be small.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx
from diffax import likelihood

KEY = jax.random.key(0)
LOW, HIGH = -12.0, 14.0
SCHEDULES = {
    "cosine": dx.schedules.cosine(),
    "edm": dx.schedules.edm(),
    "flow": dx.schedules.flow(),
    "karras": dx.schedules.karras(1e-4, 1e3),
    "laplace": dx.schedules.laplace(1.0, 1.5),
    "uniform": dx.schedules.uniform(LOW, HIGH),
}


def truncated(name, low=LOW, high=HIGH):
    return dx.schedules.truncate(SCHEDULES[name], low, high)


def gaussian(c, mean=0.0):
    """The denoiser of N(mean, c^2 I); c and mean may differ by sample."""

    def denoise(x, sigma):
        var = (c**2 + jnp.broadcast_to(sigma, x.shape[:1]) ** 2).reshape(-1, *[1] * (x.ndim - 1))
        return mean + c**2 / var * (x - mean)

    return denoise


def gaussian_bits(x, c):
    x = np.float64(x)
    return (x**2 / (2 * c**2) + np.log(2 * np.pi * c**2) / 2).reshape(len(x), -1).mean(1) / np.log(2)


class Mixture:
    """Three Gaussians in d dimensions: samples, exact bits/dim, and the denoiser."""

    def __init__(self, dim):
        self.means = np.array([[-0.8, 0.5], [0.1, -0.3], [0.9, 0.6]])[:, :dim]
        self.std, self.weights, self.dim = np.array([0.15, 0.3, 0.2]), np.array([1, 2, 1.5]) / 4.5, dim
        self.denoise = dx.gaussian_mixture(np.float32(self.means), self.std, self.weights)

    def sample(self, n):
        rng = np.random.default_rng(1)
        k = rng.choice(3, size=n, p=self.weights)
        return jnp.float32(self.means[k] + self.std[k, None] * rng.normal(size=(n, self.dim)))

    def bits(self, x):
        distance = ((np.float64(x)[:, None] - self.means) ** 2).sum(-1)
        each = self.weights * np.exp(-distance / (2 * self.std**2)) / (2 * np.pi * self.std**2) ** (self.dim / 2)
        return -np.log2(each.sum(1)) / self.dim


def elbo(denoise, x, key=KEY, **options):
    return jax.tree.map(np.asarray, jax.jit(lambda x: likelihood.elbo_bits_per_dim(denoise, x, key, **options))(x))


def ode(denoise, x, key=None, *, sigma_min=3e-4, sigma_max=2000.0, **options):
    options |= {"sigma_min": sigma_min, "sigma_max": sigma_max}
    return jax.tree.map(np.asarray, jax.jit(lambda x: likelihood.ode_bits_per_dim(denoise, x, key, **options))(x))


def assert_mean(error, at_most):
    """The mean of independent errors is 0 within four standard errors, and one is at most `at_most`."""
    se = error.std() / np.sqrt(len(error))
    assert 0 < se < at_most and abs(error.mean()) < 4 * se, (error.mean(), se)


@functools.cache
def normal(n, dim, std):
    return jnp.float32(std * np.random.default_rng(0).normal(size=(n, dim)))


# ---- the bound ----------------------------------------------------------------------------------------------------


def test_bound_of_a_gaussian_is_its_entropy_and_each_part_its_closed_form():
    c, x = 0.7, normal(500, 3, 0.7)
    r = elbo(gaussian(c), x, schedule=truncated("uniform", high=10.0), draws=1, sigma_data=c)
    np.testing.assert_allclose(r.bits, gaussian_bits(x, c), atol=5e-4)  # of each sample
    # VDM's N(0, I) as prior; x^2 is c^2 on average, so the parts are those of the reference
    x = jnp.full((1, 4), c)
    r = elbo(gaussian(c), x, schedule=truncated("uniform"), draws=16, sigma_data=c)
    vdm = elbo(gaussian(c), x, schedule=truncated("uniform", -2.0), draws=1)
    a2, s2 = 1 / (1 + np.exp(2.0)), 1 / (1 + np.exp(-2.0))
    np.testing.assert_allclose(vdm.prior, (a2 * c**2 + s2 - 1 - np.log(s2)) / 2 / np.log(2), rtol=1e-5)
    integral = (np.logaddexp(0, HIGH + 2 * np.log(c)) - np.logaddexp(0, LOW + 2 * np.log(c))) / 2
    np.testing.assert_allclose(r.diffusion, integral / np.log(2), rtol=2e-5)
    np.testing.assert_allclose(r.reconstruction, (np.log(2 * np.pi) - HIGH + 1) / 2 / np.log(2), rtol=1e-5)
    np.testing.assert_allclose(r.bits, np.log2(2 * np.pi * np.e * c**2) / 2, atol=2e-4)
    np.testing.assert_allclose(r.bits, r.prior + r.diffusion + r.reconstruction, rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_gives_the_cross_entropy(name):
    # data N(0, 0.7^2), model N(0, 0.5^2), control variate of neither
    x = normal(4096, 4, 0.7)
    r = elbo(gaussian(0.5), x, schedule=truncated(name), draws=128)
    assert_mean(r.bits - gaussian_bits(x, 0.5), at_most=4e-3)


def test_nothing_but_the_noise_of_the_estimate_depends_on_sigma_data():
    x = normal(4096, 2, 0.7)
    a, b = (elbo(gaussian(0.6), x, schedule=truncated("edm"), draws=128, sigma_data=c) for c in (0.4, 2.0))
    assert_mean(a.diffusion - b.diffusion, at_most=8e-3)


@pytest.mark.parametrize("dim", [1, 2])
def test_bound_of_a_mixture_is_its_log_density(dim):
    mixture = Mixture(dim)
    x = mixture.sample(2**14)
    schedule = dx.schedules.truncate(dx.schedules.edm(-1.8, 1.3), LOW, HIGH)
    error = elbo(mixture.denoise, x, schedule=schedule, draws=512, sigma_data=0.75).bits - mixture.bits(x)
    assert_mean(error, at_most=1e-3)


def test_bound_of_a_worse_denoiser_is_looser_by_its_squared_error():
    c, shrink, high = 0.7, 0.9, 4.0
    x = normal(8192, 2, c)
    options = {"schedule": truncated("edm", high=high), "draws": 128, "sigma_data": c}
    worse = elbo(lambda x, sigma: shrink * gaussian(c)(x, sigma), x, **options)
    best = elbo(gaussian(c), x, **options)
    logsnr = np.linspace(LOW, high, 100_001)
    integrand = (1 - shrink) ** 2 * c**4 * np.exp(2 * logsnr) / (1 + c**2 * np.exp(logsnr))
    excess = np.trapezoid(integrand, logsnr) / 2 / np.log(2)
    assert_mean(worse.bits - best.bits - excess, at_most=6e-3)
    assert excess > 0.1


@pytest.mark.parametrize("steps", [4, 32])
def test_bound_in_steps_is_the_sum_over_steps(steps):
    c, schedule = 0.7, truncated("flow", -6.0, 6.0)
    x = normal(4096, 4, c)
    r = elbo(gaussian(c), x, schedule=schedule, steps=steps, draws=256)
    logsnr = np.float64(schedule(np.arange(steps + 1) / steps))
    a = 1 / (1 + np.exp(-logsnr[1:]) / c**2)
    error = a**2 + (np.float64(x) ** 2).mean(1)[:, None] * a * (1 - a) / c**2  # of eps, by sample and step
    nats = (np.expm1(-np.diff(logsnr)) * error).sum(1) / 2
    assert_mean(r.diffusion - nats / np.log(2), at_most=2e-2)


def test_bound_in_steps_falls_to_the_continuous_one():
    x, schedule = normal(64, 4, 0.7), truncated("uniform")
    options = {"schedule": schedule, "draws": 1, "sigma_data": 0.7}
    continuous, *bits = (elbo(gaussian(0.7), x, steps=t, **options).bits.mean() for t in (None, 1000, 4000))
    # to first order in the step: 1/2 expm1(step) f at the noisy end, against the integral of f / 2, f from 0 to 1
    area = np.logaddexp(0, HIGH + 2 * np.log(0.7))
    gap = (HIGH - LOW) / np.array([1000, 4000]) / 4 * (area - 1) / np.log(2)
    np.testing.assert_allclose(np.array(bits) - continuous, gap, rtol=0.02)


def test_bound_has_the_gradient_of_the_cross_entropy():
    x = normal(2048, 2, 0.7)
    f = lambda c: likelihood.elbo_bits_per_dim(gaussian(c), x, KEY, schedule=truncated("edm"), draws=128).bits.mean()
    exact = (1 / 0.5 - (np.float64(x) ** 2).mean() / 0.5**3) / np.log(2)
    np.testing.assert_allclose(jax.jit(jax.grad(f))(0.5), exact, rtol=0.02)


# ---- data on levels -----------------------------------------------------------------------------------------------

P = np.array([0.5, 0.25, 0.15, 0.1])
VALUES = np.linspace(-1, 1, 4)
SPACING = 2 / 3


def categorical(x, sigma):
    """The exact denoiser of one number that is VALUES[k] with probability P[k]."""
    sigma = jnp.broadcast_to(sigma, x.shape[:1])[:, None]
    r = jax.nn.softmax(np.log(P) - (x - VALUES) ** 2 / (2 * sigma**2), axis=1)
    return (r * VALUES).sum(1, keepdims=True)


def levels_of(n):
    """Each level as often as it is probable: its numbers, and x0 [n, 1]."""
    k = np.repeat(np.arange(4), np.round(P * n).astype(int))
    return k, jnp.float32(2 * k[:, None] - 3) / 3


def test_discretised_bound_is_the_entropy_of_the_levels():
    k, x = levels_of(8000)
    schedule = truncated("laplace", high=-2 * np.log(SPACING / 8))
    r = elbo(categorical, x, schedule=schedule, levels=4, draws=512)
    for level in range(4):  # -log2 P of each level, not only on average
        assert_mean((r.bits + np.log2(P[k]))[k == level], at_most=1.5e-2)
    assert_mean(r.bits + np.log2(P[k]), at_most=5e-3)  # the mean of -log2 P is the entropy
    assert (r.reconstruction > -1e-6).all() and r.reconstruction.mean() < 1e-3


def test_discretised_reconstruction_against_quadrature():
    k, x = levels_of(4000)
    sigma = SPACING / 2
    r = elbo(categorical, x, schedule=truncated("laplace", high=-2 * np.log(sigma)), levels=4, draws=512)
    n, w = np.polynomial.hermite_e.hermegauss(80)
    logits = -((VALUES[:, None, None] + sigma * n[:, None] - VALUES) ** 2) / (2 * sigma**2)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    exact = np.array([-(np.log2(p[i, :, i]) * w).sum() / w.sum() for i in range(4)])
    assert_mean(r.reconstruction - exact[k], at_most=1e-3)
    assert r.bits.mean() > -(P * np.log2(P)).sum() + 0.01  # a coarse decoder costs


def test_dequantised_bits_are_those_of_the_cells():
    c = 0.8
    k, x = levels_of(8000)
    # -log2 q averaged over the cell, and log2 of its width
    cell = VALUES[:, None] + SPACING * ((np.arange(10_000) + 0.5) / 10_000 - 0.5)
    exact = (gaussian_bits(cell.reshape(-1, 1), c).reshape(4, -1).mean(1) - np.log2(SPACING))[k]
    bound = elbo(gaussian(c), x, schedule=truncated("edm"), levels=4, dequantise=True, draws=64)
    flow = ode(gaussian(c), x, KEY, levels=4, rtol=1e-4, atol=1e-4)
    assert_mean(bound.bits - exact, at_most=6e-3)
    assert_mean(flow.bits - exact, at_most=6e-3)
    np.testing.assert_allclose(flow.cell, np.log2(3 / 2), rtol=1e-6)
    assert min(bound.bits.mean(), flow.bits.mean()) > -(P * np.log2(P)).sum()


def test_eight_bit_images_have_cells_of_two_255ths():
    x, options = jnp.full((2, 2, 2, 1), 2 * 100 / 255 - 1), {"schedule": truncated("uniform"), "draws": 1}
    density = elbo(gaussian(0.5), x, **options)
    bits = elbo(gaussian(0.5), x, levels=256, dequantise=True, **options)
    np.testing.assert_allclose(bits.reconstruction - density.reconstruction, np.log2(255 / 2), rtol=1e-5)


# ---- the ODE ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma_data", [0.7, 1.0, 0.2])
def test_ode_of_a_gaussian_is_its_log_density(sigma_data):
    x = normal(64, 4, 0.7).reshape(64, 2, 2, 1)
    r = ode(gaussian(0.7), x, sigma_data=sigma_data)
    np.testing.assert_allclose(r.bits, gaussian_bits(x, 0.7), atol=5e-4)
    np.testing.assert_allclose(r.bits, r.base + r.divergence + r.cell, rtol=1e-6)
    # at the end x is scaled by sqrt((sigma_max^2 + c^2) / (sigma_min^2 + c^2))
    scale, end = np.sqrt((2000**2 + 0.49) / (3e-4**2 + 0.49)), 2000**2 + sigma_data**2
    np.testing.assert_allclose(r.divergence, -np.log2(scale), rtol=1e-4)
    np.testing.assert_allclose(r.base, gaussian_bits(scale * np.float64(x), np.sqrt(end)), rtol=1e-4)


@pytest.mark.parametrize("dim", [1, 2])
def test_ode_of_a_mixture_is_its_log_density(dim):
    mixture = Mixture(dim)
    x = mixture.sample(512)
    error = ode(mixture.denoise, x).bits - mixture.bits(x)
    assert abs(error).max() < 1e-3 and abs(error.mean()) < 1e-4


def test_ode_is_a_normalised_density_of_any_denoiser():
    x = np.linspace(-8, 8, 1601)
    r = ode(
        lambda x, sigma: jnp.tanh(3 * x) / (1 + sigma[:, None]), jnp.float32(x[:, None]), sigma_min=0.05, sigma_max=50
    )
    np.testing.assert_allclose(np.trapezoid(2.0**-r.bits, x), 1, atol=1e-3)


def test_ode_of_a_wrong_denoiser_is_above_the_entropy_and_so_is_its_bound():
    mixture, options = Mixture(1), {"schedule": truncated("edm", high=6.0), "draws": 256, "sigma_data": 0.75}
    x = mixture.sample(4096)
    wrong = lambda x, sigma: mixture.denoise(x + 0.1 * jnp.sin(5 * x), sigma)
    truth = mixture.bits(x).mean()
    assert ode(wrong, x, sigma_min=np.exp(-3.0), sigma_max=400.0, rtol=1e-4, atol=1e-4).bits.mean() > truth + 0.01
    assert elbo(wrong, x, **options).bits.mean() > elbo(mixture.denoise, x, **options).bits.mean() + 0.01


COV = np.array([[0.5, 0.3, 0.1], [0.3, 0.4, -0.1], [0.1, -0.1, 0.3]])


def correlated(cov):
    var, axes = (jnp.float32(a) for a in np.linalg.eigh(cov))

    def denoise(x, sigma):
        return (x @ axes * var / (var + sigma[:, None] ** 2)) @ axes.T

    return denoise


def test_hutchinson_is_unbiased_and_exact_with_the_exact_trace():
    cov = COV
    row = np.random.default_rng(0).multivariate_normal(np.zeros(3), cov)
    exact = (row @ np.linalg.solve(cov, row) + np.linalg.slogdet(2 * np.pi * cov)[1]) / 2 / 3 / np.log(2)
    x = jnp.tile(jnp.float32(row), (2048, 1))  # one point under many probes
    np.testing.assert_allclose(ode(correlated(cov), x[:2]).bits, exact, atol=1e-3)
    one = ode(correlated(cov), x, KEY, probes=1, rtol=1e-4, atol=1e-4).bits - exact
    many = ode(correlated(cov), x[:512], KEY, probes=16, rtol=1e-4, atol=1e-4).bits - exact
    assert_mean(one, at_most=2e-2)
    assert_mean(many, at_most=1e-2)
    np.testing.assert_allclose(many.std() / one.std(), 1 / 4, rtol=0.15)


def test_denoisers_with_a_condition_of_the_batch():
    x, mean, c = normal(8, 3, 0.7), np.linspace(-0.5, 0.5, 8)[:, None], 0.6
    exact = gaussian_bits(x - mean, c)
    np.testing.assert_allclose(ode(gaussian(c, jnp.float32(mean)), x, sigma_max=1e4).bits, exact, atol=1e-3)


def test_a_failed_sample_is_nan_and_its_neighbours_are_not():
    x = normal(6, 2, 0.7)
    broken = lambda x, sigma: jnp.where(jnp.arange(6)[:, None] == 2, jnp.nan, gaussian(0.7)(x, sigma))
    r = ode(broken, x)
    np.testing.assert_array_equal(np.isnan(r.bits), np.arange(6) == 2)
    assert r.evaluations[2] < 100
    assert np.isnan(ode(gaussian(0.7), x, max_steps=3).bits).all()


def test_a_looser_tolerance_costs_less():
    mixture = Mixture(2)
    tight, loose = (ode(mixture.denoise, mixture.sample(64), rtol=tol, atol=tol) for tol in (1e-6, 1e-3))
    assert loose.evaluations.mean() < 0.8 * tight.evaluations.mean() < 200
    assert len(set(tight.evaluations)) > 1  # each sample has steps of its own


# ---- both ---------------------------------------------------------------------------------------------------------


SLICES = (slice(0, 8), None), (slice(0, 3), None), (slice(3, 8), jnp.arange(3, 8))
BOTH = {
    "continuous": lambda x, index: elbo(gaussian(0.6), x, schedule=truncated("uniform"), draws=8, index=index),
    "steps": lambda x, index: elbo(gaussian(0.6), x, schedule=truncated("uniform"), steps=10, draws=8, index=index),
    "discretised": lambda x, index: elbo(gaussian(0.6), x, schedule=truncated("uniform"), levels=16, index=index),
    "dequantised": lambda x, index: elbo(
        gaussian(0.6), x, schedule=truncated("uniform"), levels=16, dequantise=True, index=index
    ),
    "ode": lambda x, index: ode(correlated(COV), x, KEY, probes=2, levels=16, index=index),
}


@pytest.mark.parametrize("name", BOTH)
def test_results_do_not_depend_on_the_batch(name):
    x = jnp.float32(2 * np.random.default_rng(0).integers(16, size=(8, 3)) - 15) / 15
    x = x.at[1:4].set(x[0])
    whole, first, last = (BOTH[name](x[at], index) for at, index in SLICES)
    np.testing.assert_allclose(first.bits, whole.bits[:3], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(last.bits, whole.bits[3:], rtol=1e-4, atol=1e-4)
    assert (abs(np.diff(whole.bits[:4])) > 1e-3).all()  # and every sample has random numbers of its own


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": dx.schedules.cosine()}, "schedule has logSNR -inf to inf: must have finite ends"),
        ({"schedule": dx.schedules.edm()}, "finite ends"),
        ({"draws": 0}, "draws = 0: must be an integer from 1 to 100000"),
        ({"draws": 10**7}, "draws = 10000000: must be an integer from 1 to 100000"),
        ({"steps": 2.5}, r"steps = 2\.5: must be an integer from 1 to 100000"),
        ({"steps": 10**9}, "steps = 1000000000: must be an integer from 1 to 100000"),
        ({"levels": 1}, "levels = 1: must be an integer from 2 to 65536"),
        ({"levels": 2.5}, r"levels = 2\.5: must be an integer from 2"),
        ({"dequantise": "yes"}, "dequantise = 'yes': must be one of True, False"),
        ({"schedule": dx.schedules.edm}, "schedule = edm: is a function: did you forget the parentheses"),
        ({"schedule": None}, "schedule = None: must be a Schedule"),
        ({"key": None}, "key = None: must be a JAX key"),
        ({"key": 0}, "key = 0: must be a JAX key"),
        ({"index": jnp.arange(3)}, r"index has shape \(3,\): must be \[batch\] = \(2,\)"),
        ({"index": np.zeros(2, np.float32)}, "index is of float32: must be integers"),
        ({"sigma_data": "1"}, "sigma_data = '1': must be positive"),
        ({"sigma_data": np.ones(2)}, r"sigma_data has shape \(2,\): must be one number"),
        ({"x0": np.zeros((2, 3), np.uint8)}, "x0 is of uint8: must be floating-point numbers: scale pictures"),
        ({"x0": jnp.full((2, 3), np.nan)}, "x0: 6 of 6 values are not finite"),
        ({"x0": None}, "x0"),
        ({"denoise": None}, "denoise = None: must be a function"),
        ({"levels": 7}, "x0 is not on the levels of levels = 7"),
        ({"dequantise": True}, "dequantise = True: must come with levels"),
        ({"sigma_data": 0.0}, r"sigma_data = 0\.0: must be positive"),
    ],
)
def test_bad_arguments_of_the_bound(options, message):
    options = {"schedule": truncated("edm")} | options
    options = {"denoise": gaussian(1.0), "x0": jnp.full((2, 3), 0.2), "key": KEY} | options
    with pytest.raises(ValueError, match=message):
        likelihood.elbo_bits_per_dim(**options)


def test_infinite_ends_are_found_under_jit():
    with pytest.raises(ValueError, match="finite ends"):
        elbo(gaussian(1.0), jnp.zeros((2, 3)), schedule=dx.schedules.cosine())
    pixels = dx.schedules.per_pixel(dx.schedules.learned_init(KEY), jnp.ones((3,)))
    with pytest.raises(ValueError, match=r"logSNR of shape \(3,\): must have one"):
        elbo(gaussian(1.0), jnp.zeros((2, 3)), schedule=pixels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma_min": 0.0}, r"sigma_min = 0\.0: must be positive"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, r"sigma_min = 3\.0: must be less than sigma_max = 2\.0"),
        ({"sigma_max": np.inf}, "sigma_max = inf: must be positive and finite"),
        ({"sigma_max": 1e30}, r"sigma_max = 1e\+30: must lie in"),
        ({"sigma_min": None}, "sigma_min = None: must be positive"),
        ({"probes": 0}, "probes = 0: must be an integer from 1 to 10000"),
        ({"key": "zzz"}, "key = 'zzz': must be a JAX key"),
        ({"index": [0, 1, 2]}, r"index has shape \(3,\)"),
        ({"probes": 1}, "key = None: must be a JAX key"),
        ({"levels": 16}, "key = None: must be a JAX key"),
        ({"rtol": -1.0}, r"rtol = -1\.0: must be positive"),
        ({"max_steps": 0}, "max_steps = 0: must be an integer from 1"),
    ],
)
def test_bad_arguments_of_the_ode(options, message):
    options = {"sigma_min": 0.01, "sigma_max": 80.0} | options
    with pytest.raises(ValueError, match=message):
        likelihood.ode_bits_per_dim(gaussian(1.0), jnp.full((2, 3), 0.2), **options)


BOUNDS = {
    "elbo": lambda denoise, x, index: likelihood.elbo_bits_per_dim(
        denoise, x, KEY, schedule=truncated("edm"), draws=4, index=index
    ),
    "elbo in steps": lambda denoise, x, index: likelihood.elbo_bits_per_dim(
        denoise, x, KEY, schedule=truncated("edm"), draws=4, steps=4, index=index
    ),
    "elbo of levels": lambda denoise, x, index: likelihood.elbo_bits_per_dim(
        denoise, x, KEY, schedule=truncated("edm"), draws=4, levels=4, index=index
    ),
    "ode": lambda denoise, x, index: likelihood.ode_bits_per_dim(
        denoise, x, sigma_min=0.01, sigma_max=80.0, rtol=1e-3, atol=1e-3, index=index
    ),
    "ode with probes": lambda denoise, x, index: likelihood.ode_bits_per_dim(
        denoise, x, KEY, sigma_min=0.01, sigma_max=80.0, probes=2, levels=4, rtol=1e-3, atol=1e-3, index=index
    ),
}


@pytest.mark.parametrize("output", [lambda x: x[:, 0], lambda x: x[:, :1], lambda x: x[:1], lambda x: None])
@pytest.mark.parametrize("name", ["elbo", "ode"])
def test_an_output_of_another_shape_is_refused(name, output):
    """[4, 1] - [4] would be broadcast to [4, 4], silently."""
    with pytest.raises(ValueError, match=r"denoise gave .*: must be"):
        BOUNDS[name](lambda x, sigma: output(x), jnp.full((4, 2), 1 / 3), None)


@pytest.mark.parametrize("name", BOUNDS)
def test_the_dtype_is_that_of_the_data(name):
    """With 64 bits enabled too, whatever the denoiser and the schedule give; in float64 the numbers are the same."""
    x = np.float32([[1 / 3, -1], [-1 / 3, 1 / 3], [1, -1], [1, 1 / 3]])
    narrow = BOUNDS[name](gaussian(0.7), x, None)
    with jax.enable_x64(True):

        def denoise(x, sigma):
            return gaussian(jnp.asarray(0.7, x.dtype))(x, sigma).astype(jnp.float64)

        with jax.numpy_dtype_promotion("strict"):
            wide = BOUNDS[name](denoise, x, None)
        widest = BOUNDS[name](denoise, x.astype(np.float64), None)
    assert {leaf.dtype for leaf in wide[:4]} == {np.dtype(np.float32)}
    assert {leaf.dtype for leaf in widest[:4]} == {np.dtype(np.float64)}
    # The noise is another with 64 bits; what does not depend on it is not.
    np.testing.assert_allclose(wide[0 if name == "ode" else 1], narrow[0 if name == "ode" else 1], rtol=1e-3)
    if name == "ode":
        np.testing.assert_allclose(widest.bits, narrow.bits, rtol=1e-3)


@pytest.mark.parametrize("name", BOUNDS)
def test_shards_at_the_defaults_of_shard_map(name):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    rows = jax.sharding.PartitionSpec("data")
    x, index = jnp.float32([[1 / 3, -1], [-1 / 3, 1 / 3], [1, -1], [1, 1 / 3]]), jnp.arange(4)

    def bits(x, index):
        return BOUNDS[name](gaussian(0.7), x, index)

    split = jax.jit(jax.shard_map(bits, mesh=mesh, in_specs=(rows, rows), out_specs=rows))(x, index)
    for part, whole in zip(split, bits(x, index), strict=True):
        np.testing.assert_allclose(part, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["elbo", "ode with probes"])
def test_keys_of_every_implementation_give_each_sample_its_own(name):
    x = jnp.full((4, 2), 1 / 3)
    for impl in ("rbg", "unsafe_rbg"):
        with jax.default_prng_impl(impl):
            key = jax.random.key(3, impl=impl)
            bound = {
                "elbo": lambda x, index, key=key: likelihood.elbo_bits_per_dim(
                    gaussian(0.7), x, key, schedule=truncated("edm"), draws=2, sigma_data=0.3, index=index
                ),
                "ode with probes": lambda x, index, key=key: likelihood.ode_bits_per_dim(
                    correlated(COV[:2, :2]), x, key, sigma_min=0.1, sigma_max=9.0, probes=1, levels=4, index=index
                ),
            }[name]
            whole, last = bound(x, None).bits, bound(x[2:], jnp.arange(2, 4)).bits
        assert len(set(np.asarray(whole).tolist())) == 4
        np.testing.assert_allclose(last, whole[2:], rtol=1e-4, atol=1e-4)


def test_empty_data_is_refused():
    with pytest.raises(ValueError, match=r"x0 has shape \(0, 3\)"):
        likelihood.ode_bits_per_dim(gaussian(1.0), jnp.zeros((0, 3)), sigma_min=0.1, sigma_max=1.0)
