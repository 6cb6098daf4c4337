"""Where the time of a training loop goes, and how fast it is.

    meter = Meter(batch_size, stall_seconds=60)
    with meter.input():     # waiting for data; a line on stderr if that takes longer than stall_seconds
        ...
    with meter.save():      # checkpoints, samples: not training
        ...
    meter.read(steps)       # since the last reading: images_per_second, time/input, time/compute, time/save, ...

Steps run on the device while the loop is ahead of them, so "compute" is what is left: the loop waits for a step that it
started two steps ago.
"""

import contextlib
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

__all__ = ["PEAK_FLOPS", "Meter", "flop_of"]

PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
"""Published dense bfloat16 operations per second of one device, by the start of its `device_kind` (makers' data sheets;
of TPU v2 and v3 a device is one of the two cores of a chip)."""


class Meter:
    """See the module."""

    def __init__(
        self, batch_size: int, flop_per_step: Callable[[], float | None] | None = None, *, stall_seconds: float = 60.0
    ) -> None:
        """flop_per_step: asked for at the first reading."""
        self._batch_size, self._count = batch_size, flop_per_step
        self._flop: float | None = None
        self._waiting_since: float | None = None
        self._spent = {"input": 0.0, "save": 0.0}
        self._since, self._step = time.perf_counter(), 0
        self._stop = threading.Event()
        self._stall = stall_seconds
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def input(self) -> Iterator[None]:
        self._waiting_since = begin = time.perf_counter()
        try:
            yield
        finally:
            self._waiting_since = None
            self._spent["input"] += time.perf_counter() - begin

    @contextlib.contextmanager
    def save(self) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._spent["save"] += time.perf_counter() - begin

    def start(self, step: int) -> None:
        """Forgets what was measured: the clock runs from here, after step `step`."""
        self._since, self._step = time.perf_counter(), step
        self._spent = dict.fromkeys(self._spent, 0.0)

    def read(self, step: int) -> dict[str, float]:
        """Of the time since `start` or the last reading, up to step `step`.

        time/input, time/save, time/compute: shares of it, sum 1; images_per_second while not saving;
        flop_per_second and, where the device's peak is known, mfu: of the model's operations, those of three forward
        passes a step, as a share of the peak; memory_bytes: the most that a device, or on a CPU the process, held.
        """
        total = max(time.perf_counter() - self._since, 1e-9)
        spent = {name: seconds / total for name, seconds in self._spent.items()}
        seconds = max(total - self._spent["save"], 1e-9)
        steps = step - self._step
        found = {f"time/{name}": share for name, share in spent.items()}
        found |= {"time/compute": 1 - sum(spent.values()), "images_per_second": steps * self._batch_size / seconds}
        if self._count is not None:
            self._flop, self._count = self._count(), None
        if self._flop:
            found["flop_per_second"] = steps * self._flop / seconds
            kind = jax.devices()[0].device_kind
            if known := [name for name in PEAK_FLOPS if kind.startswith(name)]:
                found["mfu"] = found["flop_per_second"] / (PEAK_FLOPS[max(known, key=len)] * jax.device_count())
        found["memory_bytes"] = float(_memory())
        self.start(step)
        return found

    def close(self) -> None:
        self._stop.set()

    def _watch(self) -> None:
        """Says so when the input does not come, and again each time that it has taken as long once more."""
        said, begin = 0, None
        while not self._stop.wait(min(self._stall / 4, 1.0)):
            since = self._waiting_since
            if since != begin:
                said, begin = 0, since
            if since is not None and (waited := time.perf_counter() - since) > self._stall * (said + 1):
                said += 1
                print(
                    f"warning: no batch for {waited:.0f} seconds after step {self._step}; waiting for the input",
                    file=sys.stderr,
                    flush=True,
                )


def flop_of(function: Any, *arguments: Any) -> float | None:
    """Operations of a function of arrays or their shapes, as XLA counts them before it optimises; None if it cannot."""
    with contextlib.suppress(Exception), jax.default_device(jax.local_devices(backend="cpu")[0]):  # GPUs do not count
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arguments)
        cost = jax.jit(function).lower(*shapes).cost_analysis()
        return float(cost["flops"]) if cost else None
    return None


def _memory() -> int:
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
