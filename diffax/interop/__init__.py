"""Trained weights from PyTorch's world, as diffax networks."""

from diffax.interop.carry import Loaded
from diffax.interop.edm import from_edm, from_edm2
from diffax.interop.files import tensors

__all__ = ["Loaded", "from_edm", "from_edm2", "tensors"]
