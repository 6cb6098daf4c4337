"""The loss against its definition, and against the exact value for Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx


def linear(params, x, c_noise, cond):
    return params * x + c_noise[:, None]


@pytest.mark.parametrize("pre", [dx.preconditioning.edm(0.7), dx.preconditioning.v(), dx.preconditioning.eps()])
@pytest.mark.parametrize("weighting", [dx.weightings.uniform(), dx.weightings.min_snr(5.0)])
def test_it_is_the_weighted_error_of_the_denoiser(pre, weighting):
    key, x0 = jax.random.key(3), jnp.float32(np.random.default_rng(0).normal(size=(64, 5)))
    schedule = dx.schedules.truncate(dx.schedules.cosine(), -4, 4)
    loss, aux = dx.losses.denoising(linear, 0.3, key, x0, schedule=schedule, preconditioning=pre, weighting=weighting)
    # the same noise, through the denoiser, in numpy float64
    _, noise_key = jax.random.split(key)
    n = np.float64(dx.noise.normal(noise_key, jnp.arange(64), (5,)))
    lam = np.float64(aux.logsnr)
    sigma = np.exp(-lam / 2)[:, None]
    c = [np.float64(a)[:, None] for a in pre(lam)]
    x = np.float64(x0) + sigma * n
    d = c[1] * x + c[2] * (0.3 * c[0] * x + c[3])
    expected = np.float64(weighting(lam)) * np.mean((d - np.float64(x0)) ** 2, -1)
    np.testing.assert_allclose(aux.loss, expected, rtol=2e-4)
    np.testing.assert_allclose(loss, expected.mean(), rtol=2e-4)


def test_the_optimal_denoiser_of_gaussian_data_reaches_the_known_minimum():
    # x_0 ~ N(0, c^2): E|D - x_0|^2 = c^2 sigma^2 / (c^2 + sigma^2); with EDM at sigma_data = c, F = 0 is optimal and
    # its weighted loss is 1 at every level.
    x0 = 0.5 * jax.random.normal(jax.random.key(0), (20_000, 4))
    loss, aux = dx.losses.denoising(lambda p, x, *_: 0 * x, None, jax.random.key(1), x0)
    assert float(loss) == pytest.approx(1, abs=0.02)
    for low, high in [(-3, 0), (0, 3), (3, 6)]:
        inside = (aux.logsnr >= low) & (aux.logsnr < high)
        assert float(aux.loss[inside].mean()) == pytest.approx(1, abs=0.05)


def test_levels_follow_the_density():
    x0 = jnp.zeros((4000, 1))
    schedule = dx.schedules.laplace(0.5, 0.7)
    _, aux = dx.losses.denoising(linear, 1.0, jax.random.key(0), x0, schedule=schedule)
    for lam in (-1.0, 0.5, 2.0):
        share = float((aux.logsnr > lam).mean())
        assert share == pytest.approx(float(schedule.inverse(lam)), abs=2e-3)  # i.i.d. draws would scatter by 8e-3


def test_stratified_draws_fill_every_stratum_and_stay_inside():
    u = np.asarray(dx.losses.stratified(jax.random.key(0), 1000))
    assert (np.floor(u * 1000) == np.arange(1000)).all() and (u > 0).all() and (u < 1).all()
    firsts = [float(dx.losses.stratified(jax.random.key(s), 2)[0]) for s in range(400)]
    assert np.mean(firsts) == pytest.approx(0.25, abs=0.02)


def test_nothing_is_infinite_at_extreme_levels():
    x0 = jnp.ones((256, 3))
    for pre in (dx.preconditioning.edm(), dx.preconditioning.v(), dx.preconditioning.flow()):
        schedule = dx.schedules.truncate(dx.schedules.flow(), -20, 20)
        loss, grads = jax.value_and_grad(
            lambda p, pre=pre, schedule=schedule: dx.losses.denoising(
                linear, p, jax.random.key(0), x0, schedule=schedule, preconditioning=pre
            )[0]
        )(0.1)
        assert np.isfinite(loss) and np.isfinite(grads)
