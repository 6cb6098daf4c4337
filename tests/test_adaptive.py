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


def test_a_step_by_hand():
    """Four samples in two bins of eight: m' = d^n m + (1 - d) sum L^2, and the same of the weights."""
    base = dx.schedules.uniform(0.0, 8.0)
    state = dx.adaptive.Adaptive(jnp.full(8, 2.0), jnp.full(8, 3.0))
    loss, logsnr = jnp.float32([1.0, 2.0, np.nan, 5.0]), jnp.float32([7.5, 7.25, 7.9, 0.5])
    got = dx.adaptive.update(state, base, loss, logsnr, decay=0.9)
    np.testing.assert_allclose(got.second_moment[0], 2 * 0.9**3 + 0.1 * (1 + 4), rtol=1e-6)
    np.testing.assert_allclose(got.seen[0], 3 * 0.9**3 + 0.3, rtol=1e-6)
    np.testing.assert_allclose(got.second_moment[7], 2 * 0.9 + 0.1 * 25, rtol=1e-6)
    np.testing.assert_allclose(got.second_moment[1:7], 2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_x64_with_strict_promotion(dtype):
    """The state keeps its dtype, as the carry of a loop must; the schedule gives that of the argument."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        state = dx.adaptive.init(8)
        base = dx.schedules.truncate(dx.schedules.cosine(), -8, 8)

        def step(state, u):
            adapted = dx.adaptive.schedule(state, base, np.float64(0.2))
            logsnr = adapted(u)
            return dx.adaptive.update(state, base, jnp.abs(logsnr), logsnr, np.float64(0.9)), adapted.density(logsnr)

        u = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 16)), dtype)
        after, density = jax.jit(lambda: jax.lax.scan(step, state, u))()
    assert after.seen.dtype == after.second_moment.dtype == np.float32 and density.dtype == dtype
    assert np.isfinite(density).all() and after.seen.sum() > 0


STATE = dx.adaptive.init(4)
LOSS = jnp.ones(3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: dx.adaptive.init(1), "bins = 1: must be an integer >= 2|bins = 1: must be an integer from 2"),
        (lambda: dx.adaptive.schedule(dx.adaptive.init, BASE), "state = init: is a function: did you forget"),
        (lambda: dx.adaptive.schedule(STATE, dx.schedules.edm), "base = edm: is a function: did you forget"),
        (lambda: dx.adaptive.schedule(STATE._replace(seen=jnp.ones(3)), BASE), r"state.second_moment has shape \(4,\)"),
        (lambda: dx.adaptive.schedule(STATE, BASE, floor=0.0), r"floor = 0.0: must lie in \(0, 1\]"),
        (lambda: dx.adaptive.schedule(STATE, BASE, floor=1.5), r"floor = 1.5: must lie in \(0, 1\]"),
        (lambda: dx.adaptive.update(STATE, BASE, LOSS, LOSS, decay=1.0), r"decay = 1.0: must lie in \[0, 1\)"),
        (lambda: dx.adaptive.update(STATE, BASE, LOSS, jnp.ones(2)), r"logsnr has shape \(2,\): must be \[batch\]"),
        (
            lambda: dx.adaptive.update(STATE, BASE, jnp.ones((3, 2)), LOSS),
            r"loss has shape \(3, 2\): must be",
        ),
        (lambda: dx.adaptive.update(STATE, BASE, jnp.ones(()), jnp.ones(())), r"loss has shape \(\)"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("wrong", [None, "2", dx.schedules.edm, (), np.zeros(0), 1j, True, {"a": 1}, object()])
def test_wrong_arguments_are_refused(wrong):
    calls = {
        dx.adaptive.init: {"bins": 4},
        dx.adaptive.probabilities: {"state": STATE, "floor": 0.2},
        dx.adaptive.schedule: {"state": STATE, "base": BASE, "floor": 0.2},
        dx.adaptive.update: {"state": STATE, "base": BASE, "loss": LOSS, "logsnr": LOSS, "decay": 0.9},
    }
    for function, right in calls.items():
        for argument in right:
            with pytest.raises(ValueError, match=rf"^{argument} .*must"):
                function(**{**right, argument: wrong})
