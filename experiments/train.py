"""Trains a diffusion model.

    python -m experiments.train --config experiments/configs/digits.py --workdir runs/digits

Run the same line again to resume from the last whole checkpoint, or to find that the run is complete; SIGTERM makes it
save and end with exit status 0. Every field of the config can be overridden, as in --config.train.steps=5000. The
resolved config is kept in WORKDIR/config.json, checkpoints in WORKDIR/checkpoints, snapshots of averages by power
functions in WORKDIR/snapshots, what is logged in WORKDIR/metrics.jsonl and in TensorBoard events, sample grids and the
loss per noise level in WORKDIR/samples, and the end in WORKDIR/summary.json.

The same line trains on one device, on all devices of a host (config.mesh says how), and on many hosts: see
`experiments/cluster.py`.
"""

import collections
import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from clu import parameter_overview
from ml_collections import config_flags
from tqdm import tqdm

from diffax import data
from diffax.training import checkpoint, sharding
from diffax.training.meter import Meter, flop_of
from diffax.training.metrics import TrainMetrics, per_level, scalars
from diffax.training.step import Seen, TrainState, init_state, train_step
from diffax.training.summary import environment, fingerprint, read_json, write_json
from diffax.training.writers import Log, create_writer
from experiments import cli, cluster, pictures
from experiments import recipe as recipes
from experiments import workdir as workdirs
from experiments.generate import class_labels, generate
from experiments.recipe import Recipe

CONFIG = config_flags.DEFINE_config_file("config", None, "The config file of the experiment.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the run; made if it is not there.")
PROFILE = flags.DEFINE_string(
    "profile", None, "START:STOP, the steps to record in WORKDIR/profile, for TensorBoard or Perfetto."
)
flags.adopt_module_key_flags(cluster)  # --help shows them
_AHEAD = 2
"""Steps that the loop is ahead of the devices."""


def main() -> None:
    config = cli.config_of(CONFIG)
    if not WORKDIR.value:
        raise ValueError("--workdir is missing: give a directory for the run, such as --workdir=runs/digits")
    profile = _profile(PROFILE.value)
    cluster.join()
    train(config, Path(WORKDIR.value), profile=profile)


def train(config, workdir: Path, *, profile: tuple[int, int] | None = None) -> dict:
    """Trains to config.train.steps, from where the workdir stands, and returns the summary (an empty one if a signal
    ended the run before).
    """
    started = time.time()
    recipes.check_counts(config)
    lead = jax.process_index() == 0

    # ---- what the config names; all of it is checked before anything is written ----
    dataset = workdirs.load_dataset(config, "train")
    rec = recipes.recipe(config, dataset)
    with cli.field("config.mesh."):
        mesh = sharding.make_mesh(**config.mesh)
    batch_size = config.train.batch_size
    with cli.field("config.sample."):
        draw = recipes.sampler(rec, **config.sample)
    optimizer = recipes.optimizer(config)
    with cli.field("config.train."):
        step = train_step(
            recipes.loss(rec, train=True),
            optimizer,
            mesh,
            batch_size=batch_size,
            ema_halflife=config.train.ema_halflife,
            powers=config.train.ema_powers,
            accumulate=config.train.accumulate,
            spike=config.train.spike,
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

    make = init(config, rec, optimizer, mesh)

    with contextlib.ExitStack() as stack:  # whatever happens, a save under way is finished
        stack.enter_context(workdirs.claim(workdir, config))
        stack.enter_context(_named_after(workdir))

        # ---- the state: where the last whole checkpoint stands, or new ----
        restored = None
        if checkpoint.steps(workdir / "checkpoints"):
            like = items(sharding.like(jax.eval_shape(make, init_key), mesh))
            restored = checkpoint.restore(workdir / "checkpoints", like)
        start = restored.step if restored else 0
        if start > config.train.steps:
            raise ValueError(
                f"config.train.steps = {config.train.steps}: {workdir} has already been trained to step {start}; "
                "give at least that"
            )
        if start == config.train.steps and (summary := _finished(workdir, start)):
            if lead:
                print(f"{workdir} is complete.\n{_table(summary)}")
            return summary
        recent: dict[str, float] = {}  # the metrics logged last
        if restored is None:
            state = make(init_key)
        else:
            workdirs.same_run(workdir, config, restored.meta)
            state = _state(restored.items)
            batches.set_state(restored.meta["data"])
            recent = restored.meta["metrics"]
        restored = None
        managers = [stack.enter_context(contextlib.closing(manager)) for manager in _managers(workdir, config)]
        checkpoints = managers[0]
        workdirs.write_config(workdir, config)  # which may name another number of steps than before
        if lead:
            overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
            (workdir / "parameters.txt").write_text(overview + "\n")
            print(
                f"{dataset.name}: {dataset.size} images {'x'.join(map(str, dataset.image_shape))}; "
                f"{sum(p.size for p in jax.tree.leaves(state.params)):,} parameters; "
                f"{_devices(mesh)}; step {start} of {config.train.steps}",
                flush=True,
            )

        # ---- the loop ----
        writer = stack.enter_context(contextlib.closing(create_writer(workdir, just_logging=not lead)))
        log = stack.enter_context(contextlib.closing(Log(workdir / "metrics.jsonl", start, write=lead)))
        flop = _flop_per_step(config, rec, state.params)
        meter = stack.enter_context(
            contextlib.closing(Meter(batch_size, flop, stall_seconds=config.train.stall_seconds))
        )
        preempted = stack.enter_context(cluster.Preemption())
        bar = stack.enter_context(_progress(start, config.train.steps, show=lead))
        metrics = sharding.put_replicated(TrainMetrics.empty(), mesh)
        running: collections.deque[Seen] = collections.deque()  # what the steps under way will say

        def checked(seen: Seen, k: int) -> None:
            """Waits for a step; ends the run if too many updates in a row were left out."""
            if int(seen.skipped_in_a_row) >= config.train.max_skipped:
                checkpoint.wait(checkpoints)
                raise ValueError(_diverged(seen, k, workdir / "checkpoints"))

        first_step = None  # when it was done: imports, the data, compiling
        stopped = False
        k = start
        meter.start(start)
        while k < config.train.steps and not stopped:
            k += 1
            if profile is not None and k == max(profile[0], start + 1) <= profile[1]:
                jax.profiler.start_trace(str(workdir / "profile"))
                stack.callback(_end_trace)
            with meter.input():
                batch = sharding.put_batch(next(batches), mesh)
            if first_step is None:
                step.lower(state, metrics, batch, step_key).compile()
                cluster.wait_for_all("compiled")
            state, metrics, seen = step(state, metrics, batch, step_key)
            if first_step is None:
                jax.block_until_ready(seen)
                first_step = round(cli.seconds_since_start(), 2)
                meter.start(k)
            running.append(seen)
            if len(running) > _AHEAD:
                checked(running.popleft(), k - _AHEAD)
            bar.update()

            stopped = preempted.at(k)
            last = k == config.train.steps
            saving = last or stopped or k % config.train.checkpoint_every == 0
            if profile is not None and k == profile[1]:
                jax.block_until_ready(state.step)
                _end_trace()
            if saving or k % config.train.log_every == 0:
                while running:
                    checked(running.popleft(), k - len(running))
                if last and not int(state.guard.made):
                    raise ValueError(_diverged(seen, k, workdir / "checkpoints"))
                recent = scalars(metrics) or recent  # nothing new where no update counted
                metrics = sharding.put_replicated(TrainMetrics.empty(), mesh)
                said = meter.read(k) | {"skipped": float(state.guard.skipped)}
                values = {f"train/{n}": v for n, v in recent.items()} | said
                writer.write_scalars(k, values)
                log.write(k, values)
                bar.set_postfix_str(f"loss {recent.get('loss', np.nan):.4f}, {said['images_per_second']:.0f} images/s")
            with meter.save():
                if saving:
                    meta = {"data": batches.get_state(), "images": k * batch_size, "metrics": recent}
                    meta |= {"seed": config.seed, "config_sha256": workdirs.identity(config)}
                    checkpoint.save(checkpoints, k, items(state), meta, recent or None)
                if state.powers and (last or k % config.train.snapshot_every == 0):
                    _snapshot(managers[1], k, state, config)
                if last or k % config.train.sample_every == 0:
                    _write_samples(workdir, k, draw, state, sample_key, rec, mesh, recent, writer if lead else None)
        bar.refresh()
        if start == config.train.steps:  # killed after the last checkpoint
            _write_samples(workdir, k, draw, state, sample_key, rec, mesh, recent, writer if lead else None)
        for manager in managers:
            checkpoint.wait(manager)
        if stopped and k < config.train.steps:
            if lead:
                bar.close()
                print(f"{workdir}: asked to end, saved at step {k} of {config.train.steps}; the same line goes on")
            return {}

        # ---- the summary ----
        summary = {
            "step": int(state.step),
            "images": int(state.step) * batch_size,
            "wall_seconds": round(time.time() - started, 1),
            "seconds_to_first_step": first_step,
            "resumed_from_step": start,
            "skipped_updates": int(state.guard.skipped),
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


# ---- the state, and what is saved of it -----------------------------------------------------------------------------


def init(config, rec: Recipe, optimizer, mesh) -> Callable[[jax.Array], TrainState]:
    """key -> the state before the first step."""
    powers, start = len(config.train.ema_powers), rec.objective.init(rec)
    return lambda key: init_state(start, optimizer, key, mesh, rec.adaptive_init(), powers)


def items(state: TrainState) -> dict[str, Any]:
    """The averages that are sampled from stand apart, to be read alone."""
    return {"state": state._replace(ema=None), "ema": state.ema}


def _state(items: dict[str, Any]) -> TrainState:
    return items["state"]._replace(ema=items["ema"])


def _managers(workdir: Path, config) -> list[Any]:
    """Of the checkpoints, and, with averages by power functions, of their snapshots."""
    with cli.field("config.train."):
        checkpoints = checkpoint.manager(
            workdir / "checkpoints",
            keep=config.train.keep,
            keep_every=config.train.keep_every,
            keep_best=config.train.keep_best,
        )
    return [checkpoints, *([checkpoint.manager(workdir / "snapshots", keep=None)] if config.train.ema_powers else [])]


def _snapshot(snapshots, k: int, state: TrainState, config) -> None:
    """Every average by a power function as it is now; a resumed run may come to a step that is kept already."""
    if k not in snapshots.all_steps():
        powers = {str(width): tree for width, tree in zip(config.train.ema_powers, state.powers, strict=True)}
        checkpoint.save(snapshots, k, powers, {"config_sha256": workdirs.identity(config)})


def _finished(workdir: Path, step: int) -> dict | None:
    """The summary of a run that ended at this step. One that is absent or damaged is made again."""
    with contextlib.suppress(OSError, ValueError):
        summary = read_json(workdir / "summary.json")
        if summary.get("step") == step and isinstance(summary.get("losses"), dict):
            return summary
    return None


# ---- what is said ---------------------------------------------------------------------------------------------------


def _devices(mesh) -> str:
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{mesh.size} {jax.devices()[0].platform} device(s){processes}{f' ({axes})' if axes else ''}"


def _progress(start: int, steps: int, *, show: bool) -> tqdm:
    return tqdm(
        total=steps,
        initial=start,
        desc="training",
        unit="step",
        disable=not show,
        mininterval=0.5 if sys.stderr.isatty() else 15,
    )


def _diverged(seen: Seen, k: int, checkpoints: Path) -> str:
    """Why the run ends, before a broken state could be saved."""
    bins = ((name.removeprefix("logsnr_").replace("_", " "), loss) for name, loss in per_level(seen.levels))
    levels = ", ".join(f"{name}: {loss:.3g}" for name, loss in bins)
    loss, gradient, after = (float(v) for v in (seen.loss, seen.grad_norm, seen.param_norm))
    return (
        f"at step {k} the loss is {loss:.3g}, the norm of the gradient {gradient:.3g} and that of the parameters after "
        f"it {after:.3g}; of the last {int(seen.skipped_in_a_row)} updates none could count. Loss per bin of logSNR: "
        f"{levels}; {checkpoint.what_is_left(checkpoints)}. Lower config.train.learning_rate or config.train.clip_norm "
        "or look at the data"
    )


def _samples(workdir: Path, k: int) -> Path:
    return workdir / "samples" / f"step_{k:08d}.png"


def _write_samples(workdir: Path, k: int, draw, state: TrainState, key, rec: Recipe, mesh, recent, writer) -> None:
    """A grid of samples of the averaged parameters, one class a column, and the loss per noise level, to
    WORKDIR/samples and to TensorBoard. Samples that are not finite are reported, and the run goes on."""
    columns = min(rec.num_classes or 8, 16)
    labels = class_labels(8 * columns, rec.num_classes, list(range(columns)) if rec.num_classes else None)
    try:
        images = generate(draw, state.ema, key, labels, mesh, progress=False)
    except FloatingPointError as error:  # in all processes alike
        if writer is not None:
            print(f"no grid of samples at step {k}: {error}", flush=True)
        return
    if writer is not None:
        picture = pictures.grid(images, columns, levels=rec.levels)
        levels = pictures.levels(recent)
        pictures.save_png(_samples(workdir, k), picture)
        pictures.save_png(workdir / "samples" / f"levels_{k:08d}.png", levels)
        writer.write_images(k, {"samples": picture[np.newaxis], "loss_per_level": levels[np.newaxis]})


def _flop_per_step(config, rec: Recipe, params) -> Callable[[], float | None]:
    """Of the model: those of a forward pass, three times for a denoiser, whatever is computed again."""

    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)

    def count() -> float | None:
        # float32, whose attention is spelled out, so that it is counted
        network = recipes.build_network(config.model, rec.shape, rec.num_classes, np.float32)
        batch = config.train.batch_size
        x = jax.ShapeDtypeStruct((batch, *rec.shape), np.float32)
        c_noise = jax.ShapeDtypeStruct((batch,), np.float32)
        label = None if rec.num_classes is None else jax.ShapeDtypeStruct((batch,), np.int32)
        forward = flop_of(network.apply, shapes, x, c_noise, label)
        return None if forward is None else rec.objective.passes * forward

    return count


def _table(summary: dict) -> str:
    lines = [f"  {name:20} {value}" for name, value in summary.items() if not isinstance(value, dict)]
    lines += [f"  {name:20} {value:.5f}" for name, value in summary["losses"].items()]
    return "\n".join(lines)


# ---- what is checked ------------------------------------------------------------------------------------------------


def _profile(value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    first, _, last = value.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ValueError(f"--profile = {value}: must be START:STOP, the first and the last step to record, from 1")
    return int(first), int(last)


def _end_trace() -> None:
    """If one is being recorded."""
    with contextlib.suppress(RuntimeError):
        jax.profiler.stop_trace()


@contextlib.contextmanager
def _named_after(workdir: Path):
    """A disk that is full or read-only is named."""
    try:
        yield
    except OSError as error:
        kept = checkpoint.what_is_left(workdir / "checkpoints")
        raise ValueError(f"--workdir = {workdir}: cannot be written to ({error}); {kept}") from error


if __name__ == "__main__":
    cli.run(main)
