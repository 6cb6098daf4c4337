"""Networks: their published sizes, and how fast they are on the device at hand, beside PyTorch where it is installed.

    python -m experiments.bench_models --list                           # every preset, its parameters, the source
    python -m experiments.bench_models --models mnist,ddpmpp_cifar10 --batch 64 --out bench/models.json

measures for each network: images per second of the forward pass, of the train step (Adam, EMA, clipping: what
`experiments.train` runs) and of the sampler; seconds to make the parameters and to compile; memory; and the share of
the device's matrix rate that the step reaches, by 3 x the operations of a forward pass over what a large product
reaches here. On a CPU the batch is split over one device a core. A U-Net is timed in turn with its PyTorch twin
(`experiments/bench/torch_unet.py`): eager and torch.compile, channels last, autocast for bfloat16, fused Adam.
"""

import functools
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

import diffax as dx
from diffax import models
from diffax.training import sharding
from diffax.training.meter import flop_of
from diffax.training.metrics import TrainMetrics
from diffax.training.optimizer import adam_with_warmup
from diffax.training.step import init_state, train_step
from diffax.training.summary import environment, write_json
from experiments import cli

LIST = flags.DEFINE_bool("list", False, "Print every preset with its number of parameters, and end.")
MODELS = flags.DEFINE_list("models", ["mnist"], "Presets to measure.")
BATCH = flags.DEFINE_integer("batch", 64, "Images in a batch.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
ROUNDS = flags.DEFINE_integer("rounds", 15, "Runs of each, in turn; medians are reported.")
NFE = flags.DEFINE_integer("nfe", 10, "Evaluations of the sampler.")
TORCH = flags.DEFINE_bool("torch", True, "Also time PyTorch, if it is installed.")
REMAT = flags.DEFINE_bool("remat", False, "Compute blocks again in the backward pass.")
OUT = flags.DEFINE_string("out", "bench/models.json", "The JSON file to write.")

Run = Callable[[], Any]


def main() -> None:
    if LIST.value:
        print("\n".join(listing()))
        return
    for name, value in (("batch", BATCH.value), ("rounds", ROUNDS.value), ("nfe", NFE.value)):
        if value < 1:
            raise ValueError(f"--{name} = {value}: must be at least 1")
    if unknown := [name for name in MODELS.value if name not in models.PRESETS]:
        raise ValueError(f"--models = {','.join(unknown)}: must be some of {', '.join(models.PRESETS)}")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch wants its part of the memory
    mesh = sharding.data_mesh()
    if BATCH.value % mesh.size:
        raise ValueError(f"--batch = {BATCH.value}: must be a multiple of the {mesh.size} devices")
    rate = matrix_rate(jnp.dtype(DTYPE.value))
    result: dict[str, Any] = {"batch": BATCH.value, "dtype": DTYPE.value, "matrix_flop_per_second": rate, "models": {}}
    for name in MODELS.value:
        result["models"][name] = found = measure(name, mesh, rate)
        print("\n".join(_table(name, found)))
    result["environment"] = environment()
    Path(OUT.value).parent.mkdir(parents=True, exist_ok=True)
    write_json(OUT.value, result)
    print(OUT.value)


def listing() -> list[str]:
    """Lines: name, parameters, published, source."""
    lines = [f"{'preset':34}{'parameters':>16}{'published':>16}  source"]
    for name, preset in models.PRESETS.items():
        count = models.parameters(models.preset(name)) + preset.beside
        published = "" if preset.published is None else f"{preset.published:,}"
        lines.append(f"{name:34}{count:>16,}{published:>16}  {preset.source}")
    return lines


def measure(name: str, mesh: jax.sharding.Mesh, rate: float) -> dict[str, Any]:
    """Everything of one preset."""
    preset, half = models.PRESETS[name], DTYPE.value == "bfloat16"
    options = {name: value for name, value in preset.options.items() if name not in ("augment", "dropout")}
    network = preset.make(preset.shape, **options | {"dtype": jnp.dtype(DTYPE.value), "remat": REMAT.value})
    count, classes = BATCH.value, options.get("num_classes")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, *preset.shape)).astype(np.float32)
    level = np.linspace(-1, 1, count).astype(np.float32)
    label = None if classes is None else rng.integers(0, classes, count).astype(np.int32)
    x, level, label = (sharding.put_batch(a, mesh) for a in (x, level, label))
    found: dict[str, Any] = {"parameters": models.parameters(network)}

    optimizer = adam_with_warmup(1e-4, warmup_steps=100)
    make = functools.partial(init_state, network.init, optimizer, mesh=mesh)
    begin = time.perf_counter()
    state = jax.block_until_ready(make(jax.random.key(0)))
    found["init_seconds"] = time.perf_counter() - begin

    def denoised(params: Any, *inputs: Any) -> jax.Array:  # without what some predict besides, a variance
        return network.apply(params, *inputs)[..., : preset.shape[-1]]

    def loss(params: Any, batch: Any, key: jax.Array, step: jax.Array, sampler: Any) -> Any:
        images, labels = batch
        parts: dict[str, Any] = dict(preconditioning=dx.preconditioning.edm(), weighting=dx.weightings.edm())
        return dx.losses.denoising(denoised, params, key, images, labels, schedule=dx.schedules.edm(), **parts)

    step = train_step(loss, optimizer, mesh, batch_size=count, ema_halflife=1e5)
    metrics, key = sharding.put_replicated(TrainMetrics.empty(), mesh), jax.random.key(1)
    begin = time.perf_counter()
    compiled = step.lower(state, metrics, (x, label), key).compile()
    found["compile_seconds"] = time.perf_counter() - begin
    memory: Any = compiled.memory_analysis()
    found["step_bytes"] = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    forward = jax.jit(network.apply)

    def sampler(params: Any, x: jax.Array, label: Any) -> jax.Array:
        denoise = dx.denoiser(denoised, params, dx.preconditioning.edm(), label)
        return dx.sample(denoise, 80 * x, dx.grids.plain(NFE.value))

    draw, kept = jax.jit(sampler), [state, metrics]
    plain = preset.make(preset.shape, **options).apply  # float32, whose attention is spelled out, so that it is counted
    forward_flop = flop_of(plain, state.params, x, level, label)
    params = jax.tree.map(jnp.copy, state.params)

    def train() -> Any:
        kept[0], kept[1], value = compiled(kept[0], kept[1], (x, label), key)
        return value

    runs: dict[str, dict[str, Run]] = {
        "forward": {"diffax": lambda: forward(params, x, level, label)},
        "train step": {"diffax": train},
        "sampler": {"diffax": lambda: draw(params, x, label)},
    }
    if TORCH.value and preset.make is models.unet and importlib.util.find_spec("torch"):
        from experiments.bench import torch_unet

        try:
            for task, others in torch_unet.runs(preset.shape, options, params, count, NFE.value, half).items():
                runs[task] |= others
        except ValueError as error:
            found["torch"] = str(error)
    for task, candidates in runs.items():
        seconds = in_turn(candidates, ROUNDS.value, f"{name}: {task}")
        found[task] = {"images_per_second": {who: count / s for who, s in seconds.items()}}
    if forward_flop is not None:
        step_seconds = count / found["train step"]["images_per_second"]["diffax"]
        found["train step"]["share_of_matrix_rate"] = 3 * forward_flop / step_seconds / rate / mesh.size
        found["flop_per_image_forward"] = forward_flop / count
    stats = jax.devices()[0].memory_stats()
    if stats:
        found["peak_bytes"] = stats["peak_bytes_in_use"]
    return found


def in_turn(candidates: dict[str, Run], rounds: int, title: str) -> dict[str, float]:
    """Median seconds of each, run one after the other, `rounds` times."""
    for run in candidates.values():
        jax.block_until_ready(run())
    times: dict[str, list[float]] = {who: [] for who in candidates}
    for _ in tqdm(range(rounds), desc=title, unit="", leave=False):
        for who, run in candidates.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            times[who].append(time.perf_counter() - begin)
    return {who: float(np.median(t)) for who, t in times.items()}


def matrix_rate(dtype: Any) -> float:
    """Operations per second of a large matrix product on one device, the best of ten."""
    size = 8192 if jax.default_backend() == "gpu" else 1536
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    best = np.inf
    for _ in range(10):
        begin = time.perf_counter()
        product(a).block_until_ready()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def _table(name: str, found: dict[str, Any]) -> list[str]:
    lines = [
        f"{name}: {found['parameters']:,} parameters; made in {found['init_seconds']:.1f} s, train step compiled in "
        f"{found['compile_seconds']:.1f} s, {found['step_bytes'] / 2**20:,.0f} MiB"
    ]
    if share := found["train step"].get("share_of_matrix_rate"):
        lines[0] += f"; {share:.0%} of the matrix rate in training"
    for task in ("forward", "train step", "sampler"):
        speeds = found[task]["images_per_second"]
        ours = speeds["diffax"]
        others = ", ".join(f"{who} {s:,.0f} (x {ours / s:.2f})" for who, s in speeds.items() if who != "diffax")
        lines.append(f"  {task:12} {ours:10,.0f} images/s{'; ' if others else ''}{others}")
    return lines


if __name__ == "__main__":
    cli.run(main)
