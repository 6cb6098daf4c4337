"""The sliced Wasserstein distance of Gaussians, of which it is known."""

import numpy as np
import pytest

from diffax import metrics


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (2.0, 1.0), (0.0, 3.0), (1.0, 0.5)])
def test_sliced_wasserstein_of_gaussians(mean, std):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 20_000, 3))
    expected = np.sqrt(mean**2 + (std - 1) ** 2)  # the mean is the same in every dimension
    assert metrics.sliced_wasserstein(mean + std * a, b) == pytest.approx(expected, rel=0.05, abs=0.03)
    assert metrics.sliced_wasserstein(a, a[::-1]) == 0


def test_sliced_wasserstein_wants_equal_numbers():
    with pytest.raises(ValueError, match="3 and 4 samples"):
        metrics.sliced_wasserstein(np.zeros((3, 2)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="0 and 0 samples: must be equally many, at least one"):
        metrics.sliced_wasserstein(np.zeros((0, 2)), np.zeros((0, 2)))
    with pytest.raises(ValueError, match="directions = 0"):
        metrics.sliced_wasserstein(np.zeros((3, 2)), np.zeros((3, 2)), directions=0)


def test_sliced_wasserstein_of_images_is_that_of_their_pixels():
    a, b = np.random.default_rng(0).standard_normal((2, 50, 4, 3, 2))
    assert metrics.sliced_wasserstein(a, b) == metrics.sliced_wasserstein(a.reshape(50, -1), b.reshape(50, -1)) > 0
    with pytest.raises(ValueError, match="24 and 12 dimensions"):
        metrics.sliced_wasserstein(a, b[:, :2])
