"""Draws samples from a trained model and writes them as one picture.

    python -m experiments.sample --workdir runs/digits --solver dpmpp_2m --steps 12 --n 64 --out grid.png
    python -m experiments.sample --workdir runs/digits --label 3,8 --guidance 3 --out threes_and_eights.png

The averaged parameters of the newest checkpoint (or of that of --ema_step) are used, or with --ema those of another
length (see `experiments.posthoc`). What is not given is taken from the config of the run. Image number i depends on
--seed and on i alone, so --n 100 begins with the images of --n 10. A name ending in .npz writes the arrays `images`
(uint8) and `labels` in place of a picture.
"""

from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments import cli, pictures
from experiments import workdir as workdirs
from experiments.generate import class_labels, generate
from experiments.recipe import sampler

WORKDIR = flags.DEFINE_string("workdir", None, "The directory of a training run.")
EMA = flags.DEFINE_float("ema", None, "Relative width of the average to sample from, rebuilt from snapshots.")
EMA_STEP = flags.DEFINE_integer(
    "ema_step", None, "The checkpoint, or with --ema the snapshot, to use (default: the last)."
)
OUT = flags.DEFINE_string("out", "samples.png", "The picture (.png) or arrays (.npz) to write.")
N = flags.DEFINE_integer("n", 64, "Number of images.")
SOLVER = flags.DEFINE_string("solver", None, "Solver: a name, or a call such as 'unipc(order=3)'.")
STEPS = flags.DEFINE_integer("steps", None, "Number of solver steps.")
GRID = flags.DEFINE_string("grid", None, "Schedule of the sigmas, such as 'karras(0.002, 80)', or 'plain'.")
GUIDANCE = flags.DEFINE_float("guidance", None, "Scale of classifier-free guidance; 1 is none.")
LABEL = flags.DEFINE_list("label", [], "Classes to draw, round and round (default: all of them).")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images per batch; does not change them.")


def main() -> None:
    out = Path(OUT.value)
    if out.suffix not in (".png", ".npz"):
        raise ValueError(f"--out = {out}: must end in .png or .npz")
    for name, flag in (("n", N), ("steps", STEPS), ("batch_size", BATCH_SIZE)):
        if flag.value is not None and flag.value < 1:
            raise ValueError(f"--{name} = {flag.value}: must be at least 1")
    cli.check_seed("--seed", SEED.value)
    if bad := [label for label in LABEL.value if not label.strip().isdigit()]:
        raise ValueError(f"--label = {','.join(bad)}: must be class numbers, as in --label=3,8")
    workdir = cli.read_workdir_flag(WORKDIR.value)
    config = workdirs.read_config(workdir)
    mesh = workdirs.mesh_of(config)
    rec, params, step = workdirs.load_ema(workdir, config, mesh, EMA.value, EMA_STEP.value)

    given = {"grid": GRID.value, "solver": SOLVER.value, "steps": STEPS.value, "guidance": GUIDANCE.value}
    how = dict(config.sample) | {name: value for name, value in given.items() if value is not None}
    labels = class_labels(N.value, rec.num_classes, [int(label) for label in LABEL.value])
    key = jax.random.key(SEED.value)
    images = generate(sampler(rec, **how), params, key, labels, mesh, batch_size=BATCH_SIZE.value)

    if out.suffix == ".npz":
        out.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(out, images=images, labels=labels)
    else:
        columns = min(len(LABEL.value) or rec.num_classes or 8, 16) if N.value > 8 else N.value
        columns *= max(1, round(np.sqrt(N.value) / columns))  # about square, and classes stay in columns
        pictures.save_png(out, pictures.grid(images, columns, levels=rec.levels))
    print(f"{out}: {len(images)} images from step {step} ({', '.join(f'{k} {v}' for k, v in how.items())})")


if __name__ == "__main__":
    cli.run(main)
