"""PSNR and SSIM against scikit-image, multi-scale SSIM against loops over windows, calibration against known laws."""

import numpy as np
import pytest

from diffax import metrics

RANDOM = np.random.default_rng(0)
TRUTH = np.cumsum(RANDOM.normal(size=(3, 48, 52, 2)), axis=1) / 8  # rough in one direction, smooth in the other
NOISY = TRUTH + np.array([0.05, 0.2, 1.0])[:, None, None, None] * RANDOM.normal(size=TRUTH.shape)


def test_ssim_and_psnr_are_those_of_scikit_image():
    skimage = pytest.importorskip("skimage.metrics")
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2.0, channel_axis=-1)
    expected = [skimage.structural_similarity(a, b, **options) for a, b in zip(NOISY, TRUTH, strict=True)]
    np.testing.assert_allclose(metrics.ssim(NOISY, TRUTH), expected, rtol=1e-9)
    expected = [skimage.peak_signal_noise_ratio(b, a, data_range=2.0) for a, b in zip(NOISY, TRUTH, strict=True)]
    np.testing.assert_allclose(metrics.psnr(NOISY, TRUTH), expected, rtol=1e-12)


def looped(a, b, data_range):
    """Mean SSIM and mean contrast and structure of two images [height, width], one window at a time."""
    at = np.arange(11) - 5
    window = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    whole, structure = [], []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            m, n = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - m) ** 2).sum(), (window * (q - n) ** 2).sum()
            cs = (2 * (window * (p - m) * (q - n)).sum() + c2) / (vp + vq + c2)
            structure.append(cs)
            whole.append(cs * (2 * m * n + c1) / (m * m + n * n + c1))
    return np.mean(whole), np.mean(structure)


def halved(x):
    return np.array([[x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for j in range(len(x[0]) // 2)]
                     for i in range(len(x) // 2)])  # fmt: skip


def test_multi_scale_ssim_is_the_product_over_scales():
    a, b = NOISY[1, ..., 0], TRUTH[1, ..., 0]
    powers = np.array([0.0448, 0.2856, 0.3001]) / (0.0448 + 0.2856 + 0.3001)
    expected = looped(a, b, 3.0)[1] ** powers[0]
    a, b = halved(a), halved(b)
    expected *= looped(a, b, 3.0)[1] ** powers[1]
    a, b = halved(a), halved(b)
    expected *= looped(a, b, 3.0)[0] ** powers[2]
    got = metrics.multi_scale_ssim(NOISY[..., :1], TRUTH[..., :1], data_range=3.0)  # 48 pixels leave 12 at scale three
    assert got[1] == pytest.approx(expected, rel=1e-9)
    of_both = metrics.multi_scale_ssim(NOISY, TRUTH, data_range=3.0)
    other = metrics.multi_scale_ssim(NOISY[..., 1:], TRUTH[..., 1:], data_range=3.0)
    np.testing.assert_allclose(of_both, (got + other) / 2)


def test_five_scales_have_the_published_powers_and_one_scale_is_ssim():
    a, b = (np.tile(x[:1, :44, :44, :1], (1, 4, 4, 1)) for x in (NOISY, TRUTH))
    assert metrics.multi_scale_ssim(a, b) == pytest.approx(metrics.multi_scale_ssim(a, b, scales=5))  # 176 pixels
    assert metrics.multi_scale_ssim(a, b, scales=1) == pytest.approx(metrics.ssim(a, b))
    b = 1e4 * (b + 9)  # so bright that C_1 and C_2 are nothing: 0.7 b has 2 (0.7) / (1 + 0.49) of everything
    assert metrics.multi_scale_ssim(0.7 * b, b) == pytest.approx((1.4 / 1.49) ** (1 + 0.1333 / 1.0001), rel=1e-4)


def test_images_of_integers_are_over_the_range_that_is_given():
    grey = np.uint8(np.arange(2 * 16 * 16).reshape(2, 16, 16, 1) % 200)
    expected = 20 * np.log10(255 / 3)
    np.testing.assert_allclose(metrics.psnr(grey + np.uint8(3), grey, data_range=255), expected)


def test_an_image_is_like_itself_and_worse_ones_are_less_so():
    assert np.isinf(metrics.psnr(TRUTH, TRUTH)).all()
    for like in (metrics.ssim, metrics.multi_scale_ssim):
        np.testing.assert_allclose(like(TRUTH, TRUTH), 1)
        assert (np.diff(like(NOISY, TRUTH)) < 0).all()
    assert metrics.multi_scale_ssim(-TRUTH, TRUTH).max() == 0  # anti-correlated, not a complex number


def test_calibration_knows_an_honest_posterior_from_one_too_sure():
    """truth and draws from Normal(m, 1) with m known to nobody: honest; draws of half the spread: the truth lies
    outside as often as the order statistics of a narrower normal law say."""
    m = 3 * RANDOM.normal(size=(40, 30, 20))
    truth, draws = m + RANDOM.normal(size=m.shape), RANDOM.normal(size=(9, *m.shape))
    honest = metrics.calibration(m + draws, truth)
    np.testing.assert_allclose(honest.nominal, [0.8, 0.6, 0.4, 0.2])
    np.testing.assert_allclose(honest.coverage, honest.nominal, atol=0.01)
    assert honest.spread_skill == pytest.approx(1, abs=0.02)

    sure = metrics.calibration(m + 0.5 * draws, truth)
    # var 0.25 (1 + 1/9) against the error 1 + 0.25 / 9 of the mean
    assert sure.spread_skill == pytest.approx(np.sqrt(0.25 * (1 + 1 / 9) / (1 + 0.25 / 9)), abs=0.02)
    extremes = 0.5 * np.sort(np.random.default_rng(1).normal(size=(200_000, 9)), axis=1)[:, [0, -1]]
    fresh = np.random.default_rng(2).normal(size=(200_000, 1))
    widest = ((extremes[:, :1] <= fresh) & (fresh <= extremes[:, 1:])).mean()
    assert sure.coverage[0] == pytest.approx(widest, abs=0.01)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.psnr(TRUTH, TRUTH[:1]), "images has shape (3, 48, 52, 2) for a truth of shape (1, 48, 52, 2)"),
        (lambda: metrics.ssim(TRUTH, TRUTH, data_range=0.0), "data_range = 0.0: must be positive"),
        (lambda: metrics.ssim(TRUTH[:, :8], TRUTH[:, :8]), "images of 8 x 52 pixels: must be at least 11 x 11"),
        (lambda: metrics.multi_scale_ssim(TRUTH[:, :8], TRUTH[:, :8]), "images of 8 x 52 pixels: must be at least 11"),
        (lambda: metrics.multi_scale_ssim(TRUTH, TRUTH, scales=5), "scales = 5: images of 48 x 52 pixels have no more"),
        (lambda: metrics.multi_scale_ssim(TRUTH, TRUTH, scales=0), "scales = 0: must be an integer from 1 to 5"),
        (lambda: metrics.psnr(np.uint8(TRUTH), TRUTH), "images of uint8: data_range must be given, 255 for 8-bit"),
        (lambda: metrics.ssim(TRUTH, np.where(TRUTH > 0, np.nan, TRUTH)), "truth: "),
        (lambda: metrics.multi_scale_ssim(np.nan * TRUTH, TRUTH), "values are not finite"),
        (lambda: metrics.calibration(np.stack([TRUTH, np.nan * TRUTH]), TRUTH), "samples: "),
        (lambda: metrics.calibration(TRUTH[None], TRUTH), "must be [k, n, ...] with k >= 2"),
        (lambda: metrics.calibration(TRUTH, TRUTH), "samples has shape (3, 48, 52, 2) for a truth of shape"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value)
