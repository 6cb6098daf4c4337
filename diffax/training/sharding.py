"""Placement of arrays on devices: one mesh of three axes, and the rule that places each array on it.

    data     copies of the model, each with its rows of the batch
    fsdp     rows of the batch too, and every large array of the state in slices, gathered when it is used
             (Rajbhandari et al. 2020, ZeRO-3, arXiv:1910.02054)
    tensor   layers split by columns, then by rows (Shoeybi et al. 2019, arXiv:1909.08053): those of `_COLUMNS`, `_ROWS`

One device is the special case of many. Nothing here is specific to a number of hosts: under `jax.distributed` every
process calls the same functions with its own rows of the batch, and jit inserts the collectives.
"""

import math
import re
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

__all__ = [
    "BATCH",
    "barrier",
    "batch_shards",
    "data_mesh",
    "like",
    "make_mesh",
    "place",
    "put_batch",
    "put_replicated",
    "put_whole",
    "replicated",
    "sharded",
    "spec",
    "to_host",
]

BATCH = ("data", "fsdp")
"""The axes over which a batch is split."""

# The blocks of DiT and U-ViT: queries, keys and values by heads, the feed-forward layer by its inner width. (Within the
# attention of a U-Net a transformer has a layer whose columns are two halves, which would have to be sent about.)
_BLOCK = r"^(?!.*attention).*(?<![a-z0-9_])block\d+/"
_COLUMNS = re.compile(_BLOCK + r"(qkv|cross_q|cross_kv|widen)/(kernel|bias)$")
_ROWS = re.compile(_BLOCK + r"(project|cross_project|narrow)/kernel$")
_SMALL = 1024
"""Arrays of fewer elements are not worth a message: every device keeps them whole."""


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: int | None = None) -> Mesh:
    """A mesh with the axes data, fsdp and tensor over the first `devices` devices of this run, all by default.

    One of the sizes may be -1: what the others leave. Raises ValueError if they do not multiply to the devices.
    """
    count = jax.device_count() if devices is None else devices
    if not 1 <= count <= jax.device_count():
        raise ValueError(f"devices = {devices}: must lie in [1, {jax.device_count()}]")
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    for name, size in sizes.items():
        if size != -1 and size < 1:
            raise ValueError(f"{name} = {size}: must be at least 1, or -1 for what the other axes leave")
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ValueError(f"{free[1]} = -1: only one axis may be what the others leave, and {free[0]} is -1 too")
    given = math.prod(size for size in sizes.values() if size != -1)
    for name in free:
        sizes[name] = max(count // given, 1)
    if math.prod(sizes.values()) != count:
        said = ", ".join(f"{name} = {size}" for name, size in sizes.items())
        raise ValueError(f"{said}: must multiply to the {count} device(s) of this run")
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:count]
    )


def data_mesh(devices: int | None = None) -> Mesh:
    """The mesh of plain data parallelism over the first `devices` devices, all by default."""
    return make_mesh(devices=devices)


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How an array of the state, named by its keys as "params/block0/qkv/kernel", is split.

    The path decides the tensor axis; the largest dimension that is left and divides evenly gets the fsdp axis. Averages
    and the moments of the optimizer have the paths of their parameters at their end, so they lie where these do.
    """
    axes: list[str | None] = [None] * len(shape)
    side = -1 if _COLUMNS.search(path) else 0 if _ROWS.search(path) else None
    if side is not None and shape and mesh.shape["tensor"] > 1 and shape[side] % mesh.shape["tensor"] == 0:
        axes[side] = "tensor"
    if mesh.shape["fsdp"] > 1 and math.prod(shape) >= _SMALL:
        free = [i for i, size in enumerate(shape) if axes[i] is None and size % mesh.shape["fsdp"] == 0]
        if free:
            axes[max(free, key=lambda i: (shape[i], i))] = "fsdp"
    while axes and axes[-1] is None:  # as jit writes it: it would compile again for another spelling
        axes.pop()
    return PartitionSpec(*axes)


def place(tree: Any, mesh: Mesh) -> Any:
    """The NamedSharding of every array of a state, by `spec`; tree holds arrays or their shapes."""

    def one(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, spec(name, tuple(leaf.shape), mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


def like(shapes: Any, mesh: Mesh) -> Any:
    """Shapes, as jax.eval_shape gives them, with the placement that a restored state should have."""
    return jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, place(shapes, mesh)
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over the devices, but for those that share a layer."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def put_replicated(tree: Any, mesh: Mesh) -> Any:
    """The same arrays on every device; every process gives the same ones."""
    where = replicated(mesh)
    return jax.tree.map(lambda a: jax.make_array_from_callback(np.shape(a), where, np.asarray(a).__getitem__), tree)


def put_whole(batch: Any, mesh: Mesh) -> Any:
    """Numpy arrays of the whole batch, the same ones on every process -> global arrays split over the mesh."""
    where = sharded(mesh)
    return jax.tree.map(lambda a: jax.make_array_from_callback(np.shape(a), where, np.asarray(a).__getitem__), batch)


def to_host(tree: Any) -> Any:
    """The whole arrays as NumPy's, on every process; all of them must ask."""

    def fetch(a: Any) -> np.ndarray:
        here = not isinstance(a, jax.Array) or a.is_fully_addressable or a.is_fully_replicated
        return np.asarray(a if here else multihost_utils.process_allgather(a, tiled=True))

    return jax.tree.map(fetch, tree)


def barrier(name: str) -> None:
    """Until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Numpy arrays [local batch, ...] of this process -> global arrays split over the mesh."""
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharded(mesh), np.asarray(a)), batch)
