"""The loss that learns a schedule: its terms in float64, and the schedule it finds where that has a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffax as dx

S = dx.schedules
KEY = jax.random.key(0)
X0 = np.float32(np.random.default_rng(0).normal(size=(6, 4, 4, 1)))


def exact(params, x, c_noise, cond):
    """E[n | x_t] = sigma_t x_t for unit normal data; c_noise is log(sigma) / 4 = -logsnr / 8."""
    sigma_t = jnp.sqrt(jax.nn.sigmoid(8 * c_noise))
    return sigma_t.reshape(sigma_t.shape + (1,) * (x.ndim - sigma_t.ndim)) * x


def test_the_terms_add_up():
    rate = jnp.linspace(1.0, 6.0, 6 * 16).reshape(6, 4, 4, 1)
    schedule = S.per_pixel(S.learned_init(KEY)._replace(height=jnp.full(64, -40.0)), rate, floor=0.0)  # T(u) = u
    half = lambda key, n: jnp.full(n, 0.5)
    total, aux = dx.variational.conditional(exact, None, KEY, X0, schedule=schedule, draw=half)
    bare, _ = dx.variational.conditional(
        exact, None, KEY, X0, schedule=schedule, draw=half, prior_weight=0.0, curvature_weight=0.0
    )
    assert bare == pytest.approx(float(aux.loss.mean()), rel=1e-6)
    r, x = np.float64(rate), np.float64(X0)
    end = np.exp(-r)  # alpha^2 at u = 1
    kl = (end * x**2 + (1 - end) - 1 - np.log(1 - end)) / 2
    curvature = (r**2 * np.exp(-r / 2)) ** 2
    assert float(total - bare) == pytest.approx(2 * kl.mean() + 2e-3 * curvature.mean(), rel=1e-4)
    np.testing.assert_allclose(dx.variational.prior(schedule, X0), kl.mean((1, 2, 3)), rtol=1e-4)


def test_the_prior_term_keeps_its_digits_far_out_in_the_noise():
    schedule = S.uniform(-14.0, 8.0)
    end = 1 / (1 + np.exp(14.0))
    kl = (end * np.float64(X0) ** 2 + (1 - end) - 1 - np.log1p(-end)) / 2
    np.testing.assert_allclose(dx.variational.prior(schedule, X0), kl.mean((1, 2, 3)), rtol=1e-4)


def test_the_error_is_that_of_the_denoising_loss():
    """With v-prediction and a schedule of the whole sample too."""
    kind = dict(schedule=S.truncate(S.cosine(), -8, 8), preconditioning=dx.preconditioning.v())
    _, aux = dx.variational.conditional(exact, None, KEY, X0, **kind)
    weighting = dx.weightings.target(dx.preconditioning.v())
    _, same = dx.losses.denoising(exact, None, jax.random.split(KEY)[0], X0, weighting=weighting, **kind)
    np.testing.assert_array_equal(aux.loss, same.loss)


def test_a_part_of_a_batch_draws_what_it_would_draw_in_the_whole():
    schedule = S.per_pixel(S.learned_init(KEY), jnp.full((6, 1, 1, 1), 9.0))
    whole, aux = dx.variational.conditional(exact, None, KEY, X0, schedule=schedule)
    parts = []
    for rows in (jnp.array([0, 4]), jnp.array([1, 2, 3, 5])):
        ours = S.per_pixel(S.learned_init(KEY), jnp.full((len(rows), 1, 1, 1), 9.0))
        part = dx.losses.Part(rows, 6)
        value, of_part = dx.variational.conditional(exact, None, KEY, X0[rows], schedule=ours, part=part)
        np.testing.assert_allclose(of_part.loss, aux.loss[rows], rtol=1e-5)
        parts.append(len(rows) / 6 * float(value))
    assert sum(parts) == pytest.approx(float(whole), rel=1e-5)


def learn(weight, steps, rate=2.0):
    """alpha^2 at 101 levels, learned from unit normal data with the exact network."""
    x0 = jax.random.normal(KEY, (256, 64))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, steps))

    def loss(params, key):
        schedule = S.per_pixel(params, jnp.full((256, 1), rate))
        return dx.variational.conditional(
            exact, None, key, x0, schedule=schedule, prior_weight=0.0, curvature_weight=weight
        )[0]

    def step(carry, i):
        params, moments = carry
        updates, moments = optimizer.update(jax.grad(loss)(params, jax.random.fold_in(KEY, i)), moments)
        return (optax.apply_updates(params, updates), moments), None

    params = S.learned_init(KEY)
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(steps)))((params, optimizer.init(params)))
    u = jnp.linspace(0, 1, 101)
    return np.asarray(u), np.asarray(jax.nn.sigmoid(jax.vmap(S.per_pixel(params, jnp.float32([rate])))(u)))[:, 0]


@pytest.mark.parametrize("weight", [0.1, 0.03])
def test_the_learned_schedule_is_a_loaded_beam(weight):
    """The least of int alpha^2 + w (d^2 alpha^2 / du^2)^2 du between alpha^2 = 1 and e = exp(-rate) has a fourth
    derivative -1 / (2 w) and no curvature at its ends: 1 - (1 - e) u - (u^4 - 2 u^3 + u) / (48 w), if that falls."""
    u, signal = learn(weight, 250)
    straight = 1 - (1 - np.exp(-2.0)) * u
    beam = straight - (u**4 - 2 * u**3 + u) / (48 * weight)
    np.testing.assert_allclose(signal, beam, atol=0.01)
    assert np.abs(beam - straight).max() > 0.06


def test_without_the_regulariser_all_of_u_goes_to_noise():
    u, signal = learn(0.0, 150, rate=10.0)
    assert signal[u >= 0.2].max() < 0.05


def test_a_schedule_that_ends_in_pure_noise_leaves_nothing():
    np.testing.assert_array_equal(dx.variational.prior(S.cosine(), X0), 0)  # logSNR -inf at u = 1


def test_with_x64_and_strict_promotion_all_has_the_dtype_of_the_data():
    for wide, promotion in ((True, "standard"), (False, "strict")):
        with jax.enable_x64(wide), jax.numpy_dtype_promotion(promotion):
            schedule = S.truncate(S.cosine(), -8, 8)
            objective = lambda x0, s=schedule: dx.variational.conditional(exact, None, KEY, x0, schedule=s)
            loss, aux = jax.eval_shape(objective, X0)
            assert loss.dtype == aux.loss.dtype == dx.variational.prior(schedule, X0).dtype == jnp.float32


def test_noise_of_ones_own():
    ones = lambda key, index, shape, dtype: jnp.ones((len(index), *shape), dtype)
    kind = dict(schedule=S.truncate(S.cosine(), -8, 8), noise=ones)
    _, aux = dx.variational.conditional(lambda p, x, c, cond: 0 * x, None, KEY, X0, **kind)
    np.testing.assert_allclose(aux.loss, 1, rtol=1e-5)  # the plain error of the noise, predicted as 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"apply": lambda p, x, c, cond: x[..., 0]}, "apply gave shape (6, 4, 4) for x of shape (6, 4, 4, 1)"),
        ({"schedule": S.cosine}, "schedule = cosine: is a function: did you forget the parentheses?"),
        ({"schedule": None}, "schedule = None: must be a Schedule"),
        ({"preconditioning": dx.preconditioning.v}, "preconditioning = v: is a function"),
        ({"weighting": dx.weightings.snr}, "weighting = snr: is a function"),
        ({"draw": lambda key, n: jnp.ones(n + 1)}, "draw gave shape (7,): must be [n] = (6,)"),
        ({"part": dx.losses.Part(jnp.arange(6), 5)}, "must lie in [0, 4]"),
        ({"prior_weight": "2"}, "prior_weight = '2': must be finite"),
        ({"prior_weight": jnp.ones(6)}, "prior_weight has shape (6,): must be one number"),
        ({"curvature_weight": np.nan}, "curvature_weight = nan: must be finite"),
        ({"key": 0}, "key = 0: must be a JAX key"),
        ({"x0": X0.astype(int)}, "x0 is of int64: must be floating-point numbers"),
    ],
)
def test_bad_input_is_named(options, words):
    good = dict(apply=exact, params=None, key=KEY, x0=X0, schedule=S.truncate(S.cosine(), -8, 8))
    with pytest.raises(ValueError) as error:
        dx.variational.conditional(**(good | options))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((S.cosine, X0), "schedule = cosine: is a function"),
        ((S.cosine(), np.arange(3)), "x0 is of int64"),
        ((S.per_pixel(S.learned_init(KEY), jnp.ones((6, 3))), X0[..., 0, 0]), "schedule has logSNR of shape (6, 3)"),
    ],
)
def test_bad_input_of_the_prior_is_named(arguments, words):
    with pytest.raises(ValueError) as error:
        dx.variational.prior(*arguments)
    assert words in str(error.value)
