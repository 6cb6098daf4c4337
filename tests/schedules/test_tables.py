"""Tables: the levels of published models, and interpolation between entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx

S = dx.schedules


def test_a_table_goes_through_its_entries_and_is_log_linear_between():
    sigmas = np.array([0.03, 0.5, 2.0, 14.0])
    for given in (sigmas, sigmas[::-1]):
        schedule = S.tabulated(given)
        knots = np.linspace(0, 1, 4)
        np.testing.assert_allclose(S.sigma_from_logsnr(schedule(knots)), sigmas, rtol=1e-5)
        u = np.float32(np.linspace(0, 1, 101))
        np.testing.assert_allclose(schedule(u), -2 * np.interp(u, knots, np.log(sigmas)), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(schedule.inverse(schedule(u)), u, atol=2e-6)
        lam = np.float32(np.linspace(-6, 8, 200_001))
        assert np.trapezoid(np.asarray(schedule.density(lam), np.float64), lam) == pytest.approx(1, abs=1e-4)


def test_ddpm_and_stable_diffusion_levels_are_the_published_ones():
    # sigma from 0.0100 to 157.41 (Ho et al. 2020); 0.02917 to 14.6146 (Stable Diffusion)
    ends = np.asarray(S.sigma_from_logsnr(S.linear_betas()(np.array([0.0, 1.0]))))
    np.testing.assert_allclose(ends, [0.0100, 157.41], rtol=1e-3)
    stable = S.scaled_linear_betas()
    np.testing.assert_allclose(S.sigma_from_logsnr(stable(np.array([0.0, 1.0]))), [0.02917, 14.6146], rtol=1e-3)
    # the time steps that diffusers gives for the table of Align Your Steps land on its sigmas
    steps = np.array([999, 850, 736, 645, 545, 455, 343, 233, 124, 24])
    table = np.asarray(S.sigmas(S.align_your_steps("stable_diffusion_15"), 10, final=None))[:-1]
    np.testing.assert_allclose(S.sigma_from_logsnr(stable(np.float32(steps / 999))), table, rtol=4e-3)


@pytest.mark.parametrize(
    ("model", "published"),
    [  # Sabour et al. 2024, supplement
        ("stable_diffusion_15", [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]),
        ("stable_diffusion_xl", [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029]),
        ("deepfloyd_if", [160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030, 0.006]),
        ("stable_video_diffusion", [700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002]),
    ],
)
def test_the_ten_published_steps(model, published):
    grid = S.sigmas(S.align_your_steps(model), 10, final=None)
    np.testing.assert_allclose(grid, published, rtol=2e-6)


def test_align_your_steps_interpolates_to_any_number():
    grid = np.asarray(S.sigmas(S.align_your_steps(), 20, final=None))
    published = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]
    np.testing.assert_allclose(grid[::2], published, rtol=1e-4)
    np.testing.assert_allclose(grid[1], np.sqrt(published[0] * published[1]), rtol=1e-4)


def test_continuous_and_discrete_ddpm_agree():
    # beta(t) = 1000 beta_i: the same process in the limit
    u = np.float32(np.linspace(0.1, 1, 50))
    np.testing.assert_allclose(S.linear_betas()(u), S.linear_beta(0.1, 20.0)(u), atol=0.1)


def test_tables_differentiate():
    slope = jax.grad(lambda s: S.tabulated(jnp.array([0.1, 1.0, 10.0]) * s)(0.25))(2.0)
    np.testing.assert_allclose(slope, -2 / 2.0, rtol=1e-5)  # d(-2 log s)


@pytest.mark.parametrize("order", [1, -1])
def test_a_traced_table_may_have_either_order(order):
    sigmas = jnp.float32([0.03, 0.5, 2.0, 14.0])[::order]
    for u, sigma in ((0.0, 0.03), (1 / 3, 0.5), (0.5, 1.0), (1.0, 14.0)):
        got = jax.jit(lambda s, u=u: S.sigma_from_logsnr(S.tabulated(s)(u)))(sigmas)
        np.testing.assert_allclose(got, sigma, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda s: S.tabulated(s).density(0.3))(sigmas), S.tabulated(sigmas).density(0.3))
    with pytest.raises(ValueError, match=r"sigmas has shape \(\): must be \[k\]"):
        jax.jit(lambda s: S.tabulated(s[0])(0.5))(sigmas)


def test_traced_betas_are_tabulated():
    betas = np.linspace(1e-3, 0.02, 50)
    lam = jax.jit(lambda b: S.from_betas(b)(jnp.float32([0, 0.3, 1])))(jnp.float32(betas))
    np.testing.assert_allclose(lam, S.from_betas(betas)([0, 0.3, 1]), rtol=1e-5)
    signal = np.prod(1 - betas)
    np.testing.assert_allclose(lam[-1], np.log(signal / (1 - signal)), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: S.tabulated([1.0, 3.0, 2.0]), "strictly ascending or strictly descending"),
        (lambda: S.tabulated([1.0, 1.0]), "strictly ascending"),
        (lambda: S.tabulated([1.0]), "sigmas has shape (1,)"),
        (lambda: S.tabulated([0.0, 1.0]), "must be positive"),
        (lambda: S.from_betas([0.1, 1.0]), "betas contains 1.0: each must lie in (0, 1)"),
        (lambda: S.from_betas([0.1, -0.2]), "betas contains -0.2"),
        (lambda: S.from_betas([0.1, np.nan]), "betas contains nan"),
        (lambda: S.from_betas(0.1), "betas has shape ()"),
        (lambda: S.tabulated([5.0, 5 + 1e-9]), "of the same logSNR in float32: must be farther apart"),
        (lambda: S.from_betas([0.1, 1e-12]), "betas[1] = 1e-12: must be large enough to lower logSNR"),
        (lambda: S.linear_betas(steps=1), "steps = 1"),
        (lambda: S.linear_betas(beta_end=2.0), "beta_end = 2.0: must lie in (0, 1)"),
        (lambda: S.scaled_linear_betas(beta_end=1.5), "beta_end = 1.5"),
        (lambda: S.align_your_steps("stable_diffusion_xxl"), "did you mean 'stable_diffusion_xl'"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)
