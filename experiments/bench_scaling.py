"""What training on many devices costs: messages counted in the compiled step, weak scaling, and a calculation for pods.

  JAX_NUM_CPU_DEVICES=8 python -m experiments.bench_scaling --out bench/scaling.json    # and scaling.md

messages   of the digits U-Net and a small DiT on a mesh of 8 devices: how many collectives the compiled step holds,
           and the bytes that they send, beside the bytes of the parameters. These hold for any device.
weak       steps per second with as many images a device on 1, 2, 4, 8 devices. On a CPU the devices share its cores,
           so what can be read from it is what splitting costs, not how a pod scales.
pods       seconds that a step computes and sends, on paper: see `pod`.
"""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

import diffax as dx
from diffax import models
from diffax.training import sharding
from diffax.training.meter import PEAK_FLOPS, flop_of
from diffax.training.metrics import TrainMetrics
from diffax.training.optimizer import adam_with_warmup
from diffax.training.step import init_state, train_step
from diffax.training.summary import environment, write_json
from experiments import cli
from experiments.bench.collectives import messages

__all__ = ["pod"]

OUT = flags.DEFINE_string("out", "bench/scaling.json", "The JSON file to write.")
ROUNDS = flags.DEFINE_integer("rounds", 20, "Steps to time.")
EACH = flags.DEFINE_integer("each", 16, "Images a device.")

NETWORKS = {
    "U-Net (digits)": models.unet((8, 8, 1), channels=32, multipliers=(1, 2), blocks=1, attention=(4,), num_classes=10),
    "DiT (small)": models.dit((8, 8, 1), patch=2, width=128, depth=4, heads=4, num_classes=10),
}
AXES: dict[str, dict[str, int]] = {
    "data 8": {"data": 8},
    "fsdp 8": {"data": 1, "fsdp": 8},
    "data 2, fsdp 4": {"data": 2, "fsdp": 4},
    "data 4, tensor 2": {"data": 4, "tensor": 2},
}


def main() -> None:
    if ROUNDS.value < 1 or EACH.value < 1:
        raise ValueError(f"--rounds = {ROUNDS.value}, --each = {EACH.value}: must be at least 1")
    if jax.device_count() < 8:
        raise ValueError(f"{jax.device_count()} devices: 8 are needed; on a CPU set JAX_NUM_CPU_DEVICES=8")
    result: dict[str, Any] = {"messages": {}, "weak": {}, "pods": []}
    for name, network in NETWORKS.items():
        result["messages"][name] = {"bytes of the parameters": 4 * models.parameters(network)}
        for said, axes in AXES.items():
            run = Run(network, EACH.value * 8, devices=8, **axes)
            found = messages(run.text())
            result["messages"][name][said] = {
                kind: {"count": len(sizes), "bytes": int(sum(sizes))} for kind, sizes in found.items()
            }
        for kind in ("data", "fsdp"):
            rates = {}
            for count in (1, 2, 4, 8):
                axes = {"data": count} if kind == "data" else {"data": 1, "fsdp": count}
                rates[count] = 1 / Run(network, EACH.value * count, devices=count, **axes).seconds(ROUNDS.value)
            result["weak"][f"{name}, {kind}"] = rates
    for preset in ("adm_imagenet_64", "dit_xl_2"):
        for device, count, link, each in (("TPU v5e", 256, 100e9, 8), ("NVIDIA H100", 8, 450e9, 64)):
            result["pods"].append(pod(preset, device, count, link, each))
    result["environment"] = environment()
    Path(OUT.value).parent.mkdir(parents=True, exist_ok=True)
    write_json(OUT.value, result)
    told = page(result)
    Path(OUT.value).with_suffix(".md").write_text(told)
    print(told)
    print(OUT.value)


MESSAGES = """\
## Messages of a compiled step

Counted in the program that XLA made of the train step for a mesh of 8 devices; MB are those of the arrays as a device
has them after the message. They hold for any device. `tests/training/test_sharding.py` holds these programs to what
they should send: data parallelism the gradients and nothing else, slices the weights and never the batch, shared layers
of a DiT sums and no weights."""

WEAK = """\
## Weak scaling on simulated devices

Each device has as many images, however many there are; all share the cores of one host, so that once these are busy the
best that can be had is half as many steps of twice as many devices. "Cost" is the time of a step on 8 devices over 4
times that on 2: what splitting, and sending within the host, cost."""

PODS = """\
## Pods, on paper

No pod was at hand. A step computes three forward passes (operations as XLA counts them) at 40 % of the published
bfloat16 peak (v5e 197, H100 989 TFLOP/s). A device sends and receives at 100 GB/s around a ring of a v5e pod (two of
its four links of 400 Gbit/s, one way), or at 450 GB/s between eight H100 (NVLink 4, one way). Parallel copies send 2 (N
- 1) / N x 4 P bytes of float32 gradients, slices 3 (N - 1) / N x 4 P. Nothing overlaps, which is pessimistic: XLA sends
while it computes. State: float32 parameters, two moments, one average. Where two numbers stand: data parallel /
fsdp."""


class Run:
    """A train step on a mesh."""

    def __init__(self, network: models.Network, batch_size: int, **axes: int) -> None:
        mesh, optimizer = sharding.make_mesh(**axes), adam_with_warmup(1e-4)

        def loss(params: Any, batch: Any, key: Any, step: Any, sampler: Any) -> Any:
            return dx.losses.denoising(network.apply, params, key, batch["x"], batch["label"])

        self._step = train_step(loss, optimizer, mesh, batch_size=batch_size, ema_halflife=1e4)
        self._state = init_state(network.init, optimizer, jax.random.key(0), mesh)
        self._metrics = sharding.put_replicated(TrainMetrics.empty(), mesh)
        x = np.random.default_rng(0).standard_normal((batch_size, 8, 8, 1), np.float32)
        self._batch = sharding.put_whole({"x": x, "label": np.arange(batch_size, dtype=np.int32) % 10}, mesh)

    def text(self) -> str:
        """The compiled program."""
        arguments = self._state, self._metrics, self._batch, jax.random.key(1)
        return self._step.lower(*arguments).compile().as_text() or ""  # type: ignore[attr-defined]

    def seconds(self, rounds: int) -> float:
        """The median of a step."""
        times = []
        for _ in range(rounds + 2):
            begin = time.perf_counter()
            self._state, self._metrics, seen = self._step(self._state, self._metrics, self._batch, jax.random.key(1))
            jax.block_until_ready(seen)
            times.append(time.perf_counter() - begin)
        return float(np.median(times[2:]))


def pod(preset: str, device: str, count: int, link: float, each: int, mfu: float = 0.4) -> dict[str, Any]:
    """What a step costs, on paper, without overlap of computing and sending.

    Args:
      device, count: of `PEAK_FLOPS`, in bfloat16, and how many; mfu: the share of the peak that they reach.
      link: bytes a second that a device sends and receives at once, in a ring.
      each: images a device.

    Parallel copies send the float32 gradients around a ring once to add and once to tell: 2 (N - 1) / N x 4 P bytes.
    Slices gather the parameters for the forward and for the backward pass and scatter the gradients: 3 (N - 1) / N x
    4 P bytes, half of it if they are gathered in bfloat16. A step computes three forward passes.
    """
    network, shape = models.preset(preset), models.PRESETS[preset].shape
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    parameters = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    x = jax.ShapeDtypeStruct((1, *shape), np.float32)
    level, label = jax.ShapeDtypeStruct((1,), np.float32), jax.ShapeDtypeStruct((1,), np.int32)
    forward = flop_of(network.apply, shapes, x, level, label)
    assert forward is not None
    computes = 3 * forward * each / (mfu * PEAK_FLOPS[device])
    ring = (count - 1) / count * 4 * parameters / link
    return {
        "preset": preset,
        "devices": f"{count} x {device}",
        "images_a_device": each,
        "parameters": parameters,
        "forward_gflop_an_image": forward / 1e9,
        "assumed_mfu": mfu,
        "assumed_bytes_per_second": link,
        "seconds_computing": computes,
        "seconds_sending_data_parallel": 2 * ring,
        "seconds_sending_fsdp": 3 * ring,
        "images_per_second_data_parallel": count * each / (computes + 2 * ring),
        "images_per_second_fsdp": count * each / (computes + 3 * ring),
        "state_gib_a_device_data_parallel": 16 * parameters / 2**30,
        "state_gib_a_device_fsdp": 16 * parameters / count / 2**30,
    }


def page(result: dict[str, Any]) -> str:
    """All of it for people, in Markdown."""
    lines = ["# What many devices cost", "", f"`{result['environment']['command']}`", "", MESSAGES]
    for name, found in result["messages"].items():
        lines += ["", f"**{name}**, {found['bytes of the parameters'] / 1e6:.2f} MB of parameters", ""]
        kinds = sorted({kind for axes in AXES for kind in found[axes]})
        lines += _head("mesh", *kinds)
        for axes in AXES:
            sent = [found[axes].get(kind) for kind in kinds]
            lines.append(_row(axes, *(f"{v['count']}, {v['bytes'] / 1e6:.2f} MB" if v else "-" for v in sent)))
    lines += ["", WEAK, "", *_head("steps/s of devices", *next(iter(result["weak"].values())), "cost")]
    for name, rates in result["weak"].items():
        lines.append(_row(name, *(f"{rate:.2f}" for rate in rates.values()), f"{rates[2] / 4 / rates[8]:.2f}"))
    lines += ["", PODS, ""]
    lines += _head("", "images a device", "computes", "sends", "images/s", "state a device")
    for p in result["pods"]:
        both = lambda name, spell, p=p: " / ".join(spell(p[f"{name}_{kind}"]) for kind in ("data_parallel", "fsdp"))
        lines.append(
            _row(
                f"{p['preset']} ({p['parameters'] / 1e6:.0f} M) on {p['devices']}",
                p["images_a_device"],
                f"{p['seconds_computing'] * 1e3:.0f} ms",
                both("seconds_sending", lambda s: f"{s * 1e3:.0f}") + " ms",
                both("images_per_second", "{:,.0f}".format),
                both("state_gib_a_device", "{:.2f}".format) + " GiB",
            )
        )
    return "\n".join(lines) + "\n"


def _head(*cells: Any) -> list[str]:
    return [_row(*cells), "|" + "---|" * len(cells)]


def _row(*cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    cli.run(main)
