"""Checkpoints through Orbax: asynchronous, atomic, and checked when they are read.

A checkpoint of step k is the directory WORKDIR/checkpoints/k with four items: `state` (step, parameters, optimizer),
`ema`, `data` (the position of the input pipeline) and `meta` (JSON). Orbax writes into a temporary directory and
renames it when all is there, so a killed process leaves either a whole checkpoint or none. Orbax does not notice a
file that was damaged later, so `meta` holds the SHA-256 of what was saved, and what is read is held against it.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from grain.checkpoint import CheckpointRestore, CheckpointSave

from diffax.training.step import TrainState
from diffax.training.summary import fingerprint

__all__ = ["CheckpointError", "manager", "restore", "restore_ema", "save"]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names it and says what can be done."""


def manager(workdir: str | Path, *, keep: int | None = 3, read_only: bool = False) -> ocp.CheckpointManager:
    """Orbax's manager of WORKDIR/checkpoints, keeping the last `keep` checkpoints (None: all)."""
    if keep is not None and keep < 1:
        raise ValueError(f"keep = {keep}: must be at least 1, or None to keep every checkpoint")
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=not read_only, read_only=read_only)
    return ocp.CheckpointManager(Path(workdir).resolve() / "checkpoints", options=options)


def save(checkpoints: ocp.CheckpointManager, state: TrainState, data: Iterator, meta: dict[str, Any]) -> None:
    """Starts saving in the background; the arrays are copied before this returns, so the state may be donated."""
    items = {"state": state._replace(ema=None), "ema": state.ema}
    hashes = {name: fingerprint(tree) for name, tree in items.items()} | {"data": _position(data)}
    args = ocp.args.Composite(
        **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
        data=CheckpointSave(data),
        meta=ocp.args.JsonSave(meta | {"sha256": hashes}),
    )
    checkpoints.save(int(state.step), args=args)


def restore(checkpoints: ocp.CheckpointManager, like: TrainState, data: Iterator) -> tuple[TrainState, dict[str, Any]]:
    """The newest checkpoint, placed as `like` is, and its meta; `data` is moved to the position of its batches.

    Raises: CheckpointError if it is damaged or of another model, with nothing changed on disk.
    """
    restored = _restore(checkpoints, {"state": like._replace(ema=None), "ema": like.ema}, data=CheckpointRestore(data))
    if _position(data) != restored["meta"]["sha256"]["data"]:
        raise CheckpointError(
            f"checkpoint {checkpoints.directory / str(checkpoints.latest_step())} is damaged: the position in the data "
            "is not the one that was saved"
        )
    return restored["state"]._replace(ema=restored["ema"]), restored["meta"]


def restore_ema(checkpoints: ocp.CheckpointManager, like: Any) -> Any:
    """The averaged parameters of the newest checkpoint, placed as `like` is. Raises as `restore` does."""
    return _restore(checkpoints, {"ema": like})["ema"]


def _restore(checkpoints: ocp.CheckpointManager, like: dict[str, Any], **others: Any) -> Any:
    """The named trees of the newest checkpoint, if they are what was saved."""
    step = checkpoints.latest_step()
    if step is None:
        raise CheckpointError(f"{checkpoints.directory} holds no checkpoint")
    args = {name: ocp.args.StandardRestore(_abstract(tree)) for name, tree in like.items()}
    try:
        restored = checkpoints.restore(step, args=ocp.args.Composite(**args, **others, meta=ocp.args.JsonRestore()))
        for name in like:
            if fingerprint(restored[name]) != restored["meta"]["sha256"][name]:
                raise ValueError(f"the SHA-256 of {name} is not the one that was saved")
        return restored
    except Exception as error:  # Orbax, TensorStore and JSON each fail in their own way on the same damage
        older = sorted((s for s in checkpoints.all_steps() if s != step), reverse=True)
        remedy = f"move it away to go on from step {older[0]}" if older else "it is the only one there"
        raise CheckpointError(
            f"checkpoint {checkpoints.directory / str(step)} cannot be read, so it is damaged or of another model; "
            f"{remedy} ({type(error).__name__}: {_first_line(error)})"
        ) from error


def _position(data: Any) -> str:
    """A hash of where an iterator stands."""
    return hashlib.sha256(repr(data.get_state()).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else "no further message"


def _abstract(tree: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
