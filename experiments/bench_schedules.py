"""What composing schedules costs: a composed schedule under jit against the same formula fused by hand.

    python -m experiments.bench_schedules --out experiments/results/schedules.json

The two run in turn, many times, over a million values; reported is the median of the ratios of neighbouring runs.
"""

import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import Array

import diffax as dx
from diffax.training.summary import environment, write_json
from experiments import cli

OUT = flags.DEFINE_string("out", "bench/schedules.json", "The JSON file to write.")
SIZE = flags.DEFINE_integer("size", 1_000_000, "Values of u per run.")
ROUNDS = flags.DEFINE_integer("rounds", 200, "Pairs of runs.")

LOW, HIGH, BY, FACTOR = -12.0, 10.0, -1.4, 0.8


def composed(u: Array) -> Array:
    """truncate(shift(scale(cosine)))."""
    s = dx.schedules.scale(dx.schedules.cosine(), FACTOR)
    return dx.schedules.truncate(dx.schedules.shift(s, BY), LOW, HIGH)(u)


def fused(u: Array) -> Array:
    """The same, with every constant worked out beforehand."""
    u0, u1 = (2 / np.pi * np.arctan(np.exp(-(lam - BY) / FACTOR / 2)) for lam in (HIGH, LOW))
    v0, v1 = (2 / np.pi * np.arctan(np.exp((lam - BY) / FACTOR / 2)) for lam in (HIGH, LOW))
    v = 1 - u
    inner_u, inner_v = u0 * v + u1 * u, v0 * v + v1 * u
    half = np.pi / 2
    lam = 2 * FACTOR * (jnp.log(jnp.sin(half * inner_v)) - jnp.log(jnp.sin(half * inner_u))) + BY
    return jnp.clip(lam, LOW, HIGH)


def measure(one: Callable, other: Callable, u: Array, rounds: int) -> tuple[float, float, float]:
    """Median ratio of time one / other over interleaved pairs, and the median seconds of each."""
    pairs = []
    for i in range(rounds + 10):
        times = {}
        for function in (one, other) if i % 2 else (other, one):
            begin = time.perf_counter()
            function(u).block_until_ready()
            times[function] = time.perf_counter() - begin
        pairs.append((times[one], times[other]))
    seconds = np.array(pairs[10:])
    return float(np.median(seconds[:, 0] / seconds[:, 1])), *np.median(seconds, axis=0).tolist()


def main() -> None:
    if SIZE.value < 1 or ROUNDS.value < 1:
        raise ValueError(f"--size = {SIZE.value}, --rounds = {ROUNDS.value}: must be at least 1")
    u = jax.random.uniform(jax.random.key(0), (SIZE.value,))
    fast, by_hand = jax.jit(composed), jax.jit(fused)
    difference = float(jnp.max(jnp.abs(fast(u) - by_hand(u))))
    ratio, seconds, seconds_by_hand = measure(fast, by_hand, u, ROUNDS.value)
    result = {
        "composition": "truncate(shift(scale(cosine())))",
        "values": SIZE.value,
        "time_over_hand_fused": ratio,
        "seconds": seconds,
        "seconds_hand_fused": seconds_by_hand,
        "largest_difference_in_logsnr": difference,
        "environment": environment(),
    }
    Path(OUT.value).parent.mkdir(parents=True, exist_ok=True)
    write_json(OUT.value, result)
    print(f"{result['composition']}: {ratio:.3f} x the time of the formula fused by hand; {OUT.value}")


if __name__ == "__main__":
    cli.run(main)
