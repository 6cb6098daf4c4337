"""Trained weights from PyTorch's world, as diffax networks."""

from diffax._public import list_names
from diffax.interop.carry import Loaded
from diffax.interop.diffusers import autoencoder_from_diffusers, from_diffusers, time_steps
from diffax.interop.edm import from_edm, from_edm2
from diffax.interop.files import tensors

__all__ = [
    "Loaded",
    "autoencoder_from_diffusers",
    "from_diffusers",
    "from_edm",
    "from_edm2",
    "tensors",
    "time_steps",
]

list_names(__name__)
