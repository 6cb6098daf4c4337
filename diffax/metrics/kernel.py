"""The kernel distance between two sets of features: KID, where the features are Inception's.

The squared maximum mean discrepancy with the kernel k(x, y) = (x.y / d + 1)^3, by its unbiased estimator (Binkowski et
al. 2018, arXiv:1801.01401, section 4; Gretton et al. 2012, eq. 3):

    mean of k(a, a') over pairs + mean of k(b, b') over pairs - 2 mean of k(a, b),    no sample paired with itself

Unlike a Fréchet distance it does not depend on the number of samples but for its spread, and can come out below zero.
"""

import numpy as np

from diffax import _check

__all__ = ["kernel_distance"]

_BLOCK = 1024


def kernel_distance(
    a: np.ndarray, b: np.ndarray, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation, over random subsets of `size` samples of each, of the estimate between features
    a [n, d] and b [m, d].

    If a or b has no more than `size` samples, it is the estimate from all samples of both, and the deviation is 0.
    Raises ValueError for fewer than two samples, different numbers of features or such as are not finite, subsets < 1
    or size < 2.
    """
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features of shapes {list(a.shape)} and {list(b.shape)}: must be [n, d] and [m, d]")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"{len(a)} and {len(b)} samples: must be at least 2")
    for x in (a, b):
        _check.numbers("features", x)
    _check.whole("subsets", subsets)
    _check.whole("size", size, 2)
    if size >= min(len(a), len(b)):
        return _estimate(a, b), 0.0
    rng = np.random.default_rng(seed)
    found = [_estimate(*(x[rng.choice(len(x), size, replace=False)] for x in (a, b))) for _ in range(subsets)]
    return float(np.mean(found)), float(np.std(found))


def _estimate(a: np.ndarray, b: np.ndarray) -> float:
    return _within(a) + _within(b) - 2 * _total(a, b) / (len(a) * len(b))


def _within(x: np.ndarray) -> float:
    """The mean over pairs of different samples."""
    itself = _cubic((x * x).sum(1), x.shape[1]).sum()
    return float((_total(x, x) - itself) / (len(x) * (len(x) - 1)))


def _total(a: np.ndarray, b: np.ndarray) -> float:
    """The sum over all pairs, in blocks, so that no large matrix is held."""
    return float(sum(_cubic(a[i : i + _BLOCK] @ b.T, a.shape[1]).sum() for i in range(0, len(a), _BLOCK)))


def _cubic(product: np.ndarray, d: int) -> np.ndarray:
    return (product / d + 1) ** 3
