"""The directory of a run: its resolved config, its checkpoints and snapshots, and the networks restored from them."""

import contextlib
import hashlib
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from diffax import data
from diffax.training import checkpoint, ema, sharding
from diffax.training.summary import read_json, write_json
from experiments.recipe import Recipe, recipe

try:
    import fcntl
except ImportError:  # not a POSIX system: without the lock
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "TOO_FAR",
    "Snapshots",
    "check",
    "claim",
    "divided",
    "flatten",
    "identity",
    "load_dataset",
    "load_ema",
    "lock",
    "mesh_of",
    "parameters",
    "place",
    "plain",
    "read_config",
    "same_run",
    "snapshots",
    "write_config",
]

TOO_FAR = 0.1
"""Of a reconstructed average, the error of the profile from which on it is not the one asked for."""

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
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            alone = stack.enter_context(lock(workdir / ".lock"))
        except OSError as error:
            raise ValueError(f"--workdir = {workdir}: cannot be written to ({error})") from error
        if not alone:
            raise ValueError(f"--workdir = {workdir}: another process is training there; wait for it")
        if not (workdir / "config.json").exists():
            write_config(workdir, config)
        sharding.barrier("workdir.claim")
        yield


@contextlib.contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Whether no other process, or group of processes of one run, holds the file, and holds it while in the context;
    the system gives it up when the process ends. Without locks, on other than POSIX systems, always True."""
    with path.open("w") as file:
        alone = True
        if fcntl is not None and jax.process_index() == 0:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                alone = False
        yield alone


def divided(paths: Iterable[Path]) -> Iterator[Path]:
    """Each of the paths, of work that several processes go through, once none of them is at it.

    So processes that are started with the same line divide it: what one is at, the others come to when it is done.
    While it is used, PATH.lock is held.
    """
    waiting = list(paths)
    while waiting:
        for path in list(waiting):
            path.parent.mkdir(parents=True, exist_ok=True)
            with lock(path.with_suffix(".lock")) as alone:
                if alone:
                    waiting.remove(path)
                    yield path
        if waiting:
            time.sleep(2)


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


def parameters(rec: Recipe, mesh: Mesh) -> Any:
    """The averaged parameters of a run as shapes, placed as they should be read."""
    return sharding.like(jax.eval_shape(lambda key: ema.start(rec.network.init(key)), jax.random.key(0)), mesh)


def place(tree: Any, like: Any) -> Any:
    """Arrays of the host, put where `like` says."""
    return jax.device_put(tree, jax.tree.map(lambda leaf: leaf.sharding, like))


def load_ema(
    workdir: Path, config: ml_collections.ConfigDict, mesh: Mesh, sigma_rel: float | None = None, at: int | None = None
) -> tuple[Recipe, Any, int]:
    """The recipe of a run, its averaged parameters on the mesh, and their step.

    Those of the checkpoint of step `at` (None: the newest); or, with sigma_rel, the average by a power function of that
    relative width at the snapshot of that step. Where snapshots do not suffice for it, a line on stderr says so.
    Raises ValueError if there is no such checkpoint or snapshot, or it is damaged.
    """
    rec = recipe(config, load_dataset(config, "train"))
    like = parameters(rec, mesh)
    if sigma_rel is not None:
        kept = snapshots(workdir, config, at)
        if (error := kept.error(sigma_rel)) > TOO_FAR:
            print(
                f"warning: the snapshots of {workdir} do not suffice for an average of sigma_rel = {sigma_rel} at step "
                f"{kept.at}: the profile is {error:.0%} off",
                file=sys.stderr,
            )
        (found,) = kept.averages([sigma_rel], like)
        return rec, place(found, like), kept.at
    directory = workdir / "checkpoints"
    if at is not None:
        _check_kept("checkpoint", at, checkpoint.steps(directory), directory)
        return rec, checkpoint.read(directory, at, {"ema": like}).items["ema"], at
    restored = checkpoint.restore(directory, {"ema": like}, read_only=True)
    if restored is None:
        raise ValueError(f"--workdir = {workdir}: holds no checkpoint yet; let experiments.train get to its first one")
    return rec, restored.items["ema"], restored.step


class Snapshots(NamedTuple):
    """The averages by power functions that a run kept, the step and relative width of each, and the step `at` which one
    of another width is to be rebuilt."""

    directory: Path
    config_sha256: str
    steps: list[int]
    widths: list[float]
    at: int

    def error(self, sigma_rel: float) -> float:
        """How far the best profile for this width is from the wanted one: `ema.posthoc_error`."""
        return ema.posthoc_error(self.steps, self.widths, self.at, sigma_rel)

    def averages(self, sigma_rels: Sequence[float], like: Any) -> list[Any]:
        """The averages of these widths, on the host; snapshots are read once, one at a time. like: shapes, placed."""
        weights = np.stack([ema.posthoc_weights(self.steps, self.widths, self.at, s) for s in sigma_rels])
        weights[abs(weights) < 1e-12] = 0  # lost in float32 anyway
        used = np.flatnonzero(weights.any(axis=0))
        return ema.combine((self._read(self.steps[i], self.widths[i], like) for i in used), weights[:, used])

    def _read(self, step: int, width: float, like: Any) -> Any:
        snapshot = checkpoint.read(self.directory, step, {str(width): like})
        if snapshot.meta.get("config_sha256") != self.config_sha256:
            raise ValueError(f"snapshot {self.directory / str(step)} belongs to a run of another config; move it away")
        return sharding.to_host(snapshot.items[str(width)])


def snapshots(workdir: Path, config: ml_collections.ConfigDict, at: int | None = None) -> Snapshots:
    """The snapshots of a run, and that of step `at` (None: the last). Raises ValueError if there are none, or not that
    one."""
    directory = workdir / "snapshots"
    widths, steps = config.train.get("ema_powers", ()), checkpoint.steps(directory)
    if not widths:
        raise ValueError(
            f"--workdir = {workdir}: its run keeps no averages by power functions; train one that does, as with "
            "--config.train.ema_powers='(0.05, 0.1)'"
        )
    if not steps:
        raise ValueError(f"--workdir = {workdir}: holds no snapshot yet; let experiments.train get to its first one")
    if at is not None:
        _check_kept("snapshot", at, steps, directory)
    stored = [(step, width) for step in steps for width in widths]
    return Snapshots(
        directory,
        identity(config),
        [step for step, _ in stored],
        [width for _, width in stored],
        steps[-1] if at is None else at,
    )


def _check_kept(what: str, at: int, steps: list[int], directory: Path) -> None:
    if at not in steps:
        shown = ", ".join(map(str, steps if len(steps) <= 8 else [*steps[:3], "...", *steps[-3:]]))
        raise ValueError(f"step = {at}: has no {what} in {directory}; there are those of steps {shown or 'none'}")


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """As JSON gives it back (tuples become lists), so that old and new compare equal."""
    return json.loads(config.to_json())


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out
