"""The train step: the same on any number of devices; its average, metrics and optimizer as the papers write them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffax as dx
from diffax.training import ema, sharding
from diffax.training.metrics import LEVEL_EDGES, LossPerLevel, TrainMetrics, scalars
from diffax.training.optimizer import adam_with_warmup as adam
from diffax.training.step import init_state, train_step


def init(key):
    return {"w": 0.1 * jax.random.normal(key, (4, 4)), "b": jnp.zeros(4)}


def apply(params, x, c_noise, cond):
    return jnp.tanh(x @ params["w"] + params["b"] + c_noise[:, None])


def loss(params, batch, key, step=None, sampler=None, part=None):
    return dx.losses.denoising(apply, params, key, batch["x"], part=part)


def run(devices, steps=5, batch_size=16, poison=(), **options):
    """poison: steps whose data are NaN."""
    mesh = sharding.data_mesh(devices)
    optimizer = adam(1e-2, warmup_steps=3)
    step = train_step(loss, optimizer, mesh, batch_size=batch_size, ema_halflife=1000.0, **options)
    state = init_state(init, optimizer, jax.random.key(0), mesh, powers=len(options.get("powers", ())))
    metrics = sharding.put_replicated(TrainMetrics.empty(), mesh)
    rng, losses = np.random.default_rng(0), []
    for k in range(steps):
        x = np.float32(rng.normal(size=(batch_size, 4)))
        batch = sharding.put_batch({"x": x * np.float32(np.nan if k in poison else 1)}, mesh)
        state, metrics, seen = step(state, metrics, batch, jax.random.key(1))
        losses.append(float(seen.loss))
    assert step._cache_size() == 1  # compiled once
    return state, metrics, losses


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_any_number_of_devices_trains_the_same(devices):
    one, metrics_one, losses_one = run(1)
    many, metrics_many, losses_many = run(devices)
    np.testing.assert_allclose(losses_many, losses_one, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one.params, many.params)
    assert many.params["w"].sharding.is_fully_replicated and len(many.params["w"].sharding.device_set) == devices
    assert scalars(metrics_many) == pytest.approx(scalars(metrics_one), rel=1e-4)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_is_the_same_step(devices, parts):
    """Every sample draws what it would draw in the whole batch."""
    whole, metrics_whole, losses_whole = run(1)
    split, metrics_split, losses_split = run(devices, accumulate=parts)
    np.testing.assert_allclose(losses_split, losses_whole, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole.params, split.params)
    assert scalars(metrics_split) == pytest.approx(scalars(metrics_whole), rel=1e-5)


def test_an_update_that_is_not_finite_is_left_out():
    """As if its batch had come and gone: everything but the step stays, and the next step draws its own noise."""
    before, metrics_before, _ = run(1, steps=2)
    state, metrics, losses = run(1, steps=3, poison=[2])
    assert np.isnan(losses[2]) and int(state.step) == 3
    jax.tree.map(np.testing.assert_array_equal, state.params, before.params)
    jax.tree.map(np.testing.assert_array_equal, state.ema, before.ema)
    jax.tree.map(np.testing.assert_array_equal, state.optimizer, before.optimizer)
    assert scalars(metrics) == scalars(metrics_before)
    assert (int(state.guard.in_a_row), int(state.guard.skipped), int(state.guard.made)) == (1, 1, 2)
    after, _, losses = run(1, steps=4, poison=[2])
    assert np.isfinite(losses[3]) and int(after.guard.in_a_row) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


def test_averages_by_power_functions_are_their_sum():
    """sum_k k^gamma params_k / sum_k k^gamma up to the paper's discretisation: weights prod (1 - 1/k)^(gamma + 1)."""
    widths = (0.05, 0.2)
    trajectory = [run(1, steps=k, powers=widths)[0] for k in (1, 2, 3, 4)]
    for i, width in enumerate(widths):
        gamma = ema.gamma_of(width)
        average = 0.0
        for k, state in enumerate(trajectory, 1):
            beta = (1 - 1 / k) ** (gamma + 1)
            average = beta * average + (1 - beta) * np.float64(state.params["w"])
            np.testing.assert_allclose(state.powers[i]["w"], average, rtol=1e-4, atol=1e-6)


def test_the_step_is_the_formula():
    """Two steps by hand: gradient of the same loss, optax's Adam, the average of Karras et al."""
    state, _, _ = run(1, steps=2)
    rng, optimizer = np.random.default_rng(0), adam(1e-2, warmup_steps=3)
    params = jax.jit(init)(jax.random.key(0))
    moments, average = optimizer.init(params), params
    for k in range(2):
        batch = {"x": jnp.float32(rng.normal(size=(16, 4)))}
        grads, _ = jax.grad(loss, has_aux=True)(params, batch, jax.random.fold_in(jax.random.key(1), k))
        updates, moments = optimizer.update(grads, moments)
        params = optax.apply_updates(params, updates)
        beta = 0.5 ** (16 / min(1000.0, 0.05 * 16 * (k + 1)))
        average = jax.tree.map(lambda e, p, beta=beta: beta * e + (1 - beta) * p, average, params)
    assert int(state.step) == 2
    _, metrics, _ = run(1, steps=1)
    first = {"x": jnp.float32(np.random.default_rng(0).normal(size=(16, 4)))}
    start = jax.jit(init)(jax.random.key(0))
    grads, _ = jax.grad(loss, has_aux=True)(start, first, jax.random.fold_in(jax.random.key(1), 0))
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
    assert scalars(metrics)["grad_norm"] == pytest.approx(norm, rel=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.params, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.ema, average)


def test_state_is_donated():
    mesh, optimizer = sharding.data_mesh(1), adam(1e-2)
    step = train_step(loss, optimizer, mesh, batch_size=4, ema_halflife=0.0)
    state = init_state(init, optimizer, jax.random.key(0), mesh)
    old = state.params["w"]
    metrics = sharding.put_replicated(TrainMetrics.empty(), mesh)
    state, _, _ = step(state, metrics, sharding.put_batch({"x": np.ones((4, 4), np.float32)}, mesh), jax.random.key(0))
    assert old.is_deleted()
    # a half-life of nothing: the average is the parameters
    np.testing.assert_allclose(state.ema["w"], state.params["w"], atol=1e-7)


def test_ema_halflife_is_the_published_one():
    # 0.5 Mimg at batch 512 settles at 0.5^0.001024 = 0.99929 (Karras et al. 2022)
    assert float(ema.decay(jnp.array(10**6), 512, 0.5e6)) == pytest.approx(0.5**0.001024, rel=1e-6)
    # after 2^31 images too
    assert float(ema.decay(jnp.array(2**23), 4096, 50e6)) == pytest.approx(0.5 ** (4096 / 50e6), rel=1e-6)
    assert float(ema.decay(jnp.array(0), 512, 0.5e6)) == pytest.approx(0.5**20, rel=1e-3)  # 1/0.05 half-lives


def test_the_average_of_bfloat16_parameters_moves():
    average = ema.start({"w": jnp.full(3, 0.5, jnp.bfloat16)})
    for _ in range(100):
        average = ema.update(average, {"w": jnp.ones(3, jnp.bfloat16)}, jnp.float32(0.999))
    np.testing.assert_allclose(average["w"], 1 - 0.5 * 0.999**100, rtol=1e-4)


def test_a_nan_stays_in_its_bin():
    metric = LossPerLevel.from_model_output(sample_loss=jnp.array([jnp.nan, 2.0]), logsnr=jnp.array([-5.0, 5.0]))
    values = np.asarray(metric.compute())
    assert np.isnan(values[2]) and values[5] == 2.0


def test_loss_per_level_bins_by_logsnr():
    logsnr = np.float32([-50, -12, -11.9, 0, 2.99, 3, 11.9, 12, 40])
    value = np.arange(9, dtype=np.float32) + 1
    metric = LossPerLevel.from_model_output(sample_loss=jnp.asarray(value), logsnr=jnp.asarray(logsnr))
    edges = np.array(LEVEL_EDGES, float)
    edges[0], edges[-1] = -np.inf, np.inf
    for i, got in enumerate(np.asarray(metric.compute())):
        inside = (logsnr >= edges[i]) & (logsnr < edges[i + 1])
        assert (np.isnan(got) and not inside.any()) or got == pytest.approx(value[inside].mean())
    twice = metric.merge(metric)
    np.testing.assert_allclose(twice.compute(), metric.compute())
    assert float(twice.count.sum()) == 18


def test_scalars_name_their_bins_and_leave_out_empty_ones():
    collection = TrainMetrics.single_from_model_output(
        loss=2.0, grad_norm=3.0, sample_loss=jnp.array([1.0, 4.0]), logsnr=jnp.array([0.5, 1.0])
    )
    assert scalars(collection) == {"loss": 2.0, "grad_norm": 3.0, "levels/logsnr_0_to_3": 2.5}


def test_warm_up_and_clipping():
    optimizer = adam(0.1, warmup_steps=4, clip_norm=1.0)
    params = {"w": jnp.zeros(2)}
    state, sizes = optimizer.init(params), []
    for _ in range(6):
        updates, state = optimizer.update({"w": jnp.array([1.0, 0.0])}, state, params)
        sizes.append(-float(updates["w"][0]))  # Adam moves by the rate when the gradient is constant
    np.testing.assert_allclose(sizes, [0.025, 0.05, 0.075, 0.1, 0.1, 0.1], rtol=1e-3)
    big, small = (optimizer.update({"w": jnp.array([g, 0.0])}, optimizer.init(params))[1] for g in (50.0, 1.0))
    np.testing.assert_allclose(big[1][0].mu["w"], small[1][0].mu["w"], rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: adam(0.0), "learning_rate = 0.0"),
        (lambda: adam(1e-3, warmup_steps=-1), "warmup_steps = -1"),
        (lambda: adam(1e-3, clip_norm=0), "clip_norm = 0"),
        (
            lambda: train_step(loss, adam(1e-3), sharding.data_mesh(8), batch_size=12, ema_halflife=1.0),
            "batch_size = 12: must be a positive multiple of the 8 devices",
        ),
        (
            lambda: train_step(loss, adam(1e-3), sharding.data_mesh(1), batch_size=1, ema_halflife=-1.0),
            "ema_halflife = -1.0",
        ),
        (
            lambda: train_step(loss, adam(1e-3), sharding.data_mesh(4), batch_size=8, ema_halflife=1.0, accumulate=4),
            "batch_size = 8: must be a positive multiple of the 4 devices times accumulate = 4",
        ),
        (
            lambda: train_step(loss, adam(1e-3), sharding.data_mesh(1), batch_size=8, ema_halflife=1.0, accumulate=0),
            "accumulate = 0",
        ),
        (
            lambda: train_step(loss, adam(1e-3), sharding.data_mesh(1), batch_size=8, ema_halflife=1.0, spike=0.5),
            "spike = 0.5",
        ),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)
