"""The Fréchet distance between two sets of features, each taken for a Gaussian.

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2

with means m and covariances S of n - 1 degrees of freedom (Dowson & Landau 1982; Heusel et al. 2017, arXiv:1706.08500,
eq. 6, where the features are Inception's and the distance is called FID). It is biased upwards by few samples: compare
only distances between equally many.
"""

import numpy as np
from scipy.linalg.lapack import dpstrf

from diffax.metrics.moments import Moments

__all__ = ["frechet_distance"]


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared distance between N(a) and N(b), in float64; up to rounding 0 for the same moments, and the
    same either way round.

    The covariances may be singular, as they are of fewer samples than features. Raises ValueError for fewer than two
    samples or different numbers of features.
    """
    for part in (a, b):
        if part.count < 2:
            raise ValueError(f"moments of {part.count} sample(s): a covariance needs at least 2")
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"moments of {len(a.mean)} and {len(b.mean)} features: must be of equally many")
    covariance_a, covariance_b = (part.scatter / (part.count - 1) for part in (a, b))
    traces = np.trace(covariance_a) + np.trace(covariance_b)
    # With R R^T = S1 the matrix R^T S2 R has the eigenvalues of S1^1/2 S2 S1^1/2 but for zeros. Of the two orders the
    # smaller one: rounding turns a zero into 1e-16, and its root into 1e-8.
    low, high = sorted((_root(covariance_a), _root(covariance_b)), key=lambda root: root.shape[1])
    product = low.T @ high
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(product @ product.T), 0)).sum()
    return max(float(((a.mean - b.mean) ** 2).sum() + traces - 2 * overlap), 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    """R [d, rank] with R R^T = covariance: Cholesky's with pivots, which ends where only rounding is left."""
    factor, pivots, rank, _ = dpstrf(covariance, lower=1)
    root = np.empty((len(pivots), rank))
    root[pivots - 1] = np.tril(factor)[:, :rank]
    return root
