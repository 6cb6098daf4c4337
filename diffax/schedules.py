"""Noise schedules: monotone maps u in [0, 1] -> logSNR, from clean (u = 0) to noise (u = 1).

With x_t = alpha x_0 + sigma_t eps, logsnr = 2 log(alpha / sigma_t) and sigma = sigma_t / alpha = exp(-logsnr / 2).
A decreasing map logsnr(u) is the quantile function of a distribution of logSNR: with u uniform on [0, 1],

    P(logsnr > lam) = u(lam),        density p(lam) = -du / dlam,

so choosing a schedule is choosing where training looks (Hang & Gu 2024, arXiv:2407.03297, section 2). One object
serves three uses: training draws u uniformly and looks up logSNR, sampling evaluates it on an even grid of u
(`sigmas`), and the likelihood integrates over it.

Both tails are exact. Next to u every schedule is given v = 1 - u, because in floating point 1 - (1 - 1e-9) is not 1e-9:
a formula that is sharp at u -> 1 reads v, and combinators hand on both. The families of infinite range (cosine, edm,
laplace, flow) reach logsnr = +-inf at the ends; `truncate` makes them finite.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtr, ndtri
from jax.typing import ArrayLike

from diffax import _check
from diffax._array import Scalar, at_least_float32

__all__ = [
    "Schedule",
    "cosine",
    "edm",
    "flow",
    "karras",
    "laplace",
    "logsnr_from_sigma",
    "shift",
    "sigma_from_logsnr",
    "sigmas",
    "truncate",
]


class Schedule(NamedTuple):
    """A noise schedule.

    Call it for logSNR: `schedule(u)`, any shape, u in [0, 1], in float32 or better. `schedule.inverse(logsnr)` gives
    u back and `schedule.density(logsnr)` the density p(logsnr) = -du/dlogsnr, 0 outside the range of the schedule.

    Fields (what a new schedule has to state):
      quantile: (u, v) -> logsnr, with v = 1 - u; decreasing in u.
      tails: logsnr -> (u, v), the inverse; u = P(greater logsnr), v = 1 - u.
      density: logsnr -> p(logsnr).
    """

    quantile: Callable[[Array, Array], Array]
    tails: Callable[[Array], tuple[Array, Array]]
    density: Callable[[Array], Array]

    def __call__(self, u: ArrayLike) -> Array:
        """logSNR at u in [0, 1] (0 clean, 1 noise)."""
        u = at_least_float32(u)
        return self.quantile(u, 1 - u)

    def inverse(self, logsnr: ArrayLike) -> Array:
        """u in [0, 1] at which the schedule has this logSNR."""
        return self.tails(at_least_float32(logsnr))[0]


# ---- families -------------------------------------------------------------------------------------------------------


def cosine() -> Schedule:
    """logsnr = -2 log tan(pi u / 2), i.e. alpha = cos(pi u / 2): the continuous cosine schedule.

    Nichol & Dhariwal 2021 (arXiv:2102.09672) without the offset s; p = sech(logsnr / 2) / (2 pi) (Hang & Gu 2024).
    """
    return Schedule(
        # cos(pi u / 2) is written sin(pi v / 2), sharp at u -> 1.
        quantile=lambda u, v: 2 * (jnp.log(jnp.sin(math.pi / 2 * v)) - jnp.log(jnp.sin(math.pi / 2 * u))),
        tails=lambda lam: (2 / math.pi * jnp.arctan(jnp.exp(-lam / 2)), 2 / math.pi * jnp.arctan(jnp.exp(lam / 2))),
        density=lambda lam: jnp.exp(-jnp.abs(lam) / 2) / (math.pi * (1 + jnp.exp(-jnp.abs(lam)))),
    )


def edm(p_mean: Scalar = -1.2, p_std: Scalar = 1.2) -> Schedule:
    """log sigma ~ Normal(p_mean, p_std^2): the training levels of EDM (Karras et al. 2022, arXiv:2206.00364, table 1).

    In logSNR it is Normal(-2 p_mean, (2 p_std)^2). Raises ValueError unless p_std > 0.
    """
    _check.finite("p_mean", p_mean)
    _check.positive("p_std", p_std)

    def quantile(u: Array, v: Array) -> Array:
        z = jnp.where(u < v, ndtri(u), -ndtri(v))  # the smaller tail is the sharper one
        return -2 * (p_mean + p_std * z)

    def tails(lam: Array) -> tuple[Array, Array]:
        z = -(lam / 2 + p_mean) / p_std
        return ndtr(z), ndtr(-z)

    def density(lam: Array) -> Array:
        z = (lam / 2 + p_mean) / p_std
        return jnp.exp(-(z**2) / 2) / (2 * p_std * math.sqrt(2 * math.pi))

    return Schedule(quantile, tails, density)


def flow() -> Schedule:
    """logsnr = 2 log((1 - u) / u): rectified flow / flow matching, alpha = 1 - u, sigma_t = u (arXiv:2209.03003).

    p = sech(logsnr / 4)^2 / 8.
    """
    return Schedule(
        quantile=lambda u, v: 2 * (jnp.log(v) - jnp.log(u)),
        tails=lambda lam: (jax.nn.sigmoid(-lam / 2), jax.nn.sigmoid(lam / 2)),
        density=lambda lam: jax.nn.sigmoid(lam / 2) * jax.nn.sigmoid(-lam / 2) / 2,
    )


def karras(sigma_min: Scalar = 0.002, sigma_max: Scalar = 80.0, rho: Scalar = 7.0) -> Schedule:
    """sigma^(1/rho) linear in u, from sigma_min to sigma_max (Karras et al. 2022, eq. 5).

    Raises ValueError unless 0 < sigma_min < sigma_max and rho > 0.
    """
    _check.positive("sigma_min", sigma_min)
    _check.positive("rho", rho)
    _check.positive("sigma_max", sigma_max)
    _check.less("sigma_min", sigma_min, "sigma_max", sigma_max)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)

    def tails(lam: Array) -> tuple[Array, Array]:
        root = jnp.clip(jnp.exp(-lam / (2 * rho)), low, high)
        return (root - low) / (high - low), (high - root) / (high - low)

    def density(lam: Array) -> Array:
        root = jnp.exp(-lam / (2 * rho))
        # The support is closed: rounding must not push its own ends outside.
        inside = (lam >= -2 * jnp.log(sigma_max) - 1e-5) & (lam <= -2 * jnp.log(sigma_min) + 1e-5)
        return jnp.where(inside, root / (2 * rho * (high - low)), 0)

    return Schedule(lambda u, v: -2 * rho * jnp.log(low * v + high * u), tails, density)


def laplace(mean: Scalar = 0.0, scale: Scalar = 0.5) -> Schedule:
    """logsnr ~ Laplace(mean, scale): Hang & Gu 2024 (arXiv:2407.03297), who take mean 0, scale 0.5 at 256 pixels.

    Raises ValueError unless scale > 0.
    """
    _check.finite("mean", mean)
    _check.positive("scale", scale)

    def tails(lam: Array) -> tuple[Array, Array]:
        z = (lam - mean) / scale
        near = jnp.exp(-jnp.abs(z)) / 2
        return jnp.where(z > 0, near, 1 - near), jnp.where(z > 0, 1 - near, near)

    return Schedule(
        quantile=lambda u, v: mean + scale * jnp.where(u < v, -jnp.log(2 * u), jnp.log(2 * v)),
        tails=tails,
        density=lambda lam: jnp.exp(-jnp.abs(lam - mean) / scale) / (2 * scale),
    )


# ---- combinators ----------------------------------------------------------------------------------------------------


def shift(schedule: Schedule, by: Scalar) -> Schedule:
    """Adds `by` to logSNR. A picture d times larger wants by = -2 log d (simple diffusion, arXiv:2301.11093)."""
    _check.finite("by", by)
    return Schedule(
        quantile=lambda u, v: schedule.quantile(u, v) + by,
        tails=lambda lam: schedule.tails(lam - by),
        density=lambda lam: schedule.density(lam - by),
    )


def truncate(schedule: Schedule, logsnr_min: Scalar, logsnr_max: Scalar) -> Schedule:
    """The distribution of `schedule` restricted to [logsnr_min, logsnr_max] and renormalised.

    u = 0 gives logsnr_max, u = 1 gives logsnr_min, nothing lies outside.

    Raises ValueError unless logsnr_min < logsnr_max, both are finite, and `schedule` has mass between them.
    """
    _check.finite("logsnr_min", logsnr_min)
    _check.finite("logsnr_max", logsnr_max)
    _check.less("logsnr_min", logsnr_min, "logsnr_max", logsnr_max)
    u0, v0 = schedule.tails(at_least_float32(logsnr_max))
    u1, v1 = schedule.tails(at_least_float32(logsnr_min))
    mass = jnp.where(u0 < v0, u1 - u0, v0 - v1)
    if _check.concrete(mass) and not np.all(mass > 0):
        raise ValueError(
            f"logsnr_min = {logsnr_min}, logsnr_max = {logsnr_max}: the schedule must have mass between them, "
            "and has none"
        )

    low, high = at_least_float32(logsnr_min), at_least_float32(logsnr_max)

    def quantile(u: Array, v: Array) -> Array:
        return jnp.clip(schedule.quantile(u0 * v + u1 * u, v0 * v + v1 * u), low, high)

    def tails(lam: Array) -> tuple[Array, Array]:
        u, v = schedule.tails(jnp.clip(lam, low, high))
        return jnp.clip((u - u0) / mass, 0, 1), jnp.clip((v - v1) / mass, 0, 1)

    def density(lam: Array) -> Array:
        return jnp.where((lam >= low) & (lam <= high), schedule.density(jnp.clip(lam, low, high)) / mass, 0)

    return Schedule(quantile, tails, density)


# ---- use as a sampling grid -----------------------------------------------------------------------------------------


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
    if not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"n = {n!r}: the number of steps must be an integer >= 1")
    points = n + 1 if final is None else n
    u = jnp.arange(points) / max(points - 1, 1)
    grid = sigma_from_logsnr(schedule.quantile(1 - u, u))
    if final is not None:
        grid = jnp.append(grid, jnp.asarray(final, grid.dtype))
    if _check.concrete(grid):
        if not np.isfinite(grid).all() or (final is None and not grid[-1] > 0):
            raise ValueError(
                "schedule reaches an infinite logSNR at an end of the grid: give it finite ends first, "
                "as in truncate(schedule, logsnr_min=-12, logsnr_max=12)"
            )
        if not np.all(np.diff(grid) < 0):
            raise ValueError(
                f"final = {final}: must lie in [0, {float(grid[-2] if len(grid) > 1 else grid[0])}), "
                "below the last sigma of the schedule"
            )
    return grid


def sigma_from_logsnr(logsnr: ArrayLike) -> Array:
    """sigma = exp(-logsnr / 2), the noise of x = x_0 + sigma n."""
    return jnp.exp(-at_least_float32(logsnr) / 2)


def logsnr_from_sigma(sigma: ArrayLike) -> Array:
    """logsnr = -2 log sigma."""
    return -2 * jnp.log(at_least_float32(sigma))
