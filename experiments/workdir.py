"""The directory of a run: its resolved config, its checkpoints, and the networks restored from them."""

import json
from pathlib import Path
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from diffax import data
from diffax.training import checkpoint, sharding
from diffax.training.summary import read_json, write_json
from experiments.recipe import Recipe, recipe

__all__ = ["claim", "load_dataset", "load_ema", "read_config"]

_MAY_CHANGE = ("train.steps", "train.log_every", "train.checkpoint_every", "train.sample_every", "train.keep")
"""Fields that a resumed run may give anew, since the parameters at a given step do not depend on them. Those under
`sample` and `data.dir` may change too."""


def claim(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Makes `workdir` the directory of a run of this config, or finds that it is.

    Raises: ValueError if it holds a run of another config (naming the fields that differ) or something else.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir = {workdir}: is a file; it must be a directory, or a path where one can be made")
    new = _plain(config)
    if (workdir / "config.json").exists():
        old = _plain(read_config(workdir))
        before, now = _flat(old), _flat(new)
        differing = [
            f"config.{f} is {before.get(f)!r} there and {now.get(f)!r} here"
            for f in sorted(before.keys() | now.keys())
            if before.get(f) != now.get(f) and f not in _MAY_CHANGE and not f.startswith(("sample.", "data.dir"))
        ]
        if differing:
            raise ValueError(
                f"--workdir = {workdir}: holds a run of another config ({'; '.join(differing)}); "
                "give the same config to resume it, or another workdir for a new run"
            )
    elif (workdir / "checkpoints").exists():
        raise ValueError(f"--workdir = {workdir}: holds checkpoints but no config.json; give another workdir")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "config.json", new)
    except OSError as error:
        raise ValueError(f"--workdir = {workdir}: cannot be written to ({error})") from error


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """The resolved config of a run. Raises ValueError if there is none or it is damaged."""
    path = workdir / "config.json"
    if not path.exists():
        raise ValueError(f"--workdir = {workdir}: holds no config.json; train there first, with experiments.train")
    return ml_collections.ConfigDict(read_json(path))


def load_dataset(config: ml_collections.ConfigDict, split: str) -> data.Dataset:
    """The data set that the config names."""
    return data.load(config.data.name, split, config.data.dir or None)


def load_ema(workdir: Path, config: ml_collections.ConfigDict, mesh: Mesh) -> tuple[Recipe, Any, int]:
    """The recipe of a run, its averaged parameters on every device of the mesh, and their step."""
    rec = recipe(config, load_dataset(config, "train"))
    if not (workdir / "checkpoints").is_dir():
        raise ValueError(f"--workdir = {workdir}: holds no checkpoint yet; let experiments.train get to its first one")
    checkpoints = checkpoint.manager(workdir, read_only=True)
    step = checkpoint.latest_step(checkpoints)
    if step is None:
        raise ValueError(f"--workdir = {workdir}: holds no checkpoint yet; let experiments.train get to its first one")
    shapes = jax.eval_shape(rec.network.init, jax.random.key(0))
    like = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding.replicated(mesh)), shapes)
    return rec, checkpoint.restore_ema(checkpoints, like), step


def _plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """As JSON gives it back (tuples become lists), so that old and new compare equal."""
    return json.loads(config.to_json())


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out
