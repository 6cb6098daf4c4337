"""Trains a grid of runs, one after another, and compares them.

    python -m experiments.sweep --config experiments/configs/digits.py --out runs/sweep \
        --vary train.learning_rate=1e-3,3e-4 --vary "schedule=edm();laplace(scale=0.5)" --seeds 3 --evaluate

All combinations of the values are trained by experiments.train, each in OUT/NAME. Values are parted by ";" if there is
one, else by commas outside of brackets and quotes. Other fields are set for all runs as in --config.train.steps=400.
Every combination is checked before the first run starts; --dry_run shows them and does no more.

Run the same line again to go on: finished runs are skipped, a half-trained one is resumed, a failed one is tried again.
With a changed grid the runs that still belong are kept. Written are OUT/sweep.json (each run with its scores or its
error, and the table), OUT/report.html as by experiments.report, and OUT/NAME/log.txt.
"""

import math
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from diffax.training.summary import write_json
from experiments import cli, comparison, runs
from experiments.variations import Variation, arguments, expand, place

CONFIG = config_flags.DEFINE_config_file("config", None, "The config file that all runs share.", lock_config=True)
OUT = flags.DEFINE_string("out", None, "The folder of the sweep; a run is a folder in it.")
VARY = flags.DEFINE_multi_string("vary", [], "FIELD=VALUE,VALUE,... Give it again for a further field.")
SEEDS = flags.DEFINE_integer("seeds", 1, "Runs of each combination, with seeds counted from the config's.")
EVALUATE = flags.DEFINE_bool("evaluate", False, "Also score each run with experiments.evaluate.")
LIKELIHOOD = flags.DEFINE_bool("likelihood", False, "The same, with its --likelihood.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Show the runs and train none.")


def main() -> None:
    jax.config.update("jax_platforms", "cpu")  # of this process, which only checks: accelerators are for the runs
    cli.config_of(CONFIG)
    if not OUT.value:
        raise ValueError("--out is missing: give a folder for the sweep, such as --out=runs/sweep")
    out = Path(OUT.value)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out = {out}: is a file; it must be a folder, or a path where one can be made")
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    fixed = {field: str(value) for field, value in config_flags.get_override_values(flags.FLAGS["config"]).items()}
    variations = expand(path, fixed, VARY.value, SEEDS.value)
    places = place(out, variations)
    if DRY_RUN.value:
        for variation, folder in zip(variations, places, strict=True):
            print(f"{folder}: {_state(variation, folder)}")
        print(f"{len(variations)} runs")
        return

    out.mkdir(parents=True, exist_ok=True)
    for name in ("SIGTERM", "SIGHUP"):  # as ctrl-C
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    errors: dict[str, str] = {}
    try:
        _run(path, variations, places, errors)
    finally:
        groups = _write(out, path, variations, places, errors)
        comparison.write([out], out / "report.html") if any(g["scores"] for g in groups) else None
    print(f"{_table(groups)}\n{out / 'sweep.json'}, {out / 'report.html'}")
    if errors:
        raise ValueError(f"{len(errors)} of {len(variations)} runs failed: {'; '.join(errors)}")


def _run(path: str, variations: Sequence[Variation], places: Sequence[Path], errors: dict[str, str]) -> None:
    """Does what is left to do of each run, and puts down what failed."""
    work = [_work(path, variation, folder) for variation, folder in zip(variations, places, strict=True)]
    left = sum(map(bool, work))
    durations: list[float] = []
    for i, (variation, folder, commands) in enumerate(zip(variations, places, work, strict=True), start=1):
        started, begin = time.monotonic(), f"[{i}/{len(variations)}] {variation.name}"
        if not commands:
            print(f"{begin}: finished before", flush=True)
            continue
        eta = f"; about {_span(statistics.mean(durations) * left)} left" if durations else ""
        try:
            for module, options in commands:
                print(f"{begin}: experiments.{module}{eta}", flush=True)
                if error := _command(module, options, folder / "log.txt"):
                    errors[variation.name] = error
                    print(f"{begin}: failed: {error}", file=sys.stderr, flush=True)
                    break
        except KeyboardInterrupt:
            print(f"{begin}: stopped; run the same line again to go on", file=sys.stderr, flush=True)
            raise
        left -= 1
        durations.append(time.monotonic() - started)


def _work(path: str, variation: Variation, folder: Path) -> list[tuple[str, list[str]]]:
    """The commands that a run still needs, with their options."""
    trained = _state(variation, folder) == "finished"
    commands = [] if trained else [("train", [*arguments(path, variation.overrides), f"--workdir={folder}"])]
    if (EVALUATE.value or LIKELIHOOD.value) and not (trained and _scored(folder)):
        commands.append(("evaluate", [f"--workdir={folder}", *(["--likelihood"] if LIKELIHOOD.value else [])]))
    return commands


def _state(variation: Variation, folder: Path) -> str:
    if not (folder / "config.json").exists():
        return "new"
    run = runs.read(folder)
    return "finished" if run.finished(variation.config.train.steps) else run.status


def _scored(folder: Path) -> bool:
    """Whether what stands in metrics.json is the scores of the parameters that were trained."""
    run = runs.read(folder)
    same = run.metrics.get("sha256_ema") == run.summary.get("sha256_ema")
    return same and bool(run.metrics) and (not LIKELIHOOD.value or bool(run.metrics.get("likelihood")))


def _command(module: str, options: Sequence[str], log: Path) -> str | None:
    """Runs a command, its output to stderr and to the log, and returns its error, or None if it did well."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", f"experiments.{module}", *options]
    # A session of its own: ctrl-C reaches it once, from here, and a save under way is finished.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    tail = b""
    try:
        assert process.stdout is not None
        with log.open("ab") as file:
            while chunk := process.stdout.read1(1 << 16):  # type: ignore[attr-defined]
                file.write(chunk)
                file.flush()
                sys.stderr.write(chunk.decode(errors="replace"))
                sys.stderr.flush()
                tail = (tail + chunk)[-8192:]
        code = process.wait()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.kill()
                process.wait()
    if code == 0:
        return None
    lines = [line.strip() for line in tail.decode(errors="replace").replace("\r", "\n").splitlines() if line.strip()]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")] or lines
    ended = f"ended by signal {signal.Signals(-code).name}" if code < 0 else said[-1] if said else f"exit status {code}"
    return f"{module}: {ended}"


# ---- what is told ---------------------------------------------------------------------------------------------------


def _write(
    out: Path, path: str, variations: Sequence[Variation], places: Sequence[Path], errors: dict[str, str]
) -> list[dict[str, Any]]:
    """Writes sweep.json as things stand and returns its groups: the runs that differ in their seed alone."""
    records = []
    for variation, folder in zip(variations, places, strict=True):
        state = _state(variation, folder)
        error = errors.get(variation.name)
        record: dict[str, Any] = {"name": folder.name, "overrides": dict(variation.varied)}
        record |= {"status": "failed" if error else state} | ({"error": error} if error else {})
        records.append(record | {"scores": {} if state == "new" else runs.read(folder).scores()})
    grouped: dict[tuple, list[dict[str, Any]]] = {}
    for record in records:
        grouped.setdefault(_combination(record), []).append(record)
    groups = []
    for combination, members in grouped.items():
        done = [member for member in members if member["status"] == "finished"]
        names = dict.fromkeys(name for member in done for name in member["scores"])
        groups.append(
            {
                "overrides": dict(combination),
                "runs": [member["name"] for member in members],
                "status": f"{len(done)} of {len(members)} finished",
                "scores": {n: _over_seeds([m["scores"][n] for m in done if n in m["scores"]]) for n in names},
            }
        )
    command = " ".join(["python", *sys.orig_argv[1:]])
    about = {"date": time.strftime("%Y-%m-%d"), "command": command, "config": path}
    write_json(out / "sweep.json", about | {"runs": records, "groups": groups})
    return groups


def _combination(record: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((f, v) for f, v in record["overrides"].items() if f != "seed" or SEEDS.value == 1)


def _over_seeds(values: list[float]) -> dict[str, float | None]:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "standard_error": error}


def _table(groups: Sequence[dict[str, Any]]) -> str:
    fields = list(dict.fromkeys(field for group in groups for field in group["overrides"]))
    scores = list(dict.fromkeys(name for group in groups for name in group["scores"]))
    rows = [[*fields, "runs", *scores]]
    for group in groups:
        row = [*(group["overrides"].get(field, "") for field in fields), group["status"]]
        rows.append(row + [comparison.score(group["scores"].get(name)) for name in scores])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _span(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{max(1, round(seconds / 60))} min"


if __name__ == "__main__":
    cli.run(main)
