"""What a schedule is: a monotone map u in [0, 1] -> logSNR, its inverse, and its density.

With x_t = alpha x_0 + sigma_t eps, logsnr = 2 log(alpha / sigma_t) and sigma = sigma_t / alpha = exp(-logsnr / 2).
A decreasing map logsnr(u) is the quantile function of a distribution of logSNR: with u uniform on [0, 1],

    P(logsnr > lam) = u(lam),        density p(lam) = -du / dlam,

so choosing a schedule is choosing where training looks (Hang & Gu 2024, arXiv:2407.03297, section 2).

Both tails are exact. Next to u every schedule is given v = 1 - u, because in floating point 1 - (1 - 1e-9) is not 1e-9:
a formula that is sharp at u -> 1 reads v, and combinators hand on both.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffax._array import at_least_float32

__all__ = ["Schedule", "density_of", "from_quantile", "from_tails", "logsnr_from_sigma", "sigma_from_logsnr"]

_HALVINGS = 64  # of a bracket: to the last bit of float32 also where the answer is far smaller than the bracket


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A noise schedule.

    Call it for logSNR: `schedule(u)`, any shape, u in [0, 1] (0 clean, 1 noise), in float32 or better.
    `schedule.inverse(logsnr)` gives u back and `schedule.density(logsnr)` the density p(logsnr) = -du/dlogsnr, which is
    0 outside the range of the schedule.

    Fields (what a new schedule has to state; `from_quantile` and `from_tails` find what has no closed form):
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


def sigma_from_logsnr(logsnr: ArrayLike) -> Array:
    """sigma = exp(-logsnr / 2), the noise of x = x_0 + sigma n."""
    return jnp.exp(-at_least_float32(logsnr) / 2)


def logsnr_from_sigma(sigma: ArrayLike) -> Array:
    """logsnr = -2 log sigma."""
    return -2 * jnp.log(at_least_float32(sigma))


# ---- schedules of which only one direction has a closed form --------------------------------------------------------


def density_of(tails: Callable[[Array], tuple[Array, Array]]) -> Callable[[Array], Array]:
    """-du/dlogsnr by differentiation of the smaller tail, which keeps its relative precision.

    Beyond |logsnr| = 80, where float32 has no more room for exp(logsnr), it is 0.
    """

    def density(lam: Array) -> Array:
        lam = at_least_float32(lam)
        (u, v), (du, dv) = jax.jvp(tails, (jnp.clip(lam, -80, 80),), (jnp.ones_like(lam),))
        return jnp.where(jnp.abs(lam) > 80, 0, jnp.where(u < v, -du, dv))

    return density


def from_tails(
    tails: Callable[[Array], tuple[Array, Array]],
    bracket: Callable[[Array, Array], tuple[Array, Array]],
    density: Callable[[Array], Array] | None = None,
) -> Schedule:
    """A schedule from its distribution alone: logsnr(u) is found by bisection.

    bracket: (u, v) -> (low, high) logSNR between which the answer lies.
    """
    density = density_of(tails) if density is None else density

    def quantile(u: Array, v: Array) -> Array:
        def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = jnp.where(low == high, low, low + (high - low) / 2)
            a, b = tails(middle)
            beyond = jnp.where(u < v, a < u, b > v)  # the smaller tail is the sharper one
            return jnp.where(beyond, low, middle), jnp.where(beyond, middle, high)

        low, high = jax.lax.fori_loop(0, _HALVINGS, halve, jax.lax.stop_gradient(bracket(u, v)))
        middle = jax.lax.stop_gradient(jnp.where(jnp.isfinite(low + high), (low + high) / 2, low))
        # One Newton step, which carries the derivatives in u and in the parameters (implicit function theorem).
        a, b = tails(middle)
        slope = jnp.maximum(jax.lax.stop_gradient(density(middle)), jnp.finfo(middle.dtype).tiny)
        return _nudge(middle, jnp.where(u < v, a - u, v - b) / slope)

    return Schedule(quantile, tails, density)


def from_quantile(
    quantile: Callable[[Array, Array], Array],
    bracket: Callable[[Array], tuple[tuple[Array, Array], tuple[Array, Array]]] | None = None,
) -> Schedule:
    """A schedule from its formula logsnr(u, v) alone: the inverse is found by bisection, the density from its slope.

    bracket: logsnr -> ((u, v), (u, v)), two points between which the answer lies; [0, 1] by default.
    """

    def tails(lam: Array) -> tuple[Array, Array]:
        lam = at_least_float32(lam)
        zero, one = jnp.zeros_like(lam), jnp.ones_like(lam)
        first, second = ((zero, one), (one, zero)) if bracket is None else bracket(lam)
        swap = first[0] > second[0]
        clean = tuple(jnp.where(swap, s, f) for f, s in zip(first, second, strict=True))
        noisy = tuple(jnp.where(swap, f, s) for f, s in zip(first, second, strict=True))

        def halve(_: int, ends: tuple) -> tuple:
            clean, noisy = ends
            u, v = ((c + n) / 2 for c, n in zip(clean, noisy, strict=True))
            above = quantile(u, v) > lam  # still too clean
            return (
                (jnp.where(above, u, clean[0]), jnp.where(above, v, clean[1])),
                (jnp.where(above, noisy[0], u), jnp.where(above, noisy[1], v)),
            )

        clean, noisy = jax.lax.fori_loop(0, 2 * _HALVINGS, halve, jax.lax.stop_gradient((clean, noisy)))
        u, v = (jax.lax.stop_gradient((c + n) / 2) for c, n in zip(clean, noisy, strict=True))
        value, slope = _slope(u, v)
        step = (lam - value) / jax.lax.stop_gradient(slope)
        return jnp.clip(_nudge(u, step), 0, 1), jnp.clip(_nudge(v, -step), 0, 1)

    def _slope(u: Array, v: Array) -> tuple[Array, Array]:
        return jax.jvp(quantile, (u, v), (jnp.ones_like(u), -jnp.ones_like(v)))

    def density(lam: Array) -> Array:
        lam = at_least_float32(lam)
        u, v = tails(lam)
        value, slope = _slope(u, v)
        # Outside the range the inverse sticks to an end, where logsnr(u) is not lam.
        return jnp.where(jnp.abs(value - lam) < 1e-3 * (1 + jnp.abs(lam)), -1 / slope, 0)

    return Schedule(quantile, tails, density)


def _nudge(x: Array, step: Array) -> Array:
    """x + step, unless the step is no mere correction (where the density vanishes)."""
    return jnp.where(jnp.abs(step) <= 1e-3 * (1e-6 + jnp.abs(x)), x + step, x)
