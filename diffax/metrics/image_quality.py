"""How near reconstructions are to the truth: PSNR, SSIM, multi-scale SSIM; and whether their spread is honest.

Images are [n, height, width, channels], with values over a range of length `data_range`: 2 for floats in [-1, 1], the
range of diffax, unless it is given; for integers it must be (255 for 8-bit images). Statistics are in float64 on the
host, one number an image.
"""

from typing import NamedTuple

import numpy as np

from diffax import _check

__all__ = ["Calibration", "calibration", "multi_scale_ssim", "psnr", "ssim"]

_WINDOW = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
_WINDOW /= _WINDOW.sum()
_SCALES = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])


class Calibration(NamedTuple):
    """What `calibration` finds.

    Fields:
      nominal: [k // 2], how often the truth should lie in the central intervals, from the widest on.
      coverage: [k // 2], how often it does.
      spread_skill: the spread of the samples over the error of their mean, 1 where the posterior is calibrated, less
        where it is too sure of itself.
    """

    nominal: np.ndarray
    coverage: np.ndarray
    spread_skill: float


def psnr(images: np.ndarray, truth: np.ndarray, *, data_range: float | None = None) -> np.ndarray:
    """10 log10(data_range^2 / mean squared error) in decibels, [n]; infinity for an exact image.

    Raises ValueError unless images and truth are of one shape and finite, and for integers without data_range.
    """
    a, b, data_range = _pair(images, truth, data_range)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(data_range**2 / ((a - b) ** 2).mean((1, 2, 3)))


def ssim(images: np.ndarray, truth: np.ndarray, *, data_range: float | None = None) -> np.ndarray:
    """Structural similarity, [n], 1 for an exact image (Wang et al. 2004, IEEE TIP 13, eq. 13).

    Means, variances and covariance under a Gaussian window of 11 x 11 pixels and standard deviation 1.5, wherever it
    lies within the image; C_1 = (0.01 data_range)^2, C_2 = (0.03 data_range)^2. Channels count alike.

    Raises ValueError as `psnr` does, and for images of less than 11 x 11 pixels.
    """
    luminance, structure = _maps(*_pair(images, truth, data_range))
    return (luminance * structure).mean((1, 2, 3))


def multi_scale_ssim(
    images: np.ndarray, truth: np.ndarray, *, data_range: float | None = None, scales: int | None = None
) -> np.ndarray:
    """Multi-scale structural similarity, [n] (Wang, Simoncelli & Bovik 2003, eq. 7).

    The product over scales of the mean contrast and structure, and at the coarsest scale of luminance too, to the
    powers 0.0448, 0.2856, 0.3001, 0.2363, 0.1333; from scale to scale images are halved by means of 2 x 2 pixels (an
    odd last row or column is left out). A negative mean counts as 0, as its power would be no number. Channels count
    alike.

    scales: how many, 1 to 5. None takes as many as leave the window's 11 pixels at the coarsest: five from 176 pixels
      on, two at 32. Of fewer than five the powers are those of the finest scales, divided by their sum; such numbers
      compare with one another only.

    Raises ValueError as `ssim` does, and if the images are too small for the scales asked for.
    """
    a, b, data_range = _pair(images, truth, data_range)
    most = int(np.clip(np.log2(min(a.shape[1:3]) / len(_WINDOW)) + 1, 1, len(_SCALES)))
    scales = most if scales is None else scales
    _check.whole("scales", scales, 1, len(_SCALES))
    if scales > most:
        raise ValueError(f"scales = {scales}: images of {a.shape[1]} x {a.shape[2]} pixels have no more than {most}")
    powers = _SCALES[:scales] / _SCALES[:scales].sum()
    product = np.ones(a.shape[::3])
    for scale, power in enumerate(powers):
        luminance, structure = _maps(a, b, data_range)
        value = (luminance * structure if scale == scales - 1 else structure).mean((1, 2))  # [n, channels]
        product *= np.maximum(value, 0) ** power
        a, b = _halved(a), _halved(b)
    return product.mean(-1)


def calibration(samples: np.ndarray, truth: np.ndarray) -> Calibration:
    """Whether the truth could be one more of the samples drawn for it.

    Of k independent draws of a posterior and the truth, every order is equally likely; so the truth lies between the
    i-th smallest and the i-th largest draw with probability (k + 1 - 2i) / (k + 1), whatever the posterior. Those are
    the central intervals, i = 1, ..., k // 2, and their coverage is the share of pixels in which it does.

    spread_skill is sqrt((1 + 1/k) mean variance / mean (truth - mean)^2), with the unbiased variance of the k draws: 1
    for a posterior that is calibrated (Fortin et al. 2014, J. Hydrometeorology 15).

    Args:
      samples: [k, n, ...], k >= 2 draws for each of n truths.
      truth: [n, ...].

    Raises ValueError for other shapes, or values that are not finite.
    """
    samples, truth = np.asarray(samples, np.float64), np.asarray(truth, np.float64)
    if samples.ndim < 2 or len(samples) < 2 or samples.shape[1:] != truth.shape or not truth.size:
        raise ValueError(
            f"samples has shape {samples.shape} for a truth of shape {truth.shape}: must be [k, n, ...] with k >= 2"
        )
    _check.numbers("samples", samples)
    _check.numbers("truth", truth)
    k = len(samples)
    i = np.arange(1, k // 2 + 1)
    ordered = np.sort(samples, axis=0)
    inside = [((ordered[j - 1] <= truth) & (truth <= ordered[k - j])).mean() for j in i]
    spread, skill = samples.var(0, ddof=1).mean(), ((samples.mean(0) - truth) ** 2).mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = float(np.sqrt((1 + 1 / k) * spread / skill))
    return Calibration((k + 1 - 2 * i) / (k + 1), np.array(inside), ratio)


def _pair(images: np.ndarray, truth: np.ndarray, data_range: float | None) -> tuple[np.ndarray, np.ndarray, float]:
    if data_range is None:
        for name, value in (("images", images), ("truth", truth)):
            if not np.issubdtype(kind := np.asarray(value).dtype, np.floating):
                raise ValueError(f"{name} of {kind}: data_range must be given, 255 for 8-bit images")
        data_range = 2.0
    _check.positive("data_range", data_range)
    images, truth = np.asarray(images, np.float64), np.asarray(truth, np.float64)
    if images.ndim != 4 or images.shape != truth.shape:
        raise ValueError(
            f"images has shape {images.shape} for a truth of shape {truth.shape}: must be alike, "
            "[n, height, width, channels]"
        )
    _check.numbers("images", images)
    _check.numbers("truth", truth)
    return images, truth, data_range


def _maps(a: np.ndarray, b: np.ndarray, data_range: float) -> tuple[np.ndarray, np.ndarray]:
    """Luminance, and contrast times structure, at every place of the window: [n, height - 10, width - 10, channels]."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_a, mean_b = _windowed(a), _windowed(b)
    var_a, var_b = _windowed(a * a) - mean_a**2, _windowed(b * b) - mean_b**2
    covariance = _windowed(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance, (2 * covariance + c2) / (var_a + var_b + c2)


def _windowed(x: np.ndarray) -> np.ndarray:
    """Weighted means under the window, along rows and then along columns."""
    size = len(_WINDOW)
    if min(x.shape[1:3]) < size:
        raise ValueError(f"images of {x.shape[1]} x {x.shape[2]} pixels: must be at least {size} x {size}")
    for axis in (1, 2):
        x = np.lib.stride_tricks.sliding_window_view(x, size, axis) @ _WINDOW
    return x


def _halved(x: np.ndarray) -> np.ndarray:
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))
