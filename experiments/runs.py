"""What training runs left in their directories, read to be compared.

A run is a directory with a config.json. The rest may be absent: metrics.jsonl (an object a logged step), summary.json
(its end), metrics.json (scores), pictures. What cannot be read is named in `Run.problems`, never an error.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffax.training.summary import read_json
from experiments.workdir import flatten, plain, read_config

__all__ = ["Run", "best", "differing", "find", "read"]

HIGHER = ("accuracy", "precision", "recall", "density", "coverage", "inception_score", "images_per_second", "mfu")
LOWER = ("loss", "held_out_loss", "bits_per_dim", "fid", "kid", "fd_", "mmd", "cmmd", "sliced_wasserstein")
"""Beginnings of the names of scores of which more, or less, is better. Others are only told."""

_LOSSES = ("loss", "held_out_loss")
_SAME_DATA, _SAME_LOSS = ("data.name",), ("data.name", "schedule", "weighting")
_NO_SCORES = ("step", "samples", "seed", "steps", "guidance", "sampling_seconds")


class Run(NamedTuple):
    """A run; config is flat ("train.steps"), rows are the logged steps in order, each once."""

    name: str
    folder: Path
    config: dict[str, Any]
    rows: Sequence[dict[str, float]]
    summary: dict[str, Any]
    metrics: dict[str, Any]
    problems: Sequence[str]

    @property
    def step(self) -> int:
        """How far it is known to have come."""
        return int(max(_numbers(self.summary).get("step", 0), self.rows[-1]["step"] if self.rows else 0))

    @property
    def status(self) -> str:
        """finished, or where it stands."""
        steps = self.config.get("train.steps", "?")
        return f"finished, {steps} steps" if self.finished(steps) else f"step {self.step} of {steps}"

    @property
    def environment(self) -> dict[str, Any]:
        """Of the training, or of the evaluation where only that is known."""
        for source in (self.summary, self.metrics):
            if isinstance(found := source.get("environment"), dict):
                return found
        return {}

    def finished(self, steps: int) -> bool:
        """Whether training came to its end at this step."""
        return self.summary.get("step") == steps

    def curve(self, key: str) -> list[tuple[float, float]]:
        """(step, value) where it was logged."""
        return [(row["step"], row[key]) for row in self.rows if key in row]

    def levels(self) -> dict[str, float]:
        """{"logsnr_-3_to_0": loss}: of the last tenth of the logged steps, or where the summary knows it alone."""
        prefix = "train/levels/"
        tail = self.rows[-max(1, len(self.rows) // 10) :]
        gathered: dict[str, list[float]] = {}
        for row in tail:
            for key, value in row.items():
                if key.startswith(prefix):
                    gathered.setdefault(key.removeprefix(prefix), []).append(value)
        if gathered:
            return {name: sum(values) / len(values) for name, values in gathered.items()}
        return _numbers(self.summary.get("losses"), "levels/")

    def held_out_levels(self) -> dict[str, float]:
        """The same on held-out images, where evaluated."""
        return _numbers(self.metrics.get("held_out"), "levels/")

    def scores(self) -> dict[str, float]:
        """Everything by which it is judged, training's last loss first."""
        scores = {name: curve[-1][1] for name in ("loss",) if (curve := self.curve(f"train/{name}"))}
        scores |= {name: value for name, value in _numbers(self.summary.get("losses")).items() if name == "loss"}
        held_out = _numbers(self.metrics.get("held_out"))
        scores |= {"held_out_loss": held_out["loss"]} if "loss" in held_out else {}
        scores |= {name: value for name, value in _numbers(self.metrics).items() if name not in _NO_SCORES}
        if speeds := sorted(value for _, value in self.curve("images_per_second")):
            scores["images_per_second"] = speeds[len(speeds) // 2]
        return scores

    def picture(self) -> Path | None:
        """The newest samples drawn in training."""
        return max((self.folder / "samples").glob("step_*.png"), default=None)


def find(folders: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """All runs below the folders, in order of their names, and a sentence for each that cannot be read.

    Names are paths from where the folders' runs part. Raises ValueError for a folder that is not there.
    """
    places: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: there is no such folder")
        for path, inside, files in os.walk(folder.resolve()):
            is_run = "config.json" in files
            places |= {Path(path)} if is_run else set()
            skip = ("checkpoints", "samples") if is_run else ()
            inside[:] = [name for name in inside if name not in skip and not name.startswith(".")]
    root = os.path.commonpath([place.parent for place in places]) if places else ""
    found, problems = [], []
    for place in sorted(places):
        try:
            found.append(read(place, str(place.relative_to(root))))
        except (OSError, ValueError) as error:
            problems.append(str(error).replace(f"{root}{os.sep}", ""))
    return found, problems


def read(folder: Path, name: str | None = None) -> Run:
    """The run in a folder. Raises ValueError if its config.json is no config of a run."""
    config = flatten(plain(read_config(folder)))
    problems: list[str] = []

    def optional(file: str) -> dict[str, Any]:
        try:
            return read_json(folder / file)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            problems.append(str(error).replace(f"{folder.parent}{os.sep}", ""))
            return {}

    summary, metrics = optional("summary.json"), optional("metrics.json")
    rows, damaged = _rows(folder / "metrics.jsonl")
    if damaged:
        problems.append(f"{folder.name}/metrics.jsonl is damaged: {damaged} of its lines cannot be read")
    run = Run(name or folder.name, folder, config, rows, summary, metrics, problems)
    if _is_number(at := metrics.get("step")) and at != run.step:
        problems.append(f"{folder.name} was evaluated at step {at}, and trained to step {run.step} since")
    return run


def best(runs: Sequence[Run], name: str, values: Sequence[float | None]) -> float | None:
    """The best of a score's values, if more or less is better, they are of one kind and they differ."""
    losses = any(name.startswith(loss) for loss in _LOSSES)
    if any(differing(runs, field) for field in (_SAME_LOSS if losses else _SAME_DATA)):
        return None
    known = [value for value in values if value is not None]
    if len(set(known)) < 2:
        return None
    return max(known) if name.startswith(HIGHER) else min(known) if name.startswith(LOWER) else None


def differing(runs: Sequence[Run], field: str) -> bool:
    """Whether the runs differ in a field of their configs."""
    return len({json.dumps(run.config.get(field)) for run in runs}) > 1


def _rows(path: Path) -> tuple[list[dict[str, float]], int]:
    """What was logged, of each step the last, and how many lines are damaged: not the last, which may be torn."""
    rows: dict[float, dict[str, float]] = {}
    damaged = []
    with contextlib.suppress(OSError):
        lines = path.read_bytes().decode(errors="replace").splitlines()
        for i, line in enumerate(lines):
            try:
                row = _numbers(json.loads(line))
                rows[row["step"]] = row
            except (ValueError, KeyError):
                damaged += [i] if line.strip() and i < len(lines) - 1 else []
    return [rows[step] for step in sorted(rows)], len(damaged)


def _numbers(tree: Any, prefix: str = "") -> dict[str, float]:
    """The finite numbers of an object whose names begin with the prefix, without it."""
    items = tree.items() if isinstance(tree, dict) else ()
    return {name.removeprefix(prefix): v for name, v in items if name.startswith(prefix) and _is_number(v)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
