"""Trains a diffusion model.

    python -m experiments.train --config experiments/configs/digits.py --workdir runs/digits

Run the same line again to resume from the last checkpoint, or to find that the run is complete. Every field of the
config can be overridden, as in --config.train.steps=5000. The resolved config is kept in WORKDIR/config.json,
checkpoints in WORKDIR/checkpoints, TensorBoard events in WORKDIR, sample grids in WORKDIR/samples, and the end in
WORKDIR/summary.json.
"""

import collections
import contextlib
import math
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
from absl import flags
from clu import parameter_overview
from ml_collections import config_flags
from tqdm import tqdm

from diffax import data, models
from diffax.training import checkpoint, sharding
from diffax.training.metrics import TrainMetrics, scalars
from diffax.training.optimizer import adam_with_warmup
from diffax.training.step import TrainState, init_state, train_step
from diffax.training.summary import environment, fingerprint, read_json, write_json
from diffax.training.writers import create_writer
from experiments import cli, pictures
from experiments import workdir as workdirs
from experiments.generate import class_labels, generate
from experiments.recipe import loss, recipe, sampler

CONFIG = config_flags.DEFINE_config_file("config", None, "The config file of the experiment.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the run; made if it is not there.")


def main() -> None:
    config = cli.config_of(CONFIG)
    if not WORKDIR.value:
        raise ValueError("--workdir is missing: give a directory for the run, such as --workdir=runs/digits")
    train(config, Path(WORKDIR.value))


def train(config, workdir: Path) -> dict:
    """Trains to config.train.steps, from where the workdir stands, and returns the summary."""
    started = time.time()
    for name in ("steps", "batch_size", "log_every", "checkpoint_every", "sample_every", "keep"):
        if config.train[name] < 1:
            raise ValueError(f"config.train.{name} = {config.train[name]}: must be at least 1")
    cli.check_seed("config.seed", config.seed)
    lead = jax.process_index() == 0

    # ---- what the config names; all of it is checked before anything is written ----
    dataset = workdirs.load_dataset(config, "train")
    rec = recipe(config, dataset)
    mesh = sharding.data_mesh()
    batch_size = config.train.batch_size
    with cli.field("config.sample."):
        draw = sampler(rec, **config.sample)
    with cli.field("config.train."):
        adam = adam_with_warmup(
            config.train.learning_rate,
            warmup_steps=config.train.warmup_steps,
            clip_norm=config.train.clip_norm or None,
        )
        optimizer = optax.chain(adam, models.constraint(config.model.architecture))
        step = train_step(
            loss(rec, train=True),
            optimizer,
            mesh,
            batch_size=batch_size,
            ema_halflife=config.train.ema_halflife,
            adapt=rec.adapt,
        )
        batches = data.batches(
            dataset,
            batch_size,
            config.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
    init_key, step_key, sample_key = jax.random.split(jax.random.key(config.seed), 3)

    def init(key: jax.Array) -> TrainState:
        return init_state(rec.network.init, optimizer, key, mesh, rec.adaptive_init())

    with contextlib.ExitStack() as stack:  # whatever happens, a save under way is finished
        stack.enter_context(workdirs.claim(workdir, config))

        # ---- the state: where the last checkpoint stands, or new ----
        checkpoints = stack.enter_context(contextlib.closing(checkpoint.manager(workdir, keep=config.train.keep)))
        start = checkpoints.latest_step() or 0
        if start > config.train.steps:
            raise ValueError(
                f"config.train.steps = {config.train.steps}: {workdir} has already been trained to step {start}; "
                "give at least that"
            )
        if start == config.train.steps and (summary := _finished(workdir, start)):
            print(f"{workdir} is complete.\n{_table(summary)}")
            return summary
        recent: dict[str, float] = {}  # the metrics logged last
        if start == 0:
            state = init(init_key)
        else:
            like = sharding.like(jax.eval_shape(init, init_key), mesh)
            state, meta = checkpoint.restore(checkpoints, like, batches)
            recent = meta["metrics"]
        workdirs.write_config(workdir, config)  # which may name another number of steps than before
        if lead:
            (workdir / "parameters.txt").write_text(parameter_overview.get_parameter_overview(state.params) + "\n")
            print(
                f"{dataset.name}: {dataset.size} images {'x'.join(map(str, dataset.image_shape))}; "
                f"{sum(p.size for p in jax.tree.leaves(state.params)):,} parameters; "
                f"{mesh.size} {jax.devices()[0].platform} device(s); step {start} of {config.train.steps}",
                flush=True,
            )

        # ---- the loop ----
        writer = stack.enter_context(contextlib.closing(create_writer(workdir, just_logging=not lead)))
        bar = stack.enter_context(_progress(start, config.train.steps, show=lead))
        metrics = sharding.put_replicated(TrainMetrics.empty(), mesh)
        running: collections.deque[jax.Array] = collections.deque()  # losses of the steps under way: at most two
        first_step = None  # when it was done: imports, the data, compiling
        clock, clock_step = time.time(), start
        for k in range(start + 1, config.train.steps + 1):
            state, metrics, value = step(state, metrics, sharding.put_batch(next(batches), mesh), step_key)
            if k == start + 1:
                value.block_until_ready()
                first_step = round(cli.seconds_since_start(), 2)
            running.append(value)
            if len(running) > 2:
                running.popleft().block_until_ready()
            bar.update()

            last = k == config.train.steps
            saving = last or k % config.train.checkpoint_every == 0
            logging = saving or k % config.train.log_every == 0
            if logging:
                recent = scalars(metrics)
                _stop_if_not_finite(recent, state, k, checkpoints)
                metrics = sharding.put_replicated(TrainMetrics.empty(), mesh)
                speed = (k - clock_step) * batch_size / (time.time() - clock)
                writer.write_scalars(k, {f"train/{n}": v for n, v in recent.items()} | {"images_per_second": speed})
                bar.set_postfix_str(f"loss {recent['loss']:.4f}, {speed:.0f} images/s")
            if saving:
                checkpoint.save(checkpoints, state, batches, {"images": k * batch_size, "metrics": recent})
            if last or k % config.train.sample_every == 0:
                _write_samples(workdir, k, draw, state, sample_key, rec, mesh, writer if lead else None)
            if logging:
                clock, clock_step = time.time(), k  # speed is that of the steps, not of saving
        bar.refresh()
        if not _samples(workdir, config.train.steps).exists():  # killed after the last step
            _write_samples(workdir, config.train.steps, draw, state, sample_key, rec, mesh, writer if lead else None)
        checkpoints.wait_until_finished()

        # ---- the summary ----
        summary = {
            "step": int(state.step),
            "images": int(state.step) * batch_size,
            "wall_seconds": round(time.time() - started, 1),
            "seconds_to_first_step": first_step,
            "resumed_from_step": start,
            "losses": recent,
            "sha256_params": fingerprint(state.params),
            "sha256_ema": fingerprint(state.ema),
            "environment": environment(),
        }
        if lead:
            write_json(workdir / "summary.json", summary)
            bar.close()
            print(_table(summary))
        return summary


def _finished(workdir: Path, step: int) -> dict | None:
    """The summary of a run that ended at this step. One that is absent or damaged is made again."""
    with contextlib.suppress(OSError, ValueError):
        summary = read_json(workdir / "summary.json")
        if summary.get("step") == step and isinstance(summary.get("losses"), dict):
            return summary
    return None


def _progress(start: int, steps: int, *, show: bool) -> tqdm:
    return tqdm(
        total=steps,
        initial=start,
        desc="training",
        unit="step",
        disable=not show,
        mininterval=0.5 if sys.stderr.isatty() else 15,
    )


def _stop_if_not_finite(recent: dict[str, float], state: TrainState, k: int, checkpoints) -> None:
    """Ends the run before a broken state is saved."""
    sizes = {
        "loss": recent["loss"],
        "gradient norm": recent["grad_norm"],
        "norm of the parameters": float(_norm(state.params)),
    }
    broken = [f"{name} is {size}" for name, size in sizes.items() if not math.isfinite(size)]
    if broken:
        checkpoints.wait_until_finished()
        newest = checkpoints.latest_step()
        kept = f"the checkpoint of step {newest} is untouched" if newest else "no checkpoint was written yet"
        raise ValueError(
            f"at step {k} the {' and the '.join(broken)}; {kept}. Lower config.train.learning_rate or "
            "config.train.clip_norm, or look at the data"
        )


_norm = jax.jit(optax.tree.norm)


def _samples(workdir: Path, k: int) -> Path:
    return workdir / "samples" / f"step_{k:08d}.png"


def _write_samples(workdir: Path, k: int, draw, state: TrainState, key, rec, mesh, writer) -> None:
    """A grid of samples of the averaged parameters, one class a column, to WORKDIR/samples and to TensorBoard."""
    columns = min(rec.num_classes or 8, 16)
    labels = class_labels(8 * columns, rec.num_classes, list(range(columns)) if rec.num_classes else None)
    images = generate(draw, state.ema, key, labels, mesh, progress=False)
    picture = pictures.grid(images, columns, levels=rec.levels)
    if writer is not None:
        pictures.save_png(_samples(workdir, k), picture)
        writer.write_images(k, {"samples": picture[np.newaxis]})


def _table(summary: dict) -> str:
    lines = [f"  {name:20} {value}" for name, value in summary.items() if not isinstance(value, dict)]
    lines += [f"  {name:20} {value:.5f}" for name, value in summary["losses"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
