"""A schedule used as a sampling grid."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffax import _check
from diffax.schedules.schedule import Schedule, sigma_from_logsnr

__all__ = ["Levels", "sigmas"]

_MOST = 1_000_000  # steps


class Levels(np.ndarray):
    """Sigmas whose values are known, as an array of numpy that a traced number may index.

    A slice of an array of JAX is traced under jax.jit; a slice of these still has its values there. So a function of a
    part of a grid gives the same with jit and without. They are read-only; `levels.at[i].set(sigma)` gives a changed
    copy, as an array of JAX.
    """

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index) if _check.concrete(index) else jnp.asarray(self)[index]

    @property
    def at(self) -> Any:
        return jnp.asarray(self).at


def sigmas(schedule: Schedule, n: int, final: float | None = 0.0) -> Array | Levels:
    """The n-step sampling grid of `schedule`: sigma at even u from 1 to 0, then `final`.

    Args:
      schedule: a schedule with finite ends.
      n: number of steps, from 1 to a million.
      final: sigma after the last step, 0 for clean data. None spends all n + 1 points on the schedule, so the last
        sigma is the one at u = 0 and is positive.

    Returns: [n + 1] sigmas in float32 (in float64 under x64), strictly descending, as `dx.sample` takes them. They are
      an array of numpy, see `Levels`, under jax.jit too; an array of JAX where the schedule or `final` is traced.

    Raises: ValueError if n < 1, if the schedule is infinite at u = 1 (or at u = 0, where that is used), if `final` is
      not below the schedule's sigmas, or if float32 cannot tell two levels apart.
    """
    schedule = _check.instance("schedule", schedule, Schedule, "dx.schedules.karras()")
    _check.whole("n", n, 1, _MOST)
    if final is not None:
        must = "be >= 0 and below the last sigma of the schedule, or None"
        value = _check.real("final", final, must)
        if np.ndim(final) or (value is not None and not 0 <= value < np.inf):
            raise ValueError(f"final = {_check.shown(final)}: must {must}")
    if shape := jax.eval_shape(schedule, 0.5).shape:
        raise ValueError(f"schedule gives logSNR of shape {shape} at one u: must be one schedule, not one per sample")
    points = n + 1 if final is None else n
    with jax.ensure_compile_time_eval():  # under jit too the grid is a constant, unless the schedule is traced
        u = jnp.arange(points) / max(points - 1, 1)
        grid = sigma_from_logsnr(schedule.quantile(1 - u, u))
        if final is not None:
            grid = jnp.append(grid, jnp.asarray(final, grid.dtype))
    if not _check.concrete(grid):
        return grid
    values = np.asarray(grid)
    _check_levels(values, n, final)
    return values.view(Levels)


def _check_levels(values: np.ndarray, n: int, final: float | None) -> None:
    own = values if final is None else values[:-1]  # of the schedule
    if not np.isfinite(own).all() or not (own > 0).all():
        raise ValueError(
            f"schedule has sigma {own[0]} at u = 1 and {own[-1]} at u = 0: must be positive and finite; give it finite "
            "ends first, as in truncate(schedule, logsnr_min=-12, logsnr_max=12)"
        )
    if (wrong := np.flatnonzero(np.diff(own) >= 0)).size:
        i = int(wrong[0])
        if own[i] < own[i + 1]:
            raise ValueError(f"schedule: logsnr(u) must fall as u rises, but sigma rises from {own[i]} to {own[i + 1]}")
        raise ValueError(
            f"n = {n}: levels {i} and {i + 1} of the grid are both {own[i]} in {own.dtype}: must be fewer steps, or a "
            "schedule with less of its mass there"
        )
    if final is not None and not values[-1] < own[-1]:
        raise ValueError(f"final = {final}: must be below the last sigma of the schedule, {own[-1]}")
