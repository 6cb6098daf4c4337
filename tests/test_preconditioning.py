"""The table of coefficients against the definitions of the targets, in numpy float64."""

import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx

P = dx.preconditioning
LOGSNR = np.linspace(-20, 20, 81)
ALPHA, SIGMA_T = np.sqrt(1 / (1 + np.exp(-LOGSNR))), np.sqrt(1 / (1 + np.exp(LOGSNR)))
SIGMA = np.exp(-LOGSNR / 2)
T = SIGMA / (1 + SIGMA)
X0, N = 0.7, -1.3  # a clean value and a noise

# name -> (preconditioning, what F is, what F sees) for x_0 = X0 and noise N
TARGETS = {
    "eps": (P.eps(), N + 0 * SIGMA, ALPHA * X0 + SIGMA_T * N),
    "score": (P.score(), -N / SIGMA, X0 + SIGMA * N),
    "x0": (P.x0(), X0 + 0 * SIGMA, ALPHA * X0 + SIGMA_T * N),
    "unscaled input": (P.unscaled_input(P.x0()), X0 + 0 * SIGMA, X0 + SIGMA * N),
    "v": (P.v(), ALPHA * N - SIGMA_T * X0, ALPHA * X0 + SIGMA_T * N),
    "flow": (P.flow(), N - X0 + 0 * SIGMA, (1 - T) * X0 + T * N),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_and_inputs_are_the_definitions(name):
    pre, target, seen = TARGETS[name]
    x0, n = np.full((81, 1), X0, np.float32), np.full((81, 1), N, np.float32)
    got = pre.target(jnp.asarray(x0), jnp.asarray(n), LOGSNR)[:, 0]
    np.testing.assert_allclose(got, target, rtol=3e-6, atol=3e-6)
    c = pre(LOGSNR)
    np.testing.assert_allclose(np.asarray(c.c_in) * (X0 + SIGMA * N), seen, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("name", TARGETS)
def test_the_true_output_is_denoised_to_x0(name):
    pre, target, _ = TARGETS[name]
    c = pre(LOGSNR)
    d = np.float64(c.c_skip) * (X0 + SIGMA * N) + np.float64(c.c_out) * target
    # float32 coefficients multiply numbers as large as sigma
    assert (np.abs(d - X0) < 1e-6 * (1 + SIGMA)).all()


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 3.0])
def test_edm_is_table_one(sigma_data):
    c = P.edm(sigma_data)(LOGSNR)
    var = SIGMA**2 + sigma_data**2
    np.testing.assert_allclose(c.c_in, 1 / np.sqrt(var), rtol=3e-6)
    np.testing.assert_allclose(c.c_skip, sigma_data**2 / var, rtol=5e-6)
    np.testing.assert_allclose(c.c_out, SIGMA * sigma_data / np.sqrt(var), rtol=3e-6)
    np.testing.assert_allclose(c.c_noise, np.log(SIGMA) / 4, atol=1e-6)


def test_edm_of_unit_data_is_minus_v():
    edm, v = P.edm(1.0)(LOGSNR), P.v()(LOGSNR)
    np.testing.assert_allclose(edm.c_in, v.c_in, rtol=1e-5)
    np.testing.assert_allclose(edm.c_skip, v.c_skip, rtol=1e-5)
    np.testing.assert_allclose(edm.c_out, -v.c_out, rtol=1e-5)


def test_coefficients_are_float32_for_bfloat16_input():
    assert {a.dtype for a in P.v()(jnp.bfloat16(1.0))} == {jnp.dtype(jnp.float32)}


def test_bad_sigma_data_is_named():
    with pytest.raises(ValueError, match="sigma_data = 0"):
        P.edm(0)
