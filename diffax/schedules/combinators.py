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
from diffax._array import Scalar, alpha, at_least_float32, clip
from diffax.schedules import arguments
from diffax.schedules.inversion import bisected_quantile, bisected_tails, density_of
from diffax.schedules.schedule import Schedule

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
    schedule, by = arguments.base(schedule), arguments.finite("by", by)
    return Schedule(
        quantile=lambda u, v: schedule.quantile(u, v) + by,
        tails=lambda lam: schedule.tails(lam - by),
        density=lambda lam: schedule.density(lam - by),
    )


def scale(schedule: Schedule, by: Scalar) -> Schedule:
    """Multiplies logSNR by `by` > 0: widens (> 1) or narrows (< 1) the distribution about logSNR 0."""
    schedule, by = arguments.base(schedule), arguments.positive("by", by)
    return Schedule(
        quantile=lambda u, v: schedule.quantile(u, v) * by,
        tails=lambda lam: schedule.tails(lam / by),
        density=lambda lam: schedule.density(lam / by) / by,
    )


def power(schedule: Schedule, exponent: Scalar) -> Schedule:
    """`schedule` at u^exponent: more of its clean end for exponent > 1, more of its noisy end below 1. exponent > 0."""
    schedule, exponent = arguments.base(schedule), arguments.positive("exponent", exponent)

    def density(lam: Array) -> Array:
        u, v = schedule.tails(lam)
        u = jnp.maximum(u, jnp.finfo(u.dtype).tiny)  # above the range the density is 0, not 0 times infinity
        return schedule.density(lam) * _raised(u, v, 1 / exponent - 1)[0] / exponent

    return Schedule(
        quantile=lambda u, v: schedule.quantile(*_raised(u, v, exponent)),
        tails=lambda lam: _raised(*schedule.tails(lam), 1 / exponent),
        density=density,
    )


def _raised(u: Array, v: Array, exponent: Scalar) -> tuple[Array, Array]:
    """u^exponent and 1 - u^exponent, from the smaller of the tails u and v = 1 - u, which is the sharper one."""
    near = exponent * jnp.log1p(-jnp.minimum(v, 0.75))  # exponent log u; unused beyond 1/2
    some = jnp.where(u > 0, u, 1)
    far = jnp.where(u > 0, -jnp.expm1(exponent * jnp.log(some)), 1)
    return jnp.where(u < v, u**exponent, jnp.exp(near)), jnp.where(u < v, far, -jnp.expm1(near))


def truncate(schedule: Schedule, logsnr_min: Scalar, logsnr_max: Scalar) -> Schedule:
    """The distribution of `schedule` restricted to [logsnr_min, logsnr_max] and renormalised.

    u = 0 gives logsnr_max, u = 1 gives logsnr_min, nothing lies outside.

    Raises ValueError unless logsnr_min < logsnr_max, both are finite, and `schedule` has mass between them.
    """
    schedule = arguments.base(schedule)
    logsnr_min, logsnr_max = arguments.finite("logsnr_min", logsnr_min), arguments.finite("logsnr_max", logsnr_max)
    _check.less("logsnr_min", logsnr_min, "logsnr_max", logsnr_max)
    with jax.ensure_compile_time_eval():  # constants under jit too, unless they depend on traced parameters
        low, high = at_least_float32(logsnr_min), at_least_float32(logsnr_max)
        (u0, v0), (u1, v1) = schedule.tails(high), schedule.tails(low)
        mass = jnp.where(u0 < v0, u1 - u0, v0 - v1)
        # Its own ends, which lie inside where the schedule is narrower.
        first, last = clip(schedule.quantile(u0, v0), low, high), clip(schedule.quantile(u1, v1), low, high)
    if _check.concrete(mass) and not (np.asarray(mass) > 0).all():
        raise ValueError(
            f"logsnr_min = {logsnr_min}, logsnr_max = {logsnr_max}: the schedule must have mass between them, "
            "and has none"
        )

    def quantile(u: Array, v: Array) -> Array:
        tiny = jnp.finfo(u.dtype).tiny  # where float32 has no room for the tail that is cut off
        lam = schedule.quantile(jnp.maximum(u0 * v + u1 * u, tiny), jnp.maximum(v0 * v + v1 * u, tiny))
        inside = jnp.where(u <= 0, first, jnp.where(v <= 0, last, clip(lam, low, high)))
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
    if not isinstance(schedules, list | tuple):
        raise ValueError(
            f"schedules = {_check.shown(schedules)}: must be a list of schedules such as "
            "[dx.schedules.cosine(), dx.schedules.edm()]"
        )
    if not schedules:
        raise ValueError("schedules = []: must hold at least one schedule")
    schedules = [arguments.base(s, f"schedules[{i}]") for i, s in enumerate(schedules)]
    weights = np.ones(len(schedules)) if weights is None else weights
    _check.positive("weights", weights)
    if np.shape(weights) != (len(schedules),):
        raise ValueError(
            f"weights has shape {np.shape(weights)}: must have one entry for each of {len(schedules)} schedules"
        )
    with jax.ensure_compile_time_eval():
        shares = at_least_float32(jnp.asarray(weights))
        shares = shares / shares.sum()

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

    return bisected_quantile(tails, bracket, density)


def beta(schedule: Schedule, a: Scalar = 0.6, b: Scalar = 0.6) -> Schedule:
    """`schedule` at Beta(a, b) quantiles of u: for a, b < 1 more of both ends, for a, b > 1 more of the middle.

    Grids of the beta schedule of Lee et al. 2024 (arXiv:2407.12173), who take 0.6 and 0.6 in the time of the model, as
    in beta(linear_betas()). The quantile is found by bisection; a and b are numbers, to which JAX has no gradient.

    Raises ValueError unless a > 0 and b > 0.
    """
    schedule, a, b = arguments.base(schedule), arguments.positive("a", a), arguments.positive("b", b)

    def law(logit: Array) -> tuple[Array, Array]:
        """The Beta distribution of sigmoid(-logit): both tails without 1 - u."""
        below, above = jax.nn.sigmoid(-logit), jax.nn.sigmoid(logit)
        return betainc(a, b, below), betainc(b, a, above)

    logits = bisected_quantile(law, lambda u, v: (-80.0, 80.0))

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

    Of two shifted cosines it is the "interpolated" schedule of simple diffusion (arXiv:2301.11093). Where a or b is
    infinite, so is the path, unless the weight of that one is 0. The inverse is found by bisection between those of a
    and b.

    Raises ValueError unless a and b are schedules and weight is in [0, 1].
    """
    a, b = arguments.base(a, "a"), arguments.base(b, "b")
    weight = arguments.between("weight", weight, 0, 1)

    def quantile(u: Array, v: Array) -> Array:
        first, second = a.quantile(u, v), b.quantile(u, v)
        known = jnp.isfinite(first) & jnp.isfinite(second)
        start, end = jnp.where(known, first, 0), jnp.where(known, second, 0)  # also for finite derivatives
        infinite = jnp.where(jnp.isinf(first), first, second)
        limit = jnp.where(weight == 0, first, jnp.where(weight == 1, second, infinite))
        return jnp.where(known, start + weight * (end - start), limit)

    return bisected_tails(quantile, lambda lam: (a.tails(lam), b.tails(lam)))


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """A schedule for each step of training: call it with the step, a finite number, which may be traced."""

    at: Callable[[ArrayLike], Schedule]

    def __post_init__(self) -> None:
        _check.callable_("at", self.at, "at(step) -> Schedule")

    def __call__(self, step: ArrayLike) -> Schedule:
        return arguments.base(self.at(arguments.finite("step", step)), "at(step)")


def anneal(a: Schedule, b: Schedule, over: int) -> Curriculum:
    """A curriculum: `anneal(a, b, over)(step)` is a at step 0, b from step `over` on, and on the straight path between
    them meanwhile, so the distribution moves with training. The step may be traced.

    Noise that rises in training, the second reading of the "improved noise schedule" (see Hang & Gu 2024, whose paper
    itself has a fixed density): anneal(s, shift(s, by=-2.0), over=100_000). Raises ValueError unless over >= 1.
    """
    a, b, steps = arguments.base(a, "a"), arguments.base(b, "b"), arguments.positive("over", over)
    if np.ndim(steps) or not _check.concrete(steps) or steps < 1:
        raise ValueError(f"over = {_check.shown(over)}: must be at least 1 step")

    def at(step: ArrayLike) -> Schedule:
        with jax.ensure_compile_time_eval():  # the share of a step that is a number is a number under jit too
            share = jnp.clip(at_least_float32(step) / float(steps), 0, 1)
        return interpolate(a, b, share)

    return Curriculum(at)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Moves alpha linearly so that u = 1 is pure noise: alpha' = (alpha - alpha(1)) alpha(0) / (alpha(0) - alpha(1)).

    Lin et al. 2023 (arXiv:2305.08891, algorithm 1). logsnr(0) stays, logsnr(1) is then -inf; `truncate` it to sample.
    """
    schedule = arguments.base(schedule)
    with jax.ensure_compile_time_eval():  # constants under jit too, unless they depend on traced parameters
        zero, one = jnp.zeros(()), jnp.ones(())
        start, end = schedule.quantile(zero, one), schedule.quantile(one, zero)
        a0, log_a0, log_a1 = alpha(start), _log_alpha(start), _log_alpha(end)
        fall = -jnp.expm1(log_a1 - log_a0)  # 1 - alpha(1) / alpha(0)

    # Nothing cancels: each difference is written as a sum of positive terms, in logarithms.

    def quantile(u: Array, v: Array) -> Array:
        lam = schedule.quantile(u, v)
        log_a = _log_alpha(lam)
        # alpha - alpha(1) = (alpha^2 - alpha(1)^2) / (alpha + alpha(1))
        rise = _log_difference(lam, end) - log_a - jnp.log1p(jnp.exp(log_a1 - log_a))
        # 1 - alpha' = (1 - alpha) + alpha(1) (alpha(0) - alpha) / (alpha(0) - alpha(1))
        rest = jnp.exp(log_a1 - log_a0) / fall * jnp.exp(jax.nn.log_sigmoid(start)) * _less(start, lam)
        rest = rest / (a0 + alpha(lam)) + 1 / (1 + alpha(lam))  # times sigmoid(-lam)
        found = _logsnr(rise - jnp.log(fall), jax.nn.log_sigmoid(-lam) + jnp.log(rest))
        return jnp.where(lam == end, -jnp.inf, jnp.where(lam == start, lam, found))

    def tails(lam: Array) -> tuple[Array, Array]:
        # alpha = alpha' (1 - alpha(1) / alpha(0)) + alpha(1)
        log_a = jnp.logaddexp(_log_alpha(lam) + jnp.log(fall), log_a1)
        # 1 - alpha = alpha(1) (1 - alpha(0)) / alpha(0) + (1 - alpha') (1 - alpha(1) / alpha(0))
        ends = log_a1 - log_a0 + _log_rest(start)
        return schedule.tails(_logsnr(log_a, jnp.logaddexp(ends, _log_rest(lam) + jnp.log(fall))))

    return Schedule(quantile, tails, density_of(tails))


def _log_alpha(lam: Array) -> Array:
    return jax.nn.log_sigmoid(lam) / 2


def _log_rest(lam: Array) -> Array:
    """log(1 - alpha)."""
    return jax.nn.log_sigmoid(-lam) - jnp.log1p(alpha(lam))


def _less(high: Array, low: Array) -> Array:
    """1 - exp(low - high), also where both are infinite."""
    return jnp.where(low == high, 0, -jnp.expm1(jnp.where(low == high, 0, low - high)))


def _log_difference(high: Array, low: Array) -> Array:
    """log(sigmoid(high) - sigmoid(low))."""
    return jax.nn.log_sigmoid(high) + jax.nn.log_sigmoid(-low) + jnp.log(_less(high, low))


def _logsnr(log_alpha: Array, log_rest: Array) -> Array:
    """logSNR of log(alpha) and log(1 - alpha)."""
    return 2 * log_alpha - log_rest - jnp.log1p(jnp.exp(log_alpha))


def _sum(terms) -> Array:
    return functools.reduce(jnp.add, terms)
