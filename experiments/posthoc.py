"""Held-out loss against EMA length at one step of a run: which average to sample from (Karras et al. 2024, EDM2).

    python -m experiments.train    --config experiments/configs/digits.py --workdir runs/digits \\
        --config.train.ema_powers='(0.05, 0.1)' --config.train.snapshot_every=100
    python -m experiments.posthoc  --workdir runs/digits                       # a scan of lengths
    python -m experiments.posthoc  --workdir runs/digits --sigma_rel 0.07,0.08 --step 800
    python -m experiments.sample   --workdir runs/digits --ema 0.08
    python -m experiments.evaluate --workdir runs/digits --ema 0.08            # by samples another may win

Each length is the relative width sigma_rel of an average by a power function, rebuilt from all snapshots, and all are
judged on the same images under the same noise. Beside each stands the error of its profile, known without any
parameters: from 0.1 on the average is not the one asked for, and cannot be the best. The exponential average of the
same step is judged too, if its checkpoint is there. Written are WORKDIR/posthoc.json and WORKDIR/posthoc.png.
"""

import math
from typing import Any

import jax
from absl import flags

from diffax.training import checkpoint
from diffax.training.summary import environment, write_json
from experiments import cli, pictures
from experiments import workdir as workdirs
from experiments.held_out import everything, held_out_loss
from experiments.recipe import recipe

WORKDIR = flags.DEFINE_string("workdir", None, "The directory of a training run that keeps snapshots.")
SIGMA_REL = flags.DEFINE_list(
    "sigma_rel", "0.01,0.02,0.03,0.04,0.05,0.07,0.1,0.13,0.16,0.2,0.25", "Lengths of the averages to judge."
)
STEP = flags.DEFINE_integer("step", None, "The snapshot at which they end (default: the last).")
SEED = flags.DEFINE_integer("seed", 1, "Seed of the noise.")


def main() -> None:
    cli.check_seed("--seed", SEED.value)
    lengths = _lengths(SIGMA_REL.value)
    workdir = cli.read_workdir_flag(WORKDIR.value)
    config = workdirs.read_config(workdir)
    mesh = workdirs.mesh_of(config)
    kept = workdirs.snapshots(workdir, config, STEP.value)
    with cli.field("--"):
        errors = [kept.error(sigma_rel) for sigma_rel in lengths]

    rec = recipe(config, workdirs.load_dataset(config, "train"))
    like = workdirs.parameters(rec, mesh)
    test = everything(workdirs.load_dataset(config, "test"))
    measure = held_out_loss(rec, test, jax.random.key(SEED.value), kept.at)

    averages = kept.averages(lengths, like)
    print(f"{workdir} at step {kept.at}, from {len(kept.steps)} averages: held-out loss by length")
    rows: list[dict[str, Any]] = []
    for sigma_rel, error, average in zip(lengths, errors, averages, strict=True):
        held_out = measure(workdirs.place(average, like))
        rows.append({"sigma_rel": sigma_rel, "profile_error": error, "reached": error <= workdirs.TOO_FAR, **held_out})
        far = "" if rows[-1]["reached"] else f"  the snapshots do not suffice: the profile is {error:.0%} off"
        print(f"  sigma_rel {sigma_rel:<7g} {held_out['loss']:.6f}{far}", flush=True)
    result: dict[str, Any] = {"step": kept.at, "seed": SEED.value, "tracked": list(config.train.ema_powers)}
    result |= {"snapshots": len(set(kept.steps)), "lengths": rows}
    if kept.at in checkpoint.steps(workdir / "checkpoints"):
        plain = checkpoint.read(workdir / "checkpoints", kept.at, {"ema": like}).items["ema"]
        result["exponential"] = {"halflife_images": config.train.ema_halflife, **measure(plain)}
        print(
            f"  exponential       {result['exponential']['loss']:.6f}  (half-life {config.train.ema_halflife:g} images)"
        )
    if reached := [row for row in rows if row["reached"]]:
        best = min(reached, key=lambda row: row["loss"])["sigma_rel"]
        result["best"] = best
        step = "" if STEP.value is None else f" --ema_step {kept.at}"
        print(f"best: {best:g}; for experiments.sample or experiments.evaluate: --ema {best:g}{step}")
    else:
        print("none of these lengths can be rebuilt; keep snapshots more often")

    pictures.save_png(workdir / "posthoc.png", pictures.ema_lengths(result))
    write_json(workdir / "posthoc.json", result | {"environment": environment()})
    print(f"picture: {workdir / 'posthoc.png'}\nscores:  {workdir / 'posthoc.json'}")


def _lengths(given: list[str]) -> list[float]:
    """In ascending order, each once."""
    try:
        found = sorted({float(text) for text in given})
    except ValueError:
        found = [math.nan]
    if not found or not all(map(math.isfinite, found)):
        raise ValueError(f"--sigma_rel = {','.join(given)}: must be numbers, as in --sigma_rel=0.05,0.1")
    return found


if __name__ == "__main__":
    cli.run(main)
