"""Checkpoints through Orbax: asynchronous, atomic, and believed only when they are what was saved.

A checkpoint of step k is the directory DIRECTORY/k with one item for each tree of arrays (`state`, `ema`, ...) and
`meta` (JSON). Orbax writes into a temporary directory and renames it when all is there, so a process that is killed
leaves either a whole checkpoint or none. Orbax does not notice a file that was damaged later, an empty directory with a
number for a name, or another dtype; so `meta` holds the dtype, shape and checksum of each array as it was on the
devices (`diffax.training.checksum`) and a hash of itself, and what is read is held against it.

`restore` reads on any number of devices and processes, whatever number wrote. It takes the newest checkpoint that is
whole; newer ones that are damaged are moved, not deleted, to DIRECTORY-damaged.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from diffax.training.checksum import manifest
from diffax.training.sharding import barrier

__all__ = ["CheckpointError", "Restored", "manager", "read", "restore", "save", "steps", "wait", "what_is_left"]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used or written; the message names it and says what can be done."""


class Restored(NamedTuple):
    """A checkpoint: its step, its trees by name, and its meta."""

    step: int
    items: dict[str, Any]
    meta: dict[str, Any]


def steps(directory: str | Path) -> list[int]:
    """The steps of the checkpoints there, oldest first; whether they are whole is not looked at."""
    directory = Path(directory)
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted(int(p.name) for p in found if p.name.isdecimal() and p.is_dir())


def what_is_left(directory: str | Path) -> str:
    """For people, after a mishap: which checkpoint there is to go on from."""
    whole = [step for step in steps(directory) if (Path(directory) / str(step) / "meta").exists()]
    return f"the checkpoint of step {whole[-1]} is untouched" if whole else "no checkpoint was written yet"


# ---- writing --------------------------------------------------------------------------------------------------------


def manager(
    directory: str | Path,
    *,
    keep: int | None = 3,
    keep_every: int = 0,
    keep_best: int = 0,
    best: Callable[[dict[str, float]], float] = lambda metrics: metrics["loss"],
) -> ocp.CheckpointManager:
    """Orbax's manager of the checkpoints in a directory, which is made, for one writer at a time.

    Kept are the last `keep` of them (None: all), those of steps that are multiples of `keep_every` (0: none for that),
    and the `keep_best` ones of the lowest best(metrics). Raises ValueError for numbers out of range.
    """
    if keep is not None and keep < 1:
        raise ValueError(f"keep = {keep}: must be at least 1, or None to keep every checkpoint")
    for name, value in (("keep_every", keep_every), ("keep_best", keep_best)):
        if value < 0:
            raise ValueError(f"{name} = {value}: must be at least 0")
    wanted: list[Any] = [policies.LatestN(keep)]
    if keep_every:
        wanted.append(policies.EveryNSteps(keep_every))
    if keep_best:
        lowest = policies.BestN(get_metric_fn=best, reverse=True, n=keep_best, keep_checkpoints_without_metrics=False)
        wanted.append(lowest)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(wanted), cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(Path(directory).resolve(), options=options, handler_registry=_handlers())


_SLICE = 2**20
"""Bytes of an array below which one of its replicas writes it whole. Orbax cuts an array into one slice a replica, each
by a program that is compiled for its shape: a minute and more for the first checkpoint of 250 small arrays on eight
devices."""


def _handlers() -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    kinds = ocp.type_handlers
    registry = kinds.create_type_handler_registry(
        (jax.Array, kinds.ArrayHandler(min_slice_bytes_for_replica_parallel=_SLICE)),
        (np.ndarray, kinds.NumpyHandler()),
    )
    handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handlers.add(None, ocp.args.PyTreeSave, ocp.PyTreeCheckpointHandler(type_handler_registry=registry))
    handlers.add(None, ocp.args.JsonSave, ocp.JsonCheckpointHandler())
    return handlers


def save(
    checkpoints: ocp.CheckpointManager,
    step: int,
    items: dict[str, Any],
    meta: dict[str, Any],
    metrics: dict[str, float] | None = None,
) -> None:
    """Starts saving in the background; the arrays are copied before this returns, so they may be donated.

    Args:
      items: trees of arrays by name; all processes take part, each with what it holds.
      meta: anything that is JSON.
      metrics: by which `keep_best` judges.

    Raises: CheckpointError if this save or the one before it fails, as on a full disk; what was complete stays.
    """
    meta = meta | {"arrays": {name: manifest(tree) for name, tree in items.items()}}
    meta |= {"sha256": _hash(meta)}
    trees = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
    with _writing(checkpoints, step):
        checkpoints.save(step, metrics=metrics, args=ocp.args.Composite(**trees, meta=ocp.args.JsonSave(meta)))


def wait(checkpoints: ocp.CheckpointManager) -> None:
    """Until what was started is on disk. Raises CheckpointError if it could not be written."""
    with _writing(checkpoints, checkpoints.latest_step()):
        checkpoints.wait_until_finished()


class _writing:  # a context manager; contextlib's would lengthen the traceback that --traceback shows
    def __init__(self, checkpoints: ocp.CheckpointManager, step: int | None) -> None:
        self.directory, self.step = Path(checkpoints.directory), step

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception):
            return
        raise CheckpointError(
            f"a checkpoint could not be written to {self.directory} at step {self.step} ({_said(error)}); "
            f"{what_is_left(self.directory)}. Make room or give the directory back its permissions, and run the same "
            "line again"
        ) from error


# ---- reading --------------------------------------------------------------------------------------------------------


def restore(directory: str | Path, like: dict[str, Any], *, read_only: bool = False) -> Restored | None:
    """The newest whole checkpoint in a directory, or None if there is none at all.

    Args:
      like: the items to read, trees of arrays or of jax.ShapeDtypeStruct with the placement that is wanted.
      read_only: leave damaged checkpoints where they are.

    Newer checkpoints that are damaged are named on stderr and moved to DIRECTORY-damaged, once an older one was read.

    Raises: CheckpointError if all are damaged, or the newest whole one is of another model; then nothing is moved.
    """
    directory = Path(directory).resolve()
    damaged: dict[int, str] = {}
    for step in reversed(steps(directory)):
        found, why = _read(directory / str(step), like)
        if found is not None:
            if damaged and jax.process_index() == 0:
                _set_aside(directory, damaged, step, move=not read_only)
            barrier("checkpoint.restore")
            return found
        damaged[step] = why
    if damaged:
        newest, why = next(iter(damaged.items()))
        others = f", nor can the {len(damaged) - 1} older ones" if len(damaged) > 1 else ", and it is the only one"
        raise CheckpointError(f"checkpoint {directory / str(newest)} cannot be read ({why}){others}; nothing was moved")
    return None


def read(directory: str | Path, step: int, like: dict[str, Any]) -> Restored:
    """The checkpoint of that step. Raises CheckpointError if it is damaged or of another model."""
    path = Path(directory).resolve() / str(step)
    found, why = _read(path, like)
    if found is None:
        raise CheckpointError(f"checkpoint {path} cannot be read ({why})")
    return found


def _read(path: Path, like: dict[str, Any]) -> tuple[Restored | None, str]:
    """A checkpoint if it is whole, or why it is not; on all processes the same. Raises CheckpointError for another
    model."""
    meta, items, why = {}, {}, ""
    try:
        meta = json.loads((path / "meta" / "metadata").read_text())
        if meta.pop("sha256", None) != _hash(meta):
            raise ValueError("meta is not what was saved")
        _same_arrays(path, meta["arrays"], like)
        for name, tree in like.items():
            items[name] = _read_item(path / name, tree)
    except CheckpointError:
        raise
    except Exception as error:  # Orbax, TensorStore and JSON each fail in their own way on the same damage
        why = _said(error)
    if not _all(not why):
        return None, why or "another process could not read it"
    for name, tree in items.items():
        saved, read = meta["arrays"][name], manifest(tree)
        if wrong := [f"{name}/{key}" for key in saved if saved[key] != read.get(key)]:
            return None, f"{len(wrong)} arrays are not what was saved, the first {wrong[0]}"
    return Restored(int(path.name), items, meta), ""


def _read_item(path: Path, tree: Any) -> Any:
    """One item, by this process alone: one that fails must not leave the others waiting."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"read{me}"
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        return reader.restore(path, args=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)))


def _same_arrays(path: Path, saved: dict[str, Any], like: dict[str, Any]) -> None:
    """Raises CheckpointError if the checkpoint holds other arrays than those that are asked for."""
    for name, tree in like.items():
        if name not in saved:
            raise CheckpointError(f"checkpoint {path} holds no {name}: it was made with another config")
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        wanted = {
            jax.tree_util.keystr(keys, simple=True, separator="/"): [str(np.dtype(leaf.dtype)), list(leaf.shape)]
            for keys, leaf in leaves
        }
        there = {key: value[:2] for key, value in saved[name].items()}
        wrong = sorted(key for key in there.keys() | wanted.keys() if there.get(key) != wanted.get(key))
        if wrong:
            first = wrong[0]
            raise CheckpointError(
                f"checkpoint {path} is of another model: {len(wrong)} arrays of {name} differ, the first {first}, "
                f"which is {_shape(there.get(first))} there and {_shape(wanted.get(first))} here"
            )


def _set_aside(directory: Path, damaged: dict[int, str], good: int, *, move: bool) -> None:
    for step, why in damaged.items():
        where = "left out"
        if move:
            aside = directory.with_name(f"{directory.name}-damaged") / str(step)
            aside.parent.mkdir(exist_ok=True)
            while aside.exists():
                aside = aside.with_name(f"{aside.name}-again")
            shutil.move(directory / str(step), aside)
            where = f"moved to {aside}"
        print(
            f"warning: checkpoint {directory / str(step)} is damaged ({why}); {where}, going on from step {good}",
            file=sys.stderr,
            flush=True,
        )


# ---- parts ----------------------------------------------------------------------------------------------------------


def _all(ok: bool) -> bool:
    """Whether it is so on every process."""
    return ok if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.array(ok))))


def _hash(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _shape(array: list | None) -> str:
    return "absent" if array is None else f"{array[0]} {tuple(array[1])}"


def _said(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
