"""What all libraries share: the grids that each can be given, and the judgement of end points. NumPy only."""

from collections.abc import Callable

import numpy as np

from experiments.bench.targets import SIGMA_MAX, SIGMA_MIN

__all__ = ["GRIDS", "errors", "exponential", "karras", "vp", "vp_to_zero"]

BETA_MIN, BETA_MAX = 0.1, 20.0


def karras(n: int, rho: float = 7.0) -> np.ndarray:
    """n sigmas at even steps of sigma^(1 / rho), then 0."""
    return np.append(np.linspace(SIGMA_MAX ** (1 / rho), SIGMA_MIN ** (1 / rho), n) ** rho, 0.0)


def exponential(n: int, lowest: float = SIGMA_MIN) -> np.ndarray:
    """n sigmas at even steps of log sigma, then 0."""
    return np.append(np.geomspace(SIGMA_MAX, lowest, n), 0.0)


def vp(n: int) -> np.ndarray:
    """n sigmas at even times of the variance-preserving SDE, then 0."""
    return np.append(_vp_sigma(np.linspace(_vp_time(SIGMA_MAX), _vp_time(SIGMA_MIN), n)), 0.0)


def vp_to_zero(n: int) -> np.ndarray:
    """n + 1 sigmas at even times of the variance-preserving SDE, the last replaced by 0: diffusers' default."""
    return np.append(_vp_sigma(np.linspace(_vp_time(SIGMA_MAX), _vp_time(SIGMA_MIN), n + 1)[:-1]), 0.0)


GRIDS: dict[str, Callable[[int], np.ndarray]] = {"karras": karras, "exp": exponential, "vp": vp, "vpown": vp_to_zero}


def errors(found: np.ndarray, end: np.ndarray) -> dict[str, float]:
    """Mean and median over the seeds of the root mean square error per dimension."""
    if not np.isfinite(found).all():
        raise ValueError("not finite")
    each = np.sqrt(((np.asarray(found, np.float64) - end) ** 2).reshape(len(end), -1).mean(-1))
    return {"mean": float(each.mean()), "median": float(np.median(each))}


def _vp_time(sigma: float) -> float:
    """t of 1 + sigma^2 = exp(beta_min t + (beta_max - beta_min) t^2 / 2)."""
    total, rise = np.log1p(sigma**2), BETA_MAX - BETA_MIN
    return 2 * total / (BETA_MIN + np.sqrt(BETA_MIN**2 + 2 * rise * total))


def _vp_sigma(t: np.ndarray) -> np.ndarray:
    return np.sqrt(np.expm1(t * (BETA_MIN + (BETA_MAX - BETA_MIN) / 2 * t)))
