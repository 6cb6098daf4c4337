"""The kernel distance against sums over pairs, and that it has no bias."""

import numpy as np
import pytest

from diffax import metrics


def naive(a, b):
    """Pair by pair, as the estimator is written."""

    def k(x, y):
        return (float(x @ y) / len(x) + 1) ** 3

    within_a = [k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j]
    within_b = [k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j]
    return np.mean(within_a) + np.mean(within_b) - 2 * np.mean([k(x, y) for x in a for y in b])


def drawn(seed, n, d=6, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, d)) * 2 + shift


def test_all_pairs():
    a, b = drawn(0, 25), drawn(1, 31, shift=0.5)
    mean, std = metrics.kernel_distance(a, b)
    assert mean == pytest.approx(naive(a, b), rel=1e-12) and std == 0
    assert metrics.kernel_distance(b, a)[0] == pytest.approx(mean, rel=1e-12)


def test_blocks_change_nothing(monkeypatch):
    a, b = drawn(0, 25), drawn(1, 31)
    whole = metrics.kernel_distance(a, b)
    monkeypatch.setattr("diffax.metrics.kernel._BLOCK", 7)
    assert metrics.kernel_distance(a, b) == pytest.approx(whole, rel=1e-12)


def test_subsets_of_the_samples():
    """All subsets of two of three points: their mean is that of all pairs, and so is their spread."""
    a, b = drawn(0, 3), drawn(1, 3, shift=1.0)
    pairs = ([0, 1], [0, 2], [1, 2])
    every = [naive(a[p], b[q]) for p in pairs for q in pairs]
    mean, std = metrics.kernel_distance(a, b, subsets=4000, size=2)
    assert mean == pytest.approx(np.mean(every), abs=4 * np.std(every) / np.sqrt(4000))
    assert std == pytest.approx(np.std(every), rel=0.05)
    assert metrics.kernel_distance(a, b, subsets=5, size=2) == metrics.kernel_distance(a, b, subsets=5, size=2)
    assert metrics.kernel_distance(a, b, subsets=5, size=2, seed=1) != metrics.kernel_distance(a, b, subsets=5, size=2)


def test_no_bias_at_few_samples():
    found = [metrics.kernel_distance(drawn(2 * i, 10), drawn(2 * i + 1, 10))[0] for i in range(2000)]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found)) < 3 * error
    assert min(found) < 0 < max(found)


def test_a_shift_in_one_dimension_has_a_closed_form():
    """k = (xy + 1)^3 of N(0, 1) and N(m, 1): the sum of 3 choose j over the squared differences of moments j."""
    m = 0.7
    differences = {1: m, 2: m**2, 3: m**3 + 3 * m}
    exact = 3 * differences[1] ** 2 + 3 * differences[2] ** 2 + differences[3] ** 2
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((20_000, 1)), m + rng.standard_normal((20_000, 1))
    mean, std = metrics.kernel_distance(a, b, subsets=50, size=500)
    assert mean == pytest.approx(exact, rel=0.1) and std > 0


@pytest.mark.parametrize(
    ("a", "b", "options", "words"),
    [
        ((1, 2), (3, 2), {}, "1 and 3 samples"),
        ((3, 2), (3, 3), {}, r"\[3, 2\] and \[3, 3\]"),
        ((3,), (3,), {}, "must be"),
        ((3, 2), (3, 2), {"subsets": 0}, "subsets = 0"),
        ((3, 2), (3, 2), {"size": 1}, "size = 1"),
    ],
)
def test_what_has_no_estimate_is_named(a, b, options, words):
    with pytest.raises(ValueError, match=words):
        metrics.kernel_distance(np.ones(a), np.ones(b), **options)
