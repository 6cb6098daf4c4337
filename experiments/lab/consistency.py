"""High noise scheduling (Gokmen et al. 2024, arXiv:2404.06353) against iCT's (Song & Dhariwal 2023, arXiv:2310.14189).

    python -m experiments.lab.consistency --out runs/lab --data mnist5k --seeds 3

Consistency training, with pairs of levels drawn from each of two distributions, on a number of levels that follows each
of four curricula, of which those that move do so over the whole run with the papers' first and last numbers:
  log-normal    iCT's, mean -1.1 and standard deviation 2.0 of log sigma
  polynomial    Gokmen et al.'s, power 4, each pair moved by a rounded normal number
  doubling (11 to 1281 levels), constant (20), sinusoidal (20 to 250 and back), square root (2 to 151)
and besides them
  pool          polynomial and sinusoidal, all levels taken from one fixed grid of 251
  distillation  of a denoiser that was trained for half of the images, for the other half, from its parameters, on 18
                levels, with Heun's step (Song et al. 2023, arXiv:2303.01469)

All runs see the same number of images. Samples of one and of two evaluations are scored; means are over the seeds, with
standard errors. The paper reports (CIFAR-10, FID, one network) 66.5 for log-normal, 33.5 for polynomial on a constant
number and 30.5 for polynomial and sinusoidal: what can be compared is the order.
"""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from diffax import metrics
from diffax.training.summary import environment, write_json
from experiments import cli, train, variations
from experiments import workdir as workdirs
from experiments.generate import class_labels, generate
from experiments.held_out import everything
from experiments.recipe import sampler

OUT = flags.DEFINE_string("out", "runs/lab", "The folder of the runs, and of consistency.json and consistency.png.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each variant, with seeds 0, 1, ...")
DATA = flags.DEFINE_string("data", "mnist5k", "The data set: mnist5k, fashion_mnist, digits, or one of TFDS.")
SET = flags.DEFINE_multi_string("set", [], "FIELD=VALUE of the config of all runs, as train.steps=8000.")

CONFIG = "experiments/configs/consistency.py"
PAIRS = {"log-normal": ("edm(p_mean=-1.1, p_std=2.0)", 0), "polynomial": ("polynomial(power=4)", 1)}
CURRICULA = {
    "doubling": "doubling(over={})",
    "constant": "constant(20)",
    "sinusoidal": "sinusoidal(over={})",
    "square root": "square_root(over={})",
}
EVALUATIONS = (1, 2)
SAMPLES = 2000
SEED = 1000
"""Of the samples."""


def main() -> None:
    if SEEDS.value < 1:
        raise ValueError(f"--seeds = {SEEDS.value}: must be at least 1")
    if bad := [text for text in SET.value if "=" not in text]:
        raise ValueError(f"--set = {bad[0]}: must be FIELD=VALUE, as in --set=train.steps=8000")
    fields = {"data.name": DATA.value} | dict(text.split("=", 1) for text in SET.value)
    experiment(Path(OUT.value), fields, range(SEEDS.value))


def experiment(
    out: Path,
    fields: Mapping[str, Any],
    seeds: Sequence[int],
    names: Sequence[str] | None = None,
    samples: int = SAMPLES,
) -> dict[str, Any]:
    """Trains and scores the variants (those named, or all), and writes what was found. fields: of all configs."""
    configs = variants(out, fields, seeds)
    runs = [run for run in configs if names is None or run[0] in names or run[0] == "teacher"]
    for i, (name, seed) in enumerate(runs, start=1):
        print(f"[{i}/{len(runs)}] {name}, seed {seed}", flush=True)
        train.train(configs[name, seed], folder(out, name, seed))
        jax.clear_caches()
    scored = {
        name: {
            steps: _over_seeds([_scores(folder(out, name, seed), steps, samples) for seed in seeds])
            for steps in EVALUATIONS
        }
        for name in dict.fromkeys(name for name, _ in runs)
        if name != "teacher"
    }
    config = configs[runs[0]]
    images = (2 if runs[0][0] == "teacher" else 1) * config.train.steps * config.train.batch_size
    found = {"variants": scored, "images": images, "samples": samples, "seeds": list(seeds), "fields": dict(fields)}
    write_json(out / "consistency.json", found | {"date": time.strftime("%Y-%m-%d"), "environment": environment()})
    plot(found).savefig(out / "consistency.png", dpi=110)
    print(table(found), out / "consistency.json", out / "consistency.png", sep="\n")
    return found


def variants(out: Path, fields: Mapping[str, Any], seeds: Sequence[int]) -> dict[tuple[str, int], Any]:
    """(variant, seed) -> config, in the order in which they are trained."""
    steps = variations.load(CONFIG, _texts(fields)).train.steps
    if steps % 2:
        raise ValueError(
            f"config.train.steps = {steps}: must be even, as distillation has one half and its teacher the other"
        )
    overrides: dict[str, dict[str, Any]] = {
        f"{pairs}, {curriculum}": {
            "schedule": schedule,
            "objective": f"consistency_training(levels={levels.format(steps)}, jitter={jitter})",
        }
        for pairs, (schedule, jitter) in PAIRS.items()
        for curriculum, levels in CURRICULA.items()
    }
    overrides["polynomial, sinusoidal, pool"] = {
        "schedule": "polynomial(power=4)",
        "objective": f"consistency_training(levels=sinusoidal(over={steps}), jitter=1, pool=251)",
    }
    overrides["teacher"] = {"objective": "denoising()", "schedule": "edm()", "train.steps": steps // 2}
    overrides["distillation"] = {"schedule": "karras()", "train.steps": steps // 2}
    found = {}
    for name, changed in overrides.items():
        for seed in seeds:
            if name == "distillation":
                teacher = str(folder(out, "teacher", seed))
                changed = changed | {"objective": f"consistency_distillation({teacher!r}, constant(18))"}
            found[name, seed] = variations.load(CONFIG, _texts({**fields, **changed, "seed": seed}))
    return found


def folder(out: Path, name: str, seed: int) -> Path:
    """Where a run is."""
    return out / "consistency" / name.replace(", ", "-").replace(" ", "_") / str(seed)


def _texts(fields: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in fields.items()}


# ---- scores ---------------------------------------------------------------------------------------------------------


def _scores(workdir: Path, steps: int, samples: int) -> dict[str, float]:
    """Of samples of so many evaluations: the share taken for the class asked for by a classifier of real images, and
    the median distance per pixel to the nearest training image over that of held-out ones."""
    config = workdirs.read_config(workdir)
    mesh = workdirs.mesh_of(config)
    rec, params, _ = workdirs.load_ema(workdir, config, mesh)
    labels = class_labels(samples, rec.num_classes)
    draw = sampler(rec, grid="plain", solver="default", steps=steps, guidance=1.0)
    images = generate(draw, params, jax.random.key(SEED), labels, mesh, batch_size=500, progress=False)
    real, test = (everything(workdirs.load_dataset(config, split)) for split in ("train", "test"))
    nearest = [np.median(metrics.nearest_distance(group, real["image"])) for group in (images, test["image"][:1000])]
    found = {"nearest": float(nearest[0] / nearest[1])}
    if rec.num_classes is not None:
        judge = metrics.judge(real["image"], real["label"], test["image"], test["label"])
        found["accuracy"] = metrics.accuracy(judge, images, labels)[0]
    return found


def _over_seeds(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    def mean(values: list[float]) -> dict[str, Any]:
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return {"mean": statistics.mean(values), "standard_error": error, "seeds": values}

    return {name: mean([row[name] for row in rows]) for name in rows[0]}


# ---- what is told ---------------------------------------------------------------------------------------------------


def table(found: Mapping[str, Any]) -> str:
    """A line a variant: each score of one and of two evaluations, as mean and standard error over the seeds."""
    names = list(next(iter(found["variants"].values()))[EVALUATIONS[0]])
    rows = [["", *(f"{name}, {steps} step{'s' if steps > 1 else ''}" for name in names for steps in EVALUATIONS)]]
    for variant, by_steps in found["variants"].items():
        cells = (by_steps[steps][name] for name in names for steps in EVALUATIONS)
        rows.append([variant, *(f"{c['mean']:.4f} +- {c['standard_error'] or math.nan:.4f}" for c in cells)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def plot(found: Mapping[str, Any]) -> Any:
    """Each score by variant, of one and of two evaluations, with bars of one standard error."""
    from matplotlib.figure import Figure

    variants = list(found["variants"])
    names = list(found["variants"][variants[0]][EVALUATIONS[0]])
    figure = Figure(figsize=(5 * len(names) + 2, 1 + 0.35 * len(variants)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
    for ax, name in zip(axes, names, strict=True):
        for steps, marker in zip(EVALUATIONS, "os", strict=True):
            values = [found["variants"][variant][steps][name] for variant in variants]
            means, errors = [v["mean"] for v in values], [v["standard_error"] or 0 for v in values]
            ax.errorbar(means, range(len(variants)), xerr=errors, fmt=marker, ms=4, capsize=2, label=f"{steps} step(s)")
        ax.set(xlabel=name)
        ax.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(variants)), variants)
    axes[0].invert_yaxis()
    axes[-1].legend(frameon=False)
    return figure


if __name__ == "__main__":
    cli.run(main)
