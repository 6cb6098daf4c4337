"""The table of coefficients against the definitions of the targets, in numpy float64."""

import jax
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


# ---- the limits -----------------------------------------------------------------------------------------------------

INF = np.inf
# name -> (c_in, c_skip, c_out) at logSNR -inf and at inf, from the table
LIMITS = {
    "eps": (P.eps(), (0, 1, -INF), (1, 1, 0)),
    "x0": (P.x0(), (0, 0, 1), (1, 0, 1)),
    "v": (P.v(), (0, 0, -1), (1, 1, 0)),
    "flow": (P.flow(), (0, 0, -1), (1, 1, 0)),
    "score": (P.score(), (1, 1, INF), (1, 1, 0)),
    "edm": (P.edm(0.5), (0, 0, 0.5), (2, 1, 0)),
}
FAR = np.array([-400.0, -180.0, -120.0, -90.0, 90.0, 120.0, 180.0, 400.0])


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("wide", [False, True])
def test_coefficients_at_both_infinities_are_the_limits(name, wide):
    pre, noisy, clean = LIMITS[name]
    with jax.enable_x64(wide):
        got = np.array(jax.jit(pre)(jnp.array([-INF, INF], jnp.float64 if wide else jnp.float32))[:3])
    np.testing.assert_allclose(got, np.array([noisy, clean]).T, atol=1e-30)


@pytest.mark.parametrize("name", LIMITS)
def test_far_out_coefficients_are_those_of_float64(name):
    """Beyond |logSNR| = 177 sigma itself is no number of 32 bits: its limit is right."""
    alpha, sigma_t, sigma = 1 / np.sqrt(1 + np.exp(-FAR)), 1 / np.sqrt(1 + np.exp(FAR)), np.exp(-FAR / 2)
    one, var = np.ones_like(FAR), sigma**2 + 0.25
    skip, out, inside = {
        "eps": (one, -sigma, alpha),
        "x0": (0 * one, one, alpha),
        "v": (alpha**2, -sigma_t, alpha),
        "flow": (1 / (1 + sigma), -sigma / (1 + sigma), 1 / (1 + sigma)),
        "score": (one, sigma**2, one),
        "edm": (0.25 / var, sigma * 0.5 / np.sqrt(var), 1 / np.sqrt(var)),
    }[name]
    c = LIMITS[name][0](jnp.float32(FAR))
    for got, expected in ((c.c_skip, skip), (c.c_out, out), (c.c_in, inside)):
        with np.errstate(over="ignore"):
            np.testing.assert_allclose(got, np.float32(expected), rtol=3e-5, atol=1e-37)


@pytest.mark.parametrize("name", ["x0", "v", "flow", "edm"])
@pytest.mark.parametrize("lam", [-INF, -400.0, -180.0, -90.0, 90.0, 180.0, 400.0, INF])
def test_their_derivatives_are_finite_far_out(name, lam):
    for which in (1, 2):
        assert np.isfinite(jax.grad(lambda lam, which=which: LIMITS[name][0](lam)[which])(lam))


def test_what_is_predicted_of_pure_noise():
    """At SNR 0 v is -x_0, F of EDM x_0 / sigma_data, and the flow n - x_0 whatever the level."""
    x0, n, lam = jnp.full((2, 3), 0.7), jnp.full((2, 3), -1.3), jnp.full(2, -INF)
    for pre, expected in ((P.v(), -0.7), (P.edm(0.5), 1.4), (P.flow(), -2.0), (P.eps(), -1.3), (P.x0(), 0.7)):
        np.testing.assert_allclose(pre.target(x0, n, lam), expected, rtol=1e-6)


def test_a_target_may_differ_by_pixel():
    lam = jnp.array([[-1.0, 0.0, 2.0]])
    a, b = -np.sqrt(1 / (1 + np.exp(np.float64(lam)))), np.sqrt(1 / (1 + np.exp(-np.float64(lam))))
    got = P.v().target(jnp.full((2, 3), 0.7), jnp.full((2, 3), -1.3), jnp.broadcast_to(lam, (2, 3)))
    np.testing.assert_allclose(got, np.broadcast_to(a * 0.7 - b * 1.3, (2, 3)), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: P.v()(np.nan), "logsnr = nan: must be numbers"),
        (lambda: P.v()("0"), "logsnr = '0': must be numbers"),
        (lambda: P.v()(None), "logsnr = None: must be numbers"),
        (lambda: P.edm("1"), "sigma_data = '1': must be positive"),
        (lambda: P.edm(None), "sigma_data = None: must be positive"),
        (lambda: P.unscaled_input(P.v), "preconditioning = v: is a function: did you forget the parentheses?"),
        (lambda: P.v().target(jnp.ones((2, 3)), jnp.ones(2), 0.0), "n has shape (2,) for x0 of shape (2, 3)"),
        (lambda: P.v().target(jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones(3)), "logsnr has shape (3,) for x of shape"),
        (lambda: P.v().target(np.ones((2, 3), np.int32), jnp.ones((2, 3)), 0.0), "x0 is of int32: must be floating"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value)
