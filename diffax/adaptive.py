"""An importance sampler of logSNR that learns from the loss where to look.

The estimate of E_u[L(u)] has least variance when u is drawn with density q(u) proportional to sqrt(E[L^2 | u]) and L is
divided by q (for discrete steps: the loss-second-moment sampler of Nichol & Dhariwal 2021, arXiv:2102.09672, section
3.3). Here q is piecewise constant on even bins of the u of a base schedule:

    state = init(bins)                                    # kept in the training state, saved in checkpoints
    adapted = schedule(state, base)                       # a Schedule like any other
    loss, aux = denoising(..., schedule=adapted, weighting=weightings.resampled(weighting, wanted=base, drawn=adapted))
    state = update(state, base, aux)

The objective stays that of the base schedule; only the draws move.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffax import _check
from diffax._array import at_least_float32
from diffax.schedules import Schedule, arguments

__all__ = ["Adaptive", "init", "schedule", "update"]


class Adaptive(NamedTuple):
    """second_moment [bins]: running mean of L^2 in each bin of u; seen [bins]: total weight of what it is a mean of."""

    second_moment: Array
    seen: Array


def init(bins: int = 64) -> Adaptive:
    """Nothing seen: uniform in u. Raises ValueError unless bins is an integer >= 2."""
    _check.whole("bins", bins, 2, 1_000_000)
    kind = jnp.float32  # under x64 too, as of a run that began without
    return Adaptive(jnp.zeros(bins, kind), jnp.zeros(bins, kind))


def probabilities(state: Adaptive, floor: float = 0.2) -> Array:
    """[bins], sum 1: `floor` of it uniform, the rest proportional to sqrt(E[L^2]).

    A bin that has not been seen counts as an average one. Raises ValueError unless floor is in (0, 1].
    """
    bins = _bins(state)
    share = _check.real("floor", floor, "lie in (0, 1]")
    if np.ndim(floor) or (share is not None and not 0 < share <= 1):
        raise ValueError(f"floor = {_check.shown(floor)}: must lie in (0, 1]")
    second_moment, seen = (at_least_float32(part) for part in state)
    root = jnp.sqrt(second_moment / jnp.maximum(seen, 1e-12))
    known = seen > 0
    mean = jnp.sum(jnp.where(known, root, 0)) / jnp.maximum(known.sum(), 1).astype(root.dtype)
    root = jnp.where(known & (mean > 0), root, jnp.where(mean > 0, mean, 1.0))
    floor = floor if share is None else float(share)
    return floor / bins + (1 - floor) * root / root.sum()


def schedule(state: Adaptive, base: Schedule, floor: float = 0.2) -> Schedule:
    """`base` with its u redistributed by `probabilities`: a schedule like any other.

    Raises ValueError unless state is one of `init` or `update`, base a Schedule, and floor in (0, 1].
    """
    base = arguments.base(base, "base")
    with jax.ensure_compile_time_eval():  # constants under jit too, unless the state is traced
        q = probabilities(state, floor)
        bins = q.shape[0]
        upper = jnp.cumsum(q)
        start = jnp.concatenate([jnp.zeros(1, q.dtype), upper[:-1]])  # P(bins before this one)
        after = jnp.cumsum(q[::-1])[::-1] - q  # P(bins after it), from the other end

    def quantile(u: Array, v: Array) -> Array:
        k = jnp.clip(jnp.searchsorted(upper, u, side="right"), 0, bins - 1)
        along, left = jnp.clip((u - start[k]) / q[k], 0, 1), jnp.clip((v - after[k]) / q[k], 0, 1)
        return base.quantile((k + along) / bins, (bins - 1 - k + left) / bins)

    def tails(lam: Array) -> tuple[Array, Array]:
        u, v = base.tails(lam)
        k = _bin(u, bins)
        return start[k] + q[k] * (u * bins - k), after[k] + q[k] * (v * bins - (bins - 1 - k))

    def density(lam: Array) -> Array:
        u, _ = base.tails(lam)
        return base.density(lam) * q[_bin(u, bins)] * bins

    return Schedule(quantile, tails, density)


def update(state: Adaptive, base: Schedule, loss: Array, logsnr: Array, decay: float = 0.98) -> Adaptive:
    """The state after a batch: loss [batch] as the objective weights it (before division by q) and logsnr [batch].

    A bin forgets by `decay` for each sample that it is given, so bins that are seldom drawn are not forgotten. The
    state keeps its dtype. A loss that is not finite counts as 0.

    Raises ValueError unless state is one of `init` or `update`, base a Schedule, loss and logsnr are numbers of the
    same shape [batch], and decay is in [0, 1).
    """
    bins, base = _bins(state), arguments.base(base, "base")
    weight = _check.real("decay", decay, "lie in [0, 1)")
    if np.ndim(decay) or (weight is not None and not 0 <= weight < 1):
        raise ValueError(f"decay = {_check.shown(decay)}: must lie in [0, 1)")
    for name, value in (("loss", loss), ("logsnr", logsnr)):
        _check.real(name, value, "be numbers [batch]")
        if np.ndim(value) != 1 or np.shape(value) != np.shape(loss):
            raise ValueError(f"{name} has shape {np.shape(value)}: must be [batch], loss and logsnr alike")
    kind = jnp.asarray(state.seen).dtype
    member = _bin(base.inverse(logsnr), bins)[:, None] == jnp.arange(bins)
    size = at_least_float32(loss).astype(kind)
    square = jnp.where(jnp.isfinite(size), size, 0) ** 2
    count, new = member.sum(0).astype(kind), jnp.asarray(1 - jnp.asarray(decay, kind))
    keep = jnp.asarray(decay, kind) ** count
    return Adaptive(
        state.second_moment * keep + new * jnp.where(member, square[:, None], 0).sum(0),
        state.seen * keep + new * count,
    )


def _bins(state: Any) -> int:
    """How many bins the state has. Raises ValueError unless it is a state."""
    _check.instance("state", state, Adaptive, "dx.adaptive.init()")
    for name, part in state._asdict().items():
        _check.between(f"state.{name}", part, 0, np.inf)
        if np.ndim(part) != 1 or np.shape(part) != np.shape(state.seen) or np.size(part) < 2:
            raise ValueError(f"state.{name} has shape {np.shape(part)}: must be [bins], as dx.adaptive.init makes it")
    return np.size(state.seen)


def _bin(u: Array, bins: int) -> Array:
    """The bin of the base's u, 0 to bins - 1."""
    return jnp.clip((u * bins).astype(int), 0, bins - 1)
