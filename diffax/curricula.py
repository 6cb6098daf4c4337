"""Curricula of consistency training: into how many levels N the noise is cut at training step k of `total`.

All take the step as a number or a traced array and return an int32 array of its shape. A fraction of a step is cut
off, and a step before 0 or after `total` counts as that one. N is piecewise constant: the steps at which it changes are
found in whole numbers, or in float64 where they are irrational, so N is right at every step, however many they are.

Each raises ValueError unless the step is a number, total, s0 and s1 are integers >= 1, s0 < s1, and s1 is at most a
million. The levels themselves are `consistency.levels(N, most)`. (How the *distribution* of noise moves with the step
is `schedules.anneal`.)
"""

import bisect
import decimal
import functools
import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffax import _check
from diffax._array import at_least_float32

__all__ = ["doubling", "sinusoidal", "square_root"]


def square_root(step: ArrayLike, total: int, s0: int = 2, s1: int = 150) -> Array:
    """N = ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 (Song et al. 2023, arXiv:2303.01469, appendix C)."""
    _whole(total, s0, s1)
    return _at(step, *_square_root(int(total), int(s0), int(s1)))


def doubling(step: ArrayLike, total: int, s0: int = 10, s1: int = 1280) -> Array:
    """N = min(s0 2^floor(k / K'), s1) + 1, K' = floor(K / (log2 floor(s1 / s0) + 1)): iCT, equal stages that double.

    Song & Dhariwal 2023 (arXiv:2310.14189, section 3.4).
    """
    _whole(total, s0, s1)
    return _at(step, *_doubling(int(total), int(s0), int(s1)))


def sinusoidal(step: ArrayLike, total: int, s0: int = 20, s1: int = 250, rho: float = 7.0) -> Array:
    """N = ceil|(s1 - s0) sin z + s0|, z = floor(10 pi (k / K)^((rho - 1) / 4)) / 10: rises to s1, then falls again.

    Gokmen et al. 2024 (arXiv:2404.06353), as in the code published beside the preprint, whose equation is unconfirmed;
    with rho = 7 it is at s1 by about 0.63 K and near 30 at the end. Raises ValueError unless rho > 1.
    """
    _whole(total, s0, s1)
    value = _check.real("rho", rho, "be finite and > 1")
    if value is None or value.ndim or not 1 < value < math.inf:
        raise ValueError(f"rho = {_check.shown(rho)}: must be finite and > 1")
    return _at(step, *_sinusoidal(int(total), int(s0), int(s1), float(rho)))


_FAR = 2**62  # steps


# ---- where N changes: (the first steps of all pieces but the first one, N on all pieces) ----------------------------

Pieces = tuple[tuple[int, ...], tuple[int, ...]]


@functools.lru_cache(maxsize=32)
def _square_root(total: int, s0: int, s1: int) -> Pieces:
    # N is the least n >= s0 with n^2 >= s0^2 + (k / K) D, so N > n from the first k > (n^2 - s0^2) K / D on
    rise = (s1 + 1) ** 2 - s0**2
    return tuple((n * n - s0 * s0) * total // rise + 1 for n in range(s0, s1 + 1)), tuple(range(s0, s1 + 2))


@functools.lru_cache(maxsize=32)
def _doubling(total: int, s0: int, s1: int) -> Pieces:
    ratio = s1 // s0
    doublings = decimal.Decimal(ratio.bit_length() - 1)
    with decimal.localcontext() as context:
        context.prec = 50
        if ratio & (ratio - 1):  # no power of two: its logarithm is irrational
            doublings = decimal.Decimal(ratio).ln() / decimal.Decimal(2).ln()
        stage = max(int(total / (doublings + 1)), 1)
    numbers = [s0]
    while numbers[-1] < s1:
        numbers.append(min(2 * numbers[-1], s1))
    return tuple(stage * i for i in range(1, len(numbers))), tuple(n + 1 for n in numbers)


@functools.lru_cache(maxsize=32)
def _sinusoidal(total: int, s0: int, s1: int, rho: float) -> Pieces:
    tenths = range(math.floor(10 * math.pi) + 1)
    numbers = tuple(math.ceil(abs((s1 - s0) * math.sin(z / 10) + s0)) for z in tenths)
    return tuple(math.ceil(total * (z / (10 * math.pi)) ** (4 / (rho - 1))) for z in tenths[1:]), numbers


# ---- reading them ---------------------------------------------------------------------------------------------------


def _at(step: ArrayLike, starts: tuple[int, ...], numbers: tuple[int, ...]) -> Array:
    if isinstance(step, int) and not isinstance(step, bool):  # of any size
        return jnp.asarray(numbers[bisect.bisect_right(starts, step)], jnp.int32)
    _check.finite("step", step)
    table = np.asarray(numbers, np.int32)
    if _check.concrete(step):
        steps = np.asarray(step)
        if steps.dtype.kind not in "iu":
            steps = np.minimum(np.floor(steps.astype(np.float64)), _FAR)
        steps = steps.astype(np.int64)
        return jnp.asarray(table[np.searchsorted(np.asarray(starts, np.int64), steps, side="right")])
    step = jnp.asarray(step)
    if jnp.issubdtype(step.dtype, jnp.floating):
        step = jnp.floor(at_least_float32(step))
    wide = step.dtype in (jnp.int64, jnp.uint64, jnp.float64)
    kind, far = (jnp.int64, _FAR) if wide else (jnp.int32, 2**31 - 2**7)  # a float32 too
    limits = jnp.finfo(step.dtype) if jnp.issubdtype(step.dtype, jnp.floating) else jnp.iinfo(step.dtype)
    step = jnp.maximum(jnp.minimum(step, min(far, limits.max)).astype(kind), -1)
    return jnp.asarray(table)[jnp.searchsorted(jnp.asarray(np.minimum(starts, far + 1), kind), step, side="right")]


def _whole(total: int, s0: int, s1: int) -> None:
    _check.whole("total", total)
    if total > _FAR:
        raise ValueError(f"total = {total}: must be at most 2^62 steps")
    _check.whole("s0", s0)
    _check.whole("s1", s1, 1, 1_000_000)
    _check.less("s0", s0, "s1", s1)
