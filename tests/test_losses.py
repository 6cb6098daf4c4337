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


def test_the_condition_and_the_level_reach_the_network():
    seen = {}

    def apply(params, x, c_noise, cond):
        seen.update(c_noise=c_noise, cond=cond)
        return (0 * x).astype(jnp.bfloat16)

    x0 = np.zeros((8, 2))  # numpy, float64
    loss, aux = dx.losses.denoising(apply, None, jax.random.key(0), x0, "cond")
    assert seen["cond"] == "cond" and loss.dtype == jnp.float32
    np.testing.assert_allclose(seen["c_noise"], -aux.logsnr / 8, rtol=1e-6)


def test_a_schedule_may_differ_by_pixel():
    x0 = jnp.ones((6, 4, 4, 2))
    rate = jnp.linspace(1.0, 5.0, 6 * 16).reshape(6, 4, 4, 1)
    schedule = dx.schedules.per_pixel(dx.schedules.learned_init(jax.random.key(0)), rate)
    pre, w = dx.preconditioning.v(), dx.weightings.min_snr()

    def apply(params, x, c_noise, cond):
        assert c_noise.shape == (6, 4, 4, 1)
        return 0 * x

    _, aux = dx.losses.denoising(
        apply, None, jax.random.key(1), x0, schedule=schedule, preconditioning=pre, weighting=w
    )
    level_key, noise_key = jax.random.split(jax.random.key(1))
    lam = schedule(dx.draws.stratified(level_key, 6))
    n = dx.noise.normal(noise_key, jnp.arange(6), (4, 4, 2))
    a, b = -np.sqrt(1 / (1 + np.exp(np.float64(lam)))), np.sqrt(1 / (1 + np.exp(-np.float64(lam))))  # v = b n + a x0
    target = a * np.float64(x0) + b * np.float64(n)
    sigma_t2 = 1 / (1 + np.exp(np.float64(lam)))  # c_out^2
    expected = np.mean(np.minimum(np.exp(np.float64(lam)), 5) * sigma_t2 * target**2, axis=(1, 2, 3))
    np.testing.assert_allclose(aux.loss, expected, rtol=1e-4)
    np.testing.assert_allclose(aux.logsnr, lam.reshape(6, -1).mean(-1), rtol=1e-5)


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
