"""Precision, recall, density and coverage against their definitions, pair by pair."""

import sys

import numpy as np
import pytest

from diffax import metrics


def naive(x, y, k):
    def radii(points):
        return [
            sorted(np.linalg.norm(p - q) for j, q in enumerate(points) if j != i)[k - 1] for i, p in enumerate(points)
        ]

    near = np.array([[np.linalg.norm(p - q) for q in y] for p in x])
    of_y, of_x = np.array(radii(y)), np.array(radii(x))
    precision = np.mean([any(row <= of_y) for row in near])
    recall = np.mean([any(column <= of_x) for column in near.T])
    density = sum(int(near[i, j] <= of_y[j]) for i in range(len(x)) for j in range(len(y))) / (k * len(x))
    coverage = np.mean([any(near[:, j] <= of_y[j]) for j in range(len(y))])
    return precision, recall, density, coverage


def drawn(seed, n, d=3, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, d)) + shift


@pytest.mark.parametrize("k", [1, 3, 9])
@pytest.mark.parametrize("block", [1024, 7])
def test_the_definitions(k, block, monkeypatch):
    monkeypatch.setattr(sys.modules["diffax.metrics.precision_recall"], "_BLOCK", block)
    x, y = drawn(0, 40, shift=0.8), drawn(1, 30)
    found = metrics.precision_recall(x, y, k=k)
    np.testing.assert_allclose(found, naive(x, y, k), rtol=1e-13)
    assert 0 < found.precision < 1 or k > 1


def test_the_names_mean_what_they_say():
    data = np.concatenate([drawn(0, 300), drawn(1, 300, shift=50.0)])
    half = metrics.precision_recall(drawn(2, 600), data)  # of two modes one
    assert half.precision > 0.9 and half.recall == pytest.approx(0.5, abs=0.1)
    assert half.coverage == pytest.approx(0.5, abs=0.05)
    wide = np.concatenate([drawn(3, 300), drawn(4, 300, shift=50.0), drawn(5, 600, shift=-300.0)])  # and much besides
    wide = metrics.precision_recall(wide, data)
    assert wide.precision == pytest.approx(0.5, abs=0.1) and wide.recall > 0.9 and wide.coverage > 0.8
    far = metrics.precision_recall(drawn(2, 600, shift=-300.0), data)
    assert far == (0, 0, 0, 0)


def test_samples_of_the_data_themselves():
    found = metrics.precision_recall(drawn(0, 1500, d=8), drawn(1, 1500, d=8))
    assert found.density == pytest.approx(1, abs=0.1)
    # a ball holds k others of its own set, and misses all of another as large with probability 1 / 2^k
    assert found.coverage == pytest.approx(1 - 1 / 8, abs=0.03)


def test_an_outlier_makes_samples_precise_but_not_dense():
    """Between the data and one point far off, all samples lie in the ball of that point and in no other."""
    data = np.concatenate([drawn(0, 200), [[100.0, 0.0, 0.0]]])
    found = metrics.precision_recall(drawn(2, 200, shift=np.array([50.0, 0.0, 0.0])), data)
    assert found.precision == 1 and found.density == pytest.approx(1 / 3) and found.coverage == 1 / 201


@pytest.mark.parametrize(
    ("x", "y", "k", "words"),
    [
        ((5, 2), (5, 3), 3, r"\[5, 2\] and \[5, 3\]"),
        ((5,), (5,), 3, "must be"),
        ((5, 2), (3, 2), 3, "k = 3: must be an integer from 1 to 2"),
        ((5, 2), (5, 2), 0, "k = 0"),
        ((5, 2), (5, 2), 2.5, "k = 2.5"),
        ((5, 2), (1, 2), 1, "5 samples against 1: must be at least 2"),
    ],
)
def test_what_has_no_neighbours_is_named(x, y, k, words):
    with pytest.raises(ValueError, match=words):
        metrics.precision_recall(np.ones(x), np.ones(y), k=k)
