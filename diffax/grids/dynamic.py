"""Grids by dynamic programming over the levels of a fine one, from a few pilot trajectories.

Along a fine trajectory x_0, x_1, ..., x_M one step from x_i may be tried to every level j, once D(x_i) is known. Its
error is how far that step is bent away from the trajectory,

    cost[i, j] = mean_pilots || x_i + (sigma_j - sigma_i) eps_i - x_j || / sqrt(sigma_j^2 + c^2),

in units of the noisy data at level j. The grid of n steps with the least total cost is a shortest path (GITS, Chen et
al. 2024, arXiv:2405.11326). The step tried is Euler's: what it cannot follow is curvature, whatever the solver.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffax import _check
from diffax._array import per_sample
from diffax.denoiser import Denoiser
from diffax.grids.arguments import level, samples, whole
from diffax.sample import sample
from diffax.schedules import families, grid

__all__ = ["dynamic", "shortest_path"]


def dynamic(
    denoise: Denoiser,
    x: ArrayLike,
    n: int,
    *,
    sigma_max: float = 80.0,
    sigma_min: float = 0.002,
    sigma_data: float = 0.5,
    fine: int = 100,
) -> np.ndarray:
    """The n-step grid, out of the levels of a fine Karras grid, along which Euler steps stray least.

    Args:
      denoise: the model, denoise(x, sigma) -> x0 of the shape of x.
      x: pilots [pilots, ...], noise at sigma_max: sigma_max * normal. 32 do.
      n: number of steps, from 1 to `fine`.
      sigma_max, sigma_min: ends of the fine grid, which then steps to 0.
      sigma_data: c, the scale of the data.
      fine: steps of the fine grid, up to 2,000, which are the evaluations per pilot, and as many again for the denoised
        images. The costs are [fine, fine + 1] numbers.

    Returns: sigmas [n + 1] in float64, descending to 0.

    Raises: ValueError for arguments that are not as described, and if the denoiser gives NaN.
    """
    _check.callable_("denoise", denoise, "denoise(x, sigma) -> x0")
    x = samples("x", x)
    sigma_min, sigma_max = level("sigma_min", sigma_min), level("sigma_max", sigma_max)
    _check.less("sigma_min", sigma_min, "sigma_max", sigma_max)
    sigma_data = level("sigma_data", sigma_data)
    whole(fine=fine, most=2000)
    whole(n=n, most=fine)
    levels = np.array(grid.sigmas(families.karras(sigma_min, sigma_max), fine), np.float64)
    levels[0] = sigma_max

    @jax.jit
    def costs(x: Array) -> Array:
        path = sample(denoise, x, levels, trajectory=True)  # [fine + 1, pilots, ...]
        sigma = jnp.asarray(levels, path.dtype)
        scale = jnp.sqrt(sigma**2 + sigma_data**2)

        def row(i: Array) -> Array:
            value = _check.output("denoise", denoise(path[i], sigma[i]), path[i]).astype(path.dtype)
            eps = (path[i] - value) / sigma[i]
            reached = path[i] + per_sample(sigma - sigma[i], path) * eps
            square = jnp.mean((reached - path) ** 2, axis=tuple(range(2, path.ndim)))
            return jnp.mean(jnp.sqrt(square), axis=1) / scale

        return jax.lax.map(row, jnp.arange(fine))

    cost = np.asarray(costs(x), np.float64)
    if not np.isfinite(cost).all():
        raise ValueError(
            "denoise gives NaN or infinity on the pilots: must be finite; dx.sample(..., check=True) tells where"
        )
    return levels[shortest_path(cost, n)]


def shortest_path(cost: np.ndarray, n: int) -> np.ndarray:
    """The n + 1 nodes 0 = i_0 < i_1 < ... < i_n = M of least sum of cost[i_k, i_{k+1}]; cost [M, M + 1], M >= n."""
    size = cost.shape[1]
    forward = np.where(np.arange(size)[None] > np.arange(size - 1)[:, None], cost, np.inf)
    best, came = np.full(size, np.inf), []
    best[0] = 0
    for _ in range(n):
        total = best[:-1, None] + forward
        came.append(np.argmin(total, axis=0))
        best = np.min(total, axis=0)
    nodes = [size - 1]
    for previous in reversed(came):
        nodes.append(previous[nodes[-1]])
    return np.array(nodes[::-1])
