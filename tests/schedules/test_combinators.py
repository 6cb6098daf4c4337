"""Combinators: against distributions in scipy, and as random compositions."""

import decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import diffax as dx
from diffax.schedules import combinators

S = dx.schedules
U = np.float32(np.concatenate([np.geomspace(1e-5, 0.3, 20), np.linspace(0.31, 0.999, 20)]))


def test_shift_and_scale():
    base = S.cosine()
    moved = S.shift(S.scale(base, 0.5), -1.4)
    np.testing.assert_allclose(moved(U), 0.5 * np.asarray(base(U)) - 1.4, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(moved.inverse(moved(U)), U, rtol=2e-5)
    np.testing.assert_allclose(moved.density(np.float32(0.3)), 2 * base.density(np.float32(3.4)), rtol=1e-5)


@pytest.mark.parametrize(("low", "high"), [(-12.0, 10.0), (-20.0, -10.0), (8.0, 20.0)])
def test_truncate_is_the_conditional_law(low, high):
    """A normal cut to a body and to both of its far tails, in float64; the two tails of the inverse each to 1e-5."""
    law = scipy.stats.norm(2.4, 2.4)
    cut = S.truncate(S.edm(-1.2, 1.2), low, high)
    lam = np.linspace(low, high, 50, dtype=np.float32)[1:-1]
    mass = law.cdf(high) - law.cdf(low) if high < 2.4 else law.sf(low) - law.sf(high)
    above = (law.sf(lam) - law.sf(high)) if high > 2.4 else law.cdf(high) - law.cdf(lam)
    below = (law.cdf(lam) - law.cdf(low)) if low < 2.4 else law.sf(low) - law.sf(lam)
    u, v = cut.tails(jnp.asarray(lam))
    np.testing.assert_allclose(u, above / mass, rtol=2e-5, atol=1e-9)
    np.testing.assert_allclose(v, below / mass, rtol=2e-5, atol=1e-9)
    np.testing.assert_allclose(cut.density(lam), law.pdf(lam) / mass, rtol=1e-4)
    inside = lam[(above / mass > 1e-5) & (below / mass > 1e-5)]
    np.testing.assert_allclose(cut(cut.inverse(inside)), inside, atol=2e-2 if low > 0 else 2e-3)


def test_slopes_at_the_ends_are_those_of_the_inside():
    cut = S.truncate(S.flow(), -12, 10)
    for u, lam in ((0.0, 10.0), (1.0, -12.0)):
        p = float(cut.density(jnp.float32(lam)))
        assert float(jax.grad(cut)(u)) == pytest.approx(-1 / p, rel=1e-3)
        assert float(jax.grad(cut.inverse)(lam)) == pytest.approx(-p, rel=1e-3)
    assert np.isfinite(jax.grad(S.truncate(S.laplace(), -60, 60))(0.0))


def test_truncating_twice_is_truncating_once():
    twice, once = S.truncate(S.truncate(S.laplace(0, 2.0), -9, 8), -4, 3), S.truncate(S.laplace(0, 2.0), -4, 3)
    np.testing.assert_allclose(twice(U), once(U), atol=2e-5)
    np.testing.assert_allclose(twice.inverse(once(U)), U, rtol=1e-4, atol=1e-6)


def test_mix_is_the_mixture():
    mixed = S.mix([S.edm(-1.2, 1.2), S.laplace(-3.0, 0.7)], [3.0, 1.0])
    lam = np.linspace(-12, 14, 101, dtype=np.float32)
    sf = 0.75 * scipy.stats.norm(2.4, 2.4).sf(lam) + 0.25 * scipy.stats.laplace(-3.0, 0.7).sf(lam)
    pdf = 0.75 * scipy.stats.norm(2.4, 2.4).pdf(lam) + 0.25 * scipy.stats.laplace(-3.0, 0.7).pdf(lam)
    np.testing.assert_allclose(mixed.inverse(lam), sf, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(mixed.density(lam), pdf, rtol=1e-4)
    np.testing.assert_allclose(mixed.inverse(mixed(U)), U, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(jax.grad(mixed))(U[5:-5]), -1 / mixed.density(mixed(U[5:-5])), rtol=1e-3)
    assert mixed(0.0) == np.inf and mixed(1.0) == -np.inf


def test_the_ends_of_a_mixture_are_those_of_the_widest():
    mixed = S.mix([S.karras(), S.edm()])
    assert mixed(0.0) == np.inf and mixed(1.0) == -np.inf
    assert jax.jit(mixed)(0.0) == np.inf and jax.vmap(mixed)(jnp.float32([0, 1]))[1] == -np.inf
    bounded = S.mix([S.karras(), S.uniform(-10.0, 10.0)])
    np.testing.assert_allclose(bounded([0, 1]), [-2 * np.log(0.002), -10], rtol=1e-6)
    narrow = S.truncate(S.laplace(0.0, 0.1), -20, 20)  # from 9 on float32 holds none of it
    np.testing.assert_array_equal(S.mix([narrow, narrow])([0, 1]), [20, -20])


def test_mix_is_differentiable_in_its_parameters():
    def median(mean):
        return S.mix([S.laplace(mean, 0.5), S.cosine()])(0.3)

    np.testing.assert_allclose(jax.jit(jax.grad(median))(1.0), (median(1.01) - median(0.99)) / 0.02, rtol=1e-2)


def test_interpolate_is_the_straight_path():
    a, b = S.cosine_shifted(0.0), S.cosine_shifted(-2.0)
    half = S.interpolate(a, b, 0.5)
    np.testing.assert_allclose(half(U), np.asarray(S.cosine_shifted(-1.0)(U)), rtol=1e-5, atol=1e-5)
    mixed = S.interpolate(S.edm(), S.flow(), 0.3)
    np.testing.assert_allclose(
        mixed(U), 0.7 * np.asarray(S.edm()(U)) + 0.3 * np.asarray(S.flow()(U)), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(mixed.inverse(mixed(U)), U, rtol=2e-5)
    np.testing.assert_allclose(mixed.density(mixed(U)), -1 / jax.vmap(jax.grad(mixed))(U), rtol=1e-3)
    assert mixed(0.0) == np.inf


def test_a_path_from_a_bounded_schedule_to_an_unbounded_one():
    for weight, ends in ((0, S.karras()([0, 1])), (0.5, [np.inf, -np.inf]), (1, [np.inf, -np.inf])):
        np.testing.assert_array_equal(S.interpolate(S.karras(), S.edm(), weight)([0, 1]), ends)
        np.testing.assert_array_equal(S.interpolate(S.edm(), S.karras(), 1 - weight)([0, 1]), ends)
    slope = jax.grad(lambda w: S.interpolate(S.karras(), S.edm(), w)(jnp.float32([0.0, 0.3])).at[1].get())(0.4)
    np.testing.assert_allclose(slope, S.edm()(0.3) - S.karras()(0.3), rtol=1e-5)


def test_anneal_goes_from_one_to_the_other_with_the_step():
    a, b = S.laplace(2.0, 0.5), S.laplace(-2.0, 1.0)
    curriculum = S.anneal(a, b, over=100)
    at = jax.jit(lambda step: curriculum(step)(jnp.asarray(U)))
    np.testing.assert_allclose(at(0), a(U), atol=1e-5)
    np.testing.assert_allclose(at(50), S.laplace(0.0, 0.75)(U), atol=1e-5)
    for late in (100, 10**6):
        np.testing.assert_allclose(at(late), b(U), atol=1e-5)


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (2.0, 5.0), (1.0, 1.0)])
def test_beta_is_the_base_at_beta_quantiles(a, b):
    base, law = S.karras(), scipy.stats.beta(a, b)
    u = np.linspace(0, 1, 21)
    np.testing.assert_allclose(S.beta(base, a, b)(u), base(np.float32(law.ppf(u))), rtol=1e-5, atol=2e-4)
    lam = base(U)
    np.testing.assert_allclose(S.beta(base, a, b).inverse(lam), law.cdf(np.float64(base.inverse(lam))), atol=2e-6)
    inner = U[(U > 0.01) & (U < 0.99)]
    expected = np.float64(base.density(base(inner))) * law.pdf(np.float64(inner))
    np.testing.assert_allclose(S.beta(base, a, b).density(base(inner)), expected, rtol=2e-3)


def test_power_moves_mass_to_the_clean_end():
    base = S.karras()
    np.testing.assert_allclose(S.power(base, 4.0)(U), base(U**4), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(S.power(base, 0.5).inverse(base(U)), np.float64(U) ** 2, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("exponent", [0.003, 0.3, 4.0, 1e4])
def test_power_is_sharp_in_both_tails(exponent):
    """u' and 1 - u' each from the smaller of u and v: in float64, relative to the smaller of the two."""
    schedule = S.power(S.uniform(-10.0, 10.0), exponent)
    tail = np.float64(np.float32(np.geomspace(1e-9, 0.5, 40)))
    for u, v in ((tail, 1 - tail), (1 - tail, tail)):
        first = np.where(u < v, u**exponent, np.exp(exponent * np.log1p(-v)))
        second = np.where(u < v, -np.expm1(exponent * np.log(u)), -np.expm1(exponent * np.log1p(-v)))
        got = schedule.quantile(np.float32(u), np.float32(v))
        np.testing.assert_allclose(got, 10 * second - 10 * first, rtol=2e-6, atol=2e-6)
    raised = combinators._raised(jnp.float32(tail), jnp.float32(1 - tail), exponent)
    np.testing.assert_allclose(raised[0], tail**exponent, rtol=1e-6 * max(1, exponent / 100), atol=1e-37)
    np.testing.assert_allclose(raised[1], -np.expm1(exponent * np.log(tail)), rtol=2e-6)
    assert schedule(0.0) == 10 and schedule(1.0) == -10 and np.isfinite(jax.grad(S.power(S.uniform(), 2.0))(0.0))
    assert float(S.power(S.uniform(-10, 10), 0.3)(1e-6)) == pytest.approx(10 - 20 * 1e-6**0.3, rel=1e-6)


def test_zero_terminal_snr_is_algorithm_one():
    """Lin et al. 2023: sqrt(alpha_bar) is moved and stretched so that its last entry is 0 and its first stays."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    root = np.sqrt(np.cumprod(1 - betas))
    moved = (root - root[-1]) * root[0] / (root[0] - root[-1])
    got = S.zero_terminal_snr(S.scaled_linear_betas())
    u = np.arange(999) / 999  # without the last, which is infinite
    np.testing.assert_allclose(
        got(np.float32(u)), np.log(moved[:-1] ** 2 / (1 - moved[:-1] ** 2)), rtol=2e-4, atol=2e-4
    )
    assert got(1.0) == -np.inf
    np.testing.assert_allclose(got.inverse(got(U)), U, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(("low", "high"), [(-10, 9), (-10, 20), (-2, 60), (-40, 30), (-150, 90)])
def test_zero_terminal_snr_in_float64(low, high):
    """Both directions against algorithm 1, with alpha held in 120 digits, as 1 - alpha is all that tells the levels."""
    D = decimal.Decimal

    def alpha(lam):
        return 1 / (1 + (-D(lam)).exp()).sqrt()

    def logsnr(a):
        return float(2 * a.ln() - (1 - a * a).ln())

    base = S.uniform(float(low), float(high))
    schedule = S.zero_terminal_snr(base)
    with decimal.localcontext() as context:
        context.prec = 120
        first, last = alpha(high), alpha(low)
        levels = [float(x) for x in base(np.float32([1e-5, 0.02, 0.2, 0.5, 0.8, 0.95]))]
        exact = [logsnr((alpha(x) - last) * first / (first - last)) for x in levels]
        given = [lam for lam in (-30.0, -8.0, -1.0, 0.0, 3.0, 8.0) if lam < high]
        back = [logsnr(alpha(x) * (first - last) / first + last) for x in given]
    u = base.inverse(np.float32(levels))
    np.testing.assert_allclose(schedule.quantile(u, 1 - u), exact, rtol=3e-6, atol=3e-6)
    np.testing.assert_allclose(schedule.inverse(np.float32(given)), base.inverse(np.float32(back)), atol=3e-7)
    assert schedule(0.0) == high and schedule(1.0) == -np.inf
    assert (np.diff(np.asarray(schedule(np.linspace(0, 1, 2001)))) < 0).all()


def test_zero_terminal_snr_of_one_without_a_clean_end():
    base = S.linear_beta()  # infinite at u = 0, logsnr -10.05 at u = 1
    schedule = S.zero_terminal_snr(base)
    u = np.float32([1e-6, 1e-3, 0.1, 0.5, 0.9])
    square = np.exp(-(0.1 * np.float64(u) + 19.9 * np.float64(u) ** 2 / 2))  # alpha^2
    a, end = np.sqrt(square), np.exp(-10.05 / 2)
    # 1 - alpha' = (1 - alpha) / (1 - alpha(1))
    rest = -np.expm1(np.log(square)) / (1 + a) / (1 - end)
    np.testing.assert_allclose(schedule(u), 2 * np.log((a - end) / (1 - end)) - np.log(rest * (2 - rest)), rtol=5e-6)
    assert schedule(0.0) == np.inf and schedule(1.0) == -np.inf
    np.testing.assert_allclose(schedule.inverse(schedule(u)), u, rtol=1e-5)


def test_truncation_is_finite_where_the_tail_that_is_cut_off_is_too_small_for_float32():
    narrow = S.scale(S.linear_beta(), 0.14)  # of which exp(-15 / 0.14) = 3e-47 lies above 15
    got = S.truncate(narrow, -15, 15)
    assert got(0.0) == 15 and np.isfinite(np.asarray(got(U))).all()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from(["shift", "scale", "power", "mix", "interpolate"]), max_size=3),
    st.sampled_from(["cosine", "edm", "laplace", "flow", "cauchy", "sigmoid", "linear_beta"]),
    st.floats(-4, 4),
    st.floats(0.3, 3),
    st.floats(0.01, 0.99),
)
def test_random_compositions_are_monotone_and_inverted(names, family, by, factor, u):
    schedule = getattr(S, family)()
    for name in names:
        schedule = {
            "shift": lambda s: S.shift(s, by),
            "scale": lambda s: S.scale(s, factor),
            "power": lambda s: S.power(s, factor),
            "mix": lambda s: S.mix([s, S.edm(by / 4, factor)]),
            "interpolate": lambda s: S.interpolate(s, S.flow(), 0.4),
        }[name](schedule)
    schedule = S.truncate(schedule, -15, 15)
    points = jnp.float32([0, u / 2, u, (1 + u) / 2, 1])
    lam = np.asarray(schedule(points))
    assert np.isfinite(lam).all() and (np.diff(lam) <= 1e-4).all()
    assert lam[0] <= 15 and lam[-1] >= -15
    # an error of logSNR of one part in a million, or of u
    tolerance = 2e-5 + 3e-5 * np.asarray(schedule.density(lam)) * np.maximum(1, np.abs(lam))
    assert (np.abs(np.asarray(schedule.inverse(lam)) - points) < tolerance).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: S.truncate(S.flow(), 3, 3), "logsnr_min = 3: must be less than logsnr_max = 3"),
        (lambda: S.truncate(S.karras(), 20, 30), "must have mass"),
        (lambda: S.truncate(S.flow(), -np.inf, 30), "logsnr_min = -inf"),
        (lambda: S.shift(S.flow(), np.inf), "by = inf"),
        (lambda: S.scale(S.flow(), 0), "by = 0"),
        (lambda: S.power(S.flow(), -1), "exponent = -1"),
        (lambda: S.beta(S.flow(), a=0), "a = 0"),
        (lambda: S.mix([]), "schedules = []"),
        (lambda: S.mix([S.flow()], [1.0, 2.0]), "weights has shape (2,): must have one entry"),
        (lambda: S.mix([S.flow(), S.edm()], [1.0, -2.0]), "weights = [1.0, -2.0]"),
        (lambda: S.interpolate(S.flow(), S.edm(), 1.5), "weight = 1.5"),
        (lambda: S.anneal(S.flow(), S.edm(), over=0), "over = 0"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)
