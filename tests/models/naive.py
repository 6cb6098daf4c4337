"""The networks' parts by their definitions, in numpy float64, and what several of the tests need."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from flax import linen as nn

MEAN, BLUR = (0, 1, 1, 0), (1, 3, 3, 1)


# compiles in little more than half the time; what is computed is the same
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def random(init, seed=0):
    """Parameters of the shapes that init(key) makes, none special: those that start at zero would hide much."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = np.float32(rng.normal(size=leaf.shape))
        if path[-1].key == "kernel":
            return noise / np.float32(math.sqrt(math.prod(leaf.shape[:-1])))
        return noise if path[-1].key == "weight" else (path[-1].key == "scale") + np.float32(0.3) * noise

    shapes = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def small(params, layer):
    """With that layer's output a thousandth, by which the epsilon of the normalisation after it is seen."""
    return params | {layer: jax.tree.map(lambda p: p * np.float32(1e-3), params[layer])}


def of_layer(layer, *inputs, **options):
    """Such parameters for a Linen module called with the inputs."""
    inputs = jax.tree.map(jnp.float32, inputs)
    return random(lambda key: layer.init(key, *inputs, **options))


def float64(params):
    return jax.tree.map(np.float64, params)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def close(got, expected, by=1e-4):
    """Equal but for rounding, as a share of the largest entry."""
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=0, atol=by * np.abs(expected).max())


# ---- layers ---------------------------------------------------------------------------------------------------------


def silu(h):
    return h / (1 + np.exp(-h))


def gelu(h):
    return h * scipy.special.ndtr(h)


def gelu_tanh(h):
    return h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))


def dense(h, layer):
    return h @ layer["kernel"] + layer.get("bias", 0.0)


def conv(h, layer, stride=1, padding=(1, 1)):
    """Over all axes between batch and channels, as a sum over the places of the kernel."""
    kernel, dims = layer["kernel"], h.ndim - 2
    h = np.pad(h, [(0, 0), *[padding] * dims, (0, 0)])
    counts = [(n - len(kernel)) // stride + 1 for n in h.shape[1:-1]]
    out = layer.get("bias", 0.0)
    for at in itertools.product(range(len(kernel)), repeat=dims):
        window = (slice(i, i + stride * (n - 1) + 1, stride) for i, n in zip(at, counts, strict=True))
        out = out + h[(slice(None), *window)] @ kernel[at]
    return out


def group_norm(h, layer, groups=None, epsilon=1e-5):
    """For channels that 4 divides: groups of 4, but 32 of them at most, unless said otherwise."""
    groups = groups or min(h.shape[-1] // 4, 32)
    split = h.reshape(len(h), -1, groups, h.shape[-1] // groups)
    mean, var = split.mean((1, 3), keepdims=True), split.var((1, 3), keepdims=True)
    return ((split - mean) / np.sqrt(var + epsilon)).reshape(h.shape) * layer["scale"] + layer["bias"]


def layer_norm(h, layer=None, epsilon=1e-6):
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + epsilon)
    return h if layer is None else h * layer["scale"] + layer["bias"]


def attention(q, k, v, heads):
    """Of [batch, tokens, channels], one head after the other."""
    out, size = np.zeros(q.shape), q.shape[-1] // heads
    for head in range(heads):
        at = slice(head * size, (head + 1) * size)
        logits = q[..., at] @ k[..., at].swapaxes(1, 2) / np.sqrt(size)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        out[..., at] = weights / weights.sum(-1, keepdims=True) @ v[..., at]
    return out


def resample(x, how, weights=MEAN, border=False):
    """Along one axis after the other, by a convolution with four weights of the signal, which is 0 beyond its ends.

    border: to halve, one more sample is there at each end already; to double, one more is wanted.
    """
    weights = np.array(weights) / sum(weights)

    def down(signal):
        return np.convolve(signal if border else np.pad(signal, 1), weights, "valid")[::2]

    def up(signal):
        spread = np.zeros(2 * len(signal) - 1)
        spread[::2] = signal
        whole = np.convolve(spread, 2 * weights)
        return whole if border else whole[1:-1]

    for axis in range(1, x.ndim - 1) if how else ():
        x = np.apply_along_axis(down if how == "down" else up, axis, x)
    return x


def sinusoid(x, width, longest=10_000.0, endpoint=False, swap=False):
    """Cosines, then sines, of x at wavelengths 2 pi longest^(i / n)."""
    half = width // 2
    rates = [longest ** (-i / (half - 1 if endpoint else half)) for i in range(half)]
    columns = [[f(x * rate) for rate in rates] for f in ((np.sin, np.cos) if swap else (np.cos, np.sin))]
    return np.stack(columns[0] + columns[1], -1)


def smooth(x, width):
    angle = x[:, None] * np.geomspace(0.5, 32, width // 2)
    return np.concatenate([np.sin(angle), np.cos(angle)], -1)


def fourier(x, width):
    angle = 2 * np.pi * 16 * scipy.special.ndtri((np.arange(width // 2) + 0.5) / (width // 2)) * x[:, None]
    return np.concatenate([np.sin(angle), np.cos(angle)], -1)


def one_hot(label, size):
    return np.float64(np.arange(size) == np.asarray(label)[:, None])


# ---- of U-Nets ------------------------------------------------------------------------------------------------------


def embedding(p, noise, given, early=False):
    """given: augment, label (as rows) and vector, of which the last two come in before the dense layers or after."""
    h = noise + sum(dense(given[name], p[name]) for name in ("augment",) if name in given)
    late = sum(dense(given[name], p[name]) for name in ("label", "vector") if name in given)
    h = dense(silu(dense(h + late if early else h, p["dense0"])), p["dense1"])
    return silu(h if early else h + late)


def res_block(h, e, p, how=None, weights=MEAN, shift=False, widen=False, scale=1.0, epsilon=1e-5):
    """norm, SiLU, resample, conv, embedding and norm, SiLU, conv, plus the input, resampled and widened."""
    x, h = resample(h, how, weights), resample(silu(group_norm(h, p["norm0"], epsilon=epsilon)), how, weights)
    h = conv(h, p["conv0"])
    by = None if e is None else dense(e, p["modulation"]).reshape(len(e), *[1] * (h.ndim - 2), -1)
    h = h + by if by is not None and shift else h
    h = group_norm(h, p["norm1"], epsilon=epsilon)
    if by is not None and not shift:
        h = h * (1 + by[..., : h.shape[-1]]) + by[..., h.shape[-1] :]
    h = conv(silu(h), p["conv1"])
    return ((dense(x, p["widen"]) if x.shape != h.shape or (how and widen) else x) + h) * scale


def self_attention(x, p, heads, scale=1.0, epsilon=1e-5):
    h = group_norm(x, p["norm"], epsilon=epsilon).reshape(len(x), -1, x.shape[-1])
    h = attention(*np.split(dense(h, p["qkv"]), 3, -1), heads)
    return (x + dense(h, p["project"]).reshape(x.shape)) * scale


def time_attention(x, p, heads):
    """x [batch, frames, height, width, channels], one position of the image after the other."""
    _, frames, height, width, channels = x.shape
    position = dense(sinusoid(np.arange(frames), channels, longest=100.0), p["position"])
    normed, out = np.stack([group_norm(frame, p["norm"]) for frame in x]), x.copy()
    for i, j in itertools.product(range(height), range(width)):
        h = attention(*np.split(dense(normed[:, :, i, j] + position, p["qkv"]), 3, -1), heads)
        out[:, :, i, j] += dense(h, p["project"])
    return out


def transformer(x, tokens, p, heads):
    h = dense(group_norm(x, p["norm"], epsilon=1e-6).reshape(len(x), -1, x.shape[-1]), p["project_in"])
    for name in sorted(name for name in p if name.startswith("block")):
        q = p[name]
        to = layer_norm(h, q["norm0"], 1e-5)
        found = attention(*(dense(to, q[f"self_{part}"]) for part in "qkv"), heads)
        h = h + dense(found, q["self_project"])
        to = layer_norm(h, q["norm1"], 1e-5)
        found = attention(
            *(dense(a, q[f"cross_{part}"]) for part, a in zip("qkv", (to, tokens, tokens), strict=True)), heads
        )
        h = h + dense(found, q["cross_project"])
        wide, gate = np.split(dense(layer_norm(h, q["norm2"], 1e-5), q["widen"]), 2, -1)
        h = h + dense(wide * gelu(gate), q["narrow"])
    return x + dense(h, p["project_out"]).reshape(x.shape)


def checkpoints(jaxpr):
    """How many parts with weights are computed again; normalisation alone may be as well."""
    again = [e for e in jaxpr.eqns if e.primitive.name in ("checkpoint", "remat", "remat2")]
    return sum("dot_general" in str(e.params["jaxpr"]) for e in again)


# ---- of transformers ------------------------------------------------------------------------------------------------


def dit_block(x, e, p, heads, tokens=None):
    """e is the embedding with SiLU applied."""
    shift0, scale0, gate0, shift1, scale1, gate1 = np.split(dense(e, p["modulation"])[:, None], 6, -1)
    h = layer_norm(x) * (1 + scale0) + shift0
    x = x + gate0 * dense(attention(*by_heads(dense(h, p["qkv"]), heads, 3), heads), p["project"])
    if tokens is not None:
        k, v = by_heads(dense(tokens, p["cross_kv"]), heads, 2)
        x = x + dense(attention(dense(layer_norm(x), p["cross_q"]), k, v, heads), p["cross_project"])
    h = layer_norm(x) * (1 + scale1) + shift1
    return x + gate1 * dense(gelu_tanh(dense(h, p["widen"])), p["narrow"])


def by_heads(a, heads, parts):
    """The columns belong to the first head, its queries, keys and values (of size each), then to the second, ..."""
    size = a.shape[-1] // (heads * parts)
    columns = np.arange(a.shape[-1])
    return [a[..., (columns // size) % parts == part] for part in range(parts)]


def patches(x, size):
    """[batch, rows, columns, size size channels], each patch read row by row."""
    batch, height, width, channels = x.shape
    out = np.zeros((batch, height // size, width // size, size * size * channels))
    for row, column in np.ndindex(out.shape[1:3]):
        for i, j in np.ndindex(size, size):
            at = (i * size + j) * channels
            out[:, row, column, at : at + channels] = x[:, row * size + i, column * size + j]
    return out


def images(h, size):
    """The way back."""
    batch, rows, columns, wide = h.shape
    channels = wide // size**2
    out = np.zeros((batch, rows * size, columns * size, channels))
    for i, j in np.ndindex(out.shape[1:3]):
        at = (i % size * size + j % size) * channels
        out[:, i, j] = h[:, i // size, j // size, at : at + channels]
    return out


def positions(rows, columns, width):
    """Sines and cosines of the column, then of the row, at rates 10000^(-i / (width / 4)); rows come first."""
    quarter = width // 4
    rates = [10_000 ** (-i / quarter) for i in range(quarter)]
    return np.array(
        [
            [f(at * rate) for at in (column, row) for f in (math.sin, math.cos) for rate in rates]
            for row in range(rows)
            for column in range(columns)
        ]
    )
