"""Placement of arrays on devices: data parallelism over a one-axis mesh, one device being the special case of many.

Nothing here is specific to a host count: under `jax.distributed` every process calls the same functions with its own
rows of the batch, and jit inserts the collectives.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

__all__ = ["data_mesh", "put_batch", "replicated", "sharded"]


def data_mesh(devices: int | None = None) -> Mesh:
    """A mesh with the axis "data" over the first `devices` devices of this run (all of them by default)."""
    chosen = jax.devices()[:devices]
    return jax.make_mesh((len(chosen),), ("data",), axis_types=(AxisType.Auto,), devices=chosen)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Numpy arrays [local batch, ...] of this process -> global arrays split over the mesh."""
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharded(mesh), np.asarray(a)), batch)
