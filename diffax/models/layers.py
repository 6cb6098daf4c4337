"""What the networks are made of: drawn parameters, dense layers and convolutions, normalisation, attention, embeddings.

Parameters are float32 and their initial distribution is written beside them (`Drawn`), so that `draw` makes all of a
network's in one program, which compiles in a fraction of the time that tracing the network's own initialisers takes.
Layers compute in `dtype`; normalisation, softmax and embeddings of the noise level are in float32 throughout.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from diffax._compile import kept

__all__ = [
    "Dense",
    "Drawn",
    "GroupNorm",
    "attention",
    "conv",
    "draw",
    "fourier",
    "group_norm",
    "resample",
    "sinusoid",
    "smooth",
]


# ---- parameters -----------------------------------------------------------------------------------------------------


class Drawn(struct.PyTreeNode, nn.meta.AxisMetadata):
    """A parameter together with how it is drawn: mean + std * normal. Flax unboxes it where it is used."""

    value: Any
    mean: float = struct.field(pytree_node=False, default=0.0)
    std: float = struct.field(pytree_node=False, default=0.0)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> "Drawn":
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Drawn":
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Drawn":
        return self


def normal(mean: float = 0.0, std: float = 0.0) -> Callable[..., Any]:
    """mean + std * normal, for every entry."""

    def init(key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Drawn:
        value = jnp.full(shape, mean, dtype)
        return Drawn(value if std == 0 else value + std * jax.random.normal(key, shape, dtype), mean, std)

    return init


def scaled(gain: float = 1.0) -> Callable[..., Any]:
    """Normal with variance gain^2 / fan-in, the last axis being that of the outputs: unit variance in, gain^2 out."""

    def init(key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Drawn:
        return normal(0.0, gain / math.sqrt(math.prod(shape[:-1])))(key, shape, dtype)

    return init


def draw(shapes: Any, key: Array) -> Any:
    """Parameters for a tree of Drawn (its values may be shapes), all from one draw of the random generator."""
    leaves, tree = jax.tree_util.tree_flatten(shapes, is_leaf=lambda a: isinstance(a, Drawn))
    sizes = [math.prod(leaf.value.shape) if leaf.std else 0 for leaf in leaves]
    # Written out first: a GPU's compiler would put the generator into every leaf that reads it, and take minutes.
    noise = jax.lax.optimization_barrier(jax.random.normal(key, (sum(sizes),)))
    ends, made = np.cumsum(sizes), []
    for leaf, size, end in zip(leaves, sizes, ends, strict=True):
        value = jnp.full(leaf.value.shape, leaf.mean, leaf.value.dtype)
        if leaf.std:
            value += (leaf.std * noise[end - size : end]).reshape(value.shape).astype(value.dtype)
        made.append(value)
    return jax.tree_util.tree_unflatten(tree, made)


# ---- layers ---------------------------------------------------------------------------------------------------------


def Dense(features: int, gain: float = 1.0, **options: Any) -> nn.Dense:  # reads as the layer it is
    """nn.Dense with parameters that `draw` knows."""
    return nn.Dense(features, kernel_init=scaled(gain), bias_init=normal(), **options)


def conv(features: int, size: int, dims: int, gain: float = 1.0, **options: Any) -> nn.Conv:
    """nn.Conv over `dims` axes with parameters that `draw` knows."""
    init: dict[str, Any] = dict(kernel_init=scaled(gain), bias_init=normal())
    return nn.Conv(features, (size,) * dims, conv_general_dilated=_convolve, **init, **options)


def _convolve(x: Array, kernel: Array, *args: Any, **options: Any) -> Array:
    """On a CPU x, and the gradient of what comes out, are made once: the kernel's gradient transposes both."""
    return kept(jax.lax.conv_general_dilated(kept(x), kernel, *args, **options))


class GroupNorm(nn.Module):
    """Group normalisation with scale and shift, and SiLU after it if asked.

    groups: how many; None for at least 4 channels in each and 32 groups at most.
    `modulation`, a pair [batch, channels] from an embedding, replaces y by y (1 + scale) + shift before the SiLU.
    """

    epsilon: float = 1e-5
    groups: int | None = None
    silu: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, modulation: tuple[Array, Array] | None = None) -> Array:
        channels = x.shape[-1]
        scale = self.param("scale", normal(1.0), (channels,), self.param_dtype)[None]
        shift = self.param("bias", normal(), (channels,), self.param_dtype)[None]
        if modulation is not None:
            by, add = (m.astype(jnp.float32) for m in modulation)
            scale, shift = scale * (1 + by), shift * (1 + by) + add
        groups = self.groups or math.gcd(min(32, max(channels // 4, 1)), channels)
        return group_norm(x, scale, shift, groups, self.epsilon, self.silu).astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation over channels, statistics in float32; without parameters if not affine."""

    epsilon: float = 1e-6
    affine: bool = True
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = x.astype(jnp.float32)
        h = h - h.mean(-1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + self.epsilon)
        if self.affine:
            h = h * self.param("scale", normal(1.0), h.shape[-1:], self.param_dtype)
            h = h + self.param("bias", normal(), h.shape[-1:], self.param_dtype)
        return h.astype(self.dtype)


def group_norm(x: Array, scale: Array, shift: Array, groups: int, epsilon: float, silu: bool) -> Array:
    """Normalised over positions and the channels of a group, times scale plus shift (each [batch or 1, channels])."""
    # Sums over positions come first, channel by channel: memory is read in its order, which a CPU does much faster.
    batch, channels = x.shape[0], x.shape[-1]
    h = x.astype(jnp.float32).reshape(batch, -1, channels)
    size = channels // groups

    def mean(sums: Array) -> Array:
        """[batch, channels] of sums over positions -> the group's mean, for each of its channels."""
        whole = sums.reshape(batch, groups, size).sum(-1) / (h.shape[1] * size)
        return whole.repeat(size, axis=-1)

    centre = mean(h.sum(1))
    variance = mean(jnp.square(h - centre[:, None]).sum(1))
    factor = jax.lax.rsqrt(variance + epsilon) * scale.astype(jnp.float32)
    factor, offset = kept((factor, shift.astype(jnp.float32) - centre * factor))

    def finish(h: Array, factor: Array, offset: Array) -> Array:
        y = h * factor[:, None] + offset[:, None]
        return nn.silu(y) if silu else y

    if jax.default_backend() == "cpu":  # where an exponential costs less than to write it and to read it again
        finish = jax.checkpoint(finish)
    return finish(h, factor, offset).reshape(x.shape).astype(x.dtype)


def attention(q: Array, k: Array, v: Array) -> Array:
    """softmax(q k / sqrt(size)) v over [batch, tokens, heads, size]: cuDNN's flash attention where it can."""
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    flash = jax.default_backend() == "gpu" and half and q.shape[-1] in range(8, 129, 8)
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn" if flash else "xla")


def heads_of(channels: int, head_channels: int) -> int:
    """How many heads of at least head_channels divide the channels evenly."""
    return math.gcd(channels, max(channels // head_channels, 1))


# ---- embeddings of the noise level ----------------------------------------------------------------------------------


def smooth(x: Array, width: int) -> Array:
    """[batch] -> [batch, width], for x of order one such as log(sigma) / 4: wavelengths from about 12 down to 0.2."""
    angle = x.astype(jnp.float32)[:, None] * jnp.geomspace(0.5, 32, width // 2)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def sinusoid(
    x: Array, width: int, *, longest: float = 10_000.0, scale: float = 1.0, endpoint: bool = False, swap: bool = False
) -> Array:
    """[batch] -> [batch, width]: cosines and sines of scale * x at wavelengths from 2 pi to 2 pi * longest.

    endpoint: whether the last of the width / 2 wavelengths is the longest, or the one before it; swap: sines first.
    """
    half = width // 2
    rates = scale * longest ** (-jnp.arange(half, dtype=jnp.float32) / max(half - endpoint, 1))
    angle = x.astype(jnp.float32)[:, None] * rates
    parts = [jnp.cos(angle), jnp.sin(angle)]
    return jnp.concatenate(parts[::-1] if swap else parts, axis=-1)


def fourier(x: Array, width: int, *, rates: ArrayLike | None = None) -> Array:
    """[batch] -> [batch, width]: sines and cosines of 2 pi * rate * x for normal rates of standard deviation 16.

    As in NCSN++ (Song et al. 2021), where they are drawn; here they are the quantiles of that normal distribution,
    unless `rates` are those of a trained network.
    """
    if rates is None:
        quantiles = (np.arange(width // 2) + 0.5) / (width // 2)
        rates = 16 * jax.scipy.special.ndtri(jnp.asarray(quantiles, jnp.float32))
    angle = 2 * jnp.pi * x.astype(jnp.float32)[:, None] * jnp.asarray(rates, jnp.float32)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


# ---- resampling -----------------------------------------------------------------------------------------------------


def resample(x: Array, how: str | None, blur: bool = False, border: bool = False) -> Array:
    """Half ("down") or twice ("up") the size along every axis between batch and channels; None: x as it is.

    By the mean of two neighbours and by repetition, or, if blur, by the weights (1, 3, 3, 1). Beyond its ends the
    signal is 0. border: for "down", that one more sample is there at each end already.
    """
    for axis in range(1, x.ndim - 1) if how else ():
        x = _down(x, axis, blur, border) if how == "down" else _up(x, axis, blur)
    return x


def _down(x: Array, axis: int, blur: bool, border: bool) -> Array:
    if not blur:
        x = jax.lax.slice_in_dim(x, 1, x.shape[axis] - 1, 1, axis) if border else x
        x = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
        return x.mean(axis + 1)
    x = x if border else _pad(x, axis, 1)
    count = x.shape[axis] // 2 - 1
    a, b, c, d = (jax.lax.slice_in_dim(x, i, i + 2 * count - 1, 2, axis) for i in range(4))
    return (a + d + 3 * (b + c)) / 8


def _up(x: Array, axis: int, blur: bool) -> Array:
    if not blur:
        return x.repeat(2, axis)
    n = x.shape[axis]
    before, here, after = (jax.lax.slice_in_dim(_pad(x, axis, 1), i, i + n, 1, axis) for i in range(3))
    y = jnp.stack([3 * here + before, 3 * here + after], axis + 1) / 4
    return y.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])


def _pad(x: Array, axis: int, by: int) -> Array:
    return jnp.pad(x, [(by, by) if a == axis else (0, 0) for a in range(x.ndim)])
