"""Training runs beside each other, as one HTML page that needs no other file."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from diffax.training.metrics import LEVEL_EDGES
from diffax.training.summary import read_json
from experiments import charts, markup, pictures
from experiments.charts import Line
from experiments.markup import text
from experiments.runs import Run, best, differing, find

__all__ = ["score", "score_table", "write"]

CSS = """
body { max-width: 1320px } .wide { overflow-x: auto } ul { padding-left: 1.2em }
.wide th.number { white-space: normal; vertical-align: bottom }
.wide td:first-child, .wide th:first-child { position: sticky; left: 0; background: var(--paper) }
td.best { color: var(--good); font-weight: 600 }
.wrapped td { vertical-align: top } .wrapped td:nth-child(n + 5), .wrapped td:nth-child(3) { white-space: normal }
.problems { border-left: 3px solid var(--bad); padding-left: 1em; list-style: none }
.grids { display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); gap: 16px 22px }
figure { margin: 0 } figure img { width: 100% } figcaption { font-size: .85em; overflow-wrap: anywhere }
figcaption::before { content: ""; display: inline-block; width: 10px; height: 10px; background: var(--c);
  margin-right: 6px } figcaption span { color: var(--soft) }
"""
LABELS = {
    "accuracy": "accuracy",
    "held_out_loss": "held-out loss",
    "loss": "training loss",
    "bits_per_dim_elbo": "bits/dim (bound)",
    "bits_per_dim_ode": "bits/dim (ODE)",
    "nearest_samples": "nearest (samples)",
    "images_per_second": "images/s",
    "held_out_accuracy": "accuracy (real)",
    "nearest_held_out": "nearest (real)",
}
CURVES = {
    "train/loss": "Training loss",
    "train/grad_norm": "Gradient norm",
    "images_per_second": "Images per second",
    "mfu": "Model FLOP utilisation",
    "memory_bytes": "Memory in use, GB",
}
TIMES = {
    "time/input": "Share of time: waiting for input",
    "time/compute": "Share of time: computing",
    "time/save": "Share of time: saving",
}
OBJECTIVE = ("schedule", "weighting")


def write(folders: Sequence[Path], out: Path) -> int:
    """Writes the page of all runs below the folders and returns their number. Raises ValueError if there is none."""
    runs, problems = find(folders)
    if not runs:
        where = ", ".join(map(str, folders))
        why = f" ({'; '.join(problems)})" if problems else "; experiments.train makes one"
        raise ValueError(f"{where}: no training run is below, that is no folder with a config.json{why}")
    sweeps = []
    for path in sorted({path for folder in folders for path in folder.rglob("sweep.json")}):
        try:
            sweeps.append(read_json(path))
        except (OSError, ValueError) as error:
            problems.append(str(error))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(_page(runs, problems, sweeps), encoding="utf-8")
    return len(runs)


def _page(runs: Sequence[Run], problems: list[str], sweeps: Sequence[dict[str, Any]]) -> str:
    names = [run.name for run in runs]
    shown = list(_samples(runs, problems))
    body = [f"<h1>{len(runs)} training run{'s' if len(runs) > 1 else ''}</h1>"]
    failed = [
        f"{run['name']} failed: {run['error']}"
        for sweep in sweeps
        for run in sweep.get("runs", [])
        if isinstance(run, dict) and run.get("error")
    ]
    wrong = [*failed, *problems, *(problem for run in runs for problem in run.problems)]
    if wrong:
        body.append('<ul class="problems">' + "".join(f"<li>{text(line)}</li>" for line in wrong) + "</ul>")
    for sweep in sweeps:
        body += list(_sweep(sweep, runs))
    body += list(_scores(runs))
    body += ["<h2>Curves</h2>", charts.legend(names), *_curves(runs)]
    body += shown
    body += list(_differences(runs))
    body += list(_environments(runs))
    return markup.document("diffax: runs", body, css=CSS + charts.css(len(runs)))


# ---- scores ---------------------------------------------------------------------------------------------------------


def score_table(
    runs: Sequence[Run], heads: Sequence[str], labels: Sequence[Sequence[str]], scores: Sequence[dict[str, Any]]
) -> str:
    """A table of scores, the best of a column marked: labels are the first cells of each row, as HTML.

    A score is a number, or {"mean", "standard_error"} over seeds.
    """
    columns = list(dict.fromkeys(name for row in scores for name in row))
    columns.sort(key=lambda name: list(LABELS).index(name) if name in LABELS else 5.5)  # others amid what is known
    means = {name: [_mean(row.get(name)) for row in scores] for name in columns}
    marked = {name: best(runs, name, values) for name, values in means.items()}
    rows = []
    for cells, row in zip(labels, scores, strict=True):
        cells = list(cells)
        for name in columns:
            good = " best" if marked[name] is not None and _mean(row.get(name)) == marked[name] else ""
            cells.append(f'<td class="number{good}">{score(row.get(name))}</td>')
        rows.append(cells)
    titles = [*heads, *(LABELS.get(name, name.replace("_", " ")) for name in columns)]
    return f'<div class="wide">{markup.table(titles, rows, range(len(heads), len(titles)))}</div>'


def _scores(runs: Sequence[Run]) -> Iterator[str]:
    yield "<h2>Scores</h2>"
    yield score_table(
        runs,
        ["run", "status"],
        [[f"<td>{text(run.name)}</td>", f"<td>{text(run.status)}</td>"] for run in runs],
        [run.scores() for run in runs],
    )
    notes = ["The best of a column is marked. Training loss: the last one logged; images/s: median."]
    if differing(runs, "data.name"):
        notes.append("The runs are of different data sets: no best is marked.")
    elif different := [field for field in OBJECTIVE if differing(runs, field)]:
        notes.append(
            f"The runs differ in {' and '.join(different)}, so their losses are means of different things and "
            "do not compare: no best of them is marked."
        )
    yield f'<p class="note">{" ".join(notes)}</p>'


def _sweep(sweep: dict[str, Any], runs: Sequence[Run]) -> Iterator[str]:
    """The table over seeds; a sweep without seeds says no more than the scores of its runs."""
    groups = [group for group in sweep.get("groups", []) if isinstance(group, dict)]
    if not any(len(group.get("runs", [])) > 1 for group in groups):
        return
    fields = list(dict.fromkeys(field for group in groups for field in group["overrides"]))
    labels = [
        [*(f"<td>{text(group['overrides'].get(f, ''))}</td>" for f in fields), f"<td>{text(group['status'])}</td>"]
        for group in groups
    ]
    yield "<h2>Sweep</h2>"
    yield score_table(runs, [*fields, "runs"], labels, [group["scores"] for group in groups])
    yield '<p class="note">Mean over seeds, and its standard error.</p>'


def _mean(score: Any) -> float | None:
    return score["mean"] if isinstance(score, dict) else score


def score(value: Any) -> str:
    """A score for people, with the standard error of a mean over seeds."""
    if value is None:
        return ""
    if isinstance(value, dict):
        error = value.get("standard_error")
        return _number(value["mean"]) + (f" ± {error:.2g}" if error is not None else "")
    return _number(value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"


# ---- curves ---------------------------------------------------------------------------------------------------------


def _curves(runs: Sequence[Run]) -> Iterator[str]:
    def lines(key: str, scale: float = 1) -> list[Line]:
        return [Line(run.name, i, [(x, scale * y) for x, y in run.curve(key)]) for i, run in enumerate(runs)]

    def block(found: Iterable[str], title: str = "", note: str = "", small: bool = False) -> Iterator[str]:
        if drawn := "".join(found):
            yield f"<h2>{title}</h2>" if title else ""
            yield f'<p class="note">{note}</p>' if note else ""
            yield f'<div class="charts{" small" if small else ""}">{drawn}</div>'

    scales = {"memory_bytes": 1e-9}
    ranges = {"images_per_second": (0.0, 0.0), "mfu": (0.0, 0.0), "memory_bytes": (0.0, 0.0)}
    known = [
        charts.chart(title, lines(key, scales.get(key, 1)), y_range=ranges.get(key)) for key, title in CURVES.items()
    ]
    told = {*CURVES, *TIMES, "step", "time"}
    keys = dict.fromkeys(key for run in runs for row in run.rows for key in row)
    others = [key for key in keys if key not in told and not key.startswith("train/levels/")]
    drawn = list(block([*known, *(charts.chart(key, lines(key)) for key in others)]))
    yield from drawn or ['<p class="note">No run has a metrics.jsonl yet: no curves.</p>']

    profiles = [
        charts.chart(f"{when}, by logSNR", [Line(run.name, i, _profile(of(run))) for i, run in enumerate(runs)],
                     x_label="logSNR")
        for when, of in (("Training loss at the end", Run.levels), ("Held-out loss", Run.held_out_levels))
    ]  # fmt: skip
    note = "Weighted, as trained. At the end: over the last tenth of the logged steps."
    yield from block(profiles, "Loss per noise level", note)
    ends = itertools.pairwise(LEVEL_EDGES)
    levels = (
        charts.chart(f"logSNR {a} to {b}", lines(f"train/levels/logsnr_{a}_to_{b}"), size=(300, 180)) for a, b in ends
    )
    yield from block(levels, small=True)
    shares = (charts.chart(title + ", %", lines(key, 100), y_range=(0, 100)) for key, title in TIMES.items())
    yield from block(shares, "Where the time goes")


def _profile(levels: dict[str, float]) -> list[tuple[float, float]]:
    """Middle of the bin, loss."""
    ends = itertools.pairwise(LEVEL_EDGES)
    named = {f"logsnr_{a}_to_{b}": (a + b) / 2 for a, b in ends}
    return [(middle, levels[name]) for name, middle in named.items() if name in levels]


# ---- pictures, configs, machines ------------------------------------------------------------------------------------


def _samples(runs: Sequence[Run], problems: list[str]) -> Iterator[str]:
    figures = []
    for i, run in enumerate(runs):
        evaluated = f"evaluated at step {run.metrics.get('step', '?')}"
        newest = run.picture()
        kinds = [(newest, f"in training, step {int(newest.stem[5:])}" if newest and newest.stem[5:].isdigit() else "")]
        kinds.append((run.folder / "grid.png" if (run.folder / "grid.png").exists() else None, evaluated))
        for path, what in kinds:
            if path is not None:
                try:
                    image = markup.picture(pictures.read_png(path), f"samples of {run.name}")
                except (OSError, ValueError) as error:
                    problems.append(str(error).replace(str(run.folder), run.name))
                    continue
                caption = f"{text(run.name)} <span>{what}</span>"
                figures.append(f'<figure class="r{i}">{image}<figcaption>{caption}</figcaption></figure>')
    if figures:
        yield f'<h2>Samples</h2><div class="grids">{"".join(figures)}</div>'


def _differences(runs: Sequence[Run]) -> Iterator[str]:
    if len(runs) < 2:
        return
    yield "<h2>Configs: what differs</h2>"
    fields = dict.fromkeys(field for run in runs for field in run.config)
    rows = []
    for field in fields:
        if differing(runs, field):
            values = [run.config.get(field) for run in runs]
            told = [v if isinstance(v, str) else "" if v is None else json.dumps(v) for v in values]
            rows.append([f"<td>{text(field)}</td>", *(f"<td>{text(value)}</td>" for value in told)])
    if rows:
        yield f'<div class="wide">{markup.table(["field", *(run.name for run in runs)], rows)}</div>'
    else:
        yield '<p class="note">Nothing: all runs have one config.</p>'


def _environments(runs: Sequence[Run]) -> Iterator[str]:
    yield "<h2>Environment</h2>"
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        known = run.environment
        versions = found if isinstance(found := known.get("versions"), dict) else {}
        named = ", ".join(f"{name} {version}" for name, version in versions.items()) or "not told yet"
        groups.setdefault((str(known.get("devices", "")), str(known.get("machine", "")), named), []).append(run)
    rows = []
    for about, members in groups.items():
        dates = sorted({str(run.environment["date"]) for run in members if "date" in run.environment})
        who = "all" if len(members) == len(runs) > 1 else "; ".join(run.name for run in members)
        rows.append([f"<td>{text(cell)}</td>" for cell in (*about, " to ".join(dates[:1] + dates[1:][-1:]), who)])
    yield f'<div class="wrapped">{markup.table(["devices", "machine", "versions", "date", "runs"], rows)}</div>'
