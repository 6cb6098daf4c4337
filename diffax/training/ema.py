"""Averages of the parameters: the weights that are sampled from.

The plain exponential average has a half-life in images (Karras et al. 2022). A power-function average (Karras et al.
2024, arXiv:2312.02696, section 3.1) weighs the parameters of update k in proportion to k^gamma, so its length grows
with the training; it is named by its relative width sigma_rel, the standard deviation of that profile over the training
done. With snapshots of one or two such averages, kept as training goes on, an average of any length at any step can be
made afterwards (section 3.2 and appendix C): the combination of the stored profiles nearest to the wanted one in L2.

A power-function average tracked over updates is the integral of its profile, no approximation of it: the parameters of
update k get the weight of the profile over [k - 1, k]. What is said here of profiles is therefore exact for averages.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffax import _check
from diffax._array import at_least_float32

__all__ = [
    "MAX_SIGMA_REL",
    "combine",
    "decay",
    "gamma_of",
    "posthoc_error",
    "posthoc_weights",
    "power_update",
    "sigma_rel_of",
    "start",
    "update",
]

MAX_SIGMA_REL = float(np.sqrt(5) / 2 + 0.5) ** -2.5
"""0.30028, of the widest profile, gamma = (sqrt(5) - 3) / 2 = -0.382; the even average, gamma = 0, has 0.28868."""


def decay(step: Array, batch_size: int, halflife: float, ramp: float = 0.05) -> Array:
    """beta = 0.5^(batch / halflife), with the half-life, in images, held below `ramp` times the images seen so far.

    The ramp keeps the initial weights out of the average early on (Karras et al. 2022, appendix F.2, and its code).
    step: number of updates done before this one. Returns a float32 scalar.
    """
    seen = (step + 1.0) * batch_size  # float: 2^31 images are not many
    return 0.5 ** (batch_size / jnp.maximum(jnp.minimum(halflife, ramp * seen), 1e-8))


def start(params: Any) -> Any:
    """The average before the first update: a copy, in float32 at least, as bfloat16 would swallow its small steps."""
    return jax.tree.map(lambda p: jnp.array(at_least_float32(p)), params)


def update(ema: Any, params: Any, beta: Array) -> Any:
    """beta ema + (1 - beta) params, leaf by leaf."""
    return _toward(ema, params, 1 - beta)


# ---- power functions ----


def gamma_of(sigma_rel: float) -> float:
    """The exponent gamma of the profile of relative width sigma_rel, in [1e-9, MAX_SIGMA_REL] (equation 126).

    Widths are reached twice; this is the profile that weighs late parameters more, gamma >= (sqrt(5) - 3) / 2.
    """
    _check.between("sigma_rel", sigma_rel, 1e-9, MAX_SIGMA_REL)
    # with h = gamma + 2, sigma_rel^2 h^2 (h + 1) = h - 1
    square = float(sigma_rel) ** 2
    return float(np.roots([square, square, -1.0, 1.0]).real.max()) - 2


def sigma_rel_of(gamma: float) -> float:
    """(gamma + 1)^(1/2) (gamma + 2)^-1 (gamma + 3)^(-1/2) (equation 123), for gamma >= (sqrt(5) - 3) / 2 = -0.382."""
    if not (np.sqrt(5) - 3) / 2 - 1e-7 <= gamma < np.inf:
        raise ValueError(f"gamma = {gamma}: must be finite and at least (sqrt(5) - 3) / 2 = -0.38197")
    return float(np.sqrt((gamma + 1.0) / (gamma + 3.0)) / (gamma + 2.0))


def power_update(ema: Any, params: Any, step: Array, sigma_rel: float) -> Any:
    """The average of relative width sigma_rel after one more update. step: number of updates done before this one.

    beta = (1 - 1/k)^(gamma + 1) of update k = step + 1 (equation 127), and 0 at the first, which forgets the initial
    weights.
    """
    return _toward(ema, params, _power_rate(step, sigma_rel))


def _power_rate(step: Array, sigma_rel: float) -> Array:
    """1 - beta, to float32's relative accuracy however small."""
    k = jnp.asarray(step, jnp.float32) + 1
    return -jnp.expm1((gamma_of(sigma_rel) + 1) * jnp.log1p(-1 / k))


def _toward(ema: Any, params: Any, rate: Array) -> Any:
    return jax.tree.map(lambda e, p: e + rate.astype(e.dtype) * (p - e), ema, params)


# ---- reconstruction ----


def posthoc_weights(
    times: Sequence[float] | np.ndarray, sigma_rels: Sequence[float] | np.ndarray, time: float, sigma_rel: float
) -> np.ndarray:
    """Weights [snapshots], float64, of stored averages that make the average of length sigma_rel at `time`.

    Args:
      times, sigma_rels: [snapshots] when and of which length each stored average is; in any order. Times are in
        updates or images: only their ratios count.

    The weights make the combined profile nearest in L2 to the wanted one among those that sum to 1, so that what does
    not move is reproduced exactly. Snapshots of one time and length share their weight evenly, and directions that
    float64 cannot tell apart (1e-13 of the largest eigenvalue) are left out: 1,024 snapshots of two lengths are far
    from it. `posthoc_error` says how near the nearest is. Raises ValueError for values out of range.
    """
    basis, goal = _stored(times, sigma_rels), _profile(time, sigma_rel)
    values, vectors = np.linalg.eigh(_correlation(basis[:, None], basis[None]))
    kept = values > 1e-13 * values[-1]
    vectors, values = vectors[:, kept], values[kept]
    shares = _norm(goal) / _norm(basis)  # what a profile of the goal's norm integrates to

    free = vectors @ (vectors.T @ _correlation(basis, goal) / values)
    toward_sum = vectors @ (vectors.T @ shares / values)
    return shares * (free + toward_sum * (1 - shares @ free) / (shares @ toward_sum))


def posthoc_error(
    times: Sequence[float] | np.ndarray,
    sigma_rels: Sequence[float] | np.ndarray,
    time: float,
    sigma_rel: float,
    weights: np.ndarray | None = None,
) -> float:
    """||combined profile - wanted profile|| / ||wanted profile|| in L2, of `posthoc_weights` or of the weights given.

    Known without looking at any parameters, and resolved to about 1e-8. Of parameters that are white noise it is the
    error of the average in units of its noise; smoother ones fare better. From about 0.1 on the average is not the one
    asked for: `time` lies far from every snapshot, snapshots are too few, or their lengths too far away.
    """
    basis, goal = _stored(times, sigma_rels), _profile(time, sigma_rel)
    if weights is None:
        weights = posthoc_weights(times, sigma_rels, time, sigma_rel)
    scaled = weights * _norm(basis) / _norm(goal)
    square = scaled @ _correlation(basis[:, None], basis[None]) @ scaled - 2 * scaled @ _correlation(basis, goal) + 1
    return float(np.sqrt(max(square, 0.0)))


def combine(trees: Iterable[Any], weights: Sequence[float] | np.ndarray) -> Any:
    """sum_i weights[i] trees[i], added up in float64 on the host; arrays of numpy of the dtype of the trees.

    Trees are taken one at a time and not kept, so an iterator that reads them needs the memory of one. With weights of
    [sums, trees] a list of as many sums, from one pass.
    """
    rows = np.atleast_2d(np.asarray(weights, np.float64))
    totals: Any = None
    like: Any = None
    for tree, column in zip(trees, rows.T, strict=True):
        if totals is None:
            like = jax.tree.map(jnp.result_type, tree)
            totals = [jax.tree.map(lambda x: np.zeros(np.shape(x)), tree) for _ in rows]
        for total, weight in zip(totals, column, strict=True):
            if weight:
                jax.tree.map(lambda t, x, w=weight: np.add(t, w * np.asarray(x, np.float64), out=t), total, tree)
    if totals is None:
        raise ValueError("no trees to combine")
    found = [jax.tree.map(lambda t, dtype: t.astype(dtype), total, like) for total in totals]
    return found if np.ndim(weights) > 1 else found[0]


# A profile is its end and its exponent, the last axis of an array: p(t) = (gamma + 1) t^gamma / end^(gamma + 1) on
# [0, end]. Inner products are taken between profiles divided by their norms: correlations are at most 1, whatever the
# unit of time.


def _profile(time: float, sigma_rel: float) -> np.ndarray:
    _check.positive("time", time)
    return np.array([time, gamma_of(sigma_rel)], np.float64)


def _stored(times: Sequence[float] | np.ndarray, sigma_rels: Sequence[float] | np.ndarray) -> np.ndarray:
    if np.ndim(times) != 1 or np.shape(times) != np.shape(sigma_rels) or not len(times):
        raise ValueError(
            f"times and sigma_rels of shape {np.shape(times)} and {np.shape(sigma_rels)}: must be [snapshots] both, "
            "of at least one snapshot"
        )
    return np.stack([_profile(time, sigma_rel) for time, sigma_rel in zip(times, sigma_rels, strict=True)])


def _norm(profile: np.ndarray) -> np.ndarray:
    end, gamma = profile[..., 0], profile[..., 1]
    return (gamma + 1) / np.sqrt((2 * gamma + 1) * end)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """<a, b> / (||a|| ||b||): the integral of t^(gamma_a + gamma_b) up to the earlier end (appendix C.2)."""
    (end_a, gamma_a), (end_b, gamma_b) = np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0)
    later = np.where(end_a < end_b, gamma_b, gamma_a)
    ratio = np.minimum(end_a, end_b) / np.maximum(end_a, end_b)
    return np.sqrt((2 * gamma_a + 1) * (2 * gamma_b + 1)) / (gamma_a + gamma_b + 1) * ratio ** (later + 0.5)
