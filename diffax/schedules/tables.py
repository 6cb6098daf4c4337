"""Schedules given as numbers: any array of sigmas or betas, the betas of published models, align-your-steps tables.

Between its entries a table is linear in logSNR, that is log-linear in sigma, the interpolation that Align Your Steps
prescribes for other numbers of steps (Sabour et al. 2024, arXiv:2404.14507).
"""

import difflib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffax import _check
from diffax._array import at_least_float32, clip
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
      sigmas: [k], k >= 2, positive, strictly ascending (u = 0 to 1) or descending (as grids are written). They may be
        traced.

    Raises: ValueError unless they are, in float32 too.
    """
    _check.positive("sigmas", sigmas)
    if np.ndim(sigmas) != 1 or np.size(sigmas) < 2:
        raise ValueError(f"sigmas has shape {np.shape(sigmas)}: must be [k] with k >= 2")
    if not _check.concrete(sigmas):
        table = at_least_float32(jnp.asarray(sigmas))
        return _piecewise(-2 * jnp.log(jnp.where(table[0] > table[-1], table[::-1], table)))
    array = np.asarray(sigmas, np.float64)
    if array[0] > array[-1]:
        array = array[::-1]
    if not (np.diff(array) > 0).all():
        raise ValueError(f"sigmas = {_check.shown(sigmas)}: must be strictly ascending or strictly descending")
    logsnr = -2 * np.log(array)
    if (same := np.flatnonzero(np.diff(np.float32(logsnr)) == 0)).size:
        near = array[same[0]], array[same[0] + 1]
        raise ValueError(f"sigmas holds {near[0]} and {near[1]}, of the same logSNR in float32: must be farther apart")
    return _piecewise(logsnr)


def from_betas(betas: ArrayLike) -> Schedule:
    """The schedule of a DDPM with these betas, u = 0 being its first step and u = 1 its last.

    alpha_bar_t = prod (1 - beta), sigma_t = sqrt((1 - alpha_bar_t) / alpha_bar_t), tabulated in float64.

    Args:
      betas: [steps], in (0, 1), steps >= 2. Traced ones are tabulated in their own dtype.

    Raises: ValueError unless they are, and unless logSNR falls at each step in float32 too.
    """
    values = _check.real("betas", betas, "be numbers in (0, 1)")
    if np.ndim(betas) != 1 or np.size(betas) < 2:
        raise ValueError(f"betas has shape {np.shape(betas)}: must be [steps] with steps >= 2")
    if values is None:
        log_alpha_bar = jnp.cumsum(jnp.log1p(-at_least_float32(betas)))
        return _piecewise(log_alpha_bar - jnp.log(-jnp.expm1(log_alpha_bar)))
    outside = values[~((values > 0) & (values < 1))]
    if outside.size:
        raise ValueError(f"betas contains {outside[0]}: each must lie in (0, 1)")
    log_signal = np.cumsum(np.log1p(-values))
    logsnr = log_signal - np.log(-np.expm1(log_signal))
    if (same := np.flatnonzero(np.diff(np.float32(logsnr)) >= 0)).size:
        step = int(same[0]) + 1
        raise ValueError(f"betas[{step}] = {values[step]}: must be large enough to lower logSNR in float32")
    return _piecewise(logsnr)


def linear_betas(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """The betas of DDPM, linear from beta_start to beta_end (Ho et al. 2020, arXiv:2006.11239).

    Raises ValueError unless steps is an integer >= 2, and beta_start and beta_end are numbers in (0, 1).
    """
    return from_betas(np.linspace(*_ends(steps, beta_start, beta_end), steps))


def scaled_linear_betas(steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Schedule:
    """The betas of latent diffusion, their square roots linear (Rombach et al. 2022); defaults: Stable Diffusion.

    Raises ValueError unless steps is an integer >= 2, and beta_start and beta_end are numbers in (0, 1).
    """
    first, last = _ends(steps, beta_start, beta_end)
    return from_betas(np.linspace(first**0.5, last**0.5, steps) ** 2)


def align_your_steps(model: str = "stable_diffusion_15") -> Schedule:
    """The published 10-step table of a model (Sabour et al. 2024), to be used as a grid of any number of steps.

    The ten published steps, with their 11 levels, are `sigmas(align_your_steps(model), 10, final=None)`. With
    `final=0.0` the grid has the schedule's levels at 10 even u, which are others, and then 0.

    model: stable_diffusion_15, stable_diffusion_xl, deepfloyd_if or stable_video_diffusion; ValueError for others.
    """
    if not isinstance(model, str) or model not in _ALIGN_YOUR_STEPS:
        near = difflib.get_close_matches(str(model), _ALIGN_YOUR_STEPS, n=1)
        raise ValueError(
            f"model = {_check.shown(model)}: must be one of {', '.join(_ALIGN_YOUR_STEPS)}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return tabulated(_ALIGN_YOUR_STEPS[model])


def _ends(steps: Any, beta_start: Any, beta_end: Any) -> tuple[float, float]:
    """The ends of a table of betas, checked."""
    _check.whole("steps", steps, 2, 1_000_000)
    for name, value in (("beta_start", beta_start), ("beta_end", beta_end)):
        number = _check.real(name, value, "lie in (0, 1)")
        if number is None or number.ndim or not 0 < number < 1:
            raise ValueError(f"{name} = {_check.shown(value)}: must lie in (0, 1)")
    return float(beta_start), float(beta_end)


def _piecewise(logsnr: ArrayLike) -> Schedule:
    """Linear between the given logSNRs, descending, at even u."""
    with jax.ensure_compile_time_eval():  # constants under jit too, unless the table is traced
        knots = jnp.asarray(logsnr)
        slope = jnp.diff(knots)  # per piece, negative
    pieces = knots.shape[0] - 1

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
