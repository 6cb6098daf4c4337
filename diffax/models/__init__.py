"""Networks, the only part of diffax written in Flax. Outside, a network is a `Network`: init and apply."""

from diffax._public import list_names
from diffax.models.autoencoder import Autoencoder, autoencoder
from diffax.models.dit import dit
from diffax.models.edm2 import edm2, unit_length
from diffax.models.network import Network, from_linen, from_nnx
from diffax.models.presets import PRESETS, build, constraint, parameters, preset
from diffax.models.unet import unet
from diffax.models.uvit import uvit

__all__ = [
    "PRESETS",
    "Autoencoder",
    "Network",
    "autoencoder",
    "build",
    "constraint",
    "dit",
    "edm2",
    "from_linen",
    "from_nnx",
    "parameters",
    "preset",
    "unet",
    "unit_length",
    "uvit",
]

list_names(__name__)
