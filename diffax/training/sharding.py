"""Placement of arrays on devices: data parallelism over a one-axis mesh, one device being the special case of many.

Nothing here is specific to a host count: under `jax.distributed` every process calls the same functions with its own
rows of the batch, and jit inserts the collectives.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

__all__ = ["data_mesh", "like", "put_batch", "put_replicated", "replicated", "sharded"]


def data_mesh(devices: int | None = None) -> Mesh:
    """A mesh with the axis "data" over the first `devices` devices of this run, all of them by default.

    Raises ValueError if there are fewer.
    """
    chosen = jax.devices()[:devices]
    if not chosen or (devices is not None and len(chosen) != devices):
        raise ValueError(f"devices = {devices}: must lie in [1, {jax.device_count()}]")
    return jax.make_mesh((len(chosen),), ("data",), axis_types=(AxisType.Auto,), devices=chosen)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_replicated(tree: Any, mesh: Mesh) -> Any:
    """The same arrays on every device."""
    return jax.device_put(tree, replicated(mesh))


def like(shapes: Any, mesh: Mesh) -> Any:
    """Shapes, as jax.eval_shape gives them, with the placement that a restored state should have."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=replicated(mesh)), shapes)


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Numpy arrays [local batch, ...] of this process -> global arrays split over the mesh."""
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharded(mesh), np.asarray(a)), batch)
