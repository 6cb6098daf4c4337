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

# name -> (schedule, logsnr(u), density(logsnr)); u and v = 1 - u are float64
ORACLES = {
    "cosine": (
        S.cosine(),
        lambda u, v: -2 * np.log(np.sin(np.pi * u / 2) / np.sin(np.pi * v / 2)),
        lambda lam: 1 / np.cosh(lam / 2) / (2 * np.pi),
    ),
    "edm": (
        S.edm(-1.2, 1.2),
        lambda u, v: -2 * (-1.2 + 1.2 * np.where(u < v, scipy.stats.norm.ppf(u), -scipy.stats.norm.ppf(v))),
        lambda lam: scipy.stats.norm.pdf(lam, 2.4, 2.4),
    ),
    "laplace": (
        S.laplace(0.3, 0.5),
        lambda u, v: 0.3 - 0.5 * np.sign(0.5 - u) * np.log(2 * np.minimum(u, v)),
        lambda lam: np.exp(-np.abs(lam - 0.3) / 0.5) / (2 * 0.5),
    ),
    "flow": (
        S.flow(),
        lambda u, v: 2 * np.log(v / u),
        lambda lam: 1 / np.cosh(lam / 4) ** 2 / 8,
    ),
    "karras": (
        S.karras(0.002, 80, 7),
        lambda u, v: -2 * np.log((0.002 ** (1 / 7) * v + 80 ** (1 / 7) * u) ** 7),
        None,
    ),
}
FAMILIES = {name: oracle[0] for name, oracle in ORACLES.items()}
TRUNCATED = {name: S.truncate(s, -12, 10) for name, s in FAMILIES.items()}


@pytest.mark.parametrize("name", ORACLES)
def test_logsnr_is_the_formula_at_both_tails(name):
    schedule, formula, _ = ORACLES[name]
    tail = np.float32(np.geomspace(1e-6, 0.5, 60))
    u = np.concatenate([tail, 1 - tail])  # 1 - u of a float32 u >= 1/2 is exact
    exact = formula(np.float64(u), 1 - np.float64(u))
    got = np.asarray(schedule(u), np.float64)
    assert np.max(np.abs(got - exact) / np.maximum(np.abs(exact), 1)) < 2e-6


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


@pytest.mark.parametrize("name", FAMILIES | {f"{n} truncated": s for n, s in TRUNCATED.items()})
def test_density_integrates_to_one(name):
    schedule = TRUNCATED[name.split()[0]] if "truncated" in name else FAMILIES[name]
    lam = np.linspace(-80, 80, 1_600_001, dtype=np.float64)
    p = np.asarray(schedule.density(lam), np.float64)
    assert abs(np.trapezoid(p, lam) - 1) < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_inverse_undoes_the_schedule(name):
    u = np.float32(np.concatenate([np.geomspace(1e-5, 0.4, 40), np.linspace(0.4, 0.999, 40)]))
    schedule = FAMILIES[name]
    np.testing.assert_allclose(schedule.inverse(schedule(u)), u, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", TRUNCATED)
def test_truncated_ends_are_finite_and_where_they_were_put(name):
    schedule = TRUNCATED[name]
    u = np.float32([0, 1e-7, 0.5, 1 - 1e-7, 1])
    lam = np.asarray(schedule(u))
    assert np.isfinite(lam).all() and (np.diff(lam) <= 0).all()
    low, high = (-2 * np.log(80), 10) if name == "karras" else (-12, 10)
    np.testing.assert_allclose(lam[[0, -1]], [high, low], rtol=1e-6)
    np.testing.assert_allclose(schedule.inverse(np.float32([high + 1, low - 1])), [0, 1], atol=1e-6)
    assert schedule.density(jnp.array(high + 1.0)) == 0 and schedule.density(jnp.array(low - 1.0)) == 0
    slopes = np.asarray(jax.vmap(jax.grad(schedule))(jnp.linspace(0.01, 0.99, 9)))
    assert np.isfinite(slopes).all() and (slopes < 0).all()


def test_shift_adds_to_logsnr():
    base, by = S.cosine(), -1.4
    shifted = S.shift(base, by)
    u = np.float32([0.1, 0.5, 0.8])
    np.testing.assert_allclose(shifted(u), np.asarray(base(u)) + by, rtol=1e-6)
    np.testing.assert_allclose(shifted.inverse(shifted(u)), u, rtol=1e-5)
    np.testing.assert_allclose(shifted.density(np.float32(0.3)), base.density(np.float32(0.3 + 1.4)), rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["cosine", "edm", "laplace", "flow"]),
    st.floats(-4, 4),
    st.floats(-14, -2),
    st.floats(2, 14),
    st.floats(0, 1, width=32),
)
def test_compositions_stay_monotone_inverses(name, by, low, high, u):
    schedule = S.truncate(S.shift(FAMILIES[name], by), low, high)
    lam = schedule(u)
    assert low - 1e-4 <= lam <= high + 1e-4
    assert abs(schedule.inverse(lam) - u) < 2e-4
    assert schedule(min(u + 0.1, 1)) <= lam


def test_karras_grid_is_the_published_one():
    # Karras et al. 2022, eq. 5, at N = 18
    i = np.arange(18)
    exact = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    grid = np.asarray(S.sigmas(S.karras(), 18))
    assert grid.shape == (19,) and grid[-1] == 0
    np.testing.assert_allclose(grid[:-1], exact, rtol=2e-6)
    np.testing.assert_allclose(grid[4], 19.35245, rtol=1e-5)


def test_grids_end_as_asked():
    schedule = S.truncate(S.cosine(), -10, 8)
    assert S.sigmas(schedule, 1).tolist() == pytest.approx([np.exp(5), 0], rel=1e-5)
    kept = np.asarray(S.sigmas(schedule, 6, final=None))
    assert kept.shape == (7,) and (np.diff(kept) < 0).all()
    np.testing.assert_allclose(kept[[0, -1]], np.exp([5, -4]), rtol=1e-5)


def test_composes_with_jit_vmap_and_traced_parameters():
    def third(scale):
        return S.truncate(S.laplace(0.0, scale), -5, 5)(0.3)

    np.testing.assert_allclose(jax.jit(third)(0.5), third(0.5), rtol=1e-6)
    slope = jax.grad(third)(0.5)
    np.testing.assert_allclose(slope, (third(0.501) - third(0.499)) / 0.002, rtol=1e-2)
    assert jax.vmap(third)(jnp.array([0.4, 0.5])).shape == (2,)


def test_bfloat16_input_is_computed_in_float32():
    assert S.cosine()(jnp.bfloat16(0.25)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: S.laplace(0, 0), "scale = 0: must be positive"),
        (lambda: S.laplace(np.nan, 1), "mean = nan: must be finite"),
        (lambda: S.edm(p_std=-1), "p_std = -1"),
        (lambda: S.karras(2.0, 1.0), "sigma_min = 2.0: must be less than sigma_max = 1.0"),
        (lambda: S.karras(0.0, 1.0), "sigma_min = 0.0"),
        (lambda: S.karras(rho=0), "rho = 0"),
        (lambda: S.truncate(S.flow(), 3, 3), "logsnr_min = 3: must be less than logsnr_max = 3"),
        (lambda: S.truncate(S.karras(), 20, 30), "must have mass"),
        (lambda: S.shift(S.flow(), np.inf), "by = inf"),
        (lambda: S.sigmas(S.karras(), 0), "n = 0"),
        (lambda: S.sigmas(S.karras(), 2.5), "n = 2.5"),
        (lambda: S.sigmas(S.cosine(), 5), "truncate"),
        (lambda: S.sigmas(S.karras(), 5, final=1.0), "final = 1.0"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError, match=None) as error:
        make()
    assert words in str(error.value)
