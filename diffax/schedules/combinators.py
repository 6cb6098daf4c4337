"""Schedules made from schedules. A composition is exact, and under jit it is the formula one would have written."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import betainc, betaln
from jax.typing import ArrayLike

from diffax import _check
from diffax._array import Scalar, at_least_float32, clip
from diffax.schedules.schedule import Schedule, density_of, from_quantile, from_tails

__all__ = [
    "Curriculum",
    "anneal",
    "beta",
    "interpolate",
    "mix",
    "power",
    "scale",
    "shift",
    "truncate",
    "zero_terminal_snr",
]


def shift(schedule: Schedule, by: Scalar) -> Schedule:
    """Adds `by` to logSNR. A picture d times larger wants by = -2 log d (simple diffusion, arXiv:2301.11093)."""
    _check.finite("by", by)
    return Schedule(
        quantile=lambda u, v: schedule.quantile(u, v) + by,
        tails=lambda lam: schedule.tails(lam - by),
        density=lambda lam: schedule.density(lam - by),
    )


def scale(schedule: Schedule, by: Scalar) -> Schedule:
    """Multiplies logSNR by `by` > 0: widens (> 1) or narrows (< 1) the distribution about logSNR 0."""
    _check.positive("by", by)
    return Schedule(
        quantile=lambda u, v: schedule.quantile(u, v) * by,
        tails=lambda lam: schedule.tails(lam / by),
        density=lambda lam: schedule.density(lam / by) / by,
    )


def power(schedule: Schedule, exponent: Scalar) -> Schedule:
    """`schedule` at u^exponent: more of its clean end for exponent > 1, more of its noisy end below 1. exponent > 0."""
    _check.positive("exponent", exponent)

    def tails(lam: Array) -> tuple[Array, Array]:
        u, v = schedule.tails(lam)
        return u ** (1 / exponent), -jnp.expm1(jnp.log1p(-v) / exponent)

    def density(lam: Array) -> Array:
        u, _ = schedule.tails(lam)
        u = jnp.maximum(u, jnp.finfo(u.dtype).tiny)  # above the range the density is 0, not 0 times infinity
        return schedule.density(lam) * u ** (1 / exponent - 1) / exponent

    return Schedule(lambda u, v: schedule.quantile(u**exponent, -jnp.expm1(exponent * jnp.log1p(-v))), tails, density)


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
        tiny = jnp.finfo(u.dtype).tiny  # where float32 has no room for the tail that is cut off
        lam = schedule.quantile(jnp.maximum(u0 * v + u1 * u, tiny), jnp.maximum(v0 * v + v1 * u, tiny))
        inside = clip(lam, low, high)
        mended = lam + jax.lax.stop_gradient(inside - lam)  # of rounding, with the slope kept
        return jnp.where(jnp.isfinite(lam), mended, inside)

    def tails(lam: Array) -> tuple[Array, Array]:
        u, v = schedule.tails(clip(lam, low, high))
        # Both differences are taken in the tail that is the smaller one, hence the sharper.
        below = jnp.where(u0 < v0, u - u0, v0 - v) / mass
        above = jnp.where(u1 < v1, u1 - u, v - v1) / mass
        return clip(below, 0, 1), clip(above, 0, 1)

    def density(lam: Array) -> Array:
        return jnp.where((lam >= low) & (lam <= high), schedule.density(clip(lam, low, high)) / mass, 0)

    return Schedule(quantile, tails, density)


def mix(schedules: Sequence[Schedule], weights: ArrayLike | None = None) -> Schedule:
    """The mixture of the schedules' densities, sum_k weights_k p_k; equal weights by default, normalised here.

    logsnr(u) is found by bisection between the schedules' own values. Raises ValueError unless there is a schedule, and
    as many weights, all > 0.
    """
    if not schedules:
        raise ValueError("schedules = []: must hold at least one schedule")
    if weights is None:
        weights = np.ones(len(schedules))
    if np.shape(weights) != (len(schedules),):
        raise ValueError(
            f"weights has shape {np.shape(weights)}: must have one entry for each of {len(schedules)} schedules"
        )
    _check.positive("weights", weights)
    shares = jnp.asarray(weights) / jnp.sum(jnp.asarray(weights))

    def tails(lam: Array) -> tuple[Array, Array]:
        both = [s.tails(lam) for s in schedules]
        return _sum(w * u for w, (u, _) in zip(shares, both, strict=True)), _sum(
            w * v for w, (_, v) in zip(shares, both, strict=True)
        )

    def density(lam: Array) -> Array:
        return _sum(w * s.density(lam) for w, s in zip(shares, schedules, strict=True))

    def bracket(u: Array, v: Array) -> tuple[Array, Array]:
        each = [s.quantile(u, v) for s in schedules]
        return functools.reduce(jnp.minimum, each), functools.reduce(jnp.maximum, each)

    return from_tails(tails, bracket, density)


def beta(schedule: Schedule, a: float = 0.6, b: float = 0.6) -> Schedule:
    """`schedule` at Beta(a, b) quantiles of u: for a, b < 1 more of both ends, for a, b > 1 more of the middle.

    Grids of the beta schedule of Lee et al. 2024 (arXiv:2407.12173), who take 0.6 and 0.6 in the time of the model, as
    in beta(linear_betas()). The quantile is found by bisection; a and b are numbers, to which JAX has no gradient.

    Raises ValueError unless a > 0 and b > 0.
    """
    _check.positive("a", a)
    _check.positive("b", b)

    def law(logit: Array) -> tuple[Array, Array]:
        """The Beta distribution of sigmoid(-logit): both tails without 1 - u."""
        below, above = jax.nn.sigmoid(-logit), jax.nn.sigmoid(logit)
        return betainc(a, b, below), betainc(b, a, above)

    logits = from_tails(law, lambda u, v: (jnp.full_like(u, -80), jnp.full_like(u, 80)))

    def quantile(u: Array, v: Array) -> Array:
        logit = logits.quantile(u, v)
        low, high = jax.nn.sigmoid(-logit), jax.nn.sigmoid(logit)
        clean, noisy = u <= 0, v <= 0  # the ends are those of the schedule
        return schedule.quantile(
            jnp.where(clean, 0, jnp.where(noisy, 1, low)), jnp.where(clean, 1, jnp.where(noisy, 0, high))
        )

    def tails(lam: Array) -> tuple[Array, Array]:
        u, v = schedule.tails(lam)
        return betainc(a, b, u), betainc(b, a, v)

    def density(lam: Array) -> Array:
        u, v = (jnp.maximum(tail, jnp.finfo(lam.dtype).tiny) for tail in schedule.tails(lam))
        return schedule.density(lam) * jnp.exp((a - 1) * jnp.log(u) + (b - 1) * jnp.log(v) - betaln(a, b))

    return Schedule(quantile, tails, density)


def interpolate(a: Schedule, b: Schedule, weight: Scalar) -> Schedule:
    """logsnr = (1 - weight) a(u) + weight b(u), 0 <= weight <= 1: the straight path between the two distributions.

    Of two shifted cosines it is the "interpolated" schedule of simple diffusion (arXiv:2301.11093). Both ends must be
    finite, or infinite alike. The inverse is found by bisection between those of a and b.
    """
    _check.between("weight", weight, 0, 1)

    def quantile(u: Array, v: Array) -> Array:
        first, second = a.quantile(u, v), b.quantile(u, v)
        return jnp.where(first == second, first, first + weight * (second - first))  # also where both are infinite

    return from_quantile(quantile, lambda lam: (a.tails(lam), b.tails(lam)))


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """A schedule for each step of training: call it with the step, which may be traced."""

    at: Callable[[ArrayLike], Schedule]

    def __call__(self, step: ArrayLike) -> Schedule:
        return self.at(step)


def anneal(a: Schedule, b: Schedule, over: int) -> Curriculum:
    """A curriculum: `anneal(a, b, over)(step)` is a at step 0, b from step `over` on, and on the straight path between
    them meanwhile, so the distribution moves with training. The step may be traced.

    Noise that rises in training, the second reading of the "improved noise schedule" (see Hang & Gu 2024, whose paper
    itself has a fixed density): anneal(s, shift(s, by=-2.0), over=100_000). Raises ValueError unless over >= 1.
    """
    if over < 1:
        raise ValueError(f"over = {over}: must be at least 1 step")
    return Curriculum(lambda step: interpolate(a, b, jnp.clip(at_least_float32(step) / over, 0, 1)))


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Moves alpha linearly so that u = 1 is pure noise: alpha' = (alpha - alpha(1)) alpha(0) / (alpha(0) - alpha(1)).

    Lin et al. 2023 (arXiv:2305.08891, algorithm 1). logsnr(1) is then -inf; `truncate` it to sample.
    """
    zero, one = jnp.zeros(()), jnp.ones(())
    end = schedule.quantile(one, zero)
    alpha_end, alpha_start = _alpha(end), _alpha(schedule.quantile(zero, one))
    stretch = alpha_start / (alpha_start - alpha_end)

    def quantile(u: Array, v: Array) -> Array:
        lam = schedule.quantile(u, v)
        # alpha - alpha_end = (alpha^2 - alpha_end^2) / (alpha + alpha_end), the squares' difference being exact
        rise = jax.nn.sigmoid(lam) * jax.nn.sigmoid(-end) * -jnp.expm1(end - lam) / (_alpha(lam) + alpha_end)
        return _logsnr_of_alpha(stretch * rise)

    def tails(lam: Array) -> tuple[Array, Array]:
        return schedule.tails(_logsnr_of_alpha(_alpha(lam) / stretch + alpha_end))

    return Schedule(quantile, tails, density_of(tails))


def _alpha(lam: Array) -> Array:
    return jnp.sqrt(jax.nn.sigmoid(lam))


def _logsnr_of_alpha(alpha: Array) -> Array:
    return 2 * jnp.log(alpha) - jnp.log1p(-jnp.minimum(alpha, 1.0)) - jnp.log1p(alpha)


def _sum(terms) -> Array:
    return functools.reduce(jnp.add, terms)
