"""Are samples where the data are, and do they cover them? By balls around features, up to the k-th nearest neighbour.

    precision   share of the samples that lie in some ball of the reference
    recall      share of the reference that lies in some ball of the samples
    density     balls of the reference that hold a sample, over k, mean over samples; may exceed 1
    coverage    share of the balls of the reference that hold a sample

(Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 1 and 2; Naeem et al. 2020, arXiv:2002.09797, eq. 3 and 4.)
An outlier of the reference has a large ball, which makes samples far off precise: density counts such a ball as one of
many. All four depend on the numbers of samples; the papers compare equally many.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from diffax import _check

__all__ = ["PrecisionRecall", "precision_recall"]

_BLOCK = 1024


class PrecisionRecall(NamedTuple):
    """Precision, recall and coverage in [0, 1]; density >= 0, about 1 for samples of the data themselves."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(samples: np.ndarray, reference: np.ndarray, *, k: int = 3) -> PrecisionRecall:
    """Of features samples [n, d] against those of real data, reference [m, d].

    Raises ValueError for different numbers of features or such as are not finite, or k not in [1, min(n, m) - 1].
    """
    x, y = (np.asarray(features, np.float64) for features in (samples, reference))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features of shapes {list(x.shape)} and {list(y.shape)}: must be [n, d] and [m, d]")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"{len(x)} samples against {len(y)}: must be at least 2")
    for features in (x, y):
        _check.numbers("features", features)
    _check.whole("k", k, 1, min(len(x), len(y)) - 1)
    of_samples, of_reference = _radii(x, k), _radii(y, k)
    precise = held = 0
    recalled, covered = np.zeros(len(y), bool), np.zeros(len(y), bool)
    for rows, distance in _distances(x, y):
        inside = distance <= of_reference  # [block, m]
        precise += int(inside.any(1).sum())
        held += int(inside.sum())
        covered |= inside.any(0)
        recalled |= (distance <= of_samples[rows, None]).any(0)
    return PrecisionRecall(precise / len(x), float(recalled.mean()), held / (k * len(x)), float(covered.mean()))


def _radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each row to its k-th nearest other. [n]"""
    radii = np.empty(len(x))
    for rows, distance in _distances(x, x):
        distance[np.arange(len(distance)), np.arange(rows.start, rows.start + len(distance))] = np.inf
        radii[rows] = np.partition(distance, k - 1, axis=1)[:, k - 1]
    return radii


def _distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared distances of x [n, d] to y [m, d], some rows at a time."""
    squares_x, squares_y = (x * x).sum(1), (y * y).sum(1)
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, start + _BLOCK)
        yield rows, np.maximum(squares_x[rows, None] + squares_y - 2 * x[rows] @ y.T, 0)
