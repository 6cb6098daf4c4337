"""Sampling: a denoiser, a start, a grid of sigmas and a solver, in one `lax.scan`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffax import _check, solvers
from diffax._array import at_least_float32, per_sample
from diffax.denoiser import Denoiser
from diffax.solvers.linear import Rows, Solver

__all__ = ["sample"]


def sample(
    denoise: Denoiser,
    x: ArrayLike,
    sigmas: ArrayLike,
    *,
    solver: Solver | None = None,
    key: Array | None = None,
    to_zero: bool = True,
) -> Array:
    """Integrates x from sigmas[0] down to sigmas[-1].

    Args:
      denoise: denoise(x, sigma) -> x0; sees sigma as a scalar, or as [batch] where the sigmas are per sample.
      x: the start, [batch, ...] at noise level sigmas[0], e.g. sigmas[0] * normal. Held in float32 or better.
      sigmas: [n + 1] or [n + 1, batch], strictly descending, >= 0; `dx.schedules.sigmas` makes them. Concrete values
        are checked and give float64 coefficients.
      solver: the method, `dx.solvers.heun()` by default.
      key: randomness for stochastic solvers; the deterministic ones do without.
      to_zero: whether traced sigmas (a grid being fitted, under jax.grad or jit) end at 0; concrete ones tell by
      themselves.

    Returns: the sample at sigmas[-1], of the shape of x.

    Raises: ValueError for sigmas or a solver that are not as described.
    """
    solver = solvers.heun() if solver is None else solver
    if not isinstance(solver, Solver):
        raise ValueError(f"solver = {solver!r}: must be a solver such as dx.solvers.heun()")
    x = at_least_float32(x)
    if x.ndim < 1 or x.shape[0] < 1:
        raise ValueError(f"x has shape {x.shape}: must be [batch, ...] with at least one sample")
    sigmas, to_zero = _grid(sigmas, x.shape[0], to_zero)
    # A table of numbers, so compile time does not grow with n and the denoiser is compiled once.
    rows = jax.tree.map(lambda c: jnp.asarray(c, x.dtype), solver.rows(sigmas, to_zero))

    def body(carry: tuple[Array, Array, list[Array]], row: Rows) -> tuple[tuple[Array, Array, list[Array]], None]:
        point, state, history = carry
        history = [denoise(point, row.sigma).astype(x.dtype), *history[:-1]]
        return (_combine(row.point, state, history), _combine(row.state, state, history), history), None

    history = [jnp.zeros_like(x)] * (rows.state.shape[1] - 1)
    (_, state, _), _ = jax.lax.scan(body, (x, x, history), rows)
    return state


def _combine(coefficients: Array, state: Array, history: list[Array]) -> Array:
    """sum_j coefficients[j] (state, *history)[j]."""
    terms = zip(coefficients, [state, *history], strict=True)
    return functools.reduce(jnp.add, (per_sample(c, state) * term for c, term in terms))


def _grid(sigmas: Any, batch: int, to_zero: bool) -> tuple[Any, bool]:
    """The sigmas, in numpy float64 where they are concrete, and whether they end at 0."""
    sigmas = jnp.asarray(sigmas) if not _check.concrete(sigmas) else np.asarray(sigmas, np.float64)
    if sigmas.ndim not in (1, 2) or sigmas.shape[0] < 2 or sigmas.shape[1:] not in ((), (batch,)):
        raise ValueError(f"sigmas has shape {sigmas.shape}: must be [n + 1] or [n + 1, batch = {batch}] with n >= 1")
    if isinstance(sigmas, np.ndarray):
        if not (np.isfinite(sigmas).all() and (sigmas >= 0).all() and (np.diff(sigmas, axis=0) < 0).all()):
            raise ValueError(f"sigmas = {sigmas}: must be finite, strictly descending and >= 0")
        ends = np.unique(sigmas[-1] == 0)
        if ends.size > 1:
            raise ValueError(f"sigmas[-1] = {sigmas[-1]}: must be 0 for every sample or for none")
        return sigmas, bool(ends[0])
    return sigmas, to_zero
