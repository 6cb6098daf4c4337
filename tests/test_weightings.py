"""Weightings against the papers' formulas, and the identities between error scales."""

import jax
import jax.numpy as jnp
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
    np.testing.assert_allclose(W.soft_min_snr(5.0)(LOGSNR), SNR * 5 / (SNR + 5), rtol=5e-6)
    np.testing.assert_allclose(W.truncated_snr()(LOGSNR), np.maximum(SNR, 1), rtol=3e-6)
    # P2 is written for the eps error: SNR times 1 / (k + SNR)^gamma here
    np.testing.assert_allclose(W.p2(1.0, 0.5)(LOGSNR), SNR / np.sqrt(1 + SNR), rtol=5e-6)
    # sigmoid(b - logsnr) of the eps error
    np.testing.assert_allclose(W.sigmoid(-3.0)(LOGSNR), SNR / (1 + np.exp(LOGSNR + 3)), rtol=1e-5)


@pytest.mark.parametrize("name", ["eps", "x0", "v", "flow", "edm", "score"])
def test_target_is_the_plain_loss_of_what_is_predicted(name):
    pre = getattr(dx.preconditioning, name)()
    t = SIGMA / (1 + SIGMA)
    expected = {
        "eps": SNR,
        "x0": np.ones_like(SNR),
        "v": SNR + 1,
        "flow": 1 / t**2,
        "edm": SNR + 4,
        "score": SNR**2,
    }[name]
    np.testing.assert_allclose(W.target(pre)(LOGSNR), expected, rtol=1e-5)


def test_v_with_cosine_and_flow_matching_ask_for_the_same():
    """Both effective weights go as exp(-logsnr / 2) (Kingma & Gao 2023)."""
    lam = np.linspace(-8, 8, 33)
    v = W.effective(dx.schedules.cosine(), W.target(dx.preconditioning.v()))(lam)
    flow = W.effective(dx.schedules.flow(), W.target(dx.preconditioning.flow()))(lam)
    for weight in (v, flow):
        np.testing.assert_allclose(weight * np.exp(lam / 2), weight[16] * np.ones(33), rtol=1e-4)


@pytest.mark.parametrize("schedule", [dx.schedules.laplace(0.0, 2.0), dx.schedules.edm(), dx.schedules.flow()])
def test_elbo_is_flat_whatever_the_schedule(schedule):
    np.testing.assert_allclose(W.effective(schedule, W.elbo(schedule))(np.linspace(-6, 6, 25)), 0.5, rtol=1e-5)


def test_learned_uncertainty_finds_the_log_of_the_loss():
    """Minimising loss / e^g + g over g gives e^g = E[loss | logsnr]."""
    params = W.uncertainty_init(jax.random.key(0))
    lam = jnp.linspace(-8, 8, 64)
    truth = 0.2 + jnp.exp(-(lam**2) / 8)

    @jax.jit
    def descend(params):
        grads = jax.grad(lambda p: W.uncertainty(p, truth, lam).mean())(params)
        return jax.tree.map(lambda p, g: p - 1.0 * g, params, grads)

    np.testing.assert_allclose(W.uncertainty(params, truth, lam), truth)  # g = 0 at the start
    fixed = params.frequency
    for _ in range(3000):
        params = descend(params)
    assert (params.frequency == fixed).all()
    best = 1 + jnp.log(truth)
    np.testing.assert_allclose(W.uncertainty(params, truth, lam).mean(), best.mean(), atol=0.02)


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
    with pytest.raises(ValueError, match="k = 0"):
        W.p2(k=0)
    with pytest.raises(ValueError, match="least = -1"):
        W.truncated_snr(-1)
    with pytest.raises(ValueError, match="features = 0"):
        W.uncertainty_init(jax.random.key(0), 0)
