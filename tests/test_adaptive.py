"""The adaptive sampler: finds the variance-minimising density, and leaves the objective alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx

BASE = dx.schedules.truncate(dx.schedules.cosine(), -8, 8)


def loss_at(logsnr, key):
    """A loss with a narrow peak at logSNR 3, exponentially distributed around its mean."""
    return (0.05 + 4 * jnp.exp(-((logsnr - 3) ** 2))) * jax.random.exponential(key, logsnr.shape)


def trained(steps=400, bins=32):
    @jax.jit
    def step(state, key):
        draw_key, loss_key = jax.random.split(key)
        logsnr = dx.adaptive.schedule(state, BASE)(dx.draws.stratified(draw_key, 64))
        return dx.adaptive.update(state, BASE, loss_at(logsnr, loss_key), logsnr)

    state = dx.adaptive.init(bins)
    for i in range(steps):
        state = step(state, jax.random.key(i))
    return state


def test_before_anything_is_seen_it_is_the_base():
    fresh = dx.adaptive.schedule(dx.adaptive.init(16), BASE)
    u = jnp.float32([0, 0.1, 0.5, 0.93, 1])
    np.testing.assert_allclose(fresh(u), BASE(u), atol=1e-4)
    np.testing.assert_allclose(fresh.density(BASE(u)[1:-1]), BASE.density(BASE(u)[1:-1]), rtol=1e-5)


def test_it_is_a_schedule():
    adapted = dx.adaptive.schedule(trained(50), BASE)
    u = jnp.float32(np.linspace(0, 1, 301))
    lam = np.asarray(adapted(u))
    assert (np.diff(lam) < 0).all()
    np.testing.assert_allclose(adapted.inverse(lam), u, atol=2e-5)
    fine = np.float32(np.linspace(-8, 8, 200_001))
    assert np.trapezoid(np.asarray(adapted.density(fine), np.float64), fine) == pytest.approx(1, abs=1e-3)


def test_it_learns_the_root_of_the_second_moment():
    q = np.asarray(dx.adaptive.probabilities(trained(), floor=0.2))
    # the truth by quadrature over each bin of u: E[L^2] = 2 mean^2 for an exponential
    u = (np.arange(32 * 200) + 0.5) / (32 * 200)
    mean = 0.05 + 4 * np.exp(-((np.asarray(BASE(np.float32(u)), np.float64) - 3) ** 2))
    root = np.sqrt((2 * mean**2).reshape(32, 200).mean(1))
    np.testing.assert_allclose(q, 0.2 / 32 + 0.8 * root / root.sum(), atol=0.035)
    assert q.min() >= 0.2 / 32 and q.sum() == pytest.approx(1, abs=1e-5)


def test_the_estimate_stays_unbiased_and_its_variance_falls():
    adapted = dx.adaptive.schedule(trained(), BASE)

    def estimate(schedule, key):
        draw_key, loss_key = jax.random.split(key)
        logsnr = schedule(dx.draws.iid(draw_key, 64))
        return jnp.mean(loss_at(logsnr, loss_key) * BASE.density(logsnr) / schedule.density(logsnr))

    keys = jax.random.split(jax.random.key(7), 4000)
    plain, better = (np.asarray(jax.jit(jax.vmap(lambda k, s=s: estimate(s, k)))(keys)) for s in (BASE, adapted))
    assert better.mean() == pytest.approx(plain.mean(), abs=4 * plain.std() / np.sqrt(4000))
    assert better.var() < 0.5 * plain.var()


def test_resampled_is_that_correction_as_a_weighting():
    adapted = dx.adaptive.schedule(trained(50), BASE)
    lam = jnp.float32([-5, 0, 3, 6])
    weight = dx.weightings.resampled(dx.weightings.snr(), wanted=BASE, drawn=adapted)(lam)
    np.testing.assert_allclose(weight, np.exp(lam) * BASE.density(lam) / adapted.density(lam), rtol=1e-5)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="bins = 1"):
        dx.adaptive.init(1)
