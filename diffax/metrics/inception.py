"""The Inception network of FID, with weights that you have.

FID is a Fréchet distance in the 2048 pooled features of one particular network (Heusel et al. 2017, arXiv:1706.08500):
Inception-v3 (Szegedy et al. 2015, arXiv:1512.00567) as TensorFlow published it on 2015-12-05. That graph differs from
the paper and from torchvision's network: its average pools leave the padding out of the mean, and the last block pools
by maximum. It resizes to 299 x 299 by TensorFlow 1's bilinear rule, in which pixel i of the output lies at i in / 299
of the input: the first pixels are aligned, not the centres, and nothing is filtered where images shrink.

Read are the conversions to PyTorch that all use: `weights-inception-2015-12-05-6726825d.pth` of torch-fidelity and
`pt_inception-2015-12-05-6726825d.pth` of pytorch-fid, or either as safetensors. Features equal torch-fidelity's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from diffax.metrics.convolutions import Layer, load, run, window
from diffax.metrics.features import Extractor, rgb

__all__ = ["inception", "resize"]


def inception(path: str | Path | Mapping[str, Any]) -> Extractor:
    """The 2048 features of FID, KID and their kin, from a file of weights, or arrays; its name is "Inception".

    Raises ValueError for tensors that are not those of the network.
    """

    def apply(params: Any, images: Array) -> Array:
        return run(_network, params, (resize(rgb(images), 299) - 128) / 128)

    return Extractor("Inception", 2048, load(path, _network, r"^fc\.|^AuxLogits\.|num_batches_tracked$"), apply)


def resize(x: Array, side: int) -> Array:
    """x [batch, height, width, channels] -> [batch, side, side, channels], as TensorFlow 1 does."""
    low, high, weight = _between(x.shape[1], side)
    top, bottom = x[:, low], x[:, high]
    low, high, across = _between(x.shape[2], side)
    across = across[:, None]
    top = top[:, :, low] + (top[:, :, high] - top[:, :, low]) * across
    bottom = bottom[:, :, low] + (bottom[:, :, high] - bottom[:, :, low]) * across
    return top + (bottom - top) * weight[:, None, None]


def _between(size: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each output pixel the two input pixels between which it lies, and where between them, in [0, 1)."""
    at = np.arange(side, dtype=np.float32) * np.float32(size / side)
    low = np.minimum(at.astype(np.int32), size - 1)
    return low, np.minimum(low + 1, size - 1), at - low.astype(np.float32)


def _network(layer: Layer, x: Array) -> Array:
    """[batch, 299, 299, 3] of -1 to 1 -> [batch, 2048]."""

    def conv(x, name, width, size=1, *, stride=1, padding="SAME"):
        how = dict(stride=stride, padding="VALID" if stride > 1 else padding)
        return jax.nn.relu(layer(x, f"{name}.conv", f"{name}.bn", width, size, **how))

    def chain(x, name, *layers):
        """name_1, name_2, ... one after the other; the last may be strided."""
        for i, (width, size, *stride) in enumerate(layers, 1):
            x = conv(x, f"{name}_{i}", width, size, stride=stride[0] if stride else 1)
        return x

    x = conv(x, "Conv2d_1a_3x3", 32, 3, stride=2)
    x = conv(x, "Conv2d_2a_3x3", 32, 3, padding="VALID")
    x = conv(x, "Conv2d_2b_3x3", 64, 3)
    x = _maximum(x, stride=2)
    x = conv(x, "Conv2d_3b_1x1", 80)
    x = conv(x, "Conv2d_4a_3x3", 192, 3, padding="VALID")
    x = _maximum(x, stride=2)

    for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):  # 35 x 35
        x = _join(
            conv(x, f"{name}.branch1x1", 64),
            chain(x, f"{name}.branch5x5", (48, 1), (64, 5)),
            chain(x, f"{name}.branch3x3dbl", (64, 1), (96, 3), (96, 3)),
            conv(_mean(x), f"{name}.branch_pool", pooled),
        )
    x = _join(
        conv(x, "Mixed_6a.branch3x3", 384, 3, stride=2),
        chain(x, "Mixed_6a.branch3x3dbl", (64, 1), (96, 3), (96, 3, 2)),
        _maximum(x, stride=2),
    )
    for name, inner in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):  # 17 x 17
        row, column = (inner, (1, 7)), (inner, (7, 1))
        x = _join(
            conv(x, f"{name}.branch1x1", 192),
            chain(x, f"{name}.branch7x7", (inner, 1), row, (192, (7, 1))),
            chain(x, f"{name}.branch7x7dbl", (inner, 1), column, row, column, (192, (1, 7))),
            conv(_mean(x), f"{name}.branch_pool", 192),
        )
    x = _join(
        chain(x, "Mixed_7a.branch3x3", (192, 1), (320, 3, 2)),
        chain(x, "Mixed_7a.branch7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)),
        _maximum(x, stride=2),
    )
    for name, pool in (("Mixed_7b", _mean), ("Mixed_7c", _maximum)):  # 8 x 8
        one = conv(x, f"{name}.branch3x3_1", 384)
        two = chain(x, f"{name}.branch3x3dbl", (448, 1), (384, 3))
        x = _join(
            conv(x, f"{name}.branch1x1", 320),
            conv(one, f"{name}.branch3x3_2a", 384, (1, 3)),
            conv(one, f"{name}.branch3x3_2b", 384, (3, 1)),
            conv(two, f"{name}.branch3x3dbl_3a", 384, (1, 3)),
            conv(two, f"{name}.branch3x3dbl_3b", 384, (3, 1)),
            conv(pool(x), f"{name}.branch_pool", 192),
        )
    return x.mean((1, 2))


def _join(*parts: Array) -> Array:
    return jnp.concatenate(parts, axis=-1)


def _maximum(x: Array, stride: int = 1) -> Array:
    return window(x, lax.max, -jnp.inf, stride, "VALID" if stride > 1 else "SAME")


def _mean(x: Array) -> Array:
    """Over those of 3 x 3 pixels that are in the image."""
    return window(x, lax.add, 0, 1, "SAME") / window(jnp.ones_like(x[:1, :, :, :1]), lax.add, 0, 1, "SAME")
