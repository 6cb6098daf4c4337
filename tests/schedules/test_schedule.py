"""Schedules from a distribution or a formula alone, against the closed forms; and what they refuse."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import diffax as dx

S = dx.schedules
INF = float("inf")
TAIL = np.float32([1e-30, 1e-9, 1e-4, 0.1, 0.3, 0.5])


def logistic(lam):
    return jax.nn.sigmoid(-lam), jax.nn.sigmoid(lam)


LAWS = {  # name -> (tails, the quantile from the upper tail u and from the lower tail v, its ends)
    "logistic": (logistic, lambda u: np.log1p(-u) - np.log(u), lambda v: np.log(v) - np.log1p(-v), (INF, -INF)),
    "normal": (
        lambda lam: (jax.scipy.special.ndtr(-lam), jax.scipy.special.ndtr(lam)),
        scipy.stats.norm.isf,
        scipy.stats.norm.ppf,
        (INF, -INF),
    ),
    "cauchy": (
        lambda lam: (jnp.arctan2(1.0, lam) / math.pi, jnp.arctan2(1.0, -lam) / math.pi),
        lambda u: 1 / np.tan(np.pi * u),
        lambda v: -1 / np.tan(np.pi * v),
        (INF, -INF),
    ),
    "uniform on (-2, 3)": (
        lambda lam: (jnp.clip((3 - lam) / 5, 0, 1), jnp.clip((lam + 2) / 5, 0, 1)),
        lambda u: 3 - 5 * u,
        lambda v: -2 + 5 * v,
        (3, -2),
    ),
    "exponential above 4": (
        lambda lam: (jnp.exp(-jnp.maximum(lam - 4, 0)), -jnp.expm1(-jnp.maximum(lam - 4, 0))),
        lambda u: 4 - np.log(u),
        lambda v: 4 - np.log1p(-v),
        (INF, 4),
    ),
}
BRACKETS = {
    "none": None,
    "infinite": lambda u, v: (-INF, INF),
    "low": lambda u, v: (jnp.full_like(u, -100), jnp.full_like(u, INF)),
    "high": lambda u, v: (jnp.full_like(u, -INF), jnp.full_like(u, 100)),
}


@pytest.mark.parametrize("bracket", BRACKETS)
@pytest.mark.parametrize("law", LAWS)
def test_from_tails_finds_the_quantile_in_both_tails(law, bracket):
    tails, upper, lower, ends = LAWS[law]
    schedule = S.from_tails(tails, BRACKETS[bracket])
    both = jax.jit(lambda small: (schedule.quantile(small, 1 - small), schedule.quantile(1 - small, small)))
    tail = TAIL[1:] if bracket in ("low", "high") and law == "cauchy" else TAIL
    if law == "cauchy" and bracket in ("low", "high"):
        tail = tail[tail > 0.01]  # the bracket must hold the answer
    for got, exact in zip(both(tail), (upper(np.float64(tail)), lower(np.float64(tail))), strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5)
    clean, noisy = both(jnp.float32(0.0))
    limits = [INF if bracket != "high" else 100, -INF if bracket != "low" else -100]
    for got, end, limit in zip((clean, noisy), ends, limits, strict=True):
        np.testing.assert_allclose(got, end if np.isfinite(end) else limit, rtol=1e-6)


def test_from_tails_under_vmap_and_grad():
    def schedule(mean):
        return S.from_tails(lambda lam: logistic(lam - mean))

    u = jnp.float32([1e-6, 0.02, 0.3, 0.5, 0.7, 0.99])
    exact = np.log((1 - np.float64(u)) / np.float64(u))
    np.testing.assert_allclose(jax.vmap(lambda m: schedule(m)(u))(jnp.float32([0, 2])), [exact, exact + 2], atol=2e-5)
    np.testing.assert_allclose(
        jax.vmap(jax.grad(schedule(1.0)))(u), -1 / (np.float64(u) * (1 - np.float64(u))), rtol=1e-3
    )
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(lambda m: schedule(m)(0.5))))(u), 1, rtol=1e-5)
    np.testing.assert_allclose(schedule(jnp.float32([0, 2]))(0.5), [0, 2], atol=1e-6)  # one schedule for each mean


def test_from_tails_in_float64():
    with jax.enable_x64(True):
        u = np.array([1e-12, 1e-3, 0.5, 0.9])
        np.testing.assert_allclose(S.from_tails(logistic)(u), np.log1p(-u) - np.log(u), rtol=1e-10, atol=1e-10)


def test_from_quantile_finds_the_rest():
    geometric = S.from_quantile(lambda u, v: -2 * (v * math.log(0.01) + u * math.log(50)))
    lam = np.float32([-7, 0, 3, 9])
    np.testing.assert_allclose(geometric.inverse(lam), S.geometric().inverse(lam), atol=1e-6)
    np.testing.assert_allclose(geometric.density(lam), S.geometric().density(lam), rtol=1e-5)
    many = S.from_quantile(lambda u, v: jnp.float32([1, 2]) * (jnp.log(v) - jnp.log(u)))  # a schedule for each scale
    np.testing.assert_allclose(many.inverse(2.0), [1 / (1 + np.exp(2)), 1 / (1 + np.exp(1))], rtol=1e-5)
    bracketed = S.from_quantile(lambda u, v: v - u, lambda lam: ((0.1, 0.9), (0.8, 0.2)))
    np.testing.assert_allclose(bracketed.inverse(jnp.float32([0.5, -0.2])), [0.25, 0.6], rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: S.from_quantile(lambda u, v: u - v), "must fall as u rises"),
        (lambda: S.from_quantile(lambda u, v: 0 * u), "must fall as u rises"),
        (lambda: S.from_quantile(lambda u, v: jnp.log(v - 0.5)), "must be finite inside (0, 1)"),
        (lambda: S.from_quantile(lambda u: -u), "quantile takes other arguments: must be a function (u, v) -> logsnr"),
        (lambda: S.from_quantile(lambda u, v: None), "quantile gave None: must give an array"),
        (lambda: S.from_quantile(lambda u, v: v - u, lambda lam: (0, 1)), "must give two pairs ((u, v), (u, v))"),
        (lambda: S.from_tails(lambda lam: logistic(-lam)), "must fall as logsnr rises"),
        (lambda: S.from_tails(lambda lam: 2 * (jax.nn.sigmoid(-lam),)), "must rise as logsnr rises"),
        (lambda: S.from_tails(lambda lam: (jax.nn.sigmoid(-lam), jax.nn.sigmoid(lam + 1))), "must sum to 1"),
        (lambda: S.from_tails(lambda lam: (-lam, lam)), "must lie in [0, 1]"),
        (lambda: S.from_tails(lambda lam: (lam * jnp.nan, lam)), "must lie in [0, 1]"),
        (lambda: S.from_tails(jax.nn.sigmoid), "must give a pair of arrays (u, v)"),
        (lambda: S.from_tails(lambda u, v: u), "tails takes other arguments: must be a function (logsnr) -> (u, v)"),
        (lambda: S.from_tails(logistic, lambda u, v: u), "must give a pair (low, high)"),
        (lambda: S.from_tails(logistic, lambda u: (u, u)), "bracket takes other arguments"),
        (lambda: S.from_tails(logistic, None, lambda lam: lam), "density gave [-20.0"),
    ],
)
def test_what_is_no_distribution_is_refused(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)


def test_traced_parameters_are_not_tried():
    assert np.isfinite(jax.jit(lambda s: S.from_quantile(lambda u, v: s * (u - v))(0.3))(1.0))
    assert np.isfinite(jax.jit(lambda s: S.from_tails(lambda lam: logistic(s * lam))(0.3))(2.0))
