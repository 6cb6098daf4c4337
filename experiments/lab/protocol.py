"""How the laboratory trains and scores, in one place for all of its experiments.

Training: a variant is a config; each of its seeds 0, 1, ... is one run of experiments.train, on the same number of
images for all variants, with the same exponential average. Runs that are done are not done again; processes that are
started with the same line, on one host or on hosts that share OUT, divide them among themselves.

Scoring: `SAMPLES` images of the averaged parameters, of classes that go round (or that are as frequent as in the data,
where some are twice as frequent as others), made by `SOLVER` in `STEPS` evaluations
unless that is what the experiment is about, from the same noise for all, rounded to the data's grey levels, against the
training images (the first 10,000):
  fd         Frechet distance of features of EfficientNet-lite0 (ImageNet), images enlarged to `SIDE`: FD-ENLite0, which
             is not comparable with an FID. It is biased by the number of samples, which is why that is one number.
  kid        kernel distance of the same features, without that bias
  precision, recall   of the same features, 3 neighbours
  accuracy   share taken for the class that was asked for, by a classifier of real images
`floor` is what real images score that were not trained on, where their number does not matter: in kid and precision.

Given are means over the seeds and their standard errors (`experiments/lab/results.py`).
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from diffax import data, metrics
from diffax.training.summary import read_json, write_json
from experiments import cli, pictures, train, variations
from experiments import workdir as workdirs
from experiments.generate import class_labels, generate
from experiments.held_out import everything
from experiments.lab import results
from experiments.recipe import recipe, sampler

__all__ = [
    "Run",
    "Scoring",
    "config_of",
    "floor",
    "folder",
    "judges",
    "over_seeds",
    "plan",
    "runs",
    "score",
    "scored",
    "write",
]

SAMPLES = 1000
SOLVER, GRID, STEPS = "default", "plain", 18
SIDE = 64
SEED = 1000
"""Of the samples."""

DATA = flags.DEFINE_enum("data", "digits", ["digits", "mnist5k", "fashion_mnist", "emoji"], "And the size, with it.")
SET = flags.DEFINE_multi_string("set", [], "FIELD=VALUE of the config of all runs, as train.steps=4000.")


class Run(NamedTuple):
    """A trained run: where it is, and how it came to be."""

    workdir: Path
    variant: str
    seed: int


class Scoring(NamedTuple):
    """Stands for the scores of the runs of a variant: with what `scored` is asked for them."""

    variant: str
    how: Mapping[str, Any] = {}


# ---- training -------------------------------------------------------------------------------------------------------


def config_of(overrides: Mapping[str, Any] | None = None) -> Any:
    """experiments/configs/lab.py for --data, with --set and, before these, the overrides of a variant. Raises
    ValueError naming what of --set is no field, or not of its type."""
    if bad := [text for text in SET.value if "=" not in text]:
        raise ValueError(f"--set = {bad[0]}: must be FIELD=VALUE, as in --set=train.steps=8000")
    fields = dict(text.split("=", 1) for text in SET.value) | dict(overrides or {})
    path = f"experiments/configs/lab.py:{DATA.value}"
    try:
        return variations.load(path, {field: str(value) for field, value in fields.items()})
    except cli.PARSE_ERRORS as error:
        raise ValueError(f"--set = {', '.join(SET.value)}: {cli.explain(error).removeprefix('--')}") from error


def folder(experiment: str, variant: str, seed: int | str) -> Path:
    """Where a run is."""
    return Path(results.OUT.value) / experiment / re.sub(r"[^\w.]+", "-", variant) / str(seed)


def plan(experiment: str, variants: Mapping[str, Mapping[str, Any]]) -> list[tuple[Run, Any]]:
    """The runs of all variants and seeds, in that order, with their configs.

    variants: name -> overrides of the config, "{seed}" in them standing for the seed.

    Raises ValueError for a config that cannot be read, and if a run is there already with another.
    """
    found = []
    for name, overrides in variants.items():
        for seed in results.seeds():
            fields = {field: str(value).replace("{seed}", str(seed)) for field, value in overrides.items()}
            run, config = Run(folder(experiment, name, seed), name, seed), config_of(fields | {"seed": seed})
            workdirs.check(run.workdir, config)
            found.append((run, config))
    return found


def runs(
    experiment: str,
    variants: Mapping[str, Mapping[str, Any]],
    wanted: Mapping[Any, Any] | None = None,
) -> list[Run]:
    """Trains and scores what is not yet, once all can be. Returns the runs in the order of `plan`, and raises as it
    does. A signal that ends a run ends the program.

    wanted: the `Scoring`s, in dicts of any depth.
    """
    found = plan(experiment, variants)
    # The first seed of all comes first, so that the programs of the others are in the cache by then.
    work = {run.workdir: (run, config) for run, config in sorted(found, key=lambda item: item[0].seed)}
    for path in workdirs.divided(work):
        run, config = work[path]
        done = run.workdir / "summary.json"
        if not (done.exists() and read_json(done).get("step") == config.train.steps):
            print(f"{experiment}/{run.variant}, seed {run.seed}", flush=True)
            if not train.train(config, run.workdir):
                raise SystemExit(0)  # it was asked to end, and said so
        for scoring in _each(wanted or {}):
            if scoring.variant == run.variant:
                scored(run, **scoring.how)
        jax.clear_caches()
    return [run for run, _ in found]


# ---- scoring --------------------------------------------------------------------------------------------------------


class Judges(NamedTuple):
    """What samples are held against: the real images' features, their moments, a classifier, and the features of images
    that were not trained on; and the labels that samples are asked for, [SAMPLES]."""

    extractor: metrics.Extractor
    features: np.ndarray
    moments: metrics.Moments
    classifier: metrics.Judge | None
    held_out: np.ndarray
    labels: np.ndarray


@functools.cache
def judges(name: str, data_dir: str) -> Judges:
    """Of a data set, made once."""
    train_set, test_set = (data.load(name, split, data_dir or None) for split in ("train", "test"))
    train_images, test_images = everything(train_set), everything(test_set)
    extractor = metrics.enlite0(size=SIDE)
    real, held_out = (_features(extractor, part["image"], train_set.levels) for part in (train_images, test_images))
    classifier = None
    if train_set.num_classes is not None:
        classifier = metrics.judge(
            train_images["image"], train_images["label"], test_images["image"], test_images["label"]
        )
    labels = class_labels(SAMPLES, train_set.num_classes)
    if train_set.num_classes is not None:
        count = np.bincount(train_images["label"], minlength=train_set.num_classes)
        if count.max() > 2 * count.min():
            labels = np.sort(train_images["label"])[np.arange(SAMPLES) * count.sum() // SAMPLES]
    return Judges(extractor, real, metrics.moments(real), classifier, held_out, labels)


def score(images: np.ndarray, labels: np.ndarray, levels: int, judge: Judges) -> dict[str, float]:
    """The scores of images [n, height, width, channels] uint8 in [0, levels - 1], whose labels [n] were asked for."""
    found = _against(_features(judge.extractor, images, levels), judge)
    if judge.classifier is not None:
        found["accuracy"], _ = metrics.accuracy(judge.classifier, images, labels)
    return found


def floor(judge: Judges) -> dict[str, float]:
    """What real images score that were not trained on."""
    found = _against(judge.held_out, judge)
    return {name: found[name] for name in ("kid", "precision")} | {"images": len(judge.held_out)}


def _against(features: np.ndarray, judge: Judges) -> dict[str, float]:
    quality = metrics.precision_recall(features, judge.features)
    return {
        "fd": metrics.frechet_distance(metrics.moments(features), judge.moments),
        "kid": metrics.kernel_distance(features, judge.features)[0],
        "precision": quality.precision,
        "recall": quality.recall,
    }


def _features(extractor: metrics.Extractor, images: np.ndarray, levels: int) -> np.ndarray:
    return metrics.features(extractor, pictures.full_range(images, levels))


def scored(run: Run, step: int | None = None, **changed: Any) -> dict[str, float]:
    """The scores of a run at a step that it kept (the last), kept beside it. changed: solver, grid, steps or guidance,
    where they are not the protocol's."""
    config = workdirs.read_config(run.workdir)
    step = config.train.steps if step is None else step
    how: dict[str, Any] = {"solver": SOLVER, "grid": GRID, "steps": STEPS, "guidance": 1.0} | changed
    what = json.dumps({"step": step, "samples": SAMPLES, "side": SIDE, **how}, sort_keys=True)
    path = run.workdir / "scores.json"
    kept = read_json(path) if path.exists() else {}
    if what not in kept:
        mesh = workdirs.mesh_of(config)
        rec, params, _ = workdirs.load_ema(run.workdir, config, mesh, at=step)
        judge, draw = judges(config.data.name, config.data.dir), _sampler(run, json.dumps(how))
        images = generate(draw, params, jax.random.key(SEED), judge.labels, mesh, batch_size=500, progress=False)
        kept[what] = score(images, judge.labels, rec.levels, judge)
        write_json(path, kept)
    return kept[what]


def over_seeds(trained: Iterable[Run], wanted: Mapping[Any, Any]) -> dict[Any, Any]:
    """Dicts with a `Scoring` at their ends, of which is told {score: its mean, standard error and values}."""

    def of(scoring: Scoring) -> dict[str, dict[str, Any]]:
        return results.over_seeds(scored(run, **scoring.how) for run in trained if run.variant == scoring.variant)

    return {
        key: of(value) if isinstance(value, Scoring) else over_seeds(trained, value) for key, value in wanted.items()
    }


def _each(wanted: Mapping[Any, Any]) -> Iterator[Scoring]:
    for value in wanted.values():
        if isinstance(value, Scoring):
            yield value
        else:
            yield from _each(value)


@functools.lru_cache(maxsize=1)
def _sampler(run: Run, how: str) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """One for all steps of a run: to trace and load a compiled one again takes as long as to sample."""
    config = workdirs.read_config(run.workdir)
    return sampler(recipe(config, workdirs.load_dataset(config, "train")), **json.loads(how))


def write(experiment: str, trained: Iterable[Run], found: Mapping[str, Any]) -> None:
    """OUT/EXPERIMENT.json: what was found, how it was scored, and what the runs were trained on."""
    protocol = {"samples": SAMPLES, "solver": SOLVER, "grid": GRID, "steps": STEPS, "features": f"ENLite0@{SIDE}"}
    held_out = floor(judges(DATA.value, config_of().data.dir))
    devices = sorted({read_json(run.workdir / "summary.json")["environment"]["devices"] for run in trained})
    about = {"data": DATA.value, "protocol": protocol, "held_out": held_out, "trained_on": devices}
    results.write(experiment, about | dict(found))
