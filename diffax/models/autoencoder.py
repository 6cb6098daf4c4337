"""The autoencoder of latent diffusion (Rombach et al. 2022, arXiv:2112.10752): images <-> latents, by a U-Net's parts.

    params = network.init(key)
    latents = network.encode(params, images)             # the mean; key=... draws from the posterior
    images = network.decode(params, latents)

Each level below the first halves the sides. Latents are scaled to about unit variance, as diffusion wants them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike

from diffax.models import sizes
from diffax.models.layers import Dense, GroupNorm, conv, resample, sinusoid
from diffax.models.network import initialiser
from diffax.models.unet import Attention, ResBlock, Style

__all__ = ["Autoencoder", "autoencoder"]

STYLE = Style(sinusoid, strided=(0, 1), epsilon=1e-6)


class Autoencoder(NamedTuple):
    """init(key) -> params; encode(params, images, key=None) -> latents; decode(params, latents) -> images;
    posterior(params, images) -> (mean, log variance), not scaled."""

    init: Callable[[Array], Any]
    encode: Callable[..., Array]
    decode: Callable[..., Array]
    posterior: Callable[..., tuple[Array, Array]]


def autoencoder(
    shape: Sequence[int],
    *,
    channels: int = 128,
    multipliers: Sequence[int] = (1, 2, 4, 4),
    blocks: int = 2,
    latent_channels: int = 4,
    scale: float = 0.18215,
    shift: float = 0.0,
    quantise: bool = True,
    style: Style = STYLE,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
) -> Autoencoder:
    """An autoencoder of images [batch, height, width, channels]; the defaults are Stable Diffusion's.

    Args:
      shape: (height, width, channels) of the images; height and width divisible by 2^(levels - 1).
      channels, multipliers, blocks: as of `unet`.
      latent_channels: of the latents.
      scale, shift: latents are scale (z - shift).
      quantise: a dense layer after the encoder and one before the decoder, as vector quantisation had them.
      style: of normalisation and of strided convolutions.
      dtype: of the computation. param_dtype: of the parameters.

    Raises: ValueError for sizes that do not fit.
    """
    sizes.levels(shape, multipliers, (), ranks=(3,))
    sizes.whole(channels=channels, blocks=blocks, latent_channels=latent_channels)
    if not scale > 0:
        raise ValueError(f"scale = {scale}: must be > 0")
    kind: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype)
    widths = tuple(channels * m for m in multipliers)
    encoder = Encoder(widths, blocks, 2 * latent_channels, quantise, style, **kind)
    decoder = Decoder(widths, blocks, shape[-1], latent_channels, quantise, style, **kind)
    factor = 2 ** (len(widths) - 1)
    images = jnp.zeros((1, *shape))
    latents = jnp.zeros((1, shape[0] // factor, shape[1] // factor, latent_channels))
    init_encoder, init_decoder = initialiser(encoder, images), initialiser(decoder, latents)

    def init(key: Array) -> Any:
        first, second = jax.random.split(key)
        return {"encoder": init_encoder(first), "decoder": init_decoder(second)}

    def posterior(params: Any, x: Array) -> tuple[Array, Array]:
        moments = encoder.apply({"params": params["encoder"]}, x)
        mean, log_variance = jnp.split(moments, 2, axis=-1)  # type: ignore[arg-type]
        return mean, jnp.clip(log_variance, -30, 20)

    def encode(params: Any, x: Array, *, key: Array | None = None) -> Array:
        mean, log_variance = posterior(params, x)
        if key is not None:
            mean = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
        return scale * (mean - shift)

    def decode(params: Any, z: Array) -> Array:
        return decoder.apply({"params": params["decoder"]}, z / scale + shift)  # type: ignore[return-value]

    return Autoencoder(init, encode, decode, posterior)


class Encoder(nn.Module):
    """Images -> mean and log variance of the latents."""

    widths: tuple[int, ...]
    blocks: int
    out_channels: int
    quantise: bool
    style: Style
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        style = self.style
        kind: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        h = conv(self.widths[0], 3, 2, **kind, name="conv_in")(x.astype(self.dtype))
        for level, width in enumerate(self.widths):
            if level > 0:
                padding = [style.strided or (1, 1)] * 2
                h = conv(h.shape[-1], 3, 2, strides=2, padding=padding, **kind, name=f"down{level}_resample")(h)
            for i in range(self.blocks):
                h = ResBlock(width, None, 0.0, style, **kind, name=f"down{level}_block{i}")(h, None, False)
        h = _middle(h, style, kind)
        h = GroupNorm(style.epsilon, style.groups, silu=True, **kind, name="norm_out")(h)
        h = conv(self.out_channels, 3, 2, **kind, name="conv_out")(h)
        h = Dense(self.out_channels, **kind, name="quantise")(h) if self.quantise else h
        return h.astype(jnp.float32)


class Decoder(nn.Module):
    """Latents -> images."""

    widths: tuple[int, ...]
    blocks: int
    out_channels: int
    latent_channels: int
    quantise: bool
    style: Style
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, z: Array) -> Array:
        style = self.style
        kind: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        h = z.astype(self.dtype)
        h = Dense(self.latent_channels, **kind, name="quantise")(h) if self.quantise else h
        h = _middle(conv(self.widths[-1], 3, 2, **kind, name="conv_in")(h), style, kind)
        for level, width in reversed(list(enumerate(self.widths))):
            for i in range(self.blocks + 1):
                h = ResBlock(width, None, 0.0, style, **kind, name=f"up{level}_block{i}")(h, None, False)
            if level > 0:
                h = conv(width, 3, 2, **kind, name=f"up{level}_resample")(resample(h, "up"))
        h = GroupNorm(style.epsilon, style.groups, silu=True, **kind, name="norm_out")(h)
        return conv(self.out_channels, 3, 2, **kind, name="conv_out")(h).astype(jnp.float32)


def _middle(h: Array, style: Style, kind: dict[str, Any]) -> Array:
    h = ResBlock(h.shape[-1], None, 0.0, style, **kind, name="middle_block0")(h, None, False)
    h = Attention(1, style, **kind, name="middle_attention")(h)
    return ResBlock(h.shape[-1], None, 0.0, style, **kind, name="middle_block1")(h, None, False)
