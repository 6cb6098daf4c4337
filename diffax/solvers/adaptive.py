"""Steps as long as the error allows: Dormand and Prince's 5(4) pair, and the solver made of it.

A step takes dz/ds = rate(s, z) through seven stages to a value of order 5, compares it with one of order 4 from the
same stages, and is taken where they differ by less than atol + rtol |z|; the next step is 0.9 error^(-1/5) times as
long (Dormand & Prince 1980, J. Comput. Appl. Math. 6; Hairer, Norsett & Wanner 1993, section II.4). Its last slope is
the first of the next, so a step costs six evaluations.

Every sample has steps of its own, while the function sees the whole batch: no result depends on its neighbours, and
the evaluations are those of the sample that needs most.

The solver's s is log sigma, its z is x / r with r^2 = sigma^2 + c^2, so that dz/ds = (c^2 / r^2 x - D) / r: at rest
for data N(0, c^2), and of order one, as the tolerances are meant, for all sigma.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffax import _check
from diffax._array import Scalar, per_sample
from diffax.solvers.linear import Noise, Solver, counted, magnitude, numpy_for

__all__ = ["MOST_STEPS", "Walk", "adaptive", "advance", "root_mean_square", "setting_out"]


def adaptive(rtol: float = 1e-3, atol: float = 1e-3, max_steps: int = 1000, sigma_data: Scalar = 1.0) -> Solver:
    """Dormand-Prince 5(4) between the sigmas of the grid; where that ends in 0, x = D(x) of the sigma before.

    The steps are its own, so the grid says where to begin and end: dx.sample(denoise, x, [80, 0.002, 0],
    solver=adaptive()); sigmas in between are met exactly, as for a trajectory. Ascending ones lead from data to noise.
    nfe is None, since the data decide; the denoiser sees sigma as [batch]. Forward only: no reverse-mode gradient
    passes the loop.

    Args:
      rtol, atol: tolerance of a step on x / sqrt(sigma^2 + c^2), root mean square over a sample. No step is longer
        than 1 in log sigma, where the estimate of the error ceases to be one (measured on mixtures); so tolerances
        above 1e-3 change little, and 80 to 0.002 takes 73 evaluations or more. Below 1e-6 they ask for float64.
      max_steps: how many steps are tried from the first sigma to the last, up to 10^9; a sample unfinished by then, or
        one whose steps vanish (a denoiser that gives NaN), comes out as NaN.
      sigma_data: c, the scale of the data.

    Raises: ValueError for arguments that are not as described.
    """
    rtol, atol, given = magnitude("rtol", rtol), magnitude("atol", atol), magnitude("sigma_data", sigma_data)
    _check.whole("max_steps", max_steps, most=MOST_STEPS)

    def rows(sigmas: Any, to_zero: bool) -> _Intervals:
        xp = numpy_for(sigmas)
        levels = xp.concatenate([sigmas[:-1], sigmas[-2:-1]]) if to_zero else sigmas
        s = xp.log(levels)
        last = np.arange(1, len(s)) == len(s) - 1 if to_zero else np.zeros(len(s) - 1)
        return _Intervals(sigmas[:-1], s[:-1], s[1:], last.astype(float))

    def scale(s: Array, x: Array) -> Array:
        return per_sample(jnp.sqrt(jnp.asarray(given, x.dtype) ** 2 + jnp.exp(2 * s)), x)

    def init(x: Array, rows: _Intervals) -> tuple[Any, ...]:
        s = jnp.broadcast_to(rows.start[0], x.shape[:1])
        return x, *setting_out(s, (x / scale(s, x)).reshape(len(x), -1), 0.3)

    def step(denoise: Callable, carry: tuple[Any, ...], row: _Intervals, noise: Noise) -> tuple[Any, ...]:
        x = carry[0]
        sigma_data = jnp.asarray(given, x.dtype)

        def rate(s: Array, z: Array) -> Array:
            y, r = z.reshape(x.shape), scale(s, x)
            value = denoise(r * y, jnp.exp(s)).astype(x.dtype)
            return (y * (sigma_data / r) ** 2 - value / r).reshape(z.shape)

        walk = advance(rate, Walk(*carry[1:]), row.end, rtol, atol, max_steps)
        y, slope, r = walk.z.reshape(x.shape), walk.slope.reshape(x.shape), scale(walk.s, x)
        # The slope knows D, so the step to 0, an interval of length 0, costs no evaluation.
        out = jnp.where(row.last > 0, y * sigma_data**2 / r - r * slope, r * y)
        return jnp.where(per_sample(walk.s == row.end, x), out, jnp.nan), *walk

    return Solver(5, counted(lambda n: None), rows, init, step)


class _Intervals(NamedTuple):
    """The steps of the grid: their sigma, log sigma at both ends, and 1 where the step leads to 0 (start = end)."""

    sigma: Any
    start: Any
    end: Any
    last: Any
    ends: None = None


# ---- the walk -------------------------------------------------------------------------------------------------------

# Dormand & Prince 1980: row i leads to stage i, the last row to the next point; and the weights of the error.
_STAGES = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0],
        [1 / 5, 0, 0, 0, 0, 0, 0],
        [3 / 40, 9 / 40, 0, 0, 0, 0, 0],
        [44 / 45, -56 / 15, 32 / 9, 0, 0, 0, 0],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0, 0],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0, 0],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0],
    ]
)
_ERROR = np.array([71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40])
MOST_STEPS = 10**9
"""For which int32 has room."""
_LEAST, _MOST = 1e-6, 1.0  # steps in log sigma: less does not move float32, more may pass the data's scale unseen


class Walk(NamedTuple):
    """Where each sample stands: s, the step to try next and how many were tried, [batch]; z and dz/ds, [batch, n]."""

    s: Array
    step: Array
    tries: Array
    z: Array
    slope: Array

    @property
    def evaluations(self) -> Array:
        """Of `rate` so far, [batch]."""
        return jnp.maximum(6 * self.tries - 5, 0)


def setting_out(s: Array, z: Array, step: Any) -> Walk:
    """A walk that begins at s [batch], z [batch, n], with a first step to try.

    Under `jax.shard_map` all of it varies over the devices as z does, as it will after a step.
    """
    s = s + jnp.zeros_like(z, s.dtype, shape=s.shape)
    return Walk(s, jnp.full_like(s, step), jnp.zeros_like(s, jnp.int32), z, jnp.zeros_like(z))


def root_mean_square(error: Array) -> Array:
    """[batch, n] -> [batch]."""
    return jnp.sqrt(jnp.mean(error**2, 1))


def advance(
    rate: Callable[[Array, Array], Array],
    walk: Walk,
    end: Array,
    rtol: float,
    atol: float,
    max_steps: int,
    norm: Callable[[Array], Array] = root_mean_square,
) -> Walk:
    """The walk at `end`, [] or [batch], above or below where it stands; where that fails, s stays short of it.

    rate(s [batch], z [batch, n]) -> dz/ds. `norm` makes one number a sample of errors in units of the tolerance.
    Stages are a loop over the rows of the table, so `rate` is compiled once.
    """
    dtype = walk.z.dtype
    stages, nodes, error_row = (jnp.asarray(table, dtype) for table in (_STAGES, _STAGES.sum(1), _ERROR))

    def walking(w: Walk) -> Array:
        return (w.tries == 0) | (w.s != end) & (w.step > _LEAST) & (w.tries <= max_steps)

    def attempt(w: Walk) -> Walk:
        first, active, left = w.tries == 0, walking(w), end - w.s
        tried = jnp.minimum(w.step, _MOST)
        arrives = tried >= abs(left)
        length = jnp.where(arrives, abs(left), tried)
        h = jnp.where(active & ~first, jnp.sign(left) * length, 0)

        def move(row: Array, slopes: Array) -> Array:
            return h[:, None] * jnp.tensordot(row, slopes, 1, precision="highest")

        def stage(i: Array, slopes: Array) -> Array:
            return slopes.at[i].set(rate(w.s + nodes[i] * h, w.z + move(stages[i], slopes)))

        # All samples begin together, with a step of length 0 whose last stage alone is asked for: the first slope.
        slopes = jnp.zeros((7, *w.z.shape), dtype).at[0].set(w.slope)
        slopes = jax.lax.fori_loop(jnp.where(first.all(), 6, 1), 7, stage, slopes)
        new = w.z + move(stages[6], slopes)
        error = norm(move(error_row, slopes) / (atol + rtol * jnp.maximum(abs(w.z), abs(new))))
        good = active & (error <= 1)
        factor = jnp.where(jnp.isfinite(error), jnp.clip(0.9 * error**-0.2, 0.2, 3), 0.2)
        # A step cut short by the end says little of the next.
        step = jnp.where(good & arrives, jnp.maximum(w.step, length * factor), length * factor)
        return Walk(
            jnp.where(good & ~first, jnp.where(arrives, end, w.s + h), w.s),
            jnp.where(active & ~first, step, w.step),
            w.tries + active.astype(w.tries.dtype),
            jnp.where(good[:, None], new, w.z),
            jnp.where((good | first)[:, None], slopes[6], w.slope),
        )

    return jax.lax.while_loop(lambda w: walking(w).any(), attempt, walk)
