"""The U-Net: residual blocks with adaptive group normalisation, attention at chosen resolutions, skip connections.

The architecture of Ho et al. 2020 with the block of Dhariwal & Nichol 2021 (arXiv:2105.05233, "ADM"): the noise level
and the class enter through scale and shift of the group normalisation, resampling happens inside residual blocks, and
the last convolution of each block and of the network starts at zero, so that the network begins as F = 0.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffax.models.network import Network, from_linen

__all__ = ["UNet", "unet"]


def unet(
    shape: tuple[int, int, int],
    *,
    channels: int = 64,
    multipliers: Sequence[int] = (1, 2),
    blocks: int = 2,
    attention: Sequence[int] = (),
    head_channels: int = 32,
    num_classes: int | None = None,
    dropout: float = 0.0,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
) -> Network:
    """A U-Net over images [batch, height, width, channels].

    Args:
      shape: (height, width, channels) of the images in and out.
      channels: width at full resolution.
      multipliers: width of each level as a multiple of `channels`; each level after the first halves the image.
      blocks: residual blocks a level (the way up has one more).
      attention: heights of the levels that get self-attention; the middle always has it.
      head_channels: channels of an attention head, at least; heads divide the channels of their level evenly.
      num_classes: cond is then an int label [batch] in [0, num_classes], num_classes meaning "no label" (for
        classifier-free guidance). None: unconditional, cond is ignored.
      dropout: rate inside the residual blocks, in training.
      dtype: of the computation (bfloat16 is fine; normalisation and the attention's softmax stay in float32).
      param_dtype: of the parameters.

    Raises: ValueError if height or width does not divide by 2^(levels - 1), or a number is out of range.
    """
    if not isinstance(multipliers, Sequence) or not multipliers or not all(_counts(m) for m in multipliers):
        raise ValueError(f"multipliers = {multipliers}: must be integers >= 1, one for each level")
    height, width, image_channels = shape
    factor = 2 ** (len(multipliers) - 1)
    if min(height, width, image_channels) < 1 or height % factor or width % factor:
        raise ValueError(
            f"shape = {tuple(shape)}: height {height} and width {width} must be multiples of {factor}, because "
            f"multipliers = {tuple(multipliers)} has {len(multipliers)} levels, each half the size of the one before"
        )
    for name, value, least in (("channels", channels, 2), ("blocks", blocks, 1), ("head_channels", head_channels, 1)):
        if not _counts(value) or value < least:
            raise ValueError(f"{name} = {value}: must be an integer >= {least}")
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes = {num_classes}: must be at least 1, or None for an unconditional network")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout = {dropout}: must lie in [0, 1)")
    heights = [height >> level for level in range(len(multipliers))]
    if unknown := set(attention) - set(heights):
        raise ValueError(f"attention = {tuple(attention)}: {sorted(unknown)} is no level's height; they are {heights}")
    module = UNet(
        image_channels=image_channels,
        channels=channels,
        multipliers=tuple(multipliers),
        blocks=blocks,
        attention=tuple(attention),
        head_channels=head_channels,
        num_classes=num_classes,
        dropout=dropout,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    return from_linen(module, tuple(shape), None if num_classes is None else jnp.zeros(1, jnp.int32))


class UNet(nn.Module):
    """The module behind `unet`, which checks and documents these fields."""

    image_channels: int
    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    head_channels: int
    num_classes: int | None
    dropout: float
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Array | None = None, *, train: bool = False) -> Array:
        kind: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        embedding = Embedding(4 * self.channels, self.num_classes, **kind, name="embedding")(c_noise, cond)

        def block(name: str, h: Array, width: int, resample: str | None = None) -> Array:
            layer = ResBlock(width, resample, self.dropout, **kind, name=name)
            return layer(h, embedding, train)

        def attend(name: str, h: Array) -> Array:
            return Attention(self.head_channels, **kind, name=name)(h) if h.shape[1] in self.attention else h

        h = nn.Conv(self.channels, (3, 3), **kind, name="conv_in")(x.astype(self.dtype))
        skips = [h]
        for level, multiplier in enumerate(self.multipliers):
            width = self.channels * multiplier
            if level > 0:
                h = block(f"down{level}_resample", h, h.shape[-1], "down")
                skips.append(h)
            for i in range(self.blocks):
                h = attend(f"down{level}_attention{i}", block(f"down{level}_block{i}", h, width))
                skips.append(h)

        h = block("middle_block0", h, h.shape[-1])
        h = Attention(self.head_channels, **kind, name="middle_attention")(h)
        h = block("middle_block1", h, h.shape[-1])

        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            width = self.channels * multiplier
            for i in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = attend(f"up{level}_attention{i}", block(f"up{level}_block{i}", h, width))
            if level > 0:
                h = block(f"up{level}_resample", h, h.shape[-1], "up")

        h = nn.silu(Norm(**kind, name="norm_out")(h))
        h = nn.Conv(self.image_channels, (3, 3), **kind, kernel_init=nn.initializers.zeros, name="conv_out")(h)
        return h.astype(jnp.float32)


class Embedding(nn.Module):
    """Noise level and class -> [batch, width], SiLU applied."""

    width: int
    num_classes: int | None
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, c_noise: Array, label: Array | None) -> Array:
        kind: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        # c_noise is of order one: wavelengths from about 12 down to 0.2 tell its levels apart and stay smooth.
        angle = c_noise.astype(jnp.float32)[:, None] * jnp.geomspace(0.5, 32, self.width // 8)
        h = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1).astype(self.dtype)
        h = nn.Dense(self.width, **kind, name="dense0")(h)
        if self.num_classes is not None:
            if label is None:
                label = jnp.full(c_noise.shape, self.num_classes)
            h = h + nn.Embed(self.num_classes + 1, self.width, **kind, name="label")(label)
        return nn.silu(nn.Dense(self.width, **kind, name="dense1")(nn.silu(h)))


class ResBlock(nn.Module):
    """norm, SiLU, (resample,) conv, adaptive norm, SiLU, dropout, conv; plus the input, resampled and widened alike."""

    width: int
    resample: str | None
    dropout: float
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, embedding: Array, train: bool) -> Array:
        kind: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        h = nn.silu(Norm(**kind, name="norm0")(x))
        h, x = _resample(h, self.resample), _resample(x, self.resample)
        h = nn.Conv(self.width, (3, 3), **kind, name="conv0")(h)
        scale, shift = jnp.split(nn.Dense(2 * self.width, **kind, name="modulation")(embedding)[:, None, None], 2, -1)
        h = nn.silu(Norm(**kind, name="norm1")(h) * (1 + scale) + shift)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = nn.Conv(self.width, (3, 3), **kind, kernel_init=nn.initializers.zeros, name="conv1")(h)
        if x.shape[-1] != self.width:
            x = nn.Dense(self.width, **kind, name="widen")(x)
        return x + h


class Attention(nn.Module):
    """Self-attention over the pixels, added to the input."""

    head_channels: int
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kind: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        batch, height, width, channels = x.shape
        heads = math.gcd(channels, max(channels // self.head_channels, 1))
        h = Norm(**kind, name="norm")(x).reshape(batch, height * width, channels)
        qkv = nn.Dense(3 * channels, **kind, name="qkv")(h)
        q, k, v = (a.reshape(batch, -1, heads, channels // heads) for a in jnp.split(qkv, 3, axis=-1))
        h = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
        return x + nn.Dense(channels, **kind, kernel_init=nn.initializers.zeros, name="project")(h)


class Norm(nn.Module):
    """Group normalisation in groups of at least 4 channels, 32 groups at most, statistics in float32."""

    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        groups = math.gcd(min(32, max(x.shape[-1] // 4, 1)), x.shape[-1])
        return nn.GroupNorm(groups, dtype=self.dtype, param_dtype=self.param_dtype, name="group")(x)


def _counts(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _resample(x: Array, how: str | None) -> Array:
    if how == "down":
        return nn.avg_pool(x, (2, 2), (2, 2))
    if how == "up":
        return x.repeat(2, axis=1).repeat(2, axis=2)
    return x
