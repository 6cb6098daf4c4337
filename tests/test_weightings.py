"""Weightings against the papers' formulas, and the identities between error scales."""

import numpy as np
import pytest

import diffax as dx

W = dx.weightings
LOGSNR = np.linspace(-15, 15, 61)
SNR, SIGMA = np.exp(LOGSNR), np.exp(-LOGSNR / 2)


def test_formulas():
    np.testing.assert_allclose(W.uniform()(LOGSNR), 1)
    np.testing.assert_allclose(W.snr()(LOGSNR), SNR, rtol=3e-6)
    np.testing.assert_allclose(W.edm(0.5)(LOGSNR), (SIGMA**2 + 0.25) / (SIGMA * 0.5) ** 2, rtol=3e-6)
    np.testing.assert_allclose(W.min_snr(5.0)(LOGSNR), np.minimum(SNR, 5), rtol=3e-6)


@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
def test_edm_weight_and_preconditioning_cancel(sigma_data):
    c = dx.preconditioning.edm(sigma_data)(LOGSNR)
    np.testing.assert_allclose(W.edm(sigma_data)(LOGSNR) * np.asarray(c.c_out) ** 2, 1, rtol=1e-5)


def test_min_snr_on_eps_as_published():
    # gamma = 5: weight of the eps error at SNR 100 is 0.05, of the v error 5/101 (arXiv:2303.09556)
    weight = float(W.min_snr(5.0)(np.log(100.0)))
    assert weight / 100 == pytest.approx(0.05, rel=1e-5)
    assert weight / 101 == pytest.approx(5 / 101, rel=1e-5)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="gamma = 0"):
        W.min_snr(0)
    with pytest.raises(ValueError, match="sigma_data = -1"):
        W.edm(-1)
