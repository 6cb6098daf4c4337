"""U-ViT of simple diffusion (Hoogeboom, Heek & Salimans 2023, arXiv:2301.11093): convolutions outside, a transformer
within.

High resolutions are handled by residual blocks as in a U-Net, few of them, since there they cost most; the lowest one
by the blocks of a transformer, where the parameters are. Images of 256 pixels and more are first cut into patches
(section 3.2), and dropout is only applied within (section 3.3). The level and the class enter all blocks by scale and
shift. Use `schedules.shift` for the noise that large images need (equation 2).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffax import _check
from diffax.models import conditioning, sizes
from diffax.models.dit import Block, from_patches, positions, to_patches
from diffax.models.layers import Dense, GroupNorm, conv, resample, smooth
from diffax.models.network import Network, from_linen
from diffax.models.unet import DIFFAX, Embedding, ResBlock

__all__ = ["UViT", "uvit"]


def uvit(
    shape: Sequence[int],
    *,
    patch: int = 1,
    channels: int = 128,
    multipliers: Sequence[int] = (1, 2),
    blocks: int = 3,
    width: int = 512,
    depth: int = 12,
    heads: int = 8,
    num_classes: int | None = None,
    vector: int | None = None,
    tokens: int | None = None,
    image: int | None = None,
    out_channels: int | None = None,
    dropout: float = 0.0,
    noise: Callable[[Array, int], Array] = smooth,
    remat: bool = False,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
) -> Network:
    """A U-ViT over images [batch, height, width, channels].

    Args:
      shape: (height, width, channels) of the images in and out.
      patch: side of the squares that they are cut into first.
      channels, multipliers, blocks: the levels of convolutions, as of `unet`; the transformer is one level below them.
      width, depth, heads: of the transformer, as of `dit`.
      num_classes, vector, tokens, image: sizes of the conditions that it takes, see `diffax.models.conditioning`.
        Tokens are looked at by the transformer.
      out_channels: if other than those of shape.
      dropout: rate inside the transformer, in training.
      noise: (c_noise [batch], channels) -> [batch, channels], the embedding of the level.
      remat: compute each block again in the backward pass, to save memory.
      dtype: of the computation; normalisation and softmax stay in float32. param_dtype: of the parameters.

    Raises: ValueError if the sides do not divide by patch and 2^levels, or a number is out of range.
    """
    takes = conditioning.checked(num_classes, vector, tokens, image)
    sizes.patches(shape, patch)
    sizes.levels(shape, multipliers, (), ranks=(3,))
    factor = patch * 2 ** len(multipliers)
    if shape[0] % factor or shape[1] % factor:
        raise ValueError(
            f"shape = {tuple(shape)}: height {shape[0]} and width {shape[1]} must be multiples of {factor}, as patches "
            f"of {patch} are halved {len(multipliers)} times"
        )
    sizes.rate("dropout", dropout)
    sizes.transformer(width, depth, heads)
    sizes.whole(blocks=blocks, out_channels=out_channels)
    _check.whole("channels", channels, 2)
    module = UViT(
        out_channels=out_channels or shape[-1],
        patch=patch,
        channels=channels,
        multipliers=tuple(multipliers),
        blocks=blocks,
        width=width,
        depth=depth,
        heads=heads,
        takes=takes,
        dropout=dropout,
        noise=noise,
        remat=remat,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    return from_linen(module, tuple(shape))


class UViT(nn.Module):
    """The module behind `uvit`, which checks and documents these fields."""

    out_channels: int
    patch: int
    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    width: int
    depth: int
    heads: int
    takes: conditioning.Conditions
    dropout: float
    noise: Callable[[Array, int], Array]
    remat: bool
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Any = None, *, train: bool = False) -> Array:
        kind: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        style = DIFFAX._replace(noise=self.noise)
        given, c_noise = conditioning.given(cond, self.takes, x), conditioning.told(c_noise, x)
        embedding = Embedding(self.channels, style, **kind, name="embedding")(c_noise, given)
        res_block, transformer_block = ResBlock, Block
        if self.remat:
            res_block = nn.remat(ResBlock, static_argnums=(3,))  # type: ignore[misc]
            transformer_block = nn.remat(Block, static_argnums=(4,))  # type: ignore[misc]

        def block(name: str, h: Array, width: int) -> Array:
            return res_block(width, None, 0.0, style, **kind, name=name)(h, embedding, train)

        h = to_patches(conditioning.joined(x, given).astype(self.dtype), self.patch)
        h = conv(self.channels, 3, 2, **kind, name="conv_in")(h)
        skips = []
        for level, multiplier in enumerate(self.multipliers):
            for i in range(self.blocks):
                h = block(f"down{level}_block{i}", h, self.channels * multiplier)
                skips.append(h)
            h = resample(h, "down")

        _, rows, columns, outer = h.shape
        tokens = Dense(self.width, **kind, name="narrow")(h).reshape(len(x), -1, self.width)
        tokens = tokens + jnp.asarray(positions(rows, columns, self.width), self.dtype)
        for i in range(self.depth):
            layer = transformer_block(self.heads, self.dropout, **kind, name=f"block{i}")
            tokens = layer(tokens, embedding, given.get("tokens"), train)
        h = h + Dense(outer, 0, **kind, name="widen")(tokens).reshape(h.shape)

        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            h = resample(h, "up")
            for i in range(self.blocks):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(f"up{level}_block{i}", h, self.channels * multiplier)

        h = GroupNorm(silu=True, **kind, name="norm_out")(h)
        h = conv(self.patch**2 * self.out_channels, 3, 2, gain=0, **kind, name="conv_out")(h)
        return from_patches(h, self.patch).astype(jnp.float32)
