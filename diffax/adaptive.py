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

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from diffax.schedules import Schedule

__all__ = ["Adaptive", "init", "schedule", "update"]


class Adaptive(NamedTuple):
    """second_moment [bins]: running mean of L^2 in each bin of u; seen [bins]: total weight of what it is a mean of."""

    second_moment: Array
    seen: Array


def init(bins: int = 64) -> Adaptive:
    """Nothing seen: uniform in u. Raises ValueError unless bins >= 2."""
    if bins < 2:
        raise ValueError(f"bins = {bins}: must be at least 2")
    return Adaptive(jnp.zeros(bins), jnp.zeros(bins))


def probabilities(state: Adaptive, floor: float = 0.2) -> Array:
    """[bins], sum 1: `floor` of it uniform, the rest proportional to sqrt(E[L^2]).

    A bin that has not been seen counts as an average one.
    """
    bins = state.seen.shape[0]
    root = jnp.sqrt(state.second_moment / jnp.maximum(state.seen, 1e-12))
    known = state.seen > 0
    mean = jnp.sum(jnp.where(known, root, 0)) / jnp.maximum(known.sum(), 1)
    root = jnp.where(known & (mean > 0), root, jnp.where(mean > 0, mean, 1.0))
    return floor / bins + (1 - floor) * root / root.sum()


def schedule(state: Adaptive, base: Schedule, floor: float = 0.2) -> Schedule:
    """`base` with its u redistributed by `probabilities`: a schedule like any other."""
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

    A bin forgets by `decay` for each sample that it is given, so bins that are seldom drawn are not forgotten.
    """
    bins = state.seen.shape[0]
    member = _bin(base.inverse(logsnr), bins)[:, None] == jnp.arange(bins)
    finite = jnp.where(jnp.isfinite(loss), loss, 0)
    keep = decay ** member.sum(0)
    return Adaptive(
        state.second_moment * keep + (1 - decay) * jnp.where(member, finite[:, None] ** 2, 0).sum(0),
        state.seen * keep + (1 - decay) * member.sum(0),
    )


def _bin(u: Array, bins: int) -> Array:
    """The bin of the base's u, 0 to bins - 1."""
    return jnp.clip((u * bins).astype(int), 0, bins - 1)
