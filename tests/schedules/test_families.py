"""Every family against its formula in numpy float64, written here from the papers; and what all schedules owe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import diffax as dx

S = dx.schedules


def phi(u, v):
    """The normal quantile, from the smaller tail."""
    return np.where(u < v, scipy.stats.norm.ppf(u), -scipy.stats.norm.ppf(v))


def nichol_dhariwal(u, v, s=0.008):
    a0 = np.pi / 2 * s / (1 + s)
    a = np.pi / 2 * (u + s) / (1 + s)
    signal = np.sin(np.pi / 2 * v / (1 + s)) ** 2 / np.cos(a0) ** 2  # cos^2(a) / cos^2(a_0)
    noise = np.sin(a + a0) * np.sin(np.pi / 2 * u / (1 + s)) / np.cos(a0) ** 2  # 1 - signal
    return np.log(signal / noise)


def jabri(u, v, start, end, tau):
    k = (end - start) / tau
    cosh = np.log(np.cosh(start / tau / 2) / np.cosh(end / tau / 2))
    return np.log(np.sinh(k * v / 2) / np.sinh(k * u / 2)) + cosh


def rho_seven(u, v):
    return -2 * np.log((0.002 ** (1 / 7) * v + 80 ** (1 / 7) * u) ** 7)


# name -> (schedule, logsnr(u, v), density(logsnr) or None); u and v = 1 - u are float64
ORACLES = {
    "cosine": (
        S.cosine(),
        lambda u, v: -2 * np.log(np.sin(np.pi * u / 2) / np.sin(np.pi * v / 2)),
        lambda lam: 1 / np.cosh(lam / 2) / (2 * np.pi),
    ),
    "cosine s=0.008": (S.cosine(0.008), nichol_dhariwal, None),
    "cosine_shifted": (
        S.cosine_shifted(1.5),
        lambda u, v: 1.5 - 2 * np.log(np.sin(np.pi * u / 2) / np.sin(np.pi * v / 2)),
        lambda lam: 1 / np.cosh((lam - 1.5) / 2) / (2 * np.pi),
    ),
    "cosine_scaled": (
        S.cosine_scaled(2.0),
        lambda u, v: -np.log(np.sin(np.pi * u / 2) / np.sin(np.pi * v / 2)),
        lambda lam: 2 / np.cosh(lam) / (2 * np.pi),
    ),
    "edm": (
        S.edm(-1.2, 1.2),
        lambda u, v: -2 * (-1.2 + 1.2 * phi(u, v)),
        lambda lam: scipy.stats.norm.pdf(lam, 2.4, 2.4),
    ),
    "logit_normal": (
        S.logit_normal(0.3, 1.0, ratio=3.0),
        lambda u, v: -2 * (0.3 + phi(u, v)) - 2 * np.log(3),
        lambda lam: scipy.stats.norm.pdf(lam, -0.6 - 2 * np.log(3), 2.0),
    ),
    "laplace": (
        S.laplace(0.3, 0.5),
        lambda u, v: 0.3 - 0.5 * np.where(u < v, np.log(2 * u), -np.log(2 * v)),
        lambda lam: np.exp(-np.abs(lam - 0.3) / 0.5) / (2 * 0.5),
    ),
    "cauchy": (
        S.cauchy(0.5, 2.0),
        lambda u, v: 0.5 + 2 * np.where(u < v, 1 / np.tan(np.pi * u), -1 / np.tan(np.pi * v)),
        lambda lam: 2 / (np.pi * ((lam - 0.5) ** 2 + 4)),
    ),
    "flow": (
        S.flow(),
        lambda u, v: 2 * np.log(v / u),
        lambda lam: 1 / np.cosh(lam / 4) ** 2 / 8,
    ),
    "flow shifted": (  # t' = 3 t / (1 + 2 t)
        S.flow(ratio=3.0),
        lambda u, v: 2 * np.log(v / (3 * u)),
        lambda lam: 1 / np.cosh((lam + 2 * np.log(3)) / 4) ** 2 / 8,
    ),
    "uniform": (S.uniform(-9.0, 11.0), lambda u, v: 11 * v - 9 * u, None),
    "geometric": (S.geometric(0.01, 50.0), lambda u, v: -2 * np.log(0.01**v * 50**u), None),
    "karras": (S.karras(0.002, 80, 7), rho_seven, None),
    "polynomial": (S.polynomial(4.0), lambda u, v: rho_seven(u**4, -np.expm1(4 * np.log1p(-v))), None),
    "linear_beta": (S.linear_beta(), lambda u, v: -np.log(np.expm1(0.1 * u + 19.9 * u**2 / 2)), None),
    "sigmoid": (S.sigmoid(), lambda u, v: jabri(u, v, -3, 3, 1), None),
    "sigmoid 0, 3, 0.7": (S.sigmoid(0.0, 3.0, 0.7), lambda u, v: jabri(u, v, 0, 3, 0.7), None),
}
FAMILIES = {name: oracle[0] for name, oracle in ORACLES.items()}
TRUNCATED = {name: S.truncate(s, -12, 10) for name, s in FAMILIES.items()}


@pytest.mark.parametrize("name", ORACLES)
def test_logsnr_is_the_formula_at_both_tails(name):
    """Error < 1e-6, relative or in units of logSNR, wherever |logsnr| <= 20."""
    schedule, formula, _ = ORACLES[name]
    tail = np.float32(np.concatenate([np.geomspace(1e-7, 0.5, 100), np.linspace(0.01, 0.5, 100)]))
    u = np.concatenate([tail, 1 - tail])  # 1 - u of a float32 u >= 1/2 is exact
    exact = formula(np.float64(u), 1 - np.float64(u))
    error = np.abs(np.asarray(jax.jit(schedule)(u), np.float64) - exact) / np.maximum(np.abs(exact), 1)
    assert error[np.abs(exact) <= 20].max() < 1e-6


@pytest.mark.parametrize("name", ORACLES)
def test_nothing_is_nan_and_only_the_ends_are_infinite(name):
    schedule = ORACLES[name][0]
    lam = np.asarray(schedule(np.float32([0, 1e-7, 0.5, 1 - 1e-7, 1])))
    assert not np.isnan(lam).any() and np.isfinite(lam[1:-1]).all() and (np.diff(lam) <= 0).all()
    u, v = schedule.tails(jnp.float32([-1e3, -80, -20, 0, 20, 80, 1e3]))
    assert ((u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)).all()
    assert np.isfinite(schedule.density(jnp.float32([-1e3, -80, -20, 0, 20, 80, 1e3]))).all()


@pytest.mark.parametrize("name", ORACLES)
def test_tails_undo_the_formula(name):
    """Both tails against the formula in float64, with the relative precision that the far ends need."""
    schedule, formula, _ = ORACLES[name]
    ends = formula(np.array([1e-12, 1 - 1e-12]), np.array([1 - 1e-12, 1e-12]))
    lam = np.linspace(max(-20, ends[1] + 0.1), min(20, ends[0] - 0.1), 401, dtype=np.float32)
    u, v = (np.asarray(t, np.float64) for t in jax.jit(schedule.tails)(lam))
    np.testing.assert_allclose(u + v, 1, atol=1e-5)
    slope = 1 / np.maximum(np.asarray(schedule.density(lam), np.float64), 1e-30)
    back = formula(np.where(u < v, u, 1 - v), np.where(u < v, 1 - u, v))
    # an error of one part in 10^6 of the smaller tail, or of the table's own span
    assert (np.abs(back - lam) < 4e-6 * np.maximum(1, np.abs(lam)) + 2e-6 * slope * np.minimum(u, v)).all()


@pytest.mark.parametrize("name", [n for n, o in ORACLES.items() if o[2]])
def test_density_is_the_formula(name):
    schedule, _, density = ORACLES[name]
    lam = np.linspace(-20, 20, 401, dtype=np.float32)
    exact = density(np.float64(lam))
    np.testing.assert_allclose(schedule.density(lam), exact, rtol=3e-5, atol=1e-30)


@pytest.mark.parametrize("name", FAMILIES)
def test_density_is_minus_du_dlogsnr(name):
    schedule = FAMILIES[name]
    lam = jnp.asarray(schedule(np.float32([0.05, 0.3, 0.5, 0.8, 0.97]))) + 0.01  # off laplace's kink
    np.testing.assert_allclose(schedule.density(lam), -jax.vmap(jax.grad(schedule.inverse))(lam), rtol=1e-4)


@pytest.mark.parametrize("name", [*FAMILIES, *(f"{n} truncated" for n in FAMILIES)])
def test_density_integrates_to_one(name):
    family = name.removesuffix(" truncated")
    schedule = TRUNCATED[family] if family != name else FAMILIES[name]
    if family == "cauchy" and family == name:
        lam = np.concatenate([-np.geomspace(1e6, 1e-3, 400_000), np.geomspace(1e-3, 1e6, 400_000)])
    else:
        lam = np.linspace(-80, 80, 1_600_001)
    if family == "polynomial":  # unbounded, though integrable, at its clean end: stop short of it
        lam = lam[lam < -2 * np.log(0.002) - 1e-3 if family == name else lam < 10]
    p = np.asarray(schedule.density(np.float32(lam)), np.float64)
    missing = float(schedule.inverse(np.float32(lam[-1]))) if family == "polynomial" else 0
    assert abs(np.trapezoid(p, lam) + missing - 1) < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_inverse_undoes_the_schedule(name):
    u = np.float32(np.concatenate([np.geomspace(1e-5, 0.4, 40), np.linspace(0.4, 0.999, 40)]))
    schedule = FAMILIES[name]
    if name == "polynomial":
        u = u[u > 0.05]  # float32 has too few digits of logSNR to tell smaller u^4 apart
    np.testing.assert_allclose(schedule.inverse(schedule(u)), u, rtol=2e-5 if name != "polynomial" else 1e-3, atol=1e-7)


@pytest.mark.parametrize("name", TRUNCATED)
def test_truncated_ends_are_finite_and_where_they_were_put(name):
    schedule = TRUNCATED[name]
    u = np.float32([0, 1e-7, 0.5, 1 - 1e-7, 1])
    lam = np.asarray(schedule(u))
    assert np.isfinite(lam).all() and (np.diff(lam) <= 0).all()
    low, high = -12, 10
    if name in ("karras", "polynomial", "uniform", "geometric", "linear_beta"):  # end before that
        natural = np.asarray(FAMILIES[name](np.float32([0, 1])))
        low, high = max(low, natural[1]), min(high, natural[0])
    np.testing.assert_allclose(lam[[0, -1]], [high, low], rtol=1e-6)
    np.testing.assert_allclose(schedule.inverse(np.float32([high + 1, low - 1])), [0, 1], atol=1e-6)
    assert schedule.density(jnp.array(high + 1.0)) == 0 and schedule.density(jnp.array(low - 1.0)) == 0
    slopes = np.asarray(jax.vmap(jax.grad(schedule))(jnp.linspace(0.01, 0.99, 9)))
    assert np.isfinite(slopes).all() and (slopes < 0).all()


def test_composes_with_jit_vmap_and_traced_parameters():
    def third(scale):
        return S.truncate(S.laplace(0.0, scale), -5, 5)(0.3)

    np.testing.assert_allclose(jax.jit(third)(0.5), third(0.5), rtol=1e-6)
    slope = jax.grad(third)(0.5)
    np.testing.assert_allclose(slope, (third(0.501) - third(0.499)) / 0.002, rtol=1e-2)
    assert jax.vmap(third)(jnp.array([0.4, 0.5])).shape == (2,)


def test_bfloat16_input_is_computed_in_float32():
    assert S.cosine()(jnp.bfloat16(0.25)).dtype == jnp.float32


MEANS, WIDTHS = st.floats(-5, 5), st.floats(0.1, 4)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["edm", "laplace", "cauchy", "karras", "sigmoid", "linear_beta"]),
    MEANS,
    WIDTHS,
    st.floats(1e-5, 0.5),
)
def test_formulas_hold_for_any_parameters(name, mean, width, tail):
    """Quantile and inverse against float64, at u = tail and at u = 1 - tail."""
    low, high, rho = 0.001 * width, 1 + width * 20, 1 + 3 * width
    schedule, formula = {
        "edm": (S.edm(mean, width), lambda u, v: -2 * (mean + width * phi(u, v))),
        "laplace": (
            S.laplace(mean, width),
            lambda u, v: mean + width * np.where(u < v, -np.log(2 * u), np.log(2 * v)),
        ),
        "cauchy": (
            S.cauchy(mean, width),
            lambda u, v: mean + width * np.where(u < v, 1 / np.tan(np.pi * u), -1 / np.tan(np.pi * v)),
        ),
        "karras": (
            S.karras(low, high, rho),
            lambda u, v: -2 * rho * np.log(low ** (1 / rho) * v + high ** (1 / rho) * u),
        ),
        "sigmoid": (S.sigmoid(mean, mean + 3, width), lambda u, v: jabri(u, v, mean, mean + 3, width)),
        "linear_beta": (
            S.linear_beta(0.1 * width, 10 * width),
            lambda u, v: -np.log(np.expm1(0.1 * width * u + 9.9 * width * u**2 / 2)),
        ),
    }[name]
    u = np.float32([tail, 1 - np.float32(tail)])
    exact = formula(np.float64(u), 1 - np.float64(u))
    np.testing.assert_allclose(
        schedule(u), exact, rtol=3e-6, atol=3e-6 * max(1, rho if name == "karras" else 1, abs(mean))
    )
    first, second = schedule.tails(jnp.asarray(schedule(u)))
    # one part in 10^5 of the smaller tail, and what the rounding of logSNR moves u by
    moved = 3e-7 * np.maximum(np.abs(exact), 1) * np.asarray(schedule.density(jnp.float32(exact)))
    assert (np.abs(first - u) < 1e-5 * np.minimum(u, 1 - u) + 2 * moved + 3e-7).all()
    assert (np.abs(second - (1 - u)) < 1e-5 * np.minimum(u, 1 - u) + 2 * moved + 3e-7).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: S.laplace(0, 0), "scale = 0: must be positive"),
        (lambda: S.laplace(np.nan, 1), "mean = nan: must be finite"),
        (lambda: S.cauchy(0, -1), "scale = -1"),
        (lambda: S.edm(p_std=-1), "p_std = -1"),
        (lambda: S.edm(p_std=()), "p_std = ()"),
        (lambda: S.logit_normal(ratio=0), "ratio = 0"),
        (lambda: S.flow(ratio=-1), "ratio = -1"),
        (lambda: S.cosine(s=-0.1), "s = -0.1: must lie in [0, 1]"),
        (lambda: S.cosine_scaled(0), "s = 0"),
        (lambda: S.karras(2.0, 1.0), "sigma_min = 2.0: must be less than sigma_max = 1.0"),
        (lambda: S.karras(0.0, 1.0), "sigma_min = 0.0"),
        (lambda: S.karras(rho=0), "rho = 0"),
        (lambda: S.polynomial(power=0), "power = 0"),
        (lambda: S.cosine_shifted(float("nan")), "mean = nan"),
        (lambda: S.geometric(1.0, 1.0), "sigma_min = 1.0: must be less than"),
        (lambda: S.uniform(3.0, -3.0), "logsnr_min = 3.0: must be less than logsnr_max = -3.0"),
        (lambda: S.linear_beta(20.0, 0.1), "beta_min = 20.0"),
        (lambda: S.sigmoid(3.0, -3.0), "start = 3.0: must be less than end = -3.0"),
        (lambda: S.sigmoid(tau=0), "tau = 0"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)
