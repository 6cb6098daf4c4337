"""The form that every explicit linear solver takes: a table with one row per evaluation of the denoiser.

After each evaluation an explicit Runge-Kutta or multistep method knows the state x at the start of its step and the
last few denoised images, D_0 (the newest), D_1, ...; what it does next is a linear combination of them. So a method
*is* its coefficients, functions of the sigmas alone, and `dx.sample` runs any of them by one `lax.scan` over the rows:

    D_0    = denoise(point, sigma)
    point <- point[0] x + point[1] D_0 + point[2] D_1 + ...       where the next evaluation happens
    x     <- state[0] x + state[1] D_0 + state[2] D_1 + ...       the state; after the last row, the solution

Concrete sigmas give coefficients in float64, at trace time; traced ones (a grid being fitted) are differentiated.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffax import _check

__all__ = ["Rows", "Solver", "columns", "interleave", "numpy_for"]


class Rows(NamedTuple):
    """The table: sigma [rows, ...], point and state [rows, 1 + history, ...], where "..." is nothing or [batch]."""

    sigma: Any
    point: Any
    state: Any


class Solver(NamedTuple):
    """A sampling method.

    Fields:
      order: order of convergence of the end point in the largest step.
      nfe: nfe(n) evaluations of the denoiser on a grid of n steps that ends at sigma = 0.
      rows: (sigmas [n + 1] or [n + 1, batch], whether the last one is 0) -> `Rows`.
    """

    order: int
    nfe: Callable[[int], int]
    rows: Callable[[Any, bool], Rows]


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
    return Rows(*(xp.stack(f, axis=1).reshape(-1, *f[0].shape[1:]) for f in zip(*stages, strict=True)))
