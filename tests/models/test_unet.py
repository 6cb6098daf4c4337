"""The U-Net: its shape, what it depends on, and its parts against numpy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax.models import unet
from diffax.models.unet import Attention, Embedding, Norm, ResBlock

KIND = dict(dtype=jnp.float32, param_dtype=jnp.float32)


def shaken(params, seed=0):
    """Parameters with noise on them, since layers that start at zero would hide what they depend on."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten([p + 0.3 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)])


@pytest.fixture(scope="module")
def small():
    network = unet((8, 8, 1), channels=8, multipliers=(1, 2), blocks=1, attention=(4,), num_classes=3, dropout=0.2)
    params = shaken(jax.jit(network.init)(jax.random.key(0)))
    return network._replace(apply=jax.jit(network.apply)), params


X = jnp.float32(np.random.default_rng(0).normal(size=(3, 8, 8, 1)))
LEVEL = jnp.float32([-0.5, 0.0, 0.5])
LABEL = jnp.array([0, 1, 3])


def test_it_starts_as_zero_and_keeps_the_shape():
    network = unet((12, 8, 3), channels=8, multipliers=(1, 1, 2), blocks=1)
    params = jax.jit(network.init)(jax.random.key(0))
    out = jax.jit(network.apply)(params, jnp.ones((2, 12, 8, 3)), jnp.zeros(2), None)
    assert out.shape == (2, 12, 8, 3) and not out.any()
    assert all(isinstance(k, str) for k in params)


def test_every_input_matters_and_samples_are_independent(small):
    network, params = small
    out = network.apply(params, X, LEVEL, LABEL)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out[1:2], network.apply(params, X[1:2], LEVEL[1:2], LABEL[1:2]), atol=2e-4)
    assert np.abs(out - network.apply(params, X, LEVEL + 0.05, LABEL)).max() > 1e-3
    assert np.abs(out - network.apply(params, X, LEVEL, (LABEL + 1) % 4)).max() > 1e-3
    # the label num_classes and no label at all are the same
    null = network.apply(params, X, LEVEL, jnp.full(3, 3))
    np.testing.assert_allclose(null, network.apply(params, X, LEVEL, None), atol=1e-5)


def test_every_parameter_gets_a_gradient(small):
    network, params = small
    grads = jax.jit(jax.grad(lambda p: jnp.sum(network.apply(p, X, LEVEL, LABEL) ** 2)))(params)
    for path, g in jax.tree_util.tree_flatten_with_path(grads)[0]:
        assert np.isfinite(g).all() and np.abs(g).max() > 0, path


def test_dropout_is_on_with_a_key_and_off_without(small):
    network, params = small
    plain = network.apply(params, X, LEVEL, LABEL)
    np.testing.assert_array_equal(plain, network.apply(params, X, LEVEL, LABEL))
    one, two = (network.apply(params, X, LEVEL, LABEL, key=jax.random.key(s)) for s in (0, 1))
    assert np.abs(one - plain).max() > 1e-3 and np.abs(one - two).max() > 1e-3


def test_bfloat16_computes_alike_with_float32_parameters():
    kind = dict(channels=16, multipliers=(1, 2), blocks=1, attention=(4,), num_classes=3)
    full, half = unet((8, 8, 1), **kind), unet((8, 8, 1), **kind, dtype=jnp.bfloat16)
    params = jax.jit(half.init)(jax.random.key(0))
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    params = jax.tree.map(lambda p: p + 0.05, params)
    a, b = (jax.jit(n.apply)(params, X, LEVEL, LABEL) for n in (full, half))
    assert b.dtype == jnp.float32
    assert 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()


def test_group_norm_is_the_definition():
    x = np.random.default_rng(1).normal(size=(2, 4, 4, 16)) * 3 + 1
    layer = Norm(**KIND)
    params = layer.init(jax.random.key(0), jnp.float32(x))
    groups = x.reshape(2, 16, 4, 4)  # 4 groups of 4 channels
    mean, var = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    np.testing.assert_allclose(
        layer.apply(params, jnp.float32(x)), ((groups - mean) / np.sqrt(var + 1e-6)).reshape(x.shape), atol=2e-5
    )


def test_attention_is_the_definition():
    x = np.random.default_rng(2).normal(size=(2, 4, 4, 16))
    layer = Attention(8, **KIND)
    params = shaken(layer.init(jax.random.key(0), jnp.float32(x)))
    p = jax.tree.map(np.float64, params["params"])
    h = np.float64(Norm(**KIND).apply({"params": params["params"]["norm"]}, jnp.float32(x))).reshape(2, 16, 16)
    q, k, v = np.split(h @ p["qkv"]["kernel"] + p["qkv"]["bias"], 3, -1)
    out = np.zeros((2, 16, 16))
    for head in (slice(0, 8), slice(8, 16)):
        logits = q[..., head] @ k[..., head].swapaxes(1, 2) / np.sqrt(8)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        out[..., head] = weights / weights.sum(-1, keepdims=True) @ v[..., head]
    out = x + (out @ p["project"]["kernel"] + p["project"]["bias"]).reshape(x.shape)
    np.testing.assert_allclose(layer.apply(params, jnp.float32(x)), out, atol=3e-5)


@pytest.mark.parametrize("resample", [None, "down", "up"])
def test_a_block_is_its_formula(resample):
    """norm, SiLU, resample, conv, adaptive norm, SiLU, conv, plus the widened input: in numpy float64."""
    layer = ResBlock(8, resample, 0.0, **KIND)
    x, e = (np.random.default_rng(s).normal(size=z) for s, z in ((3, (2, 4, 4, 4)), (4, (2, 6))))
    params = shaken(layer.init(jax.random.key(0), jnp.float32(x), jnp.float32(e), False))
    p = jax.tree.map(np.float64, params["params"])

    def norm(h, g):
        groups = h.reshape(*h.shape[:3], max(h.shape[-1] // 4, 1), -1)
        mean, var = groups.mean((1, 2, 4), keepdims=True), groups.var((1, 2, 4), keepdims=True)
        return ((groups - mean) / np.sqrt(var + 1e-6)).reshape(h.shape) * g["group"]["scale"] + g["group"]["bias"]

    def silu(h):
        return h / (1 + np.exp(-h))

    def conv(h, c):
        padded = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
        n, m = h.shape[1:3]
        return c["bias"] + sum(padded[:, i : i + n, j : j + m] @ c["kernel"][i, j] for i in range(3) for j in range(3))

    def resampled(h):
        if resample == "down":
            return (h[:, ::2, ::2] + h[:, 1::2, ::2] + h[:, ::2, 1::2] + h[:, 1::2, 1::2]) / 4
        return np.kron(h, np.ones((1, 2, 2, 1))) if resample == "up" else h

    h = conv(resampled(silu(norm(x, p["norm0"]))), p["conv0"])
    scale, shift = np.split((e @ p["modulation"]["kernel"] + p["modulation"]["bias"])[:, None, None], 2, -1)
    h = conv(silu(norm(h, p["norm1"]) * (1 + scale) + shift), p["conv1"])
    expected = resampled(x) @ p["widen"]["kernel"] + p["widen"]["bias"] + h
    got = jax.jit(lambda *a: layer.apply(*a, False))(params, jnp.float32(x), jnp.float32(e))
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4)


def test_noise_levels_have_distinct_smooth_embeddings():
    layer = Embedding(64, None, **KIND)
    levels = jnp.linspace(-2, 2, 401)
    out = np.asarray(layer.apply(layer.init(jax.random.key(0), levels, None), levels, None))
    near, far = np.linalg.norm(out[1:] - out[:-1], axis=1), np.linalg.norm(out[20:] - out[:-20], axis=1)
    assert near.max() < 0.5 * np.median(far) and far.min() > 0.02


@pytest.mark.parametrize(
    ("shape", "arguments", "words"),
    [
        ((30, 30, 1), dict(multipliers=(1, 2, 2)), "height 30 and width 30 must be multiples of 4"),
        ((8, 6, 1), dict(multipliers=(1, 1, 1)), "width 6"),
        ((8, 8, 1), dict(multipliers=()), "multipliers = ()"),
        ((8, 8, 1), dict(attention=(16,)), "[16] is no level's height; they are [8, 4]"),
        ((8, 8, 1), dict(channels=1), "channels = 1"),
        ((8, 8, 1), dict(multipliers=(1, 2.5)), "multipliers = (1, 2.5)"),
        ((8, 8, 1), dict(blocks=0), "blocks = 0"),
        ((8, 8, 1), dict(num_classes=0), "num_classes = 0"),
        ((8, 8, 1), dict(dropout=1.0), "dropout = 1.0"),
    ],
)
def test_bad_sizes_are_refused_at_construction(shape, arguments, words):
    with pytest.raises(ValueError) as error:
        unet(shape, **arguments)
    assert words in str(error.value)
