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

    x0 = np.zeros((8, 2), np.float16)  # numpy, of less than float32
    loss, aux = dx.losses.denoising(apply, None, jax.random.key(0), x0, "cond")
    assert seen["cond"] == "cond" and loss.dtype == jnp.float32
    np.testing.assert_allclose(seen["c_noise"], -aux.logsnr / 8, rtol=1e-6)


def test_a_schedule_may_differ_by_pixel():
    x0 = jnp.ones((6, 4, 4, 2), jnp.float32)
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


# ---- SNR 0, and data without noise ----------------------------------------------------------------------------------

P, W, S = dx.preconditioning, dx.weightings, dx.schedules
KEY = jax.random.key(5)
DATA = np.float32(np.random.default_rng(1).normal(size=(16, 6)))


def nothing(params, x, c_noise, cond):
    assert params is None
    return 0 * x


@pytest.mark.parametrize(
    ("pre", "weighting", "noisy", "clean"),
    [
        # what the plain error of F = 0 is: the mean square of a x_0 + b n, with (a, b) at SNR 0 and at SNR inf
        (P.v(), W.target(P.v()), (-1, 0), (0, 1)),
        (P.x0(), W.uniform(), (1, 0), (1, 0)),
        (P.eps(), W.snr(), (0, 1), (0, 1)),
        (P.flow(), W.target(P.flow()), (-1, 1), (-1, 1)),
        (P.edm(0.5), W.edm(0.5), (2, 0), (0, -1)),
    ],
    ids=["v", "x0", "eps", "flow", "edm"],
)
def test_the_loss_at_snr_0_and_without_noise_is_that_of_the_limit(pre, weighting, noisy, clean):
    n = np.float64(dx.noise.normal(jax.random.split(KEY)[1], jnp.arange(16), (6,)))
    assert S.cosine()(1.0) == -np.inf and S.cosine()(0.0) == np.inf
    for u, (a, b) in ((1.0, noisy), (0.0, clean)):
        objective = lambda x0, u=u: dx.losses.denoising(
            nothing,
            None,
            KEY,
            x0,
            schedule=S.cosine(),
            preconditioning=pre,
            weighting=weighting,
            draw=lambda key, n: jnp.full(n, u),
        )
        loss, aux = jax.jit(objective)(DATA)
        np.testing.assert_allclose(aux.loss, np.mean((a * DATA + b * n) ** 2, -1), rtol=1e-4)
        assert np.isfinite(loss) and np.isfinite(aux.logsnr).all()


@pytest.mark.parametrize("level", [-79, -60, -45, 0, 45, 60, 79])
def test_a_weight_out_of_range_does_not_spoil_a_loss_within_it(level):
    """The score's target counts by sigma^-4, which is no float32 beyond logSNR 44, times c_out^2 = sigma^4."""
    n = np.float64(dx.noise.normal(jax.random.split(KEY)[1], jnp.arange(16), (6,)))
    flat, half = S.uniform(level - 0.1, level + 0.1), lambda key, n: jnp.full(n, 0.5)
    given = {"schedule": flat, "preconditioning": P.score(), "weighting": W.target(P.score()), "draw": half}
    loss, _ = jax.jit(lambda x0: dx.losses.denoising(lambda p, x, c, _: 0 * x + 0.5, None, KEY, x0, **given))(DATA)
    assert loss == pytest.approx(np.mean((0.5 + n * np.exp(level / 2)) ** 2), rel=1e-4)


def test_a_schedule_with_heavy_tails_has_a_finite_loss():
    """Of a Cauchy distribution a level is beyond logSNR 1000 every 1571 draws: sigma is 0 or infinite there."""
    x0 = jnp.ones((8192, 1))
    loss, aux = dx.losses.denoising(nothing, None, KEY, x0, schedule=S.cauchy(0.0, 1.0))
    assert np.isfinite(loss) and np.isfinite(aux.loss).all() and abs(aux.logsnr).max() == 80


# ---- noise of one's own ---------------------------------------------------------------------------------------------


def test_noise_and_levels_of_another_library():
    """With its numbers the loss is its loss, here in numpy float64."""
    random = np.random.default_rng(2)
    x0, n, u = random.normal(size=(8, 3)), random.normal(size=(8, 3)), random.uniform(0.1, 0.9, 8)
    _, aux = dx.losses.denoising(
        linear,
        0.3,
        KEY,
        jnp.float32(x0),
        schedule=S.cosine(),
        preconditioning=P.eps(),
        weighting=W.snr(),
        draw=lambda key, count: jnp.float32(u),
        noise=lambda key, index, shape, dtype: jnp.float32(n)[index],
    )
    alpha, sigma_t = np.cos(np.pi * u / 2)[:, None], np.sin(np.pi * u / 2)[:, None]
    predicted = 0.3 * (alpha * x0 + sigma_t * n) + np.log(sigma_t / alpha) / 4
    np.testing.assert_allclose(aux.loss, np.mean((predicted - n) ** 2, -1), rtol=1e-5)
    part = dx.losses.Part(jnp.array([5, 2]), 8)
    _, some = dx.losses.denoising(
        linear,
        0.3,
        KEY,
        jnp.float32(x0[[5, 2]]),
        schedule=S.cosine(),
        preconditioning=P.eps(),
        weighting=W.snr(),
        draw=lambda key, count: jnp.float32(u),
        noise=lambda key, index, shape, dtype: jnp.float32(n)[index],
        part=part,
    )
    np.testing.assert_allclose(some.loss, aux.loss[np.array([5, 2])], rtol=1e-5)


# ---- keys, devices, dtypes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_a_part_of_a_batch_draws_what_it_would_in_the_whole(implementation):
    key = jax.random.key(3, impl=implementation)
    _, whole = dx.losses.denoising(linear, 0.3, key, DATA)
    for rows in (np.array([3, 0]), np.array([15])):
        _, part = dx.losses.denoising(linear, 0.3, key, DATA[rows], part=dx.losses.Part(rows, 16))
        np.testing.assert_allclose(part.logsnr, whole.logsnr[rows], rtol=1e-6)
        np.testing.assert_allclose(part.loss, whole.loss[rows], rtol=1e-5)
    keys = jnp.stack([key, jax.random.key(4, impl=implementation)])
    losses = jax.vmap(lambda key: dx.losses.denoising(linear, 0.3, key, DATA)[0])(keys)
    np.testing.assert_allclose(losses[1], dx.losses.denoising(linear, 0.3, keys[1], DATA)[0], rtol=1e-5)


def test_under_shard_map_each_device_has_its_rows():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    spec = jax.sharding.PartitionSpec("data")
    loss = lambda x0, rows: dx.losses.denoising(linear, 0.3, KEY, x0, part=dx.losses.Part(rows, 16))[1]
    split = jax.jit(jax.shard_map(loss, mesh=mesh, in_specs=(spec, spec), out_specs=spec))
    whole, parts = loss(DATA, jnp.arange(16)), split(DATA, jnp.arange(16))
    np.testing.assert_allclose(parts.logsnr, whole.logsnr, rtol=1e-5)
    np.testing.assert_allclose(parts.loss, whole.loss, rtol=1e-4)


@pytest.mark.parametrize("promotion", ["standard", "strict"])
@pytest.mark.parametrize("pre", [P.edm(), P.v(), P.flow()])
def test_with_x64_the_loss_has_the_dtype_of_the_data(promotion, pre):
    with jax.enable_x64(True), jax.numpy_dtype_promotion(promotion):
        for dtype in (jnp.float32, jnp.float64)[: 2 if promotion == "standard" else 1]:
            seen = []
            apply = lambda p, x, c, cond, seen=seen: seen.extend([x.dtype, c.dtype]) or 0 * x
            loss, aux = jax.eval_shape(
                lambda x0, apply=apply: dx.losses.denoising(apply, None, KEY, x0, preconditioning=pre),
                jnp.asarray(DATA, dtype),
            )
            assert {loss.dtype, aux.loss.dtype, aux.logsnr.dtype, *seen} == {jnp.dtype(dtype)}


# ---- mistakes -------------------------------------------------------------------------------------------------------

X = jnp.ones((64, 1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"apply": lambda p, x, c, cond: x[:, 0]}, "apply gave shape (64,) for x of shape (64, 1): must be the same"),
        ({"apply": lambda p, x, c, cond: x[:1]}, "apply gave shape (1, 1) for x of shape (64, 1)"),
        ({"apply": lambda p, x, c, cond: None}, "apply gave None: must be an array of shape (64, 1)"),
        ({"apply": lambda p, x, c, cond: (x, x)}, "apply gave a tuple: must be an array"),
        ({"apply": lambda p, x, c, cond: x.astype(jnp.int32)}, "apply gave int32: must be floating-point"),
        ({"apply": None}, "apply = None: must be a function apply(params, x, c_noise, cond)"),
        ({"key": None}, "key = None: must be a JAX key"),
        ({"key": 0}, "key = 0: must be a JAX key"),
        ({"x0": np.ones((4, 2), np.int32)}, "x0 is of int32: must be floating-point numbers"),
        ({"x0": np.ones((4, 2), np.uint8)}, "x0 is of uint8: must be floating-point numbers: scale pictures"),
        ({"x0": np.ones((4, 2), np.complex64)}, "x0 is of complex64: must be floating-point numbers"),
        ({"x0": jnp.ones((0, 2))}, "x0 has shape (0, 2): must be [batch, ...] with at least one sample"),
        ({"x0": jnp.float32(1)}, "x0 has shape (): must be [batch, ...]"),
        ({"x0": "x0"}, "x0 is of <U2: must be floating-point numbers"),
        ({"schedule": S.edm}, "schedule = edm: is a function: did you forget the parentheses?"),
        ({"schedule": "edm"}, "schedule = 'edm': must be a Schedule such as dx.schedules.edm()"),
        (
            {"schedule": S.per_pixel(S.learned_init(KEY), jnp.ones((64, 2)))},
            "schedule has logSNR of shape (64, 2)",
        ),
        ({"preconditioning": P.edm}, "preconditioning = edm: is a function: did you forget the parentheses?"),
        ({"weighting": W.edm}, "weighting = edm: is a function: did you forget the parentheses?"),
        ({"weighting": 1.0}, "weighting = 1.0: must be a Weighting such as"),
        ({"draw": None}, "draw = None: must be a function draw(key, n)"),
        ({"draw": lambda key, n: jnp.ones(n - 1)}, "draw gave shape (63,): must be [n] = (64,)"),
        ({"draw": lambda key, n: jnp.ones((n, 1))}, "draw gave shape (64, 1): must be [n] = (64,)"),
        ({"draw": lambda key, n: jnp.float32(0.5)}, "draw gave shape (): must be [n] = (64,)"),
        ({"draw": lambda key, n: jnp.arange(n)}, "must be [n] = (64,) floating-point numbers"),
        ({"draw": lambda key, n: None}, "draw gave None: must be [n] = (64,)"),
        ({"noise": 0.5}, "noise = 0.5: must be a function noise(key, index, shape, dtype)"),
        ({"noise": lambda key, index, shape, dtype: jnp.ones(64)}, "noise gave shape (64,) for x of shape (64, 1)"),
        ({"part": (jnp.arange(64), 64)}, "must be a Part such as dx.losses.Part(rows, whole)"),
        ({"part": dx.losses.Part(jnp.arange(3), 64)}, "part.rows has shape (3,): must be [batch] = (64,)"),
        ({"part": dx.losses.Part(np.ones(64, np.float32), 64)}, "part.rows is of float32: must be integers"),
        ({"part": dx.losses.Part(jnp.arange(64) + 1, 64)}, "must lie in [0, 63]"),
        ({"part": dx.losses.Part(jnp.arange(64), 0)}, "part.whole = 0: must be an integer >= 1"),
        ({"part": dx.losses.Part(jnp.arange(64), "64")}, "part.whole = '64': must be an integer >= 1"),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_bad_input_is_named(options, words, compiled):
    arguments = {"apply": lambda p, x, c, cond: x, "key": KEY, "x0": X} | options

    def loss():
        apply, key, x0 = (arguments[name] for name in ("apply", "key", "x0"))
        rest = {k: v for k, v in arguments.items() if k not in ("apply", "key", "x0")}
        return dx.losses.denoising(apply, None, key, x0, **rest)[0]

    with pytest.raises(ValueError) as error:
        (jax.jit(loss) if compiled else loss)()
    assert words in str(error.value)


def test_levels_that_are_no_share_are_named():
    for value in (1.5, np.nan):
        with pytest.raises(ValueError, match=r"draw = .*: must lie in \[0, 1\]"):
            dx.losses.denoising(nothing, None, KEY, X, draw=lambda key, n, value=value: jnp.full(n, value))
