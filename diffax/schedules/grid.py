"""A schedule used as a sampling grid."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffax import _check
from diffax.schedules.schedule import Schedule, sigma_from_logsnr

__all__ = ["sigmas"]


def sigmas(schedule: Schedule, n: int, final: float | None = 0.0) -> Array:
    """The n-step sampling grid of `schedule`: sigma at even u from 1 to 0, then `final`.

    Args:
      schedule: a schedule with finite ends.
      n: number of steps, >= 1.
      final: sigma after the last step, 0 for clean data. None spends all n + 1 points on the schedule, so the last
        sigma is the one at u = 0 and is positive.

    Returns: [n + 1] sigmas, strictly descending, as `dx.sample` takes them.

    Raises: ValueError if n < 1, or if the schedule is infinite at u = 1 (or at u = 0, where that is used).
    """
    _check.whole("n", n)
    if final is not None and not 0 <= final < np.inf:
        raise ValueError(f"final = {final}: must be >= 0 and below the last sigma of the schedule, or None")
    points = n + 1 if final is None else n
    with jax.ensure_compile_time_eval():  # under jit too the grid is a constant, unless the schedule is traced
        u = jnp.arange(points) / max(points - 1, 1)
        grid = sigma_from_logsnr(schedule.quantile(1 - u, u))
        if final is not None:
            grid = jnp.append(grid, jnp.asarray(final, grid.dtype))
    if _check.concrete(grid):
        values = np.asarray(grid)
        if not np.isfinite(values).all() or (final is None and not values[-1] > 0):
            raise ValueError(
                "schedule reaches an infinite logSNR at an end of the grid: give it finite ends first, "
                "as in truncate(schedule, logsnr_min=-12, logsnr_max=12)"
            )
        if not np.all(np.diff(values) < 0):
            raise ValueError(f"final = {final}: must be below the last sigma of the schedule, {values[-2]}")
    return grid
