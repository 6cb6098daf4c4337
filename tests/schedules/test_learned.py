"""Learned schedules: monotone whatever their parameters, trained by gradient, one for each pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx

S = dx.schedules
U = jnp.float32(np.linspace(0, 1, 101))


def wild(seed, **arguments):
    params = S.learned_init(jax.random.key(seed), **arguments)
    keys = jax.random.split(jax.random.key(seed + 1), 4)
    noise = [2 * jax.random.normal(k, p.shape) for k, p in zip(keys, params[:4], strict=True)]
    return params._replace(**{n: p + e for n, p, e in zip(params._fields, params, noise, strict=False)})


@pytest.mark.parametrize("seed", range(4))
def test_any_parameters_give_a_schedule(seed):
    schedule = S.learned(wild(seed, logsnr_min=-8.0, logsnr_max=9.0))
    lam = np.asarray(schedule(U))
    np.testing.assert_allclose(lam[[0, -1]], [9, -8], atol=1e-4)
    assert (np.diff(lam) < 0).all()
    np.testing.assert_allclose(schedule.inverse(lam), U, atol=2e-5)
    fine = np.float32(np.linspace(-8, 9, 20_001))
    assert np.trapezoid(np.asarray(schedule.density(fine), np.float64), fine) == pytest.approx(1, abs=1e-3)


def test_it_begins_nearly_uniform():
    np.testing.assert_allclose(S.learned(S.learned_init(jax.random.key(0)))(U), 10 - 20 * U, atol=0.4)


def test_its_parameters_have_the_type_that_an_update_gives_them():
    """A weak type would become a strong one in the first train step, which is then compiled twice."""
    assert not any(p.weak_type or p.dtype != jnp.float32 for p in S.learned_init(jax.random.key(0)))


def test_gradient_descent_finds_a_known_schedule():
    """Fit the parameters to the cosine schedule: their gradients do what they should."""
    wanted = S.truncate(S.cosine(), -8, 8)
    params = S.learned_init(jax.random.key(0), logsnr_min=-8.0, logsnr_max=8.0)

    def error(params):
        return jnp.mean((S.learned(params, train_ends=False)(U) - wanted(U)) ** 2)

    @jax.jit
    def descend(params, moments):
        grads = jax.grad(error)(params)
        moments = jax.tree.map(lambda m, g: 0.9 * m + g, moments, grads)
        return jax.tree.map(lambda p, m: p - 0.02 * m / (1 + jnp.abs(m)), params, moments), moments

    before, moments = float(error(params)), jax.tree.map(jnp.zeros_like, params)
    for _ in range(400):
        params, moments = descend(params, moments)
    assert float(error(params)) < 0.1 * before
    np.testing.assert_allclose(params.ends, [8, -8], atol=1e-6)


def test_the_inverse_and_the_density_are_differentiable_in_the_parameters():
    params = wild(1)
    for of in (lambda p: S.learned(p).inverse(jnp.float32(1.0)), lambda p: S.learned(p).density(jnp.float32(1.0))):
        grads = jax.grad(of)(params)
        by_hand = (
            of(params._replace(ends=params.ends + jnp.array([0.05, 0.0])))
            - of(params._replace(ends=params.ends - jnp.array([0.05, 0.0])))
        ) / 0.1
        assert all(np.isfinite(g).all() for g in grads)
        if of(params) > 0.2:  # of u, whose derivative is exact; the density's is of its own formula
            np.testing.assert_allclose(grads.ends[0], by_hand, rtol=2e-2)


def test_each_pixel_has_its_own_schedule():
    params, rate = wild(2), jnp.array([[0.5, 2.0], [5.0, 9.0]])[None, ..., None]
    schedule = S.per_pixel(params, rate)
    lam = np.asarray(schedule(jnp.full(1, 0.4)))
    assert lam.shape == (1, 2, 2, 1)
    m = -np.float64(S.learned(params._replace(ends=jnp.array([0.0, -1.0])))(0.4))
    signal = np.exp(-np.float64(rate) * (1e-5 + (1 - 1e-5) * m))  # alpha^2
    np.testing.assert_allclose(lam, np.log(signal / (1 - signal)), rtol=1e-4, atol=1e-4)
    ends = [np.asarray(schedule(jnp.full(1, u))) for u in (0.0, 1.0)]
    assert np.isfinite(ends).all() and (ends[0] > ends[1]).all()
    u, density = schedule.inverse(0.5), schedule.density(jnp.full(1, 0.5))  # at one level of all, and of each sample
    assert u.shape == density.shape == rate.shape
    np.testing.assert_allclose(schedule.quantile(u, 1 - u), 0.5, atol=1e-3)
    slope = (schedule.quantile(u + 1e-3, 1 - u - 1e-3) - schedule.quantile(u - 1e-3, 1 - u + 1e-3)) / 2e-3
    np.testing.assert_allclose(density, -1 / slope, rtol=1e-2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_per_pixel_under_x64_with_strict_promotion(dtype):
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        params = S.learned_init(jax.random.key(0))
        assert all(p.dtype == np.float32 for p in params)  # as without x64: a run may be resumed with it
        schedule = S.per_pixel(params, jnp.asarray([[0.5, 2.0], [3.0, 9.0]], dtype))
        lam = schedule(jnp.asarray([0.2, 0.9], dtype))
        assert lam.dtype == dtype and lam.shape == (2, 2)
        u = schedule.inverse(lam)
        np.testing.assert_allclose(u, [[0.2, 0.2], [0.9, 0.9]], rtol=1e-5)
        np.testing.assert_array_equal(schedule.density([np.inf, -np.inf]), 0)


def test_the_regulariser_is_the_second_derivative_of_the_signal():
    rate, u = jnp.array([3.0]), jnp.float32([0.3])
    params = S.learned_init(jax.random.key(0))._replace(height=jnp.full(64, -40.0))  # m(u) = u
    got = S.per_pixel_regulariser(S.per_pixel(params, rate, floor=0.0), u, weight=1.0)
    np.testing.assert_allclose(got, (9 * np.exp(-3 * 0.3)) ** 2, rtol=1e-3)  # (d^2/du^2 exp(-3 u))^2


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="units = 0"):
        S.learned_init(jax.random.key(0), units=0)
    with pytest.raises(ValueError, match=r"logsnr_min = 3.0: must be less than logsnr_max = -3.0"):
        S.learned_init(jax.random.key(0), logsnr_min=3.0, logsnr_max=-3.0)
    with pytest.raises(ValueError, match="logsnr_max = inf: must be finite"):
        S.learned_init(jax.random.key(0), logsnr_max=float("inf"))
    params = S.learned_init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"ends\[1\] = 1.0: must be less than ends\[0\] = -1.0"):
        S.learned(params._replace(ends=jnp.array([-1.0, 1.0])))
    with pytest.raises(ValueError, match=r"rate = .*: must be positive"):
        S.per_pixel(params, jnp.array([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"floor = 1.0: must lie in \[0, 1\)"):
        S.per_pixel(params, jnp.ones(2), floor=1.0)
    schedule = S.per_pixel(params, jnp.ones((4, 2)))
    for call, name in ((schedule, "u"), (schedule.inverse, "logsnr"), (schedule.density, "logsnr")):
        with pytest.raises(ValueError, match=rf"{name} has shape \(3,\) for a rate of shape \(4, 2\)"):
            call(jnp.full(3, 0.5))


def test_it_trains_with_the_model_towards_the_least_variance():
    """VDM: inside its ends a schedule does not move the bound, only the variance of its estimate, which it learns."""
    x0 = 0.5 * jax.random.normal(jax.random.key(0), (256, 64))
    start = S.learned_init(jax.random.key(1))

    def losses(params, key):
        schedule = S.learned(params, train_ends=False)
        apply = lambda p, x, c_noise, cond: 0 * x  # the optimal network for this data, under EDM
        return dx.losses.denoising(apply, None, key, x0, schedule=schedule, weighting=dx.weightings.elbo(schedule))

    @jax.jit
    def descend(params, key):
        grads = jax.grad(lambda p: jnp.log(jnp.mean(losses(p, key)[1].loss ** 2)))(params)
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)

    params = start
    for i in range(300):
        params = descend(params, jax.random.key(i))
    keys = jax.random.split(jax.random.key(99), 50)
    before, after = (np.asarray(jax.jit(jax.vmap(lambda k, p=p: losses(p, k)[1].loss))(keys)) for p in (start, params))
    # 1/2 int sigmoid(l + 2 log c) dl over the ends, per dimension (papers' closed form for Gaussian data)
    exact = 0.5 * (np.logaddexp(0, 10 + 2 * np.log(0.5)) - np.logaddexp(0, -10 + 2 * np.log(0.5)))
    for loss in (before, after):
        assert loss.mean() == pytest.approx(exact, rel=0.01)
    assert after.std() < 0.6 * before.std()
