"""Features of images: what distances between sets of images are measured in.

An extractor is a name, a number of features and a pure function. It takes images as they are kept, whole numbers in
[0, 255]: samples in [-1, 1] are rounded first (`diffax.data.from_unit`), for no published figure is of unrounded ones.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from diffax.training.sharding import batch_shards, data_mesh, put_replicated, put_whole, to_host

__all__ = ["Extractor", "features", "pixels", "rgb"]


class Extractor(NamedTuple):
    """apply(params, images uint8 [batch, height, width, 1 or 3]) -> features [batch, dim], float32."""

    name: str
    dim: int
    params: Any
    apply: Callable[[Any, Array], Array]


def features(extractor: Extractor, images: np.ndarray, mesh: Mesh | None = None, *, batch: int = 32) -> np.ndarray:
    """Features of images [n, height, width, 1 or 3], uint8 in [0, 255]. [n, dim] float32.

    They are found `batch` at a time, split over the devices of the mesh (all devices by default). Compiled once for
    each extractor and shape of images: the last batch is filled up. Under jax.distributed every process of the mesh
    gives the same images and gets the features of all; to divide the images, give each process a mesh of its own
    devices and `gather` the moments. Raises ValueError for images of another type or shape.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(f"images of {images.dtype}: must be uint8 in [0, 255], rounded (diffax.data.from_unit)")
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"images of shape {list(images.shape)}: must be [n, height, width, 1 or 3], n >= 1")
    if batch < 1:
        raise ValueError(f"batch = {batch}: must be at least 1")
    mesh = data_mesh() if mesh is None else mesh
    shards, n = batch_shards(mesh), len(images)
    batch = -(-min(batch, n) // shards) * shards
    params = put_replicated(extractor.params, mesh)
    found = []
    for start in range(0, n, batch):
        part = images[np.minimum(np.arange(start, start + batch), n - 1)]
        found.append(to_host(_apply(extractor.apply, params, put_whole(part, mesh)))[: n - start])
    return np.concatenate(found)


def pixels(shape: tuple[int, int, int]) -> Extractor:
    """The pixels themselves, in [0, 1], of images of one shape (height, width, channels)."""

    def apply(params: Any, images: Array) -> Array:
        if images.shape[1:] != tuple(shape):
            raise ValueError(f"images of shape {list(images.shape[1:])}: must be {list(shape)}, the extractor's")
        return images.reshape(len(images), -1).astype(jnp.float32) / 255

    return Extractor("pixels", int(np.prod(shape)), {}, apply)


def rgb(images: Array) -> Array:
    """uint8 of one or three channels -> float32 of three, in [0, 255]; grey is all three."""
    return jnp.broadcast_to(images, (*images.shape[:-1], 3)).astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _apply(apply: Callable[[Any, Array], Array], params: Any, images: Array) -> Array:
    return apply(params, images)
