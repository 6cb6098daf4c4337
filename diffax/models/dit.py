"""The diffusion transformer, DiT (Peebles & Xie 2023, arXiv:2212.09748): patches as tokens, modulated by the level.

Each block's layer normalisations are scaled and shifted, and its two branches gated, by a dense layer of the embedded
noise level and class ("adaLN-Zero"); these layers and the last one start at zero, so that every block begins as the
identity and the network as F = 0.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffax.models import conditioning, sizes
from diffax.models.layers import Dense, LayerNorm, attention, smooth
from diffax.models.network import Network, from_linen

__all__ = ["DiT", "dit"]


def dit(
    shape: Sequence[int],
    *,
    patch: int = 2,
    width: int = 384,
    depth: int = 12,
    heads: int = 6,
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
    """A DiT over images [batch, height, width, channels].

    Args:
      shape: (height, width, channels) of the images in and out.
      patch: side of a patch; (height / patch) (width / patch) tokens.
      width, depth, heads: of the transformer; S is 384, 12, 6, B 768, 12, 12, L 1024, 24, 16, XL 1152, 28, 16.
      num_classes, vector, tokens, image: sizes of the conditions that it takes, see `diffax.models.conditioning`.
        "No label" has an embedding of its own. Tokens are looked at by a cross-attention in each block.
      out_channels: if other than those of shape, as for a learned variance.
      dropout: rate inside the feed-forward layers, in training.
      noise: (c_noise [batch], 256) -> [batch, 256], the embedding of the level.
      remat: compute each block again in the backward pass, to save memory.
      dtype: of the computation; normalisation and softmax stay in float32. param_dtype: of the parameters.

    Raises: ValueError if the sides do not divide by patch, or width by 4 heads, or a number is out of range.
    """
    takes = conditioning.checked(num_classes, vector, tokens, image)
    sizes.patches(shape, patch)
    sizes.rate("dropout", dropout)
    sizes.transformer(width, depth, heads)
    sizes.whole(out_channels=out_channels)
    module = DiT(
        out_channels=out_channels or shape[-1],
        patch=patch,
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


class DiT(nn.Module):
    """The module behind `dit`, which checks and documents these fields."""

    out_channels: int
    patch: int
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
        given, c_noise = conditioning.given(cond, self.takes, x), conditioning.told(c_noise, x)
        embedding = self._embedding(c_noise, given)
        x = conditioning.joined(x, given).astype(self.dtype)

        h = to_patches(x, self.patch)
        _, rows, columns, _ = h.shape
        h = Dense(self.width, **kind, name="patches")(h.reshape(len(x), rows * columns, -1))
        h = h + jnp.asarray(positions(rows, columns, self.width), self.dtype)
        layer = nn.remat(Block, static_argnums=(4,)) if self.remat else Block
        for i in range(self.depth):
            block = layer(self.heads, self.dropout, **kind, name=f"block{i}")
            h = block(h, embedding, given.get("tokens"), train)

        scale, shift = jnp.split(Dense(2 * self.width, 0, **kind, name="modulation")(embedding)[:, None], 2, axis=-1)
        h = LayerNorm(affine=False, **kind)(h) * (1 + scale) + shift
        h = Dense(self.patch**2 * self.out_channels, 0, **kind, name="out")(h)
        return from_patches(h.reshape(len(x), rows, columns, -1), self.patch).astype(jnp.float32)

    def _embedding(self, c_noise: Array, given: Mapping[str, Array]) -> Array:
        """Noise level, class and vector -> [batch, width], SiLU applied."""
        kind: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        h = Dense(self.width, **kind, name="noise0")(self.noise(c_noise, 256).astype(self.dtype))
        h = Dense(self.width, **kind, name="noise1")(nn.silu(h))
        if "label" in given:
            rows = given["label"]
            rows = jnp.concatenate([rows, 1 - rows.sum(-1, keepdims=True)], axis=-1)  # "no label" is the last row
            h = h + Dense(self.width, 0.02 * rows.shape[-1] ** 0.5, use_bias=False, **kind, name="label")(
                rows.astype(self.dtype)
            )
        return nn.silu(conditioning.added(h, given, "vector", **kind))


class Block(nn.Module):
    """Attention and feed-forward layer, each of a modulated normalisation and through a gate."""

    heads: int
    dropout: float
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, embedding: Array, tokens: Array | None, train: bool) -> Array:
        kind: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        width = x.shape[-1]
        parts = jnp.split(Dense(6 * width, 0, **kind, name="modulation")(embedding)[:, None], 6, axis=-1)
        shift0, scale0, gate0, shift1, scale1, gate1 = parts

        def split(a: Array, parts: int) -> list[Array]:
            """[..., heads parts size] -> parts of [..., heads, size]: heads first, so that devices can share them."""
            return [p[..., 0, :] for p in jnp.split(a.reshape(*a.shape[:-1], self.heads, parts, -1), parts, axis=-2)]

        h = LayerNorm(affine=False, **kind)(x) * (1 + scale0) + shift0
        q, k, v = split(Dense(3 * width, **kind, name="qkv")(h), 3)
        x = x + gate0 * Dense(width, **kind, name="project")(attention(q, k, v).reshape(x.shape))
        if tokens is not None:
            (q,) = split(Dense(width, **kind, name="cross_q")(LayerNorm(affine=False, **kind)(x)), 1)
            k, v = split(Dense(2 * width, **kind, name="cross_kv")(tokens.astype(self.dtype)), 2)
            x = x + Dense(width, 0, **kind, name="cross_project")(attention(q, k, v).reshape(x.shape))
        h = LayerNorm(affine=False, **kind)(x) * (1 + scale1) + shift1
        h = nn.gelu(Dense(4 * width, **kind, name="widen")(h), approximate=True)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        return x + gate1 * Dense(width, **kind, name="narrow")(h)


def to_patches(x: Array, patch: int) -> Array:
    """[batch, height, width, channels] -> [batch, rows, columns, patch patch channels]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels).swapaxes(2, 3)
    return x.reshape(batch, height // patch, width // patch, -1)


def from_patches(h: Array, patch: int) -> Array:
    """The way back."""
    batch, rows, columns, _ = h.shape
    h = h.reshape(batch, rows, columns, patch, patch, -1).swapaxes(2, 3)
    return h.reshape(batch, rows * patch, columns * patch, -1)


def positions(rows: int, columns: int, width: int) -> np.ndarray:
    """[rows columns, width]: sines and cosines of the column, then of the row, at wavelengths 2 pi to 20000 pi."""
    rates = 10_000.0 ** (-np.arange(width // 4) / (width // 4))
    row, column = (a.reshape(-1, 1) * rates for a in np.mgrid[:rows, :columns].astype(np.float64))
    return np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=-1)
