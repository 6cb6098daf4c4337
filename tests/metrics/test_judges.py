"""The judges on real digits: they know a digit, and they know a copy."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffax import metrics


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return data.images.astype(np.uint8)[..., None], data.target


def test_the_judge_knows_digits(digits):
    images, labels = digits
    judge = metrics.judge(images[:1200], labels[:1200], images[1200:], labels[1200:])
    assert judge.held_out_accuracy > 0.93
    right, confusion = metrics.accuracy(judge, images[1200:], labels[1200:])
    assert right == pytest.approx(judge.held_out_accuracy)
    assert confusion.shape == (10, 10) and confusion.sum() == len(images) - 1200
    assert confusion.diagonal().sum() / confusion.sum() == pytest.approx(right)
    np.testing.assert_array_equal(confusion.sum(1), np.bincount(labels[1200:]))
    wrong, _ = metrics.accuracy(judge, images[1200:], (labels[1200:] + 1) % 10)
    assert wrong < 0.05


def test_a_judge_of_many_images_is_shown_some_of_all(digits):
    images, labels = digits
    order = np.argsort(labels, kind="stable")  # one class after the other
    judge = metrics.judge(images[order], labels[order], images, labels, max_train=300)
    assert judge.held_out_accuracy > 0.9
    with pytest.raises(ValueError, match=r"requested: has classes \[17\], which the judge was not trained on"):
        metrics.accuracy(judge, images[:2], np.array([3, 17]))


def test_nearest_distance_is_zero_for_copies_and_exact_otherwise(digits):
    images, _ = digits
    assert metrics.nearest_distance(images[:20], images).max() == 0
    brute = np.sqrt(((images[1500:1510, None].astype(float) - images[None, :1000]) ** 2).mean((2, 3, 4))).min(1)
    np.testing.assert_allclose(metrics.nearest_distance(images[1500:1510], images[:1000]), brute, rtol=1e-5)
    with pytest.raises(ValueError, match=r"shape \[2, 4, 16, 1\] against training images of \[1797, 8, 8, 1\]"):
        metrics.nearest_distance(images[:2].reshape(2, 4, 16, 1), images)


@pytest.mark.parametrize(
    "score",
    [
        metrics.kernel_distance,
        metrics.precision_recall,
        metrics.sliced_wasserstein,
        metrics.nearest_distance,
        lambda a, b: metrics.frechet_distance(metrics.moments(a), metrics.moments(b)),
    ],
)
def test_a_sample_that_is_no_number_is_not_scored(score):
    good = np.random.default_rng(0).normal(size=(20, 4))
    bad = np.where(np.arange(20)[:, None] == 7, np.nan, good)
    for one, other in ((good, bad), (bad, good)):
        with pytest.raises(ValueError, match=r"4 of .* values are not finite"):
            score(one, other)
