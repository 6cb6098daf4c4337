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


# ---- the limits -----------------------------------------------------------------------------------------------------

INF = np.inf
P, S = dx.preconditioning, dx.schedules
# name -> (weighting, its limit at logSNR -inf, at inf)
LIMITS = {
    "uniform": (W.uniform(), 1, 1),
    "snr": (W.snr(), 0, INF),
    "edm": (W.edm(0.5), 4, INF),
    "min_snr": (W.min_snr(5.0), 0, 5),
    "soft_min_snr": (W.soft_min_snr(5.0), 0, 5),
    "truncated_snr": (W.truncated_snr(), 1, INF),
    "p2(gamma=0.5)": (W.p2(2.0, 0.5), 0, INF),
    "p2(gamma=1)": (W.p2(2.0, 1.0), 0, 1),
    "p2(gamma=2)": (W.p2(2.0, 2.0), 0, 0),
    "sigmoid": (W.sigmoid(-3.0), 0, np.exp(-3.0)),
    "eps": (W.target(P.eps()), 0, INF),
    "x0": (W.target(P.x0()), 1, 1),
    "v": (W.target(P.v()), 1, INF),
    "flow": (W.target(P.flow()), 1, INF),
    "target(edm)": (W.target(P.edm(0.5)), 4, INF),
    "score": (W.target(P.score()), 0, INF),
    "elbo": (W.elbo(S.edm()), 0, 0),  # no level is drawn there
    "elbo(truncated)": (W.elbo(S.truncate(S.cosine(), -8, 8)), 0, 0),
    "resampled": (W.resampled(W.snr(), S.edm(), S.cosine()), 0, 0),
}


@pytest.mark.parametrize("name", LIMITS)
def test_weights_at_both_infinities_are_the_limits(name):
    weighting, noisy, clean = LIMITS[name]
    np.testing.assert_allclose(jax.jit(weighting)(jnp.array([-INF, INF])), [noisy, clean], rtol=1e-6)
    far = np.asarray(weighting(jnp.float32([-400, -180, 180, 400])))
    np.testing.assert_allclose(far, np.repeat([noisy, clean], 2), rtol=1e-5)  # to 32 bits
    assert np.isnan(jax.jit(weighting)(jnp.nan)) or name in ("uniform", "x0")


@pytest.mark.parametrize("recipe", [W.snr(), W.target(P.v()), W.elbo(S.edm())])
def test_an_effective_weight_is_0_where_nothing_is_drawn(recipe):
    for schedule in (S.edm(), S.truncate(S.cosine(), -8, 8)):
        np.testing.assert_array_equal(W.effective(schedule, recipe)(np.array([-INF, -400.0, 400.0, INF])), 0)


def test_the_weight_of_what_is_never_drawn_is_0_not_infinite():
    schedule = S.truncate(S.cosine(), -8, 8)
    np.testing.assert_array_equal(W.elbo(schedule)(np.array([-9.0, 9.0])), 0)
    np.testing.assert_array_equal(W.resampled(W.snr(), S.edm(), schedule)(np.array([-9.0, 9.0])), 0)
    both = W.resampled(W.snr(), S.laplace(0.0, 2.0), S.laplace(1.0, 2.0))(2.0)
    assert float(both) == pytest.approx(np.exp(2) * np.exp(-2 / 2) / np.exp(-1 / 2), rel=1e-5)


def test_the_effective_weight_of_the_plain_eps_error_is_the_density_far_out():
    """exp(-logsnr) leaves 32 bits at 88; the density of a Cauchy distribution does not."""
    lam = np.array([-300.0, -85.0, 85.0, 300.0])
    got = W.effective(S.cauchy(0.0, 1.0), W.snr())(lam)
    np.testing.assert_allclose(got, 1 / (np.pi * (1 + lam**2)), rtol=1e-4)


def test_the_learned_uncertainty_is_finite_at_the_infinities():
    params = W.uncertainty_init(jax.random.key(0), 16)._replace(weight=jnp.ones(16))
    got = W.uncertainty(params, jnp.ones(2), jnp.array([-INF, INF]))
    np.testing.assert_array_equal(got, W.uncertainty(params, jnp.ones(2), jnp.array([-80.0, 80.0])))
    assert np.isfinite(got).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: W.target(P.v), "preconditioning = v: is a function: did you forget the parentheses?"),
        (lambda: W.target("v"), "preconditioning = 'v': must be a Preconditioning such as"),
        (lambda: W.elbo(S.cosine), "schedule = cosine: is a function: did you forget the parentheses?"),
        (lambda: W.effective(S.cosine(), W.snr), "weighting = snr: is a function: did you forget"),
        (lambda: W.effective(None, W.snr()), "schedule = None: must be a Schedule such as"),
        (lambda: W.resampled(W.snr, S.edm(), S.edm()), "weighting = snr: is a function"),
        (lambda: W.resampled(W.snr(), S.edm, S.edm()), "wanted = edm: is a function"),
        (lambda: W.resampled(W.snr(), S.edm(), S.edm), "drawn = edm: is a function"),
        (lambda: W.snr()(np.nan), "logsnr = nan: must be numbers"),
        (lambda: W.snr()("1"), "logsnr = '1': must be numbers"),
        (lambda: W.min_snr("5"), "gamma = '5': must be positive"),
        (lambda: W.p2(gamma=None), "gamma = None: must be finite"),
        (lambda: W.uncertainty_init(None), "key = None: must be a JAX key"),
        (lambda: W.uncertainty_init(jax.random.key(0), "8"), "features = '8': must be an integer"),
        (lambda: W.uncertainty(None, 1.0, 1.0), "params = None: must be a Uncertainty"),
        (
            lambda: W.uncertainty(W.uncertainty_init(jax.random.key(0)), jnp.ones(3), jnp.ones(2)),
            "loss has shape (3,) for logsnr of shape (2,): must be the same",
        ),
    ],
)
def test_other_kinds_are_refused(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value)
