"""Named tensors from a weight file, without running anything that the file says.

`.safetensors` files hold numbers only. PyTorch's own (`.pt`, `.pth`, `.bin`, `.ckpt`) are pickles, which could run
code: `diffax.interop.pickles` reads them, knows nothing but tensors and does not need torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffax.interop import pickles

__all__ = ["Tensors", "tensors"]

Tensors = dict[str, np.ndarray]


def tensors(source: str | Path | Mapping[str, Any]) -> Tensors:
    """{name: array} of a file, or of a mapping of arrays (a state dict), as NumPy arrays.

    Raises ValueError for a file that is damaged, of another kind, or a pickle of more than tensors.
    """
    if isinstance(source, Mapping):
        return _arrays(source)
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"weights {path}: there is no such file")
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        return _torch(path)
    hint = "; export its state dict first (see diffax.interop.edm)" if path.suffix == ".pkl" else ""
    raise ValueError(f"weights {path}: must be .safetensors, or .pt, .pth, .bin or .ckpt of tensors only{hint}")


def _safetensors(path: Path) -> Tensors:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ValueError(f"weights {path}: pip install safetensors to read it") from error
    try:
        return load_file(path)
    except (SafetensorError, AttributeError, KeyError, TypeError) as error:  # the latter for types NumPy lacks
        raise ValueError(f"weights {path}: damaged, or not safetensors of types that NumPy knows ({error})") from error


def _torch(path: Path) -> Tensors:
    found = pickles.read(path)
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping):
        raise ValueError(f"weights {path}: holds a {type(found).__name__}, must hold a state dict")
    return _arrays(found)


def _arrays(found: Mapping[Any, Any]) -> Tensors:
    return {_name(name): _array(name, value) for name, value in found.items()}


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"weights: a tensor is called {name!r}, names must be text")
    return name


def _array(name: str, value: Any) -> np.ndarray:
    try:
        if hasattr(value, "detach"):  # a torch tensor; NumPy has no bfloat16 of torch's
            value = value.detach().cpu()
            value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"tensor {name}: is a {type(value).__name__} that NumPy cannot hold ({error})") from error
    if not (jnp.issubdtype(array.dtype, np.number) or array.dtype == np.bool_):
        raise ValueError(f"tensor {name}: is a {type(value).__name__}, must be an array of numbers")
    return array
