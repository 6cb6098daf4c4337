"""Sampling: a denoiser, a start, a grid of sigmas and a solver, in one `lax.scan`."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffax import _check, solvers
from diffax import noise as noises
from diffax._array import at_least_float32
from diffax.denoiser import Denoiser
from diffax.schedules import Schedule
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
    noise: Callable[[Array, int], Array] | None = None,
    trajectory: bool = False,
    check: bool = False,
    to_zero: bool | None = None,
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
        Concrete values are checked and give float64 coefficients. Traced ones that are not so give NaN. Where each
        pixel has levels of its own, [n + 1, batch, ...] with the axes of x, each as long as that of x or 1; all pixels
        go down together, step by step (not with `solvers.adaptive`).
      solver: the method, `dx.solvers.default()` if it is not given.
      key: randomness for stochastic solvers; the deterministic ones do without.
      index: [batch] int, the samples' numbers; 0, 1, ... by default. Sample i draws from fold_in(key, index[i]) alone,
        so it does not depend on the batch that it is in.
      noise: a stochastic solver's own numbers, instead of those of a key: noise(evaluation, stream) -> standard normal
        [batch, ...]. The evaluation is counted from 0 and is traced; the stream is 0 for noise before the evaluation, 1
        for noise after it. With numbers from elsewhere, z [evaluations, batch, ...]: noise=lambda i, stream: z[i].
      trajectory: return the states at all sigmas, [n + 1, batch, ...], the first being x.
      check: report the first NaN or infinity that the denoiser gives. It waits for the result, so not under jit.
      to_zero: whether sigmas[-1] is 0. Concrete sigmas tell by themselves. Traced ones (a grid being fitted, a grid cut
        up under jit) do not, since the step to 0 is another one, so there it must be said.

    Returns: the sample at sigmas[-1], of the shape of x; or the trajectory.

    Raises: ValueError for sigmas, a solver or a denoiser that are not as described and for a stochastic solver without
      a key; with `check` FloatingPointError naming the step and the sigma where a non-finite number began.

    Warns: where x cannot be at noise level sigmas[0], being far smaller than that noise or far greater.
    """
    _check.callable_("denoise", denoise, "denoise(x, sigma) -> x0")
    solver = solvers.default() if solver is None else _check.instance("solver", solver, Solver, "dx.solvers.heun()")
    x = _check.samples("x", x)
    if key is not None:
        key = noises.threefry(key)
    if noise is not None:
        _check.callable_("noise", noise, "noise(evaluation, stream) -> normal numbers of the shape of x")
    if solver.stochastic and key is None and noise is None:
        raise ValueError("key is missing: this solver draws noise, give it a key such as jax.random.key(0)")
    _check.flags(trajectory=trajectory, check=check)
    index = _check.index(index, x.shape[0])
    sigmas, to_zero, valid = _grid(sigmas, x.shape, to_zero)
    if solver.stochastic and isinstance(sigmas, np.ndarray) and (sigmas[0] < sigmas[-1]).any():
        raise ValueError("sigmas ascend: only deterministic solvers lead from data to noise")
    if np.ndim(sigmas) > 2 and solver.nfe(1) is None:
        raise ValueError(
            "sigmas are per pixel: the solver must take the steps of the grid, not its own as adaptive does"
        )
    _at_level(x, sigmas)
    x = x if valid is None else jnp.where(valid, x, jnp.nan)
    rows = solver.rows(sigmas, to_zero)
    ends = rows.ends
    # A table of numbers, so compile time does not grow with n and the denoiser is compiled once.
    rows = jax.tree.map(lambda c: jnp.asarray(c, x.dtype), rows._replace(ends=None))

    def denoised(x: Array, sigma: Array) -> Array:
        return _check.output("denoise", denoise(x, sigma), x)

    def body(carry: tuple[Array, ...], at: tuple[Any, Any]) -> tuple[tuple[Array, ...], tuple[Any, Any]]:
        number, row = at

        def draw(stream: int) -> Array:
            if noise is not None:
                return _check.output("noise", noise(number, stream), x).astype(x.dtype)
            assert key is not None
            return noises.normal(jax.random.fold_in(key, 2 * number + stream), index, x.shape[1:], x.dtype)

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


def _grid(sigmas: Any, shape: tuple[int, ...], to_zero: bool | None) -> tuple[Any, bool, Array | None]:
    """The sigmas, in numpy float64 where they are concrete; whether they end at 0; and, where they are traced, whether
    they are a grid that ends so, which is known when they have values."""
    if isinstance(sigmas, Schedule) or callable(sigmas):
        given = "a Schedule" if isinstance(sigmas, Schedule) else "a function"
        raise ValueError(f"sigmas is {given}: must be an array, such as dx.schedules.sigmas(dx.schedules.karras(), n)")
    values = _check.real("sigmas", sigmas, "be an array [n + 1] with n >= 1")
    array = jnp.asarray(sigmas) if values is None else values
    batch, each = shape[0], array.shape[1:]
    if array.ndim < 1 or array.shape[0] < 2 or not (each in ((), (batch,)) or _check.per_pixel(each, shape)):
        raise ValueError(
            f"sigmas has shape {array.shape}: must be [n + 1] or [n + 1, batch = {batch}] with n >= 1, or per pixel "
            f"[n + 1, ...] with the axes {shape} of x"
        )
    _check.one_of("to_zero", to_zero, (None, True, False))
    if values is not None:
        steps = np.diff(values, axis=0)
        descending, ascending = (steps < 0).all(), (steps > 0).all() and (values > 0).all()
        if not (np.isfinite(values).all() and (values >= 0).all() and (descending or ascending)):
            raise ValueError(
                f"sigmas = {_check.shown(values)}: must be finite, strictly descending and >= 0, or strictly ascending "
                "and > 0"
            )
        ends = np.unique(values[-1] == 0)
        if ends.size > 1:
            raise ValueError(f"sigmas[-1] = {_check.shown(values[-1])}: must be 0 for every sample or for none")
        if to_zero is not None and to_zero != ends[0]:
            raise ValueError(f"to_zero = {to_zero}: must be {bool(ends[0])} for sigmas[-1] = {values[-1].max()}")
        return values, bool(ends[0]), None
    if to_zero is None:
        raise ValueError(
            "to_zero is missing: traced sigmas, such as a grid made or cut up under jit, do not tell whether the last "
            "one is 0; it must be True or False, or the sigmas be made outside of jit"
        )
    grid = at_least_float32(sigmas)
    gaps = jnp.diff(grid, axis=0)
    ordered = (gaps < 0).all() if to_zero else (gaps < 0).all() | (gaps > 0).all()
    last = (grid[-1] == 0).all() if to_zero else (grid > 0).all()
    return grid, to_zero, ordered & last & jnp.isfinite(grid).all()


def _at_level(x: Array, sigmas: Any) -> None:
    """Warns where x, on its way down, is far from what noise of sigmas[0] and data of order one are together."""
    if not _check.concrete(x, sigmas) or sigmas[0].min() <= sigmas[-1].max() or x.size < 32:
        return
    size, sigma = float(jnp.sqrt(jnp.mean(jnp.square(x)))), float(np.sqrt(np.mean(sigmas[0] ** 2)))
    if size < sigma / 2 or (sigma >= 20 and size > 4 * sigma):
        warnings.warn(
            f"x has root mean square {size:.3g} at sigmas[0] = {sigma:.3g}: that of x = x0 + sigmas[0] * normal should "
            "be about sigmas[0]",
            stacklevel=3,
        )
