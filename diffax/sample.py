"""Sampling: a denoiser, a start, a grid of sigmas and a solver, in one `lax.scan`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffax import _check, noise, solvers
from diffax._array import at_least_float32
from diffax.denoiser import Denoiser
from diffax.solvers.linear import Solver

__all__ = ["sample"]


def sample(
    denoise: Denoiser,
    x: ArrayLike,
    sigmas: ArrayLike,
    *,
    solver: Solver | None = None,
    key: Array | None = None,
    index: ArrayLike | None = None,
    trajectory: bool = False,
    check: bool = False,
    to_zero: bool = True,
) -> Array:
    """Integrates x from sigmas[0] to sigmas[-1]: from noise to data, or, on ascending sigmas, from data to noise.

    Put it under jax.jit with the function that calls it, as any JAX computation: it is one loop over the evaluations,
    in which the denoiser is compiled once.

    Args:
      denoise: denoise(x, sigma) -> x0; sees sigma as a scalar, or as [batch] where the sigmas are per sample, or
        [batch, ...] where they are per pixel.
      x: the start, [batch, ...] at noise level sigmas[0], e.g. sigmas[0] * normal. Held in float32 or better.
      sigmas: [n + 1] or [n + 1, batch], strictly descending to a last one >= 0; `dx.schedules.sigmas` and `dx.grids`
        make them. Or strictly ascending from a first one > 0, to find the noise of an image (deterministic solvers).
        Concrete values are checked and give float64 coefficients. Where each pixel has levels of its own,
        [n + 1, batch, ...] with the axes of x, each as long as that of x or 1; all pixels go down together, step by
        step (not with `solvers.adaptive`).
      solver: the method, `dx.solvers.default()` if it is not given.
      key: randomness for stochastic solvers; the deterministic ones do without.
      index: [batch] int, the samples' numbers; 0, 1, ... by default. Sample i draws from fold_in(key, index[i]) alone,
        so it does not depend on the batch that it is in.
      trajectory: return the states at all sigmas, [n + 1, batch, ...], the first being x.
      check: report the first NaN or infinity that the denoiser gives. It waits for the result, so not under jit.
      to_zero: whether traced sigmas (a grid being fitted, under jax.grad or jit) end at 0; concrete ones tell by
        themselves.

    Returns: the sample at sigmas[-1], of the shape of x; or the trajectory.

    Raises: ValueError for sigmas, a solver or a denoiser that are not as described and for a stochastic solver without
      a key; with `check` FloatingPointError naming the step and the sigma where a non-finite number began.
    """
    solver = solvers.default() if solver is None else solver
    if not isinstance(solver, Solver):
        raise ValueError(f"solver = {solver!r}: must be a solver such as dx.solvers.heun()")
    if solver.stochastic and key is None:
        raise ValueError("key is missing: this solver draws noise, give it a key such as jax.random.key(0)")
    x = at_least_float32(x)
    if x.ndim < 1 or x.shape[0] < 1:
        raise ValueError(f"x has shape {x.shape}: must be [batch, ...] with at least one sample")
    index = jnp.arange(x.shape[0]) if index is None else jnp.asarray(index)
    if index.shape != x.shape[:1]:
        raise ValueError(f"index has shape {index.shape}: must be [batch] = {x.shape[:1]}")
    if not jnp.issubdtype(index.dtype, jnp.integer):
        raise ValueError(f"index is of {index.dtype}: must be integers")
    sigmas, to_zero = _grid(sigmas, x.shape, to_zero)
    if solver.stochastic and isinstance(sigmas, np.ndarray) and (sigmas[0] < sigmas[-1]).any():
        raise ValueError("sigmas ascend: only deterministic solvers lead from data to noise")
    if np.ndim(sigmas) > 2 and solver.nfe(1) is None:
        raise ValueError(
            "sigmas are per pixel: the solver must take the steps of the grid, not its own as adaptive does"
        )
    rows = solver.rows(sigmas, to_zero)
    ends = rows.ends
    # A table of numbers, so compile time does not grow with n and the denoiser is compiled once.
    rows = jax.tree.map(lambda c: jnp.asarray(c, x.dtype), rows._replace(ends=None))

    def denoised(x: Array, sigma: Array) -> Array:
        value = denoise(x, sigma)
        if jnp.shape(value) != x.shape:  # else it might be broadcast, silently
            raise ValueError(f"denoise gave shape {jnp.shape(value)} for x of shape {x.shape}: must be the same")
        return value

    def body(carry: tuple[Array, ...], at: tuple[Any, Any]) -> tuple[tuple[Array, ...], tuple[Any, Any]]:
        number, row = at

        def draw(stream: int) -> Array:
            assert key is not None
            return noise.normal(jax.random.fold_in(key, 2 * number + stream), index, x.shape[1:], x.dtype)

        carry = solver.step(denoised, carry, row, draw)
        return carry, (carry[0] if trajectory else None, jnp.isfinite(carry[0]).all() if check else None)

    count = len(rows.sigma)
    carry, (path, finite) = jax.lax.scan(body, solver.init(x, rows), (jnp.arange(count), rows))
    if check:
        _report(finite, rows.sigma, ends)
    return jnp.concatenate([x[None], path if ends is None else path[ends]]) if trajectory else carry[0]


def _report(finite: Array, sigma: Array, ends: np.ndarray | None) -> None:
    if not _check.concrete(finite):
        raise ValueError("check = True: must not be under jit, since it looks at numbers")
    if not finite.all():
        row = int(jnp.argmin(finite))
        step = row if ends is None else int(np.searchsorted(ends, row))
        raise FloatingPointError(
            f"denoise gave a non-finite number at step {step + 1}, evaluation {row + 1} of {len(finite)}, "
            f"sigma = {np.asarray(sigma[row])}; before it all were finite"
        )


def _grid(sigmas: Any, shape: tuple[int, ...], to_zero: bool) -> tuple[Any, bool]:
    """The sigmas, in numpy float64 where they are concrete, and whether they end at 0."""
    sigmas = np.asarray(sigmas, np.float64) if _check.concrete(sigmas) else at_least_float32(sigmas)
    batch, each = shape[0], sigmas.shape[1:]
    per_pixel = len(each) == len(shape) and each[0] == batch
    per_pixel = per_pixel and all(a in (1, b) for a, b in zip(each, shape, strict=True))
    if sigmas.ndim < 1 or sigmas.shape[0] < 2 or not (each in ((), (batch,)) or per_pixel):
        raise ValueError(
            f"sigmas has shape {sigmas.shape}: must be [n + 1] or [n + 1, batch = {batch}] with n >= 1, or per pixel "
            f"[n + 1, ...] with the axes {shape} of x"
        )
    if isinstance(sigmas, np.ndarray):
        steps = np.diff(sigmas, axis=0)
        descending, ascending = (steps < 0).all(), (steps > 0).all() and (sigmas > 0).all()
        if not (np.isfinite(sigmas).all() and (sigmas >= 0).all() and (descending or ascending)):
            raise ValueError(
                f"sigmas = {sigmas}: must be finite, strictly descending and >= 0, or strictly ascending and > 0"
            )
        ends = np.unique(sigmas[-1] == 0)
        if ends.size > 1:
            raise ValueError(f"sigmas[-1] = {sigmas[-1]}: must be 0 for every sample or for none")
        return sigmas, bool(ends[0])
    return sigmas, to_zero
