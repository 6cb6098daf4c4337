"""Schedules given as numbers: any array of sigmas or betas, the betas of published models, align-your-steps tables.

Between its entries a table is linear in logSNR, that is log-linear in sigma, the interpolation that Align Your Steps
prescribes for other numbers of steps (Sabour et al. 2024, arXiv:2404.14507).
"""

import difflib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffax import _check
from diffax._array import clip
from diffax.schedules.schedule import Schedule

__all__ = ["align_your_steps", "from_betas", "linear_betas", "scaled_linear_betas", "tabulated"]

_ALIGN_YOUR_STEPS = {  # 10 steps, 11 levels, from the paper's supplement
    "stable_diffusion_15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "stable_diffusion_xl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "deepfloyd_if": (160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030, 0.006),
    "stable_video_diffusion": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def tabulated(sigmas: ArrayLike | Sequence[float]) -> Schedule:
    """A schedule through the given sigmas at even u, log-linear between them.

    Args:
      sigmas: [k], k >= 2, positive, strictly ascending (u = 0 to 1) or descending (as grids are written).

    Raises: ValueError unless they are.
    """
    if _check.concrete(sigmas):
        array = np.asarray(sigmas, np.float64)
        if array.ndim != 1 or array.size < 2:
            raise ValueError(f"sigmas has shape {array.shape}: must be [k] with k >= 2")
        _check.positive("sigmas", array)
        if array[0] > array[-1]:
            array = array[::-1]
        if not (np.diff(array) > 0).all():
            raise ValueError(f"sigmas = {sigmas}: must be strictly ascending or strictly descending")
        sigmas = array
    return _piecewise(-2 * (np if _check.concrete(sigmas) else jnp).log(sigmas))


def from_betas(betas: ArrayLike) -> Schedule:
    """The schedule of a DDPM with these betas, u = 0 being its first step and u = 1 its last.

    alpha_bar_t = prod (1 - beta), sigma_t = sqrt((1 - alpha_bar_t) / alpha_bar_t), tabulated in float64.

    Args:
      betas: [steps], in (0, 1), steps >= 2.

    Raises: ValueError unless they are.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or betas.size < 2:
        raise ValueError(f"betas has shape {betas.shape}: must be [steps] with steps >= 2")
    outside = betas[~((betas > 0) & (betas < 1))]
    if outside.size:
        raise ValueError(f"betas contains {outside[0]}: each must lie in (0, 1)")
    log_alpha_bar = np.cumsum(np.log1p(-betas))
    return _piecewise(log_alpha_bar - np.log(-np.expm1(log_alpha_bar)))


def linear_betas(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """The betas of DDPM, linear from beta_start to beta_end (Ho et al. 2020, arXiv:2006.11239)."""
    _steps(steps)
    return from_betas(np.linspace(beta_start, beta_end, steps))


def scaled_linear_betas(steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Schedule:
    """The betas of latent diffusion, their square roots linear (Rombach et al. 2022); defaults: Stable Diffusion."""
    _steps(steps)
    if not 0 < beta_start < 1:
        raise ValueError(f"beta_start = {beta_start}: must lie in (0, 1)")
    if not 0 < beta_end < 1:
        raise ValueError(f"beta_end = {beta_end}: must lie in (0, 1)")
    return from_betas(np.linspace(beta_start**0.5, beta_end**0.5, steps) ** 2)


def align_your_steps(model: str = "stable_diffusion_15") -> Schedule:
    """The published 10-step table of a model (Sabour et al. 2024), to be used as a grid of any number of steps.

    model: stable_diffusion_15, stable_diffusion_xl, deepfloyd_if or stable_video_diffusion; ValueError for others.
    """
    if model not in _ALIGN_YOUR_STEPS:
        near = difflib.get_close_matches(str(model), _ALIGN_YOUR_STEPS, n=1)
        raise ValueError(
            f"model = {model!r}: must be one of {', '.join(_ALIGN_YOUR_STEPS)}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return tabulated(_ALIGN_YOUR_STEPS[model])


def _steps(steps: int) -> None:
    if steps < 2:
        raise ValueError(f"steps = {steps}: must be at least 2")


def _piecewise(logsnr: ArrayLike) -> Schedule:
    """Linear between the given logSNRs, descending, at even u."""
    knots = jnp.asarray(logsnr)
    pieces = knots.shape[0] - 1
    slope = jnp.diff(knots)  # per piece, negative

    def quantile(u: Array, v: Array) -> Array:
        piece = jnp.clip(jnp.floor(u * pieces).astype(int), 0, pieces - 1)
        # the distance from the nearer end of the table, which v knows better than 1 - u
        along = jnp.where(u < v, u * pieces - piece, (pieces - piece) - v * pieces)
        return knots[piece] + slope[piece] * along

    def place(lam: Array) -> tuple[Array, Array]:
        lam = clip(lam, knots[-1], knots[0])
        piece = jnp.clip(jnp.searchsorted(-knots, -lam, side="right") - 1, 0, pieces - 1)
        return piece, (lam - knots[piece]) / slope[piece]

    def tails(lam: Array) -> tuple[Array, Array]:
        piece, along = place(lam)
        return (piece + along) / pieces, (pieces - 1 - piece + (1 - along)) / pieces

    def density(lam: Array) -> Array:
        piece, _ = place(lam)
        return jnp.where((lam >= knots[-1]) & (lam <= knots[0]), -1 / (pieces * slope[piece]), 0)

    return Schedule(quantile, tails, density)
