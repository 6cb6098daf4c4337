"""Mean and covariance of features in one pass: parts of the data are summed up alone and merged, in any order.

    scatter = sum_i (x_i - mean) (x_i - mean)^T

of two parts of n and m rows, whose means differ by delta, is the sum of theirs and delta delta^T n m / (n + m) (Chan,
Golub & LeVeque 1983, "Algorithms for computing the sample variance", eq. 2.1): no large squares are subtracted, as they
are in E[x^2] - E[x]^2. Everything is float64 and on the host; the parts may come from batches, or from processes.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffax import _check

__all__ = ["Moments", "fold", "gather", "merge", "moments"]


class Moments(NamedTuple):
    """Of `count` rows of d features, in float64."""

    count: int  # type: ignore[assignment]  # tuples have a method of that name
    mean: np.ndarray  # [d]
    scatter: np.ndarray  # [d, d], the covariance times count - 1


def moments(features: np.ndarray) -> Moments:
    """Of features [n, d]; those of no rows, n = 0, change nothing that they are merged with. Raises ValueError for
    another shape, or values that are not finite."""
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or not x.shape[1]:
        raise ValueError(f"features of shape {list(x.shape)}: must be [n, d] with d >= 1")
    _check.numbers("features", x)
    mean = x.mean(0) if len(x) else np.zeros(x.shape[1])
    centred = x - mean
    return Moments(len(x), mean, centred.T @ centred)


def merge(*parts: Moments) -> Moments:
    """Of all rows of one or more parts. Raises ValueError if they have different numbers of features."""
    if not parts:
        raise ValueError("no moments to merge: there must be at least one part")
    return functools.reduce(_pair, parts)


def fold(batches: Iterable[np.ndarray]) -> Moments:
    """Of features [n, d] that come batch by batch; no two need be held at once.

    fold(features(extractor, images) for images in batches) passes once over any number of images.
    """
    parts = map(moments, batches)
    first = next(parts, None)
    if first is None:
        raise ValueError("no batches: there must be at least one")
    return functools.reduce(_pair, parts, first)


def gather(part: Moments) -> Moments:
    """Of the rows of all processes of jax.distributed, each of which gives its own part; all of them must ask."""
    d = len(part.mean)
    packed = np.concatenate([[part.count], part.mean, part.scatter.ravel()]).astype(np.float64)
    # As 32-bit words: JAX would round float64 to float32 on the way.
    words = multihost_utils.process_allgather(packed.view(np.uint32))
    rows = np.ascontiguousarray(words).reshape(jax.process_count(), -1).view(np.float64)
    return merge(*(Moments(int(row[0]), row[1 : d + 1], row[d + 1 :].reshape(d, d)) for row in rows))


def _pair(a: Moments, b: Moments) -> Moments:
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"moments of {len(a.mean)} and {len(b.mean)} features: must be of equally many")
    count, delta = a.count + b.count, b.mean - a.mean
    share = b.count / max(count, 1)
    return Moments(count, a.mean + delta * share, a.scatter + b.scatter + np.outer(delta, delta) * (a.count * share))
