"""Carries tensors of another framework into diffax's parameters, or says all that does not fit.

    params = carry(network.init, found, name)

name(path) tells for each of the network's parameters, by its path such as ("down1_block0", "conv0", "kernel"), which
tensor it is. PyTorch's dense layers are [out, in] and its convolutions [out, in, height, width]; here the outputs come
last.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from diffax.interop.files import Tensors
from diffax.models import Network
from diffax.preconditioning import Preconditioning

__all__ = ["Loaded", "carry", "join"]

Path = tuple[str, ...]


class Loaded(NamedTuple):
    """A trained network: `dx.denoiser(network.apply, params, preconditioning, cond)`."""

    network: Network
    params: Any
    preconditioning: Preconditioning


def carry(
    init: Callable[[Any], Any],
    found: Tensors,
    name: Callable[[Path], str],
    *,
    change: Callable[[Path, np.ndarray], np.ndarray] = lambda path, tensor: tensor,
    ignore: Callable[[str], bool] = lambda name: False,
) -> Any:
    """The parameters that init(key) would make, from the tensors found, float32.

    Args:
      init: of a network.
      name: path of a parameter -> name of its tensor.
      change: (path, tensor in diffax's axes) -> the parameter, where more than the order of axes differs.
      ignore: tensors that need not be used.

    Raises: ValueError that lists all tensors that are missing, left over, or of another shape.
    """
    shapes = jax.eval_shape(init, jax.random.key(0))
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    made, missing, misshapen, used = [], [], [], set()
    for keys, leaf in leaves:
        path = tuple(key.key for key in keys)
        wanted = name(path)
        used.add(wanted)
        if wanted not in found:
            missing.append(f"{wanted} {_there(leaf.shape, path[-1])}")
            continue
        tensor = _axes(found[wanted], path[-1])
        if len(tensor.shape) - len(leaf.shape) == 2 and tensor.shape[:2] == (1, 1):
            tensor = tensor[0, 0]  # a convolution of one pixel is a dense layer
        if tensor.shape != leaf.shape:
            misshapen.append(f"{wanted} is {list(found[wanted].shape)}, for {_there(leaf.shape, path[-1])}")
            continue
        made.append(np.asarray(change(path, tensor.astype(np.float32)), leaf.dtype))
    left = [other for other in found if other not in used and not ignore(other)]
    problems = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (("missing", missing), ("not known", left), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise ValueError(f"weights do not fit the network; {'; '.join(problems)}")
    return jax.tree_util.tree_unflatten(tree, made)


def join(found: Tensors, parts: Iterable[str], whole: str) -> Tensors:
    """Tensors whose names end in one of the parts, such as to_q, to_k and to_v, put together along the outputs."""
    parts, joined = tuple(parts), dict(found)
    for name in found:
        base, dot, leaf = name.rpartition(".")
        if base.endswith(f".{parts[0]}") or base == parts[0]:
            stem = base[: -len(parts[0])]
            names = [f"{stem}{part}{dot}{leaf}" for part in parts]
            if all(other in found for other in names) and len({found[other].shape[1:] for other in names}) == 1:
                joined[f"{stem}{whole}{dot}{leaf}"] = np.concatenate([joined.pop(other) for other in names])
    return joined


def _axes(tensor: np.ndarray, leaf: str) -> np.ndarray:
    """[out, in, ...] -> [..., in, out] for weights."""
    if leaf not in ("kernel", "weight") or tensor.ndim < 2:
        return tensor
    return np.moveaxis(tensor, (1, 0), (-2, -1))


def _there(shape: tuple[int, ...], leaf: str) -> list[int]:
    """A shape in the file's order of axes."""
    return [*shape[:-3:-1], *shape[:-2]] if leaf in ("kernel", "weight") and len(shape) > 1 else list(shape)


def _some(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
