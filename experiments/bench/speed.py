"""What a sampling loop costs beside the denoiser that it calls. NumPy only: each library measures itself with this."""

import itertools
import time
from collections.abc import Callable

import numpy as np

__all__ = ["STEPS", "compare", "layers", "start"]

STEPS = 50
BATCH, WIDTHS = 64, (64, 512, 512, 64)


def start() -> np.ndarray:
    """[64, 64] float32: noise at sigma = 80."""
    return (80 * np.random.default_rng(0).standard_normal((BATCH, WIDTHS[0]))).astype(np.float32)


def layers() -> list[np.ndarray]:
    """The matrices of the network F of D = x / (1 + sigma^2) + F(x / sqrt(1 + sigma^2)), with SiLU in between."""
    rng = np.random.default_rng(1)
    sizes = itertools.pairwise(WIDTHS)
    return [(rng.standard_normal((a, b)) / np.sqrt(a)).astype(np.float32) for a, b in sizes]


def compare(run: Callable[[], object], bare: Callable[[], object], rounds: int, steps: int = STEPS) -> dict[str, float]:
    """Times a sampler of so many evaluations and the bare evaluations in turn; both must wait for their results.

    Returns the median of the ratios of neighbours, and the median seconds a step of each.
    """
    run(), bare()  # compiled and warm
    pairs = np.empty((rounds, 2))
    for i in range(rounds):
        for j, function in enumerate((run, bare)) if i % 2 else ((1, bare), (0, run)):
            begin = time.perf_counter()
            function()
            pairs[i, j] = time.perf_counter() - begin
    seconds, seconds_bare = np.median(pairs, axis=0) / steps
    return {
        "over_bare": float(np.median(pairs[:, 0] / pairs[:, 1])),
        "seconds_a_step": float(seconds),
        "seconds_a_step_bare": float(seconds_bare),
    }
