"""della Maggiora et al. 2024 (CVDM, arXiv:2312.02246): does learning the schedule beat tuning it?

    python -m experiments.lab.cvdm --task superresolution --out runs/lab
    python -m experiments.lab.cvdm --task phase --out runs/lab

One network, trained on equal numbers of the same images with each of seven fixed schedules, which are the sweep that a
user would make, with one learned for all pixels and with one learned for each. Restored are patches of a region of a
microscope image that was not trained on (`experiments/lab/microscopy.py`); scores are those of the mean of DRAWS draws
of the posterior and of single draws, and its calibration (`diffax/metrics/image_quality.py`), means over the seeds with
standard errors. OUT/cvdm_TASK.json says besides whether a learned schedule is worse than the best fixed one, which is
picked with hindsight for each score, by more than the standard error of the difference over seeds; OUT/cvdm_TASK.png
shows the schedules and one row of images. What is done already, in OUT/cvdm_TASK, is not done again.
"""

import contextlib
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from diffax import metrics
from diffax.training import checkpoint, sharding
from diffax.training.summary import read_json, write_json
from experiments import cli
from experiments import workdir as workdirs
from experiments.lab import microscopy, restoration, results
from experiments.lab.microscopy import Pairs

TASK = flags.DEFINE_enum("task", "superresolution", list(microscopy.TASKS), "The inverse problem.")
STEPS = flags.DEFINE_integer("steps", 800, "Training steps of a run.")
BATCH = flags.DEFINE_integer("batch_size", 16, "Patches a step.")
CHANNELS = flags.DEFINE_integer("channels", 16, "Width of the network at full resolution.")
SIZE = flags.DEFINE_integer("size", 32, "Side of a patch in pixels.")
TEST = flags.DEFINE_integer("test", 32, "Patches that are restored.")
DRAWS = flags.DEFINE_integer("draws", 9, "Draws of the posterior of each.")
SAMPLING = flags.DEFINE_integer("sampling_steps", 16, "Evaluations of the network for a draw.")
SCHEDULES = flags.DEFINE_list(
    "schedules", [*restoration.FIXED, *restoration.LEARNED], "Which of the schedules to train with, all by default."
)

BEST = ("psnr_mean", "ssim_mean", "multi_scale_ssim_mean", "psnr_single", "ssim_single", "multi_scale_ssim_single")
"""Scores of which more is better."""
_LEVELS = 33
_SEED = 1000
"""Of the draws, for all alike."""


def main() -> None:
    for name, value in (("steps", STEPS.value), ("batch_size", BATCH.value)):
        if value < 1:
            raise ValueError(f"--{name} = {value}: must be at least 1")
    if SIZE.value < 11:
        raise ValueError(f"--size = {SIZE.value}: must be at least 11, the window of SSIM")
    results.seeds()  # checks
    if DRAWS.value < 2 or SAMPLING.value < 2:
        raise ValueError(f"--draws = {DRAWS.value}, --sampling_steps = {SAMPLING.value}: must be at least 2")
    known = [*restoration.FIXED, *restoration.LEARNED]
    unknown = [name for name in SCHEDULES.value if name not in known]
    if unknown or not SCHEDULES.value:
        raise ValueError(f"--schedules = {','.join(unknown)}: must be some of {', '.join(known)}")
    with cli.field("--"):
        train, test = microscopy.pairs(microscopy.TASKS[TASK.value](), size=SIZE.value, test=TEST.value)
    settings = {flag.name: flag.value for flag in (STEPS, BATCH, CHANNELS, SIZE, TEST, DRAWS, SAMPLING)}
    folder = Path(results.OUT.value) / f"cvdm_{TASK.value}"
    names = {folder / name.replace(" ", "_"): name for name in SCHEDULES.value}
    done = {names[path]: study(names[path], train, test, path, settings) for path in workdirs.divided(names)}
    runs = {name: done[name] for name in SCHEDULES.value}
    scores = {name: [run["scores"] for run in done] for name, done in runs.items()}
    found = {
        "task": TASK.value,
        "settings": settings,
        "floor": floor(train, test),
        "scores": {name: {s: results.mean([r[s] for r in rows]) for s in rows[0]} for name, rows in scores.items()},
        "seconds": {name: results.mean([run["seconds"] for run in done]) for name, done in runs.items()},
        "logsnr": {name: done[0]["logsnr"] for name, done in runs.items()},
        "claims": claims(scores),
    }
    restored = {name: done[0]["images"] for name, done in runs.items()}
    print("\n".join(table(found)))
    results.write(f"cvdm_{TASK.value}", found)
    results.picture(f"cvdm_{TASK.value}", plot(found, restored, test))


def study(variant: str, train: Pairs, test: Pairs, folder: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Each seed's scores, seconds of training, levels at even u, and images: kept in FOLDER/SEED.json and .npz.

    settings: what the scores are of; others ask for new ones."""
    model = restoration.model(variant, train.truth.shape[1:], train.measured.shape[-1], channels=CHANNELS.value)
    fit = restoration.trainer(model, train, sharding.data_mesh(), steps=STEPS.value, batch_size=BATCH.value)
    draw, measured = restoration.posterior(model, SAMPLING.value), jnp.asarray(test.measured)
    folder.mkdir(parents=True, exist_ok=True)
    done = []
    for seed in results.seeds():
        path = folder / f"{seed}.json"
        kept = read_json(path) if path.exists() else {}
        if kept.get("settings") != settings:
            kept_in = folder / f"{seed}-{STEPS.value}x{BATCH.value}-{CHANNELS.value}-{SIZE.value}"
            run = functools.partial(fit, seed, f"{TASK.value}, {variant}, seed {seed}")
            params, seconds = trained(model, run, kept_in)
            keys = tqdm(jax.random.split(jax.random.key(_SEED), DRAWS.value), desc="restoring", leave=False)
            samples = np.stack([np.asarray(draw(params, measured, key)) for key in keys])
            logsnr = np.asarray(restoration.levels(model, params, measured, _LEVELS)).reshape(_LEVELS, -1)
            path.unlink(missing_ok=True)  # it says that the images are there, and of what
            np.savez(path.with_suffix(".npz"), mean=samples.mean(0), std=samples.std(0, ddof=1), single=samples[0])
            kept = {
                "settings": settings,
                "seconds": round(seconds, 1),
                "scores": restoration.scores(samples, test.truth),
                "logsnr": {str(p): np.percentile(logsnr, p, axis=1).round(4).tolist() for p in (5, 50, 95)},
            }
            write_json(path, kept)
        with np.load(path.with_suffix(".npz")) as images:
            done.append(kept | {"images": dict(images)})
    jax.clear_caches()
    return done


def trained(model: restoration.Model, fit: Callable[[], tuple[Any, float]], kept_in: Path) -> tuple[Any, float]:
    """The parameters of a run, and its seconds: those that were kept, or by fit()."""
    like = sharding.like(jax.eval_shape(model.init, jax.random.key(0)), sharding.data_mesh())
    if STEPS.value in checkpoint.steps(kept_in):
        found = checkpoint.read(kept_in, STEPS.value, {"ema": like})
        return found.items["ema"], found.meta["seconds"]
    params, seconds = fit()
    with contextlib.closing(checkpoint.manager(kept_in)) as manager:
        checkpoint.save(manager, STEPS.value, {"ema": params}, {"seconds": seconds})
        checkpoint.wait(manager)
    return params, seconds


def floor(train: Pairs, test: Pairs) -> dict[str, float]:
    """Without a network: the mean training patch, and the measurement where it is an image of the truth."""
    found = {"mean_of_training": np.broadcast_to(train.truth.mean(0), test.truth.shape)}
    if TASK.value == "superresolution":
        found["measured"] = test.measured
    return {f"psnr_{name}": float(metrics.psnr(images, test.truth).mean()) for name, images in found.items()}


def claims(scores: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """{score: {"best_fixed", learned schedule: the differences from it over seeds, and whether it is not worse}}.

    The best of the sweep is picked with hindsight, which is in its favour. A schedule is not worse if the mean of the
    differences, seed by seed, is at least minus its standard error (0 of one seed).
    """
    fixed, learned = ([name for name in scores if name in names] for names in (restoration.FIXED, restoration.LEARNED))
    found: dict[str, Any] = {}
    for score in BEST if fixed and learned else ():
        best = max(fixed, key=lambda name: statistics.mean(run[score] for run in scores[name]))
        found[score] = {"best_fixed": best}
        for name in learned:
            gain = results.mean(
                [one[score] - other[score] for one, other in zip(scores[name], scores[best], strict=True)]
            )
            found[score][name] = gain | {"not_worse": gain["mean"] >= -(gain["standard_error"] or 0)}
    return found


def table(found: Mapping[str, Any]) -> list[str]:
    """Lines: schedule, and scores with their standard errors."""
    columns = ("psnr_mean", "ssim_mean", "multi_scale_ssim_mean", "psnr_single", "spread_skill")
    lines = [f"{'schedule':20}" + "".join(f"{name:>24}" for name in columns)]
    for name, scores in found["scores"].items():
        cells = (results.spell(scores[c]) for c in columns)
        lines.append(f"{name:20}" + "".join(f"{cell:>24}" for cell in cells))
    return lines


# ---- the picture ----------------------------------------------------------------------------------------------------


def plot(found: Mapping[str, Any], restored: Mapping[str, Mapping[str, np.ndarray]], test: Pairs) -> Any:
    """Schedules, scores, calibration; below, one patch as the best fixed schedule and the learned ones restore it.

    The patch is the one of middling error under the first schedule.
    """
    from matplotlib.figure import Figure

    names = list(found["scores"])
    colours = {name: f"C{i}" for i, name in enumerate(names)}
    figure = Figure(figsize=(13, 8), layout="constrained")
    halves: Any = figure.subfigures(2, height_ratios=(3, 2))
    above, below = halves
    schedules, quality, spread = above.subplots(1, 3)

    u = np.linspace(1, 0, _LEVELS)
    for name, levels in found["logsnr"].items():
        wide = name in restoration.LEARNED
        schedules.plot(u, levels["50"], color=colours[name], lw=2.5 if wide else 1, label=name)
        if wide:
            schedules.fill_between(u, levels["5"], levels["95"], color=colours[name], alpha=0.25, lw=0)
    schedules.set(xlabel="u  (clean to noise)", ylabel="logSNR", title="schedules; band: 90 % of pixels")
    schedules.legend(fontsize=8)

    for i, name in enumerate(names):
        value, error = (found["scores"][name]["psnr_mean"][k] for k in ("mean", "standard_error"))
        quality.errorbar([value], [i], xerr=[error or 0], fmt="o", capsize=3, color=colours[name])
        scores = {k: v["mean"] for k, v in found["scores"][name].items() if k.startswith("coverage_")}
        nominal = [float(k.removeprefix("coverage_")) / 100 for k in scores]
        spread.plot(nominal, list(scores.values()), "o-", ms=3, color=colours[name])
    quality.set_yticks(range(len(names)), names)
    quality.invert_yaxis()
    quality.set(xlabel="PSNR of the posterior mean (dB)", title=found["task"])
    spread.plot([0, 1], [0, 1], color="grey", lw=1, ls="--")
    spread.set(xlabel="nominal", ylabel="pixels inside", title="coverage of central intervals")

    shown = [name for name in names if name in restoration.LEARNED]
    fixed = [name for name in names if name not in shown]
    if fixed:
        shown.insert(0, max(fixed, key=lambda name: found["scores"][name]["psnr_mean"]["mean"]))
    error = ((restored[names[0]]["mean"] - test.truth) ** 2).mean((1, 2, 3))
    at = int(np.argsort(error)[len(error) // 2])
    images: list[tuple[str, Any, Any]] = [
        (f"measured {k}", test.measured[at, ..., k], None) for k in range(test.measured.shape[-1])
    ]
    images.append(("truth", test.truth[at, ..., 0], (-1, 1)))
    widest = max(float(restored[name]["std"][at].max()) for name in shown)
    for name in shown:
        images.append((f"{name}: mean", restored[name]["mean"][at, ..., 0], (-1, 1)))
        images.append((f"std, to {widest:.2g}", restored[name]["std"][at, ..., 0], (0, widest)))
    for ax, (title, image, limits) in zip(below.subplots(1, len(images)), images, strict=True):
        low, high = limits or (image.min(), image.max())
        ax.imshow(image, cmap="gray", vmin=low, vmax=high)
        ax.set_title(title, fontsize=8)
        ax.axis("off")
    return figure


if __name__ == "__main__":
    cli.run(main)
