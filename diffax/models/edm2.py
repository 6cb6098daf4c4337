"""The magnitude-preserving U-Net of EDM2 (Karras et al. 2024, arXiv:2312.02696, configuration G and figure 21).

Every layer keeps the expected magnitude of its input: weights have unit length per output, SiLU is divided by 0.596,
sums and concatenations are weighed (equations 47, 81, 88, 103), attention compares normalised vectors. There are no
biases and no group normalisation; a channel of ones stands in for the former. Only a gain per block, for the embedding,
and one for the output are learned, from 0.

The direction of a weight is all that matters, and training would let its length grow, which slows its learning down:
so after every step lengths are set back (equation 66). `unit_length` does that as the last part of an optimizer:

    network = edm2((64, 64, 3), channels=192, num_classes=1000)
    optimizer = optax.chain(optax.adam(1e-2, b2=0.99), unit_length())

The weighting of noise levels that is learned beside it (equation 21) is `diffax.weightings.uncertainty`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from diffax.models import conditioning, sizes
from diffax.models.layers import attention, heads_of, normal, resample
from diffax.models.network import Network, from_linen

__all__ = ["EDM2", "edm2", "fourier", "unit_length"]


def fourier(x: Array, width: int, *, rates: ArrayLike | None = None, phases: ArrayLike | None = None) -> Array:
    """[batch] -> [batch, width]: sqrt(2) cos(rate x + phase), of unit magnitude (equation 75).

    In the paper rates are 2 pi times normal draws and phases uniform in [0, 2 pi). Here they are the quantiles of the
    one and a sequence that fills the other evenly, unless they are given, as those of a trained network.
    """
    index = np.arange(width)
    if rates is None:
        rates = 2 * np.pi * jax.scipy.special.ndtri(jnp.asarray((index + 0.5) / width, jnp.float32))
    if phases is None:
        phases = 2 * np.pi * (index * (math.sqrt(5) - 1) / 2 % 1)
    angle = x.astype(jnp.float32)[:, None] * jnp.asarray(rates, jnp.float32) + jnp.asarray(phases, jnp.float32)
    return math.sqrt(2) * jnp.cos(angle)


def edm2(
    shape: Sequence[int],
    *,
    channels: int = 192,
    multipliers: Sequence[int] = (1, 2, 3, 4),
    blocks: int = 3,
    attention: Sequence[int] = (16, 8),
    head_channels: int = 64,
    num_classes: int | None = None,
    dropout: float = 0.0,
    noise: Callable[[Array, int], Array] = fourier,
    remat: bool = False,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
) -> Network:
    """An EDM2 U-Net over images [batch, height, width, channels].

    Args:
      shape: (height, width, channels) of the images in and out.
      channels: width at full resolution: 64 is XXS, 128 XS, 192 S, 256 M, 320 L, 384 XL, 448 XXL.
      multipliers: width of each level as a multiple of `channels`.
      blocks: residual blocks a level (the way up has one more).
      attention: heights of the levels with self-attention; the middle always has it.
      head_channels: channels of an attention head, at least.
      num_classes: cond is a class [batch] in [0, num_classes], num_classes meaning "no label".
      dropout: rate inside the residual blocks, in training.
      noise: (c_noise [batch], width) -> [batch, width], of unit magnitude.
      remat: compute each block again in the backward pass, to save memory.
      dtype: of the computation; weights are normalised in float32. param_dtype: of the parameters.

    Raises: ValueError if height or width does not divide by 2^(levels - 1), or a number is out of range.
    """
    takes = conditioning.checked(num_classes)
    attends = sizes.levels(shape, multipliers, attention, ranks=(3,))
    sizes.rate("dropout", dropout)
    sizes.whole(channels=channels, blocks=blocks, head_channels=head_channels)
    module = EDM2(
        channels=channels,
        multipliers=tuple(multipliers),
        blocks=blocks,
        attention=attends,
        head_channels=head_channels,
        takes=takes,
        dropout=dropout,
        noise=noise,
        remat=remat,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    return from_linen(module, tuple(shape))


class EDM2(nn.Module):
    """The module behind `edm2`, which checks and documents these fields; attention is here one flag a level."""

    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...]
    head_channels: int
    takes: conditioning.Conditions
    dropout: float
    noise: Callable[[Array, int], Array]
    remat: bool
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Any = None, *, train: bool = False) -> Array:
        kind: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        out_channels, widths = x.shape[-1], [self.channels * m for m in self.multipliers]
        given, c_noise = conditioning.given(cond, self.takes, x), conditioning.told(c_noise, x)
        embedding = Weight(max(widths), **kind, name="noise")(self.noise(c_noise, widths[0]).astype(self.dtype))
        if "label" in given:
            label = given["label"].astype(self.dtype) * math.sqrt(given["label"].shape[-1])
            embedding = mp_sum(embedding, Weight(max(widths), **kind, name="label")(label), 0.5)
        embedding = mp_silu(embedding)
        layer = nn.remat(Block, static_argnums=(3,)) if self.remat else Block

        def block(name: str, h: Array, width: int, attend: bool, how: str | None = None) -> Array:
            heads = heads_of(width, self.head_channels) if attend else 0
            made = layer(width, name.startswith("down"), how, heads, self.dropout, **kind, name=name)
            return made(h, embedding, train)

        h = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1).astype(self.dtype)
        h = Weight(widths[0], 3, **kind, name="conv_in")(h)
        skips = [h]
        for level, width in enumerate(widths):
            if level > 0:
                h = block(f"down{level}_resample", h, h.shape[-1], False, "down")
                skips.append(h)
            for i in range(self.blocks):
                h = block(f"down{level}_block{i}", h, width, self.attention[level])
                skips.append(h)

        h = block("middle_block0", h, h.shape[-1], True)
        h = block("middle_block1", h, h.shape[-1], False)

        for level, width in reversed(list(enumerate(widths))):
            for i in range(self.blocks + 1):
                h = block(f"up{level}_block{i}", mp_concatenate(h, skips.pop(), 0.5), width, self.attention[level])
            if level > 0:
                h = block(f"up{level}_resample", h, h.shape[-1], False, "up")

        gain = self.param("gain_out", normal(), (), self.param_dtype)
        return Weight(out_channels, 3, **kind, name="conv_out")(h, gain).astype(jnp.float32)


class Block(nn.Module):
    """A residual block and, with heads, self-attention, both mixed into the state at 0.3.

    down: of the way down, where the state is widened and normalised first; on the way up it is widened at the end.
    """

    width: int
    down: bool
    resample: str | None
    heads: int
    dropout: float
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, embedding: Array, train: bool) -> Array:
        kind: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)

        def widen(x: Array) -> Array:
            return x if x.shape[-1] == self.width else Weight(self.width, 1, **kind, name="widen")(x)

        x = resample(x, self.resample)
        x = unit(widen(x), -1) if self.down else x
        h = Weight(self.width, 3, **kind, name="conv0")(mp_silu(x))
        gain = self.param("gain", normal(), (), self.param_dtype)
        h = mp_silu(h * (1 + Weight(self.width, **kind, name="modulation")(embedding, gain))[:, None, None])
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = Weight(self.width, 3, **kind, name="conv1")(h)
        x = mp_sum(x if self.down else widen(x), h, 0.3)
        if self.heads:
            qkv = Weight(3 * self.width, 1, **kind, name="qkv")(x)
            q, k, v = (
                unit(a.reshape(len(x), -1, self.heads, self.width // self.heads), -1)
                for a in jnp.split(qkv, 3, axis=-1)
            )
            h = attention(q, k, v).reshape(x.shape)
            x = mp_sum(x, Weight(self.width, 1, **kind, name="project")(h), 0.3)
        return jnp.clip(x, -256, 256)  # float16 would overflow


class Weight(nn.Module):
    """A dense layer (size 0) or a convolution whose weights have unit length per output, times gain (equation 47)."""

    features: int
    size: int = 0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, gain: ArrayLike = 1.0) -> Array:
        shape = (*(self.size,) * (2 if self.size else 0), x.shape[-1], self.features)
        weight = self.param("weight", normal(std=1.0), shape, self.param_dtype).astype(jnp.float32)
        weight = unit(weight) * (gain / math.sqrt(math.prod(shape[:-1])))
        weight, x = weight.astype(self.dtype), x.astype(self.dtype)
        if self.size < 2:
            return x @ weight.reshape(shape[-2:])
        return jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def unit(x: Array, axis: int | None = None) -> Array:
    """x over its root mean square along an axis; by default along all but the last, as weights are normalised."""
    axes = tuple(range(x.ndim - 1)) if axis is None else (axis,)
    rms = jnp.sqrt(jnp.square(x.astype(jnp.float32)).mean(axes, keepdims=True))
    return x / (1e-4 + rms).astype(x.dtype)


def mp_silu(x: Array) -> Array:
    """SiLU, whose output for normal input has root mean square 0.596 (equation 81)."""
    return nn.silu(x) / 0.596


def mp_sum(a: Array, b: Array, t: float) -> Array:
    """a (1 - t) + b t, at the magnitude of either (equation 88)."""
    return ((1 - t) * a + t * b) / math.hypot(1 - t, t)


def mp_concatenate(a: Array, b: Array, t: float) -> Array:
    """Both parts contributing 1 - t and t, at the magnitude of either (equation 103)."""
    whole = math.sqrt(a.shape[-1] + b.shape[-1]) / math.hypot(1 - t, t)
    return jnp.concatenate(
        [a * (whole * (1 - t) / math.sqrt(a.shape[-1])), b * (whole * t / math.sqrt(b.shape[-1]))], -1
    )


def unit_length() -> optax.GradientTransformation:
    """The last part of an optimizer: sets the lengths of all weights back after each update (equation 66)."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("unit_length needs the parameters: optimizer.update(grads, state, params)")

        def project(path: Any, change: Array, weight: Array) -> Array:
            is_weight = path[-1].key == "weight"
            return unit((weight + change).astype(jnp.float32)).astype(weight.dtype) - weight if is_weight else change

        return jax.tree_util.tree_map_with_path(project, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
