"""Hang & Gu 2024 (arXiv:2407.03297): does more training near logSNR = 0 train faster?

    python -m experiments.lab.noise_schedule --out runs/lab

Schedules of training on equal budgets, for three targets (eps, x0, v) with the plain squared error of the target, so
that the schedule alone says where training looks; scores against the scale of guidance, and against the steps trained,
of samples without guidance and, for the target v, with the guidance that the paper's scores by steps are of (3). All
are sampled on one grid, that of the cosine schedule from t = 0.99, as in the paper: what differs is the training.

Besides, for the target v: the scale b of the Laplace density, about logSNR 0 and about `MOVED`, since which noise hides
an image depends on its size; the error by level, held against the cosine schedule's; and "curriculum", a schedule whose
noise rises during training, which is how the paper is sometimes retold (its abstract describes a static density).
"""

import itertools
import math
from typing import Any

from experiments import cli
from experiments.lab import levels, protocol, results

GRID = "truncate(cosine(), logsnr_min=-8.3, logsnr_max=8.3)"
SCHEDULES = {
    "cosine": "cosine()",
    "cosine shifted": "cosine_shifted(mean=1)",
    "cosine scaled": "cosine_scaled(s=2)",
    "Laplace": "laplace(scale=0.5)",
    "Cauchy": "truncate(cauchy(), logsnr_min=-20, logsnr_max=20)",  # whose tails leave float32
    "EDM": "edm()",
    "flow": "flow()",
}
TARGETS = {"v": ("v()", "edm(sigma_data=1)"), "x0": ("x0()", "uniform()"), "eps": ("eps()", "snr()")}
"""Target -> preconditioning, and the weighting that is the plain squared error of it."""
SCALES = (0.25, 0.5, 1, 2, 4)
MOVED, MOVED_SCALES = 2, (0.5, 1, 2)
"""Scales of the Laplace density, about logSNR 0 and about another."""
PARTS = (0.25, 0.5, 0.75, 1.0)
"""Of the training, after which it is scored."""
GUIDANCE = (1.0, 1.5, 2.0, 3.0)
GUIDED = 3.0
"""Of the samples with guidance that are scored against the steps."""


def main() -> None:
    target = lambda name: dict(zip(("preconditioning", "weighting"), TARGETS[name], strict=True))
    variants = {
        f"{name}, {to}": {"schedule": schedule} | target(to) for to in TARGETS for name, schedule in SCHEDULES.items()
    }
    variants |= {f"Laplace {b}": {"schedule": f"laplace(scale={b})"} | target("v") for b in SCALES if b != 0.5}
    variants |= {
        f"Laplace {b} at {MOVED}": {"schedule": f"laplace(mean={MOVED}, scale={b})"} | target("v") for b in MOVED_SCALES
    }
    end = protocol.config_of().train.steps
    if end % len(PARTS):
        raise ValueError(f"config.train.steps = {end}: must be divisible by {len(PARTS)}, the parts that are scored")
    rising = f"anneal(laplace(mean=2), laplace(mean=-2), over={end})"
    variants["curriculum"] = {"schedule": rising} | target("v")
    often = {"train.checkpoint_every": end // len(PARTS), "train.keep_every": end // len(PARTS)}
    compared = {f"{name}, {to}" for to in TARGETS for name in SCHEDULES}
    by_parts = {1.0: set(variants), GUIDED: {f"{name}, v" for name in SCHEDULES}}

    def at(variant: str, part: float, scale: float) -> protocol.Scoring:
        return protocol.Scoring(variant, {"step": round(part * end), "grid": GRID, "guidance": scale})

    wanted = {
        "curves": {
            scale: {name: {part: at(name, part, scale) for part in PARTS} for name in variants if name in names}
            for scale, names in by_parts.items()
        },
        "guidance": {
            name: {scale: at(name, 1.0, scale) for scale in GUIDANCE} for name in variants if name in compared
        },
    }
    trained = protocol.runs("noise_schedule", {name: fields | often for name, fields in variants.items()}, wanted)
    found = protocol.over_seeds(trained, wanted)
    shares = {
        scale: {name: sooner(by_name[name], by_name[f"cosine, {target_of(name)}"]) for name in by_name}
        for scale, by_name in found["curves"].items()
    }
    by_level = of_cosine(trained, [name for name in variants if target_of(name) == "v"])
    found |= {"steps": end, "sooner": shares, "levels": by_level}
    protocol.write("noise_schedule", trained, found)
    results.picture("noise_schedule", plot(found))


def target_of(variant: str) -> str:
    """The one that it is named after, or v."""
    return next((to for to in TARGETS if variant.endswith(f", {to}")), "v")


def sooner(one: dict[float, Any], other: dict[float, Any]) -> dict[str, Any]:
    """The share of the training after which one has the FD that the other ends with, on lines through the logarithms of
    what was scored; for each seed, None if it does not get there, and the first of PARTS if it was there by then."""
    shares: list[float | None] = []
    for seed, end in enumerate(other[PARTS[-1]]["fd"]["seeds"]):
        shares.append(first_below([one[part]["fd"]["seeds"][seed] for part in PARTS], end))
    known = [share for share in shares if share is not None]
    return {"seeds": shares} | (results.mean(known) | {"seeds": shares} if len(known) == len(shares) else {})


def of_cosine(trained: list[protocol.Run], names: list[str]) -> dict[str, Any]:
    """{"logsnr", variant: its error of v at these levels over that of the cosine schedule's networks, seed by seed}."""
    loss = {run: levels.by_level(run, "after")["loss after"] for run in trained if run.variant in names}
    of = lambda name: [values for run, values in loss.items() if run.variant == name]
    ratios = {
        name: [[a / b for a, b in zip(*pair, strict=True)] for pair in zip(of(name), of("cosine, v"), strict=True)]
        for name in names
    }
    return {"logsnr": levels.middles()} | {name: levels.over_seeds(values) for name, values in ratios.items()}


def first_below(values: list[float], end: float) -> float | None:
    """Where a curve at PARTS first comes down to `end`."""
    if values[0] <= end:
        return PARTS[0]
    points = list(zip(PARTS, values, strict=True))
    for (a, left), (b, right) in itertools.pairwise(points):
        if right <= end:
            return a + (b - a) * (math.log(left) - math.log(end)) / (math.log(left) - math.log(right))
    return None


def plot(found: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(24, 9), layout="constrained")
    (*by_target, guided, by_level), (*by_guidance, scales, rising) = axes = figure.subplots(2, 5)
    fd = lambda scores: {float(x): value["fd"] for x, value in scores.items()}
    plain = found["curves"][1.0]
    for name in SCHEDULES:
        for to, above, below in zip(TARGETS, by_target, by_guidance, strict=True):
            results.line(above, fd(plain[f"{name}, {to}"]), label=name)
            results.line(below, fd(found["guidance"][f"{name}, {to}"]), label=name)
        results.line(guided, fd(found["curves"][GUIDED][f"{name}, v"]), label=name)
    for to, above, below in zip(TARGETS, by_target, by_guidance, strict=True):
        above.set(xlabel="part of the training", title=f"target {to}")
        below.set(xlabel="guidance", title=f"target {to}, at the end")
    guided.set(xlabel="part of the training", title=f"target v, guidance {GUIDED:g}")
    end = lambda b: plain["Laplace, v" if b == 0.5 else f"Laplace {b}"][PARTS[-1]]["fd"]
    results.line(scales, {b: end(b) for b in SCALES}, label="about logSNR 0")
    moved = {b: plain[f"Laplace {b} at {MOVED}"][PARTS[-1]]["fd"] for b in MOVED_SCALES}
    results.line(scales, moved, label=f"about {MOVED}")
    scales.axhline(plain["cosine, v"][PARTS[-1]]["fd"]["mean"], color="grey", lw=0.8, ls=":", label="cosine")
    scales.set(xlabel="scale b", xscale="log", title="Laplace density, target v, at the end")
    scales.set_xticks(SCALES, [f"{b:g}" for b in SCALES])
    scales.minorticks_off()
    for name in (*(f"{name}, v" for name in SCHEDULES), f"Laplace 1 at {MOVED}"):
        results.line(by_level, dict(zip(found["levels"]["logsnr"], found["levels"][name], strict=True)), label=name)
    for name in ("curriculum", "Laplace, v", "cosine, v"):
        results.line(rising, fd(plain[name]), label=name)
    rising.set(xlabel="part of the training", title="noise that rises during training")
    for ax in axes.flat:
        ax.set(ylabel="FD-ENLite0", yscale="log")
        ax.legend(frameon=False, fontsize=8)
    by_level.set(xlabel="logSNR", ylabel="error of v over cosine's", title="error by level, at the end")
    return figure


if __name__ == "__main__":
    cli.run(main)
