"""The benchmark's results for people: who wins where, as a picture and as one HTML page that needs no other file.

A result is what `bench_solvers` writes: errors of "diffax" and "peers" as {target: {nfe: {choice: {mean, median}}}}, a
choice being a solver and a grid; distances of stochastic solvers; timings; environments.
"""

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from experiments import markup

__all__ = ["Cell", "cells", "digest", "fixed_choices", "found_for_the_model", "page", "plot", "rounded", "summary"]

Errors = dict[str, dict[str, dict[str, dict[str, float]]]]
DEFAULT = "default/plain"
"""What `dx.sample` does when nothing is asked of it."""

OURS, THEIRS, FITTED, INK, FAINT = "#0b7a75", "#c8553d", "#d9a404", "#222222", "#d9d9d9"


class Cell(NamedTuple):
    """The best choice of either side for one target and NFE; theirs is None without peers."""

    target: str
    nfe: int
    ours: tuple[str, float]
    theirs: tuple[str, float] | None

    @property
    def ratio(self) -> float | None:
        """Our error over theirs: below 1 diffax wins."""
        return None if self.theirs is None else self.ours[1] / self.theirs[1]


def cells(errors: dict[str, Errors], kind: str) -> list[Cell]:
    """The best choices everywhere, by "mean" or "median" error."""
    found = []
    for target, table in errors["diffax"].items():
        for nfe, row in table.items():
            theirs = errors.get("peers", {}).get(target, {}).get(nfe)
            found.append(Cell(target, int(nfe), _best(row, kind), _best(theirs, kind) if theirs else None))
    return found


def fixed_choices(errors: dict[str, Errors], side: str, kind: str = "mean") -> list[tuple[str, float]]:
    """(choice, geometric mean of its error over the best peer's in every cell), best first.

    Where there are no peers, the best of diffax stands in for them. Choices that miss a cell are left out.
    """
    yardstick = {(c.target, c.nfe): (c.theirs or c.ours)[1] for c in cells(errors, kind)}
    logs: dict[str, list[float]] = {}
    for (target, nfe), best in yardstick.items():
        for choice, error in errors.get(side, {}).get(target, {}).get(str(nfe), {}).items():
            logs.setdefault(choice, []).append(np.log(max(error[kind], 1e-12) / best))
    full = ((choice, float(np.exp(np.mean(log)))) for choice, log in logs.items() if len(log) == len(yardstick))
    return sorted(full, key=lambda pair: pair[1])


def digest(errors: dict[str, Errors], most: int = 12) -> dict[str, Errors]:
    """What is worth keeping of each cell: the `most` best choices by mean and by median, and the default; 4 digits."""

    def best(row: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        first = [sorted(row, key=lambda choice: row[choice][kind])[:most] for kind in ("mean", "median")]
        names = [name for name in row if name in {*first[0], *first[1], DEFAULT}]
        return rounded({name: row[name] for name in names})

    return {
        side: {target: {nfe: best(row) for nfe, row in table.items()} for target, table in targets.items()}
        for side, targets in errors.items()
    }


def rounded(table: Any) -> Any:
    """The numbers of a tree of dicts to 4 digits."""
    return {k: rounded(v) for k, v in table.items()} if isinstance(table, dict) else float(f"{table:.4g}")


def summary(errors: dict[str, Errors]) -> list[str]:
    """The result in a few sentences."""
    lines = []
    for kind in ("mean", "median"):
        ratios = [c.ratio for c in cells(errors, kind) if c.ratio is not None]
        if ratios:
            size = np.exp(np.mean(np.log(ratios)))
            won, tied, lost = ([_verdict(r) for r in ratios].count(v) for v in ("won", "tied", "lost"))
            lines.append(
                f"By {kind} error diffax's best choice wins {won}, ties {tied} and loses {lost} of {len(ratios)} cells "
                f"against the best peer; its error is {size:.2f} times theirs (geometric mean)."
            )
    for side, who in (("diffax", "diffax"), ("peers", "the peers")):
        if fixed := fixed_choices(errors, side):
            name, value = fixed[0]
            against = "best peer" if "peers" in errors else "best"
            lines.append(f"The best single choice of {who} is {name}: {value:.2f} times the {against} of every cell.")
    for name, found in found_for_the_model(errors).items():
        size = np.exp(np.mean(np.log(list(found.values()))))
        few = [r for (_, nfe), r in found.items() if 6 <= nfe <= 20]
        half = f"; at most half of it in {sum(r <= 0.5 for r in few)} of {len(few)} cells of 6 to 20 evaluations"
        lines.append(f"{name}: {size:.2f} times the best of {len(found)} cells{half if few else ''}.")
    return lines


def found_for_the_model(errors: dict[str, Errors], kind: str = "mean") -> dict[str, dict[tuple[str, int], float]]:
    """{choice: {(target, nfe): its error over the best peer's}}: of the default choice, and of all that was fitted."""
    yardstick = {(c.target, c.nfe): (c.theirs or c.ours)[1] for c in cells(errors, kind)}
    ratios: dict[str, dict[tuple[str, int], float]] = {}
    for (target, nfe), best in yardstick.items():
        fixed, fitted = (errors.get(side, {}).get(target, {}).get(str(nfe), {}) for side in ("diffax", "fitted"))
        for name, error in (({DEFAULT: fixed[DEFAULT]} if DEFAULT in fixed else {}) | fitted).items():
            ratios.setdefault(name, {})[target, nfe] = error[kind] / best
    return ratios


def _verdict(ratio: float) -> str:
    """Within half a per cent it is a tie, often of one and the same method."""
    return "tied" if abs(ratio - 1) < 0.005 else "won" if ratio < 1 else "lost"


def _best(row: dict[str, dict[str, float]], kind: str) -> tuple[str, float]:
    name = min(row, key=lambda choice: row[choice][kind])
    return name, row[name][kind]


# ---- the picture ----------------------------------------------------------------------------------------------------


def plot(result: dict[str, Any]) -> bytes:
    """A PNG: error against NFE, a panel a target, the best of diffax, fixed and fitted, and of the peers."""
    from matplotlib.figure import Figure

    errors, titles = result["errors"], result["targets"]
    columns = min(3, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.7 * rows + 0.6), dpi=130, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    handles: dict[str, Any] = {}

    def fitted(target: str, nfe: int, kind: str) -> float:
        row = errors.get("fitted", {}).get(target, {}).get(str(nfe), {})
        row = {name: error for name, error in row.items() if name.startswith("fitted")}
        return _best(row, kind)[1] if row else np.nan

    for axes, (target, title) in zip(panels, titles.items(), strict=False):
        for kind, style in (("mean", "-"), ("median", ":")):
            here = [c for c in cells(errors, kind) if c.target == target]
            nfe = [c.nfe for c in here]
            for label, colour, values in (
                ("diffax", OURS, [c.ours[1] for c in here]),
                ("best peer", THEIRS, [c.theirs[1] if c.theirs else np.nan for c in here]),
                ("diffax, fitted", FITTED, [fitted(target, n, kind) for n in nfe]),
            ):
                if np.isfinite(values).any():
                    look = {"color": colour, "linestyle": style, "marker": "o" if kind == "mean" else "."}
                    (line,) = axes.plot(nfe, values, markersize=4, linewidth=1.8, **look)
                    handles[f"{label}, {kind}"] = line
        axes.set(xscale="log", yscale="log", xlabel="evaluations of the denoiser")
        axes.set_title(title, fontsize=10, color=INK, loc="left")
        axes.set_xticks(nfe, labels=[str(n) for n in nfe])
        axes.minorticks_off()
        axes.grid(color=FAINT, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    for row in range(rows):
        panels[row * columns].set_ylabel("error per dimension")
    for axes in panels[len(titles) :]:
        axes.set_visible(False)
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=min(2 * columns, 6), frameon=False
    )
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


# ---- the page -------------------------------------------------------------------------------------------------------

CSS = """
body > img { width: 100% } td.how { color: var(--soft); font-size: .88em }
td.won { color: var(--good); font-weight: 600 } td.lost { color: var(--bad); font-weight: 600 }
.side { display: flex; gap: 2.5em } .side > div { flex: 1 }
"""


def page(result: dict[str, Any], picture: bytes) -> str:
    """The whole report as HTML, the picture inside it."""
    errors = result["errors"]
    body = ["<h1>Solvers at equal numbers of evaluations</h1>"]
    body += [f"<p>{markup.text(line)}</p>" for line in summary(errors)]
    body.append(markup.picture(picture, "error against evaluations"))
    body.append(
        '<p class="note">Exact denoisers, the same starting noise for all libraries, sigma from 80 to 0.002 and then '
        "to 0; every evaluation is counted. The error of a seed is the root mean square distance per dimension to the "
        "float64 solution of the ODE. Peers are k-diffusion, diffusers "
        "and azula; in every cell each side shows its best solver and grid, chosen with hindsight. "
        "The mean is dominated by the seeds that end on another mode of the distribution.</p>"
    )
    body += list(_winners(errors, result["targets"]))
    body += list(_fitted(errors, result["targets"]))
    body += list(_fixed(errors))
    if result.get("wasserstein"):
        body += list(_distances(result["wasserstein"], result["targets"]))
    if result.get("speed"):
        body += list(_speed(result["speed"]))
    body.append(f"<footer>{_about(result)}</footer>")
    return markup.document("diffax: solvers", body, css=CSS)


def _winners(errors: dict[str, Errors], titles: dict[str, str]) -> Iterator[str]:
    by_mean, by_median = ({(c.target, c.nfe): c for c in cells(errors, kind)} for kind in ("mean", "median"))
    for target, title in titles.items():
        yield f"<h2>{markup.text(title)}</h2>"
        heads = ["NFE", "diffax, mean", "by", "peers, mean", "by", "ratio", "diffax, median", "peers, median", "ratio"]
        rows = []
        for (name, nfe), mean in by_mean.items():
            if name == target:
                median = by_median[name, nfe]
                rows.append(
                    [
                        *(markup.number(nfe, "d"), markup.number(mean.ours[1]), _how(mean.ours[0])),
                        *(*_other(mean, how=True), _ratio(mean)),
                        *(markup.number(median.ours[1]), *_other(median, how=False), _ratio(median)),
                    ]
                )
        yield markup.table(heads, rows, numbers={0, 1, 3, 5, 6, 7, 8})


def _other(cell: Cell, how: bool) -> list[str]:
    if cell.theirs is None:
        return ["<td></td>"] * (1 + how)
    return [markup.number(cell.theirs[1]), *([_how(cell.theirs[0])] if how else [])]


def _ratio(cell: Cell) -> str:
    if cell.ratio is None:
        return "<td></td>"
    return _verdict_cell(cell.ratio)


def _verdict_cell(ratio: float) -> str:
    return f'<td class="number {_verdict(ratio)}">{ratio:.2f}</td>'


def _fitted(errors: dict[str, Errors], titles: dict[str, str]) -> Iterator[str]:
    by_mean, by_median = (found_for_the_model(errors, kind) for kind in ("mean", "median"))
    if not by_mean:
        return
    yield "<h2>The default, and what is found for a model</h2>"
    yield (
        '<p class="note">Error over that of the best peer in each cell, mean and median. default/plain knows nothing '
        "of the target; default/auto is a grid from 64 pilots; a fitted grid comes from 256, a fitted solver "
        "(grid and coefficients) from 1,024 (mnist: 512; networks: 64 for both). "
        "Errors are on other noise.</p>"
    )
    for target, title in titles.items():
        budgets = sorted({nfe for ratios in by_mean.values() for name, nfe in ratios if name == target})
        rows = []
        for choice in by_mean:
            for kind, table in (("mean", by_mean), ("median", by_median)):
                values = [table[choice].get((target, nfe)) for nfe in budgets]
                rows.append(
                    [_how(f"{choice}, {kind}"), *("<td></td>" if v is None else _verdict_cell(v) for v in values)]
                )
        yield f"<h3>{markup.text(title)}</h3>"
        yield markup.table(["NFE", *map(str, budgets)], rows, numbers=set(range(1, len(budgets) + 1)))


def _fixed(errors: dict[str, Errors]) -> Iterator[str]:
    yield "<h2>One fixed choice for all targets and NFE</h2>"
    yield (
        '<p class="note">Geometric mean of its error over that of the best peer in each cell, by mean error: below 1 '
        "it beats the peers' best choices made with hindsight.</p><div class='side'>"
    )
    for side, who in (("diffax", "diffax"), ("peers", "peers")):
        rows = [[_how(name), markup.number(value, ".2f")] for name, value in fixed_choices(errors, side)[:15]]
        if rows:
            yield f"<div>{markup.table([who, 'ratio'], rows, numbers={1})}</div>"
    yield "</div>"


def _distances(tables: dict[str, dict[str, dict[str, float]]], titles: dict[str, str]) -> Iterator[str]:
    yield "<h2>Solvers that draw noise</h2>"
    yield (
        '<p class="note">Sliced 2-Wasserstein distance to exact samples, per dimension. "exact samples" is the '
        "distance of two exact sets of the same size: nothing can be seen below it.</p>"
    )
    for target, table in tables.items():
        names = list(dict.fromkeys(name for row in table.values() for name in row))
        last = table[max(table, key=int)]
        names.sort(key=lambda name: -1.0 if name == "exact samples" else last.get(name, np.inf))
        rows = [
            [_how(name), *(markup.number(row[name]) if name in row else "<td></td>" for row in table.values())]
            for name in names
        ]
        yield f"<h3>{markup.text(titles[target])}</h3>"
        yield markup.table(["NFE", *table], rows, numbers=set(range(1, len(table) + 1)))


def _speed(tables: dict[str, dict[str, dict[str, dict[str, float]]]]) -> Iterator[str]:
    yield "<h2>What the loop costs</h2>"
    yield (
        '<p class="note">50 evaluations on [64, 64] (10 of the U-Net, on 16 images), against as many bare calls of the '
        "denoiser: medians of interleaved runs.</p>"
    )
    for kind in next(iter(tables.values())):
        rows = [
            [
                *(_how(f"{side}/{name}" if side == "diffax" else name), markup.number(t["over_bare"], ".2f")),
                *(markup.number(1e6 * t[key], ".1f") for key in ("seconds_a_step", "seconds_a_step_bare")),
            ]
            for side, table in tables.items()
            for name, t in table.get(kind, {}).items()
        ]
        heads = [f"denoiser: {kind}", "times the bare loop", "microseconds a step", "bare"]
        yield markup.table(heads, rows, numbers={1, 2, 3})


def _about(result: dict[str, Any]) -> str:
    about = {key: value for key, value in result["environment"].items() if key != "versions"}
    versions = result["environment"]["versions"] | result.get("peers_versions", {})
    text = [f"{key}: {value}" for key, value in about.items()]
    return markup.text("; ".join([*text, ", ".join(f"{name} {v}" for name, v in versions.items())]))


def _how(name: str) -> str:
    return f'<td class="how">{markup.text(name)}</td>'
