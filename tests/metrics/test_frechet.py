"""The Fréchet distance against closed forms and the reference implementation's formula."""

import numpy as np
import pytest
import scipy.linalg

from diffax import metrics


def reference(a, b):
    """The formula of the published FID: SciPy's root of the product of the covariances (Heusel et al. 2017)."""
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(s @ t).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root)


def distance(a, b):
    return metrics.frechet_distance(metrics.moments(a), metrics.moments(b))


def drawn(seed, n, d, scale=1.0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) * scale + rng.standard_normal(d)


def exactly(mean, covariance, n=10):
    """Moments as they are, not as drawn."""
    return metrics.Moments(n, np.asarray(mean, float), np.asarray(covariance, float) * (n - 1))


@pytest.mark.parametrize(("n", "m", "d"), [(100, 80, 3), (500, 500, 40), (1000, 300, 64)])
def test_the_reference_formula(n, m, d):
    a, b = drawn(0, n, d), drawn(1, m, d, 0.5)
    assert distance(a, b) == pytest.approx(reference(a, b), rel=1e-9)
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-12)


def test_closed_forms():
    mean, std_a, std_b = np.array([3.0, -4.0, 0.0]), np.array([1.0, 2.0, 0.0]), np.array([2.0, 5.0, 1.0])
    a, b = exactly(0 * mean, np.diag(std_a**2)), exactly(mean, np.diag(std_b**2), n=7)
    assert metrics.frechet_distance(a, b) == pytest.approx(25 + ((std_a - std_b) ** 2).sum(), rel=1e-13)
    turned = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]  # a rotation changes nothing
    a, b = (m._replace(mean=turned @ m.mean, scatter=turned @ m.scatter @ turned.T) for m in (a, b))
    assert metrics.frechet_distance(a, b) == pytest.approx(25 + ((std_a - std_b) ** 2).sum(), rel=1e-13)
    # covariances that do not commute: a 2 x 2 root has the trace sqrt(tr + 2 sqrt det)
    s, t = np.array([[2.0, 1.0], [1.0, 1.0]]), np.array([[1.0, -0.5], [-0.5, 3.0]])
    product = s @ t
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    found = metrics.frechet_distance(exactly([0, 0], s), exactly([0, 0], t))
    assert found == pytest.approx(np.trace(s) + np.trace(t) - 2 * root, rel=1e-13)


def test_fewer_samples_than_features():
    """One direction each, u and v: the root has the trace |u.v|. And of the same few samples nothing is left over."""
    u, v = np.random.default_rng(0).standard_normal((2, 300))
    a, b = np.stack([u, -u]), np.stack([v, -v])  # covariances 2 u u^T
    assert distance(a, b) == pytest.approx(2 * (u @ u + v @ v - 2 * abs(u @ v)), rel=1e-12)
    x = drawn(0, 20, 300, 10.0)
    assert distance(x, x) < 1e-12 * np.trace(np.cov(x, rowvar=False))
    shifted = distance(x, x + 1e-3)
    assert shifted == pytest.approx(300e-6, rel=1e-3)  # beside traces of ten millions


def test_constant_features_have_no_spread():
    assert distance(np.ones((4, 3)), np.zeros((5, 3))) == pytest.approx(3, rel=1e-15)
    assert distance(np.ones((4, 3)), np.ones((2, 3))) == 0
    assert distance(np.ones((4, 1)), np.array([[0.0], [2.0]])) == pytest.approx(2, rel=1e-12)


def test_one_pass_and_many_parts_agree():
    a, b = drawn(0, 400, 20), drawn(1, 400, 20)
    parts = metrics.fold(a[i : i + 9] for i in range(0, 400, 9))
    assert metrics.frechet_distance(parts, metrics.moments(b)) == pytest.approx(distance(a, b), rel=1e-11)


def test_samples_of_one_distribution_come_closer_the_more_they_are():
    found = [distance(*np.random.default_rng(n).standard_normal((2, n, 5))) for n in (100, 1_000, 10_000)]
    assert found[0] > 3 * found[1] > 9 * found[2] > 0


def test_what_has_no_distance_is_named():
    x = np.eye(3)
    with pytest.raises(ValueError, match="at least 2"):
        distance(x[:1], x)
    with pytest.raises(ValueError, match="3 and 2 features"):
        distance(x, x[:, :2])
