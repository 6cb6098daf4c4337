"""The sliced Wasserstein distance: optimal transport along random lines, where it is a sort (Rabin et al. 2012)."""

import numpy as np

from diffax import _check

__all__ = ["sliced_wasserstein"]


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, directions: int = 256) -> float:
    """The 2-Wasserstein distance between two sets of n samples [n, ...] along random lines: its root mean square over
    lines.

    In one dimension the optimal plan pairs the sorted samples. Between N(m, s^2 I) and N(0, I) in d dimensions it tends
    to sqrt(|m|^2 / d + (s - 1)^2). The lines are always the same. Raises ValueError for no samples, unequal numbers or
    dimensions, values that are not finite, or directions < 1.
    """
    _check.whole("directions", directions)
    if len(a) != len(b) or not len(a):
        raise ValueError(f"{len(a)} and {len(b)} samples: must be equally many, at least one")
    a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (a, b))
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"samples of {a.shape[1]} and {b.shape[1]} dimensions: must have equally many")
    for x in (a, b):
        _check.numbers("samples", x)
    lines = np.random.default_rng(0).standard_normal((a.shape[1], directions))
    lines /= np.linalg.norm(lines, axis=0)
    return float(np.sqrt(((np.sort(a @ lines, axis=0) - np.sort(b @ lines, axis=0)) ** 2).mean()))
