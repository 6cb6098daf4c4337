"""Schedules with a closed form in one direction alone: the other direction is found by bisection.

`from_quantile` begins with the formula logsnr(u), `from_tails` with the distribution u(logsnr).
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffax import _check
from diffax._array import at_least_float32
from diffax.schedules.schedule import SIGNATURES, Schedule

__all__ = ["bisected_quantile", "bisected_tails", "density_of", "from_quantile", "from_tails"]

_HALVINGS = 64  # of a bracket: to the last bit of float32 also where the answer is far smaller than the bracket
_NOTHING = 1e-30  # a density so small says that a tail has underflowed, not that the law ends
Bracket = tuple[tuple[Array, Array], tuple[Array, Array]]


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
    bracket: Callable[[Array, Array], tuple[Any, Any]] | None = None,
    density: Callable[[Array], Array] | None = None,
) -> Schedule:
    """A schedule from its distribution alone: logsnr(u) is found by bisection.

    The logistic distribution has logsnr(u) = log((1 - u) / u):

        schedule = from_tails(lambda logsnr: (jax.nn.sigmoid(-logsnr), jax.nn.sigmoid(logsnr)))

    At u = 0 and u = 1 the answer is the end of the distribution's support, if the density is positive just inside it,
    and otherwise the end of the bracket. So it is +-inf there for a distribution without ends, as the logistic one.

    Args:
      tails: logsnr -> (u, v) = (P(greater logsnr), P(smaller logsnr)). u falls, v rises, and u + v = 1. Each must be
        sharp where it is small: 1 - u is no v.
      bracket: (u, v) -> (low, high) logSNR between which the answer lies, either of which may be infinite; (-inf, inf)
        by default. A narrow one saves some steps.
      density: logsnr -> p(logsnr); the derivative of `tails` by default.

    Raises: ValueError unless they are functions of these arguments, and `tails` are those of a distribution at some
      levels between -20 and 20. A function of traced parameters is not tried.
    """
    _takes("tails", tails, 1, SIGNATURES["tails"])
    if bracket is not None:
        _takes("bracket", bracket, 2, "(u, v) -> (low, high)")
    if density is not None:
        _takes("density", density, 1, SIGNATURES["density"])
    schedule = bisected_quantile(tails, bracket, density)
    levels = (-20.0, -8.0, -3.0, -1.0, 0.0, 1.0, 3.0, 8.0, 20.0)
    with jax.ensure_compile_time_eval():
        found = [schedule.tails(jnp.float32(level)) for level in levels]
        heights = [schedule.density(jnp.float32(level)) for level in levels]
        ends = None if bracket is None else bracket(jnp.float32(0.5), jnp.float32(0.5))
    if bracket is not None and not _pair(ends):
        raise ValueError(f"bracket gave {_check.shown(ends)}: must give a pair (low, high)")
    if _check.concrete(found):
        u, v = (np.stack([np.asarray(pair[i], np.float64) for pair in found]) for i in (0, 1))
        _proper("u", u, np.diff(u, axis=0) <= 1e-6, "fall", levels)
        _proper("v", v, np.diff(v, axis=0) >= -1e-6, "rise", levels)
        if (apart := np.abs(u + v - 1).reshape(len(levels), -1).max(1)).max() > 1e-3:
            at = int(apart.argmax())
            raise ValueError(f"tails gave u = {u[at]}, v = {v[at]} at logsnr = {levels[at]}: must sum to 1")
    if _check.concrete(heights) and not (np.asarray(heights) >= 0).all():
        raise ValueError(f"density gave {np.asarray(heights).tolist()} at logsnr = {list(levels)}: must be >= 0")
    return schedule


def from_quantile(
    quantile: Callable[[Array, Array], Array],
    bracket: Callable[[Array], Bracket] | None = None,
) -> Schedule:
    """A schedule from its formula logsnr(u, v) alone: the inverse is found by bisection, the density from its slope.

    A schedule whose log sigma is linear in u, from 0.01 to 50:

        schedule = from_quantile(lambda u, v: -2 * (v * math.log(0.01) + u * math.log(50)))

    Args:
      quantile: (u, v) -> logsnr, v being 1 - u. It falls as u rises; write v where the formula is sharp at u -> 1.
      bracket: logsnr -> ((u, v), (u, v)), two points between which the answer lies; [0, 1] by default.

    Raises: ValueError unless they are functions of these arguments, and `quantile` gives numbers that fall at some u
      from 0.05 to 0.95. A function of traced parameters is not tried.
    """
    _takes("quantile", quantile, 2, SIGNATURES["quantile"])
    if bracket is not None:
        _takes("bracket", bracket, 1, "(logsnr) -> ((u, v), (u, v))")
    schedule = bisected_tails(quantile, bracket)
    shares = (0.05, 0.25, 0.5, 0.75, 0.95)
    with jax.ensure_compile_time_eval():
        found = [schedule.quantile(jnp.float32(u), jnp.float32(1 - u)) for u in shares]
        ends = None if bracket is None else bracket(found[2])
    if bracket is not None and not (_pair(ends) and all(_pair(end) for end in ends or ())):
        raise ValueError(f"bracket gave {_check.shown(ends)}: must give two pairs ((u, v), (u, v))")
    if _check.concrete(found):
        values = np.stack([np.asarray(f, np.float64) for f in found])
        if not np.isfinite(values).all():
            raise ValueError(f"quantile gave {values.tolist()} at u = {list(shares)}: must be finite inside (0, 1)")
        if (np.diff(values, axis=0) > 0).any() or not (values[0] > values[-1]).all():
            raise ValueError(
                f"quantile gave {values.tolist()} at u = {list(shares)}: must fall as u rises, from clean to noise"
            )
    return schedule


def _takes(name: str, function: Any, count: int, signature: str) -> None:
    """Raise ValueError unless `function` can be called with so many arguments."""
    _check.callable_(name, function, signature)
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        raise ValueError(f"{name} takes other arguments: must be a function {signature}") from None
    except ValueError:  # a function that does not tell
        pass


def _pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2


def _proper(name: str, share: np.ndarray, ordered: np.ndarray, must: str, levels: tuple[float, ...]) -> None:
    if not ((share >= -1e-6) & (share <= 1 + 1e-6)).all():
        raise ValueError(f"tails gave {name} = {share.tolist()} at logsnr = {list(levels)}: must lie in [0, 1]")
    if not ordered.all():
        raise ValueError(
            f"tails gave {name} = {share.tolist()} at logsnr = {list(levels)}: must {must} as logsnr rises"
        )


# ---- bisection ------------------------------------------------------------------------------------------------------


def bisected_quantile(
    tails: Callable[[Array], tuple[Array, Array]],
    bracket: Callable[[Array, Array], tuple[Any, Any]] | None,
    density: Callable[[Array], Array] | None = None,
) -> Schedule:
    """`from_tails` without trying the functions, for those that are known to be right."""
    density = density_of(tails) if density is None else density

    def quantile(u: Array, v: Array) -> Array:
        if bracket is None:
            shape = jnp.broadcast_shapes(u.shape, jax.eval_shape(tails, u)[0].shape)
            given = -jnp.inf, jnp.inf
            bottom, top = (jnp.full(shape, end, u.dtype) for end in given)
        else:
            given = bracket(u, v)
            bottom, top = _alike(u, *jax.lax.stop_gradient(given))
        closed = _check.concrete(given) and np.isfinite(given[0]).all() and np.isfinite(given[1]).all()
        least = jnp.maximum(u, jnp.finfo(u.dtype).tiny)  # at u = 0 the least logSNR that nothing exceeds is sought

        def narrowed(ends: tuple[Array, Array], at: Array) -> tuple[Array, Array]:
            a, b = tails(at)
            beyond = jnp.where(u < v, a < least, b > v)  # the smaller tail is the sharper one
            return jnp.where(beyond, ends[0], at), jnp.where(beyond, at, ends[1])

        def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            return narrowed(ends, jnp.where(low == high, low, low + (high - low) / 2))

        first = (bottom, top) if closed else _finite(bottom, top, narrowed)
        low, high = jax.lax.fori_loop(0, _HALVINGS, halve, first)
        middle = jnp.where(jnp.isfinite(low + high), (low + high) / 2, low)
        inside = jax.lax.stop_gradient(jnp.where(u <= 0, low, jnp.where(v <= 0, high, middle)))
        p = jax.lax.stop_gradient(density(inside))
        # Where the density is nothing at u = 0 or 1, a tail has underflowed and the support goes on.
        ends_here = p > _NOTHING
        noisy, clean = jnp.where(ends_here, low, bottom), jnp.where(ends_here, high, top)
        middle = jax.lax.stop_gradient(jnp.where(u <= 0, clean, jnp.where(v <= 0, noisy, middle)))
        # One Newton step, which carries the derivatives in u and in the parameters (implicit function theorem).
        a, b = tails(middle)
        step = jnp.where(u < v, a - u, v - b) / jnp.maximum(p, jnp.finfo(middle.dtype).tiny)
        return _nudge(middle, step, 0.1)

    return Schedule(quantile, tails, density)


def _finite(low: Array, high: Array, narrowed: Callable) -> tuple[Array, Array]:
    """The bracket with its infinite ends brought in: steps from the other end, or from 0, each twice the last."""

    def is_open(low: Array, high: Array) -> Array:
        return (low != high) & (jnp.isinf(low) | jnp.isinf(high))

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        low, high, step = state
        return is_open(low, high).any() & (step < jnp.finfo(step.dtype).max / 8)

    def widen(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, step = state
        there = jnp.where(jnp.isinf(high), jnp.where(jnp.isinf(low), 0, low + step), high - step)
        at = jnp.where(is_open(low, high), there, 0)
        nearer = narrowed((low, high), at)
        low, high = (jnp.where(is_open(low, high), n, end) for n, end in zip(nearer, (low, high), strict=True))
        return low, high, 2 * step

    low, high, _ = jax.lax.while_loop(unfinished, widen, (low, high, jnp.ones((), low.dtype)))
    limit = jnp.finfo(low.dtype).max / 4  # where no end was found
    return jnp.where(low == high, low, jnp.maximum(low, -limit)), jnp.where(low == high, high, jnp.minimum(high, limit))


def bisected_tails(
    quantile: Callable[[Array, Array], Array],
    bracket: Callable[[Array], Bracket] | None = None,
) -> Schedule:
    """`from_quantile` without trying the function, for one that is known to be right."""

    def tails(lam: Array) -> tuple[Array, Array]:
        lam = at_least_float32(lam)
        if bracket is None:
            shape = jnp.broadcast_shapes(lam.shape, jax.eval_shape(quantile, lam, lam).shape)
            zero, one = jnp.zeros(shape, lam.dtype), jnp.ones(shape, lam.dtype)
            first, second = (zero, one), (one, zero)
        else:
            (a, b), (c, d) = bracket(lam)
            a, b, c, d = _alike(lam, a, b, c, d)
            first, second = (a, b), (c, d)
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
        return jnp.clip(_nudge(u, step, 1e-6), 0, 1), jnp.clip(_nudge(v, -step, 1e-6), 0, 1)

    def _slope(u: Array, v: Array) -> tuple[Array, Array]:
        return jax.jvp(quantile, (u, v), (jnp.ones_like(u), -jnp.ones_like(v)))

    def density(lam: Array) -> Array:
        lam = at_least_float32(lam)
        u, v = tails(lam)
        value, slope = _slope(u, v)
        # Outside the range the inverse sticks to an end, where logsnr(u) is not lam.
        return jnp.where(jnp.abs(value - lam) < 1e-3 * (1 + jnp.abs(lam)), -1 / slope, 0)

    return Schedule(quantile, tails, density)


def _alike(like: Array, *values: Any) -> list[Array]:
    """The values in the dtype of `like`, broadcast with it."""
    return [v.astype(like.dtype) for v in jnp.broadcast_arrays(*map(jnp.asarray, values), like)[:-1]]


def _nudge(x: Array, step: Array, least: float) -> Array:
    """x + step, unless the step is no mere correction of x, or of `least` (where the density vanishes)."""
    return jnp.where(jnp.abs(step) <= 1e-3 * (least + jnp.abs(x)), x + step, x)
