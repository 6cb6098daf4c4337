"""EDM2: every layer keeps magnitudes, equations and the whole against numpy float64, lengths set back after a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import quad

from diffax.models import edm2
from diffax.models.edm2 import Weight, fourier, mp_concatenate, mp_silu, mp_sum, unit, unit_length
from tests.models import naive
from tests.models.naive import close, jit, normal

SMALL = dict(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), head_channels=8, num_classes=3, dropout=0.2)
X = jnp.float32(normal(0, 3, 8, 8, 2))
LEVEL = jnp.float32([-0.5, 0.0, 0.5])
LABEL = jnp.array([0, 1, 3])


@pytest.fixture(scope="module")
def small():
    network = edm2((8, 8, 2), **SMALL)
    return network._replace(apply=jit(network.apply)), naive.random(network.init)


def rms(x, axis=None):
    return np.sqrt(np.mean(np.square(np.float64(x)), axis))


# ---- magnitudes -----------------------------------------------------------------------------------------------------


def test_silu_keeps_the_magnitude_of_normal_input():
    square = lambda z: float(mp_silu(jnp.float32(z))) ** 2 * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    assert np.sqrt(quad(square, -9, 9, epsabs=1e-5)[0]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_sums_are_weighed_by_equation_88(t):
    a, b = normal(0, 10_000), normal(1, 10_000)
    got = mp_sum(jnp.float32(a), jnp.float32(b), t)
    close(got, ((1 - t) * a + t * b) / np.sqrt((1 - t) ** 2 + t**2), 1e-6)
    assert rms(got) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("t", [0.3, 0.5])
def test_concatenations_are_weighed_by_equation_103(t):
    a, b = normal(0, 2000, 6), normal(1, 2000, 10)
    got = mp_concatenate(jnp.float32(a), jnp.float32(b), t)
    whole = np.sqrt(16 / ((1 - t) ** 2 + t**2))
    close(got, whole * np.concatenate([(1 - t) / np.sqrt(6) * a, t / np.sqrt(10) * b], -1), 1e-6)
    assert rms(got) == pytest.approx(1, abs=0.03)
    lengths = np.linalg.norm(got[:, :6]) / np.linalg.norm(got[:, 6:])
    assert lengths == pytest.approx((1 - t) / t, rel=0.03)  # however many channels each has


@pytest.mark.parametrize(("size", "sides"), [(0, ()), (1, (16, 16)), (3, (16, 16))])
def test_weights_keep_magnitudes_and_have_none_of_their_own(size, sides):
    layer = Weight(64, size)
    x = jnp.float32(normal(0, 16 if sides else 4096, *sides, 48))
    params = naive.of_layer(layer, x)["params"]
    apply = jit(lambda weight, gain: layer.apply({"params": {"weight": weight}}, x, gain))
    out = apply(params["weight"], 1.0)
    inner = out[:, 1:-1, 1:-1] if sides else out  # beyond the edge is zero
    np.testing.assert_allclose(rms(inner, tuple(range(inner.ndim - 1))), 1, atol=0.15)
    assert rms(inner) == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(apply(params["weight"], 2.5), 2.5 * out, atol=1e-4)
    scales = jnp.float32(np.geomspace(0.5, 100, 64))
    np.testing.assert_allclose(apply(scales * params["weight"], 1.0), out, rtol=0, atol=2e-3)  # but for the 1e-4


def test_the_embedding_of_every_level_is_of_unit_magnitude():
    """Equation 75: sqrt(2) cos of independent phases, here evenly filled."""
    out = fourier(jnp.linspace(-2, 1, 50), 256)
    np.testing.assert_allclose(rms(out, 1), 1, atol=0.05)
    rates, phases = normal(0, 8), normal(1, 8)
    x = np.array([-1.0, 0.3])
    got = fourier(jnp.float32(x), 8, rates=rates, phases=phases)
    np.testing.assert_allclose(got, np.sqrt(2) * np.cos(np.outer(x, rates) + phases), atol=1e-6)


def test_rates_that_are_given_are_used_without_phases_too():
    rates = normal(0, 8)
    assert np.abs(fourier(jnp.ones(1), 8, rates=rates) - fourier(jnp.ones(1), 8)).max() > 1e-2


def test_unit_divides_by_the_root_mean_square():
    x = normal(0, 5, 6, 7) * 3
    close(unit(jnp.float32(x)), x / rms(x, (0, 1)), 1e-4)
    close(unit(jnp.float32(x), 1), x / rms(x, 1)[:, None], 1e-4)
    assert not unit(jnp.zeros((4, 4))).any()


def test_the_whole_network_keeps_magnitudes_before_training():
    network = edm2((16, 16, 4), channels=32, multipliers=(1, 2), blocks=1, attention=(8,), num_classes=10)
    params = network.init(jax.random.key(0)) | {"gain_out": jnp.ones(())}
    out = jit(network.apply)(params, jnp.float32(normal(0, 8, 16, 16, 4)), jnp.zeros(8), jnp.arange(8))
    assert rms(out[:, 1:-1, 1:-1]) == pytest.approx(1, abs=0.15)


def test_the_lengths_of_the_weights_do_not_matter(small):
    network, params = small

    def scaled(path, p):
        return p * (1 + 9 * np.random.default_rng(0).random(p.shape[-1])) if path[-1].key == "weight" else p

    other = jax.tree.map(jnp.float32, jax.tree_util.tree_map_with_path(scaled, params))
    close(network.apply(other, X, LEVEL, LABEL), np.asarray(network.apply(params, X, LEVEL, LABEL)), 3e-3)


# ---- the whole ------------------------------------------------------------------------------------------------------


def test_it_starts_as_zero_with_parameters_of_three_kinds(small):
    network, _ = small
    params = network.init(jax.random.key(0))
    out = network.apply(params, X, LEVEL, LABEL)
    assert out.shape == X.shape and out.dtype == jnp.float32 and not out.any()
    for path, p in jax.tree_util.tree_flatten_with_path(params)[0]:
        assert path[-1].key == "weight" or (path[-1].key in ("gain", "gain_out") and p.shape == () and p == 0)


def weigh(h, p, gain=1.0):
    """A layer whose weights have unit length per output; one of 3 x 3 is a convolution (equation 47)."""
    w = p["weight"]
    inputs = w[..., 0].size
    w = gain * w / (1e-4 + rms(w, tuple(range(w.ndim - 1)))) / np.sqrt(inputs)
    return naive.conv(h, {"kernel": w}) if w.shape[0] == 3 and w.ndim == 4 else h @ w.reshape(inputs, -1)


def silu(h):
    return naive.silu(h) / 0.596


def mix(a, b, t):
    return ((1 - t) * a + t * b) / np.hypot(1 - t, t)


def join(a, b):
    """Equation 103 at t = 1 / 2."""
    n, m = a.shape[-1], b.shape[-1]
    return np.sqrt((n + m) / 2) * np.concatenate([a / np.sqrt(n), b / np.sqrt(m)], -1)


def normalised(h):
    return h / (1e-4 + rms(h, -1)[..., None])


def block(h, e, p, heads=0, how=None, down=False):
    """Figure 21: the encoder's and the decoder's."""
    h = naive.resample(h, how)
    if down:
        h = normalised(weigh(h, p["widen"]) if "widen" in p else h)
    inner = weigh(silu(h), p["conv0"])
    inner = silu(inner * (1 + weigh(e, p["modulation"], p["gain"]))[:, None, None])
    inner = weigh(inner, p["conv1"])
    h = mix(weigh(h, p["widen"]) if "widen" in p and not down else h, inner, 0.3)
    if heads:
        parts = np.split(weigh(h, p["qkv"]).reshape(len(h), -1, 3 * h.shape[-1]), 3, -1)
        q, k, v = (normalised(a.reshape(*a.shape[:2], heads, -1)).reshape(a.shape) for a in parts)
        h = mix(h, weigh(naive.attention(q, k, v, heads).reshape(h.shape), p["project"]), 0.3)
    return h


def test_the_network_is_its_formula(small):
    network, params = small
    p, label = naive.float64(params), naive.one_hot(LABEL, 3)
    e = weigh(np.float64(fourier(LEVEL, 8)), p["noise"])
    e = silu(mix(e, weigh(label * np.sqrt(3), p["label"]), 0.5))
    skip0 = weigh(np.concatenate([np.float64(X), np.ones((3, 8, 8, 1))], -1), p["conv_in"])
    skip1 = block(skip0, e, p["down0_block0"], down=True)
    skip2 = block(skip1, e, p["down1_resample"], how="down", down=True)
    skip3 = block(skip2, e, p["down1_block0"], heads=2, down=True)
    h = block(block(skip3, e, p["middle_block0"], heads=2), e, p["middle_block1"])
    h = block(join(h, skip3), e, p["up1_block0"], heads=2)
    h = block(join(h, skip2), e, p["up1_block1"], heads=2)
    h = block(h, e, p["up1_resample"], how="up")
    h = block(join(h, skip1), e, p["up0_block0"])
    h = block(join(h, skip0), e, p["up0_block1"])
    close(network.apply(params, X, LEVEL, LABEL), weigh(h, p["conv_out"], p["gain_out"]), 1e-5)


def test_every_input_matters_and_samples_are_independent(small):
    network, params = small
    out = network.apply(params, X, LEVEL, LABEL)
    alone = network.apply(params, X[1:2].repeat(3, 0), LEVEL[1:2].repeat(3), LABEL[1:2].repeat(3))
    close(alone, np.asarray(out)[1:2].repeat(3, 0), 1e-5)
    for other in (network.apply(params, X, LEVEL + 0.05, LABEL), network.apply(params, X, LEVEL, (LABEL + 1) % 4)):
        assert np.abs(other - out).max() > 1e-2 * np.abs(out).max()
    null = network.apply(params, X, LEVEL, jnp.full(3, 3))
    close(network.apply(params, X, LEVEL, None), np.asarray(null), 1e-5)


def test_zero_input_is_not_zero_output(small):
    """There are no biases, but a channel of ones."""
    network, params = small
    assert np.abs(network.apply(params, jnp.zeros_like(X), LEVEL, LABEL)).max() > 1e-2


def test_dropout_is_on_with_a_key_and_off_without(small):
    network, params = small
    plain = network.apply(params, X, LEVEL, LABEL)
    one, two = (network.apply(params, X, LEVEL, LABEL, key=jax.random.key(s)) for s in (0, 1))
    assert np.abs(one - plain).max() > 1e-3 and np.abs(one - two).max() > 1e-3


def test_every_parameter_gets_a_gradient_and_remat_the_same():
    gradients, x = [], X[:, :4, :4]
    for remat in (False, True):
        network = edm2((4, 4, 2), **SMALL | dict(multipliers=(1,)), remat=remat)
        params = naive.random(network.init)

        def loss(p, network=network):
            return jnp.mean(network.apply(p, x, LEVEL, LABEL, key=jax.random.key(0)) ** 2)

        names = [equation.primitive.name for equation in jax.make_jaxpr(loss)(params).eqns]
        assert sum(name in ("checkpoint", "remat", "remat2") for name in names) == (5 if remat else 0)
        gradients.append(jit(jax.value_and_grad(loss))(params))
    for path, g in jax.tree_util.tree_flatten_with_path(gradients[0])[0]:
        assert np.isfinite(g).all() and np.abs(g).max() > 1e-7, path
    jax.tree.map(lambda a, b: close(a, np.asarray(b)), *gradients)


def test_bfloat16_computes_alike_with_float32_parameters(small):
    network, params = small
    half = edm2((8, 8, 2), **SMALL, dtype=jnp.bfloat16)
    assert {p.dtype for p in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0)))} == {jnp.dtype("float32")}
    a, b = network.apply(params, X, LEVEL, LABEL), jit(half.apply)(params, X, LEVEL, LABEL)
    assert b.dtype == jnp.float32 and 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()


# ---- training -------------------------------------------------------------------------------------------------------

WEIGHTS = {
    "dense": {"weight": jnp.float32(normal(0, 5, 4))},
    "conv": {"weight": jnp.float32(normal(1, 3, 3, 5, 4)), "gain": jnp.zeros(())},
    "gain_out": jnp.zeros(()),
}


def test_lengths_are_set_back_after_each_step_and_gains_left_to_the_optimizer():
    adam = optax.adam(0.05)
    optimizer, params, plain = optax.chain(adam, unit_length()), WEIGHTS, WEIGHTS
    state, plain_state = optimizer.init(params), adam.init(plain)
    for step in range(3):
        keys = jax.tree.unflatten(jax.tree.structure(params), range(4))
        grads = jax.tree.map(lambda p, k, step=step: jnp.float32(normal(10 * step + k, *p.shape)), params, keys)
        before, plain = params, jax.tree.map(lambda w, p: p if w.ndim == 0 else w, params, plain)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        free, plain_state = adam.update(grads, plain_state, plain)
        plain = optax.apply_updates(plain, free)
        for name in ("dense", "conv"):
            weight = np.float64(params[name]["weight"])
            axes = tuple(range(weight.ndim - 1))
            np.testing.assert_allclose(rms(weight, axes), 1, atol=3e-4)
            stepped = np.float64(before[name]["weight"]) + np.float64(free[name]["weight"])
            close(weight, stepped / rms(stepped, axes), 3e-4)  # along adam's step
        assert params["conv"]["gain"] == plain["conv"]["gain"] != 0
        assert params["gain_out"] == plain["gain_out"] != 0


def test_setting_lengths_back_does_not_change_the_network(small):
    network, params = small
    still = jax.tree.map(jnp.zeros_like, params)
    updates = jit(lambda p: unit_length().update(still, optax.EmptyState(), p)[0])(params)
    other = optax.apply_updates(params, jax.tree.map(np.asarray, updates))
    close(network.apply(other, X, LEVEL, LABEL), np.asarray(network.apply(params, X, LEVEL, LABEL)), 3e-3)


def test_lengths_need_the_parameters():
    optimizer = unit_length()
    with pytest.raises(ValueError, match="unit_length needs the parameters"):
        optimizer.update(WEIGHTS, optimizer.init(WEIGHTS))


@pytest.mark.parametrize(
    ("shape", "arguments", "words"),
    [
        ((64, 1), dict(), "shape = (64, 1): must be of 3 positive integers"),
        ((64, 60, 1), dict(), "width 60 must be multiples of 8"),
        ((16, 16, 1), dict(multipliers=(1, 2), attention=(4,)), "[4] is no level's height; they are [16, 8]"),
        ((64, 64, 1), dict(multipliers=()), "multipliers = ()"),
        ((64, 64, 1), dict(channels=0), "channels = 0"),
        ((64, 64, 1), dict(blocks=0), "blocks = 0"),
        ((64, 64, 1), dict(head_channels=0), "head_channels = 0"),
        ((64, 64, 1), dict(num_classes=0), "num_classes = 0"),
        ((64, 64, 1), dict(dropout=1.0), "dropout = 1.0"),
    ],
)
def test_bad_sizes_are_refused_at_construction(shape, arguments, words):
    with pytest.raises(ValueError) as error:
        edm2(shape, **arguments)
    assert words in str(error.value)
