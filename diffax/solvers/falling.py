"""The default solver: Adams-Bashforth of order 4 whose order falls, sample by sample, where the denoiser turns.

Strong guidance makes the ODE stiff: a displacement of x moves D the other way, many times as far, and a polynomial of
high order through values that swing so makes the swing larger at each step. Euler's method and order 2 stay calm there.
Where D moves steadily, order 4 has the smaller error. So each step takes

    x <- x_1 + f(q; 0.6, 1.8) [x_2 - x_1 + f(v; 0.06, 0.54) (x_4 - x_2)],        f(a; low, high) falls from 1 to 0,

x_p being the step of order p from the same remembered values. Both numbers are known before the step, at no cost:

    q = rms (1 - r) (D_0 - D_1) / sigma_0    how far D moved in the last step, in units of the noise
    v = q sin(angle)                         the part of that move that does not continue the one before

D_0 is the newest value, D_1 the one before, and r = sigma_0 / sigma_1. Of each number the greatest of the last three
steps counts, since the polynomial goes through their values. Both are norms over one sample, so no sample depends on
its neighbours. The four thresholds were chosen on guided mixtures of Gaussians; `experiments.bench_solvers --guided`
says how well they do.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from diffax._array import per_sample
from diffax.solvers.linear import Noise, Solver, combine, counted, magnitude, numpy_for
from diffax.solvers.multistep import adams_bashforth

__all__ = ["default"]

_TURN = 0.06, 0.54
_MOVE = 0.6, 1.8


def default(sigma_data: float = 1.0) -> Solver:
    """The solver of `dx.sample`: Adams-Bashforth of order 4 in flow space, of lower order where D turns. n evaluations.

    Flow space bends least where data are decided, and its step to sigma = 0 extrapolates like the others, so that no
    evaluations go to levels lower than the data have. Where D moves steadily it is `adams_bashforth(4, "flow",
    bootstrap=False, sigma_data=2 * sigma_data)`; under strong guidance it falls back to order 2 and to Euler's step.
    Order 2, as its first step is Euler's. `experiments.bench_solvers` compares it with all others.

    sigma_data is the scale of the data, about their standard deviation; the time of the flow takes twice that.
    Raises ValueError unless it is one positive number.
    """
    sigma_data = magnitude("sigma_data", sigma_data)
    methods = [adams_bashforth(p, "flow", bootstrap=False, sigma_data=2 * sigma_data) for p in (1, 2, 4)]

    def rows(sigmas: Any, to_zero: bool) -> _Rows:
        xp = numpy_for(sigmas)
        first, second, fourth = (method.rows(sigmas, to_zero) for method in methods)
        s = first.sigma
        # What 1 - r is for the first step does not matter: nothing came before.
        ratio = 1 - xp.concatenate([xp.ones_like(s[:1]), s[1:] / s[:-1]])
        return _Rows(s, first.value, first.point, second.point, fourth.point, ratio / s)

    return Solver(2, counted(lambda n: n), rows, _init, _step)


class _Rows(NamedTuple):
    """The tables of three orders, which remember the same values, and (1 - r) / sigma of each step, see the module."""

    sigma: Any
    value: Any
    first: Any
    second: Any
    fourth: Any
    unit: Any
    ends: None = None


def _init(x: Array, rows: _Rows) -> tuple[Any, ...]:
    zero, none = jnp.zeros_like(x), jnp.zeros_like(x, shape=x.shape[:1])  # varying as x does, under shard_map
    return x, (zero,) * 3, zero, zero, (none,) * 4


def _step(denoise: Callable, carry: tuple[Any, ...], row: _Rows, noise: Noise) -> tuple[Any, ...]:
    x, remembered, last, before, (q1, q2, v1, v2) = carry
    value = denoise(x, row.sigma).astype(x.dtype)
    known = [x, combine(row.value, [x, value]), *remembered]
    first, second, fourth = (combine(c, known[: len(c)]) for c in (row.first, row.second, row.fourth))

    move = per_sample(row.unit, x) * (value - last)
    size, along, reach = _mean(move * move), jnp.maximum(_mean(move * before), 0), _mean(before * before)
    q = _root(size)
    v = _root(size - along**2 / (reach + _LEAST))
    greatest_q, greatest_v = jnp.maximum(jnp.maximum(q, q1), q2), jnp.maximum(jnp.maximum(v, v1), v2)
    calm, steady = (per_sample(_fall(*a), x) for a in ((greatest_q, _MOVE), (greatest_v, _TURN)))
    x = first + calm * (second - first + steady * (fourth - second))
    return x, (known[1], *remembered[:2]), value, move, (q, q1, v, v1)


_LEAST = 1e-12


def _fall(a: Array, ends: tuple[float, float]) -> Array:
    """1 up to the first end, 0 from the second on, straight between."""
    low, high = ends
    return jnp.clip((high - a) / (high - low), 0, 1)


def _mean(a: Array) -> Array:
    return jnp.mean(a.reshape(len(a), -1), 1)


def _root(a: Array) -> Array:
    """The square root of a square, with a finite slope at 0."""
    return jnp.sqrt(jnp.maximum(a, 0) + _LEAST)
