"""Networks, the only part of diffax written in Flax. Outside, a network is a `Network`: init and apply."""

from diffax.models.network import Network, from_linen, from_nnx
from diffax.models.unet import unet

__all__ = ["Network", "from_linen", "from_nnx", "unet"]
