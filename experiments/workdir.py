"""The directory of a run: its resolved config, its checkpoints, and the networks restored from them."""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from diffax import data
from diffax.training import checkpoint, sharding
from diffax.training.ema import start as average_of
from diffax.training.summary import read_json, write_json
from experiments.cluster import barrier
from experiments.recipe import Recipe, recipe

try:
    import fcntl
except ImportError:  # not a POSIX system: without the lock
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "check",
    "claim",
    "flatten",
    "identity",
    "load_dataset",
    "load_ema",
    "mesh_of",
    "plain",
    "read_config",
    "same_run",
    "write_config",
]

_MAY_CHANGE = re.compile(
    r"sample\.|mesh\.|data\.dir$|model\.remat$|train\.("
    r"steps|accumulate|max_skipped|stall_seconds|(log|checkpoint|sample|snapshot)_every|keep|keep_every|keep_best)$"
)
"""Fields that a resumed run may give anew, since the parameters at a given step do not depend on them, but for rounding
where the devices or the parts of a batch are others."""


def check(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Raises ValueError unless `workdir` is free for a run of this config or holds one (naming the fields that
    differ)."""
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir = {workdir}: is a file; it must be a directory, or a path where one can be made")
    if (workdir / "config.json").exists():
        before, now = flatten(plain(read_config(workdir))), flatten(plain(config))
        differing = [
            f"config.{f} is {before.get(f)!r} there and {now.get(f)!r} here"
            for f in sorted(before.keys() | now.keys())
            if before.get(f) != now.get(f) and not _MAY_CHANGE.match(f)
        ]
        if differing:
            raise ValueError(
                f"--workdir = {workdir}: holds a run of another config ({'; '.join(differing)}); "
                "give the same config to resume it, or another workdir for a new run"
            )
    elif (workdir / "checkpoints").exists():
        raise ValueError(f"--workdir = {workdir}: holds checkpoints but no config.json; give another workdir")


@contextlib.contextmanager
def claim(workdir: Path, config: ml_collections.ConfigDict) -> Iterator[None]:
    """Makes `workdir` the directory of a run of this config, or finds that it is, and holds it while in the context.

    Raises: ValueError as `check` does, and if it cannot be written to or another process is training there.
    """
    check(workdir, config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    except OSError as error:
        raise ValueError(f"--workdir = {workdir}: cannot be written to ({error})") from error
    with lock:
        if fcntl is not None and jax.process_index() == 0:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given up by the system when the process ends
            except BlockingIOError:
                raise ValueError(f"--workdir = {workdir}: another process is training there; wait for it") from None
        if not (workdir / "config.json").exists():
            write_config(workdir, config)
        barrier("workdir.claim")
        yield


def identity(config: ml_collections.ConfigDict) -> str:
    """A hash of the fields that a resumed run must keep: kept in each checkpoint."""
    fields = {name: value for name, value in flatten(plain(config)).items() if not _MAY_CHANGE.match(name)}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def same_run(workdir: Path, config: ml_collections.ConfigDict, meta: dict[str, Any]) -> None:
    """Raises ValueError if a checkpoint, by its meta, belongs to another config than config.json says."""
    if meta.get("config_sha256") != identity(config):
        raise ValueError(
            f"--workdir = {workdir}: its checkpoints were made with another config than its config.json; give another "
            "workdir for a new run"
        )


def mesh_of(config: ml_collections.ConfigDict) -> Mesh:
    """The mesh that a run was trained on, where the devices at hand can make it; otherwise all of them in parallel."""
    try:
        return sharding.make_mesh(**config.mesh)
    except ValueError:
        return sharding.data_mesh()


def write_config(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Keeps the resolved config in the workdir."""
    if jax.process_index() == 0:
        write_json(workdir / "config.json", plain(config))


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """The resolved config of a run. Raises ValueError if there is none or it is damaged."""
    path = workdir / "config.json"
    if not path.exists():
        raise ValueError(f"--workdir = {workdir}: holds no config.json; train there first, with experiments.train")
    config = read_json(path)
    if missing := [name for name in ("seed", "data", "model", "schedule", "train", "sample") if name not in config]:
        raise ValueError(f"{path} is damaged: it lacks {', '.join(missing)}")
    return ml_collections.ConfigDict(config)


def load_dataset(config: ml_collections.ConfigDict, split: str) -> data.Dataset:
    """The data set that the config names."""
    return data.load(config.data.name, split, config.data.dir or None)


def load_ema(workdir: Path, config: ml_collections.ConfigDict, mesh: Mesh) -> tuple[Recipe, Any, int]:
    """The recipe of a run, its averaged parameters on the mesh, and their step."""
    rec = recipe(config, load_dataset(config, "train"))
    shapes = jax.eval_shape(lambda key: average_of(rec.network.init(key)), jax.random.key(0))
    restored = checkpoint.restore(workdir / "checkpoints", {"ema": sharding.like(shapes, mesh)}, read_only=True)
    if restored is None:
        raise ValueError(f"--workdir = {workdir}: holds no checkpoint yet; let experiments.train get to its first one")
    return rec, restored.items["ema"], restored.step


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """As JSON gives it back (tuples become lists), so that old and new compare equal."""
    return json.loads(config.to_json())


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out
