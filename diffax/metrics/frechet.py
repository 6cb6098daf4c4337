"""The Fréchet distance between two sets of features, each taken for a Gaussian.

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2

with means m and covariances S of n - 1 degrees of freedom (Dowson & Landau 1982; Heusel et al. 2017, arXiv:1706.08500,
eq. 6, where the features are Inception's and the distance is called FID). It is biased upwards by few samples: compare
only distances between equally many.
"""

import numpy as np

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
    # The trace of the root is the sum of the singular values of S1^1/2 S2^1/2. The root of the eigenvalues of its
    # square would turn rounding at 1e-16 into errors of 1e-8, one for each direction in which nothing varies.
    overlap = np.linalg.svd(_root(covariance_a).T @ _root(covariance_b), compute_uv=False).sum()
    return max(float(((a.mean - b.mean) ** 2).sum() + traces - 2 * overlap), 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    """R [d, rank] with R R^T = covariance; directions that only rounding knows are left out."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])
