"""The form that every linear solver takes: a table with one row per evaluation of the denoiser.

A Runge-Kutta or multistep method knows the state x at the start of its step and a few remembered values, g_0 (the
newest), g_1, ...; what it does after each evaluation is a linear combination of them. So a method *is* its
coefficients, functions of the sigmas alone, and `dx.sample` runs any of them by one `lax.scan` over the rows:

    point, x += before z                                          noise on the way into the evaluation
    D       = denoise(point, sigma)
    g_0     = value[0] point + value[1] D                         what is remembered: D itself, eps, v, ...
    point  <- point[0] x + point[1] g_0 + point[2] g_1 + ...      where the next evaluation happens
    x      <- state[0] x + state[1] g_0 + state[2] g_1 + ...      the state
    point, x += after[0] z', after[1] z'                          noise of the step

and the solution is the point after the last row. Concrete sigmas give coefficients in float64, at trace time; traced
ones (a grid being fitted) are differentiated.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from diffax import _check
from diffax._array import per_sample

__all__ = ["Rows", "Solver", "columns", "counted", "end_at_zero", "interleave", "is_table", "known", "linear"]
__all__ += ["magnitude", "numpy_for", "scalar", "single_step"]

Noise = Callable[[int], Array]
"""noise(stream) -> standard normal numbers of the shape of x for the row at hand, independent between streams."""


class Rows(NamedTuple):
    """The table, an entry an evaluation; "..." is nothing or [batch].

    Fields:
      sigma: [rows, ...], the noise level of the evaluation.
      point, state: [rows, 1 + history, ...], see the module.
      value: [rows, 2, ...]; None remembers D.
      before: [rows, ...] or None.
      after: [rows, 2, ...], for point and state; or None.
      ends: the rows after which a step of the grid is complete, as indices; None for all.
    """

    sigma: Any
    point: Any
    state: Any
    value: Any = None
    before: Any = None
    after: Any = None
    ends: Any = None


class Solver(NamedTuple):
    """A sampling method.

    `linear` and `single_step` make one from a table of coefficients. A method that is no table states all fields.

    Fields:
      order: order of convergence of the end point in the largest step (in distribution, for a stochastic solver).
      nfe: nfe(n) evaluations of the denoiser on a grid of n steps that ends at sigma = 0. None where the data decide.
      rows: (sigmas [n + 1] or [n + 1, batch], whether the last one is 0) -> a NamedTuple of arrays [rows, ...], one row
        for each call of `step`, with the fields `sigma` and `ends` of `Rows`.
      init: (x, rows) -> the carry of the scan over the rows, whose first entry is the point.
      step: (denoise, carry, row, noise) -> the next carry.
      stochastic: whether it draws noise and so needs a key.
    """

    order: int
    nfe: Callable[[int], int | None]
    rows: Callable[[Any, bool], Any]
    init: Callable[[Array, Any], tuple[Array, ...]]
    step: Callable[[Callable, tuple, Any, Noise], tuple[Array, ...]]
    stochastic: bool = False


def linear(
    order: int, nfe: Callable[[int], int], rows: Callable[[Any, bool], Rows], stochastic: bool = False
) -> Solver:
    """The solver of a table of coefficients.

    Args:
      order, nfe, rows, stochastic: fields of `Solver`; rows gives `Rows`.

    Its nfe(n) raises ValueError unless n is an integer >= 1.

    Raises: ValueError for arguments that are not as described.
    """
    _check.whole("order", order, 0)
    _check.callable_("nfe", nfe, "nfe(n) -> evaluations")
    _check.callable_("rows", rows, "rows(sigmas, to_zero) -> Rows")
    return Solver(order, counted(nfe), rows, _init, _step, stochastic)


def counted(nfe: Callable[[int], Any]) -> Callable[[int], Any]:
    """The same nfe(n), which raises ValueError unless n is an integer >= 1."""

    def checked(n: int) -> Any:
        _check.whole("n", n)
        return nfe(n)

    return checked


def is_table(solver: Solver) -> bool:
    """Whether the solver is its table of coefficients and nothing else, as those of `linear` are."""
    return solver.init is _init and solver.step is _step


def _init(x: Array, rows: Rows) -> tuple[Array, ...]:
    return x, x, *[jnp.zeros_like(x)] * (rows.state.shape[1] - 1)


def _step(denoise: Callable, carry: tuple[Array, ...], row: Rows, noise: Noise) -> tuple[Array, ...]:
    point, state, *history = carry
    if row.before is not None:
        z = per_sample(row.before, point) * noise(0)
        point, state = point + z, state + z
    value = denoise(point, row.sigma).astype(point.dtype)
    if row.value is not None:
        value = combine(row.value, [point, value])
    known = [state, value, *history[:-1]]
    point, state = combine(row.point, known), combine(row.state, known)
    if row.after is not None:
        z = noise(1)
        point, state = (y + per_sample(c, y) * z for y, c in zip((point, state), row.after, strict=True))
    return point, state, *known[1:]


def combine(coefficients: Array, terms: list[Array]) -> Array:
    """sum_j coefficients[j] terms[j]."""
    weighted = (per_sample(c, t) * t for c, t in zip(coefficients, terms, strict=True))
    return functools.reduce(jnp.add, weighted)


def scalar(name: str, value: Any) -> Any:
    """A parameter of a constructor: a Python float, or the value as it is where JAX traces it.

    So it takes the dtype of the arrays that it meets. Raises ValueError unless it is one real number.
    """
    _check.real(name, value)
    _check.one(name, value)
    return float(value) if _check.concrete(value) else value


def magnitude(name: str, value: Any, most: float = 1e15) -> Any:
    """A noise level, a scale or a tolerance, as `scalar`. Raises ValueError unless it lies in [1 / most, most].

    So float32 has room for its square or, with 1e8, for its fourth power.
    """
    _check.positive(name, value)
    _check.between(name, value, 1 / most, most)
    return scalar(name, value)


def known(name: str, value: Any) -> float:
    """A parameter that decides what the solver is, as a Python float. Raises ValueError for one that JAX traces."""
    number = scalar(name, value)
    if not _check.concrete(value):
        raise ValueError(f"{name} is traced: must be a number that is known when the solver is made")
    return number


# ---- writing tables -------------------------------------------------------------------------------------------------


def numpy_for(sigmas: Any) -> ModuleType:
    """Where the arithmetic of coefficients is done: numpy (float64) if the sigmas are concrete, else jax.numpy."""
    return np if _check.concrete(sigmas) else jnp


def columns(sigma: Any, *coefficients: Any) -> Any:
    """[rows, k, ...] from k coefficients, each a number or of the shape of sigma [rows, ...]."""
    xp = numpy_for((sigma, coefficients))
    return xp.stack([xp.broadcast_to(c, sigma.shape) for c in coefficients], axis=1)


def interleave(*stages: Rows) -> Rows:
    """Stage 0 of step 0, stage 1 of step 0, ..., stage 0 of step 1, ...: the rows of a method of several stages."""
    xp = numpy_for(stages)

    def weave(*field: Any) -> Any:
        if all(f is None for f in field):
            return None
        return xp.stack(field, axis=1).reshape(-1, *field[0].shape[1:])

    rows = Rows(*(weave(*f) for f in zip(*stages, strict=True)))
    return rows._replace(ends=np.arange(len(stages) - 1, len(rows.sigma), len(stages)))


def single_step(
    order: int, evaluations: int, stages: Callable[[Any, Any], list[Rows]], stochastic: bool = False
) -> Solver:
    """A method of several stages a step, written for a step from s to t > 0: stages(s, t), arrays [steps, ...].

    The last step, where it leads to sigma = 0, is x = D(x, s): what Euler's method makes of it, and all one can do
    without an evaluation at 0. So nfe(n) = evaluations (n - 1) + 1. `stochastic`: whether the stages add noise.

    Raises: ValueError for arguments that are not as described.
    """
    _check.whole("evaluations", evaluations)
    _check.callable_("stages", stages, "stages(s, t) -> list of Rows")

    def rows(sigmas: Any, to_zero: bool) -> Rows:
        xp = numpy_for(sigmas)
        s, t = sigmas[:-1], sigmas[1:]
        if not to_zero:
            return interleave(*stages(s, t))
        # The step to 0 is computed to s / 2, to stay finite, then cut after its first stage, which becomes x = D.
        table = interleave(*stages(s, xp.concatenate([t[:-1], s[-1:] / 2])))
        kept = len(table.sigma) - evaluations + 1
        return end_at_zero(table._replace(ends=np.append(table.ends[:-1], kept - 1)), kept)

    return linear(order, lambda n: evaluations * (n - 1) + 1, rows, stochastic)


def end_at_zero(rows: Rows, kept: int) -> Rows:
    """The first `kept` rows, the last of them ending in x = D, which it remembers and takes without noise."""
    rows = Rows(*(None if f is None else f[:kept] for f in rows[:-1]))._replace(ends=rows.ends)
    xp = numpy_for(rows)
    zeros = [0] * (rows.point.shape[1] - 2)

    def end(field: Any, *last: Any) -> Any:
        return None if field is None else xp.concatenate([field[:-1], columns(rows.sigma[-1:], *last)])

    return rows._replace(
        point=end(rows.point, 0, 1, *zeros),
        state=end(rows.state, 0, 1, *zeros),
        value=end(rows.value, 0, 1),
        after=end(rows.after, 0, 0),
    )
