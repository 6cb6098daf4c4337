"""What the two feature extractors share: convolutions whose batch normalisation is folded into weights and bias.

A network is written once, as network(layer, x), where layer(x, conv, norm, width, size, ...) is a convolution and the
normalisation after it, by their names in the weight file. Run with one layer it tells which tensors it needs, with
another it computes: nothing says a shape twice.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

__all__ = ["Layer", "Network", "load", "run", "window"]

Layer = Callable[..., Array]
Network = Callable[[Layer, Array], Array]

_STATISTICS = ("weight", "bias", "running_mean", "running_var")
_EPSILON = 1e-3  # in both networks


def load(source: str | Path | Mapping[str, Any], network: Network, ignore: str) -> dict[str, dict[str, np.ndarray]]:
    """{name of a convolution: kernel [height, width, in, out] and bias [out], float32}, from a file or arrays.

    ignore: a pattern of the names of tensors that are not used. Raises ValueError that lists all tensors that are
    missing, not known or of another shape.
    """
    from diffax.interop.carry import carry  # imports Flax
    from diffax.interop.files import tensors

    norms: dict[str, str] = {}

    def shapes(key: Any) -> dict[str, dict[str, Array]]:
        needed: dict[str, dict[str, Array]] = {}

        def layer(x, conv, norm, width, size, *, stride=1, padding="SAME", depthwise=False):
            height_width = (size, size) if isinstance(size, int) else size
            kernel = jnp.zeros((*height_width, 1 if depthwise else x.shape[-1], width))
            needed[conv] = {"kernel": kernel}
            needed[norm] = {name: jnp.zeros(width) for name in _STATISTICS}
            norms[conv] = norm
            return _convolution(x, kernel, stride, padding, depthwise)

        network(layer, jnp.zeros((1, 299, 299, 3)))
        return needed

    try:
        found = carry(
            shapes,
            tensors(source),
            lambda path: f"{path[0]}.{'weight' if path[1] == 'kernel' else path[1]}",
            ignore=lambda name: re.search(ignore, name) is not None,
        )
    except ValueError as error:
        which = "weights" if isinstance(source, Mapping) else f"weights {source}:"
        raise ValueError(str(error).replace("weights do", f"{which} do")) from None
    return {conv: _folded(found[conv]["kernel"], found[norm]) for conv, norm in norms.items()}


def run(network: Network, params: Any, x: Array) -> Array:
    """The network on x [batch, height, width, channels], with the params of `load`."""

    def layer(x, conv, norm, width, size, *, stride=1, padding="SAME", depthwise=False):
        return _convolution(x, params[conv]["kernel"], stride, padding, depthwise) + params[conv]["bias"]

    return network(layer, x)


def window(x: Array, combine: Callable[..., Array], start: float, stride: int, padding: str) -> Array:
    """Sums or maxima over 3 by 3 pixels."""
    return lax.reduce_window(x, jnp.asarray(start, x.dtype), combine, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def _convolution(x: Array, kernel: Array, stride: int, padding: str, depthwise: bool) -> Array:
    if depthwise:
        return _depthwise(x, kernel[:, :, 0], stride)
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,  # features are compared with those that others found: no TF32, no bfloat16
    )


def _depthwise(x: Array, kernel: Array, stride: int) -> Array:
    """Each channel by its own kernel [height, width, channels], padded as "SAME".

    A sum of shifted images, which XLA makes one loop of: on a CPU ten times as fast as its grouped convolution.
    """
    sizes = [-(-size // stride) for size in x.shape[1:3]]
    spans = [(size - 1) * stride for size in sizes]  # from the first to the last pixel that one tap of the kernel meets
    missing = [max(span + side - size, 0) for span, side, size in zip(spans, kernel.shape, x.shape[1:3], strict=False)]
    x = jnp.pad(x, [(0, 0), *((pad // 2, pad - pad // 2) for pad in missing), (0, 0)])
    taps = [(i, j) for i in range(kernel.shape[0]) for j in range(kernel.shape[1])]
    shifted = (x[:, i : i + spans[0] + 1 : stride, j : j + spans[1] + 1 : stride] for i, j in taps)
    return sum((part * kernel[at] for part, at in zip(shifted, taps, strict=True)), jnp.zeros(()))


def _folded(kernel: np.ndarray, norm: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    weight, bias, mean, variance = (norm[name].astype(np.float64) for name in _STATISTICS)
    scale = weight / np.sqrt(variance + _EPSILON)
    return {"kernel": (kernel * scale).astype(np.float32), "bias": (bias - mean * scale).astype(np.float32)}
