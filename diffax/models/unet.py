"""The U-Net of the field, one module: residual blocks, attention at chosen resolutions, skip connections.

    Ho et al. 2020 (DDPM), Nichol & Dhariwal 2021 (improved DDPM), Dhariwal & Nichol 2021 (ADM), Song et al. 2021
    (DDPM++ and NCSN++, as in Karras et al. 2022), Rombach et al. 2022 (text), Ho et al. 2022 (video)

agree on the skeleton: on the way down a residual block takes the state and leaves a copy of it, on the way up one more
block a level takes these copies in. What they do differently within is a `Style`. The last layer of each block and of
the network starts at zero, so that the network begins as F = 0.

Images are [batch, height, width, channels], sound [batch, length, channels], video [batch, frames, height, width,
channels]: frames are treated as images, but for an attention over time after each over space.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffax import _check
from diffax._compile import kept
from diffax.models import conditioning, sizes
from diffax.models.layers import (
    Dense,
    GroupNorm,
    LayerNorm,
    attention,
    conv,
    fourier,
    heads_of,
    resample,
    sinusoid,
    smooth,
)
from diffax.models.network import Network, from_linen

__all__ = ["ADM", "DDPM", "DDPMPP", "DIFFAX", "IDDPM", "NCSNPP", "Style", "UNet", "unet"]


class Style(NamedTuple):
    """What published U-Nets do differently.

    Fields:
      noise: (c_noise [batch], width) -> its embedding [batch, width], before two dense layers.
      noise_width: of that embedding, in multiples of `channels`.
      label: where class and vector enter: with the "noise" before those layers, or after them ("embedding").
      modulation: the embedding enters each block as "scale_shift" of the second normalisation, or as a "shift"
        before it.
      strided: resampling by layers of their own, a strided convolution or repetition and a convolution, not within a
        residual block; and the padding of the former.
      blur: resampling by the weights (1, 3, 3, 1), not by means of two.
      widen_resampled: a dense layer in the shortcut of resampling blocks.
      skip_scale: of the sum of a block and its shortcut.
      last_only: on the way up only the last block of a level has attention.
      image_skips: the image enters every level (the "residual" encoder of NCSN++).
      epsilon, groups: of the normalisation; None for at least 4 channels in each group and 32 groups at most.
    """

    noise: Callable[[Array, int], Array]
    noise_width: int = 1
    label: str = "embedding"
    modulation: str = "scale_shift"
    strided: tuple[int, int] | None = None
    blur: bool = False
    widen_resampled: bool = False
    skip_scale: float = 1.0
    last_only: bool = False
    image_skips: bool = False
    epsilon: float = 1e-5
    groups: int | None = None


def _sines_first(c_noise: Array, width: int) -> Array:
    """For c_noise in time steps, 0 to 1000, as DDPM counts them."""
    return sinusoid(c_noise, width, endpoint=True, swap=True)


DIFFAX = Style(smooth)
"""ADM's, told log(sigma) / 4."""
ADM = Style(sinusoid)
"""Dhariwal & Nichol 2021, arXiv:2105.05233."""
DDPM = Style(_sines_first, modulation="shift", strided=(0, 1), epsilon=1e-6)
"""Ho et al. 2020, arXiv:2006.11239."""
IDDPM = Style(sinusoid, strided=(1, 1))
"""Nichol & Dhariwal 2021, arXiv:2102.09672."""
DDPMPP = DDPM._replace(strided=None, label="noise", widen_resampled=True, skip_scale=math.sqrt(0.5), last_only=True)
"""Song et al. 2021, arXiv:2011.13456, as in EDM."""
NCSNPP = DDPMPP._replace(noise=fourier, noise_width=2, blur=True, image_skips=True)
"""Song et al. 2021, arXiv:2011.13456, as in EDM."""


def unet(
    shape: Sequence[int],
    *,
    channels: int = 64,
    multipliers: Sequence[int] = (1, 2),
    blocks: int = 2,
    attention: Sequence[int] = (),
    head_channels: int = 32,
    heads: int | None = None,
    num_classes: int | None = None,
    vector: int | None = None,
    tokens: int | None = None,
    image: int | None = None,
    augment: int | None = None,
    out_channels: int | None = None,
    dropout: float = 0.0,
    style: Style = DIFFAX,
    depth: int | Sequence[int] = 1,
    remat: bool = False,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
) -> Network:
    """A U-Net over images, sound or video.

    Args:
      shape: of one sample in and out: (height, width, channels), (length, channels) or (frames, height, width,
        channels).
      channels: width at full resolution.
      multipliers: width of each level as a multiple of `channels`; each level after the first halves the image.
      blocks: residual blocks a level (the way up has one more).
      attention: heights (of sound: lengths) of the levels that get self-attention; the middle always has it.
      head_channels: channels of an attention head, at least; heads divide the channels of their level evenly.
      heads: as many at every level instead.
      num_classes, vector, tokens, image, augment: sizes of the conditions that it takes, see
        `diffax.models.conditioning`; one is given as cond itself, several as a dict. With tokens all attention is by
        transformer blocks (self-attention, cross-attention, feed-forward), `depth` of them.
      out_channels: if other than those of shape, as for a learned variance.
      dropout: rate inside the residual blocks, in training.
      style: what published networks do differently, see `Style`.
      depth: of the transformers, one number or one for each level; that of the last is the middle's too.
      remat: compute each block again in the backward pass, which saves most of the memory for a third more work.
      dtype: of the computation (bfloat16 is fine; normalisation and the attention's softmax stay in float32).
      param_dtype: of the parameters.

    Raises: ValueError if height or width does not divide by 2^(levels - 1), or a number is out of range.
    """
    attends = sizes.levels(shape, multipliers, attention, ranks=(2, 3, 4))
    sizes.rate("dropout", dropout)
    takes = conditioning.checked(num_classes, vector, tokens, image, augment)
    _check.whole("channels", channels, 2)
    sizes.whole(blocks=blocks, head_channels=head_channels, heads=heads, out_channels=out_channels)
    depths = tuple(depth) if isinstance(depth, Sequence) else (depth,) * len(multipliers)
    if len(depths) != len(multipliers):
        raise ValueError(f"depth = {depth}: must be one number, or one for each of {len(multipliers)} levels")
    for value in depths:
        _check.whole("depth", value)
    for multiplier in multipliers:
        if heads is not None and channels * multiplier % heads:
            raise ValueError(f"heads = {heads}: must divide the {channels * multiplier} channels of each level")
    module = UNet(
        out_channels=out_channels or shape[-1],
        channels=channels,
        multipliers=tuple(multipliers),
        blocks=blocks,
        attention=attends,
        head_channels=head_channels,
        heads=heads,
        takes=takes,
        dropout=dropout,
        style=style,
        depths=depths,
        remat=remat,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    return from_linen(module, tuple(shape))


class UNet(nn.Module):
    """The module behind `unet`, which checks and documents these fields; attention is here one flag a level."""

    out_channels: int
    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...]
    head_channels: int
    heads: int | None
    takes: conditioning.Conditions
    dropout: float
    style: Style
    depths: tuple[int, ...]
    remat: bool
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Any = None, *, train: bool = False) -> Array:
        style = self.style
        kind: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        given, c_noise = conditioning.given(cond, self.takes, x), conditioning.told(c_noise, x)
        embedding = Embedding(self.channels, style, **kind, name="embedding")(c_noise, given)
        tokens, x = given.get("tokens"), conditioning.joined(x, given)
        frames = x.shape[1] if x.ndim == 5 else None
        if frames is not None:
            x = x.reshape(-1, *x.shape[2:])
            embedding = embedding.repeat(frames, axis=0)
            tokens = None if tokens is None else tokens.repeat(frames, axis=0)
        dims = x.ndim - 2
        res_block, self_attention, transformer = ResBlock, Attention, Transformer
        if self.remat:
            res_block = nn.remat(ResBlock, static_argnums=(3,))  # type: ignore[misc]  # x, embedding, train
            self_attention, transformer = nn.remat(Attention), nn.remat(Transformer)

        def block(name: str, h: Array, width: int, how: str | None = None) -> Array:
            return res_block(width, how, self.dropout, style, **kind, name=name)(h, embedding, train)

        def attend(name: str, h: Array, level: int) -> Array:
            heads = self.heads or heads_of(h.shape[-1], self.head_channels)
            if tokens is None:
                h = self_attention(heads, style, **kind, name=name)(h)
            else:
                h = transformer(heads, self.depths[level], style.groups, **kind, name=name)(h, tokens)
            if frames is not None:
                h = self_attention(heads, style, frames, **kind, name=f"{name}_time")(h)
            return h

        def attend_here(name: str, h: Array, level: int) -> Array:
            return attend(name, h, level) if self.attention[level] else h

        def change(name: str, h: Array, how: str) -> Array:
            """The level's resampling."""
            width = h.shape[-1]
            if style.strided is None:
                return block(name, h, width, how)
            if how == "up":
                return conv(width, 3, dims, **kind, name=name)(resample(h, "up"))
            return conv(width, 3, dims, strides=2, padding=[style.strided] * dims, **kind, name=name)(h)

        x = x.astype(self.dtype)
        h = conv(self.channels, 3, dims, **kind, name="conv_in")(x)
        skips = [h]
        for level, multiplier in enumerate(self.multipliers):
            if level > 0:
                h = change(f"down{level}_resample", h, "down")
                if style.image_skips:
                    layer = conv(h.shape[-1], 3, dims, padding=1 + style.blur, **kind, name=f"down{level}_image")
                    h = x = (h + resample(layer(x), "down", style.blur, border=style.blur)) * style.skip_scale
                skips.append(h)
            for i in range(self.blocks):
                h = block(f"down{level}_block{i}", h, self.channels * multiplier)
                h = attend_here(f"down{level}_attention{i}", h, level)
                skips.append(h)

        h = block("middle_block0", h, h.shape[-1])
        h = attend("middle_attention", h, -1)
        h = block("middle_block1", h, h.shape[-1])

        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for i in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(f"up{level}_block{i}", h, self.channels * multiplier)
                if i == self.blocks or not style.last_only:
                    h = attend_here(f"up{level}_attention{i}", h, level)
            if level > 0:
                h = change(f"up{level}_resample", h, "up")

        h = GroupNorm(style.epsilon, style.groups, silu=True, **kind, name="norm_out")(h)
        h = conv(self.out_channels, 3, dims, gain=0, **kind, name="conv_out")(h)
        if frames is not None:
            h = h.reshape(-1, frames, *h.shape[1:])
        return h.astype(jnp.float32)


class Embedding(nn.Module):
    """Noise level, class, vector and augmentation -> [batch, 4 channels], SiLU applied."""

    channels: int
    style: Style
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, c_noise: Array, given: Mapping[str, Array]) -> Array:
        style = self.style
        kind: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        early, width = style.label == "noise", 4 * self.channels
        h = style.noise(c_noise, style.noise_width * self.channels).astype(self.dtype)
        h = conditioning.added(h, given, "augment", *(("label", "vector") if early else ()), **kind)
        h = nn.silu(Dense(width, **kind, name="dense0")(h))
        h = Dense(width, **kind, name="dense1")(h)
        h = h if early else conditioning.added(h, given, "label", "vector", use_bias=False, **kind)
        return nn.silu(h)


class ResBlock(nn.Module):
    """norm, SiLU, (resample,) conv, norm and embedding, SiLU, dropout, conv; plus the input, resampled and widened."""

    width: int
    resample: str | None
    dropout: float
    style: Style
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, embedding: Array | None, train: bool) -> Array:
        style, dims = self.style, x.ndim - 2
        kind: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = kept(x)  # of the way up a concatenation, which both branches read
        h = GroupNorm(style.epsilon, style.groups, silu=True, **kind, name="norm0")(x)
        h, x = (resample(a, self.resample, style.blur) for a in (h, x))
        h = conv(self.width, 3, dims, **kind, name="conv0")(h)
        modulation = None
        if embedding is not None:
            parts = 2 if style.modulation == "scale_shift" else 1
            by = Dense(parts * self.width, **kind, name="modulation")(embedding)
            if parts == 2:
                scale, shift = jnp.split(by, 2, axis=-1)
                modulation = scale, shift
            else:
                h = h + jnp.expand_dims(by, tuple(range(1, 1 + dims)))
        h = GroupNorm(style.epsilon, style.groups, silu=True, **kind, name="norm1")(h, modulation)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = conv(self.width, 3, dims, gain=0, **kind, name="conv1")(h)
        if x.shape[-1] != self.width or (self.resample and style.widen_resampled):
            x = Dense(self.width, **kind, name="widen")(x)
        return (x + h) * style.skip_scale


class Attention(nn.Module):
    """Self-attention added to the input: over the positions of an image, or over time at each position.

    frames: how many of them make one sample of the leading axis, for attention over time, which also sees the frame's
    number; None for attention over space.
    """

    heads: int
    style: Style
    frames: int | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kind: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        channels, shape = x.shape[-1], x.shape
        h = GroupNorm(self.style.epsilon, self.style.groups, **kind, name="norm")(x).reshape(len(x), -1, channels)
        if self.frames is not None:
            h = h.reshape(-1, self.frames, *h.shape[1:]).swapaxes(1, 2).reshape(-1, self.frames, channels)
            position = sinusoid(jnp.arange(self.frames), channels, longest=100.0)
            h = h + Dense(channels, **kind, name="position")(position.astype(self.dtype))
        qkv = Dense(3 * channels, **kind, name="qkv")(h)
        q, k, v = (a.reshape(*h.shape[:-1], self.heads, -1) for a in jnp.split(qkv, 3, axis=-1))
        h = Dense(channels, 0, **kind, name="project")(attention(q, k, v).reshape(h.shape))
        if self.frames is not None:
            h = h.reshape(len(x) // self.frames, -1, self.frames, channels).swapaxes(1, 2)
        return (x + h.reshape(shape)) * self.style.skip_scale


class Transformer(nn.Module):
    """Transformer blocks over the positions, which also look at tokens (Rombach et al. 2022, arXiv:2112.10752)."""

    heads: int
    depth: int
    groups: int | None
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, tokens: Array) -> Array:
        kind: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        channels = x.shape[-1]
        h = GroupNorm(1e-6, self.groups, **kind, name="norm")(x).reshape(len(x), -1, channels)
        h = Dense(channels, **kind, name="project_in")(h)
        for i in range(self.depth):
            h = TransformerBlock(self.heads, **kind, name=f"block{i}")(h, tokens.astype(self.dtype))
        return x + Dense(channels, 0, **kind, name="project_out")(h).reshape(x.shape)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and a gated feed-forward layer (GEGLU), each after its layer normalisation."""

    heads: int
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, tokens: Array) -> Array:
        kind: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        channels = x.shape[-1]

        def norm(name: str, x: Array) -> Array:
            return LayerNorm(1e-5, **kind, name=name)(x)

        def attend(name: str, x: Array, to: Array) -> Array:
            q, k, v = (
                Dense(channels, use_bias=False, **kind, name=f"{name}_{part}")(a).reshape(*a.shape[:2], self.heads, -1)
                for part, a in (("q", x), ("k", to), ("v", to))
            )
            return Dense(channels, **kind, name=f"{name}_project")(attention(q, k, v).reshape(x.shape))

        h = norm("norm0", x)
        x = x + attend("self", h, h)
        x = x + attend("cross", norm("norm1", x), tokens)
        h, gate = jnp.split(Dense(8 * channels, **kind, name="widen")(norm("norm2", x)), 2, axis=-1)
        return x + Dense(channels, **kind, name="narrow")(h * nn.gelu(gate, approximate=False))
