"""Runge-Kutta methods in both times against loops in float64, their orders, and what every solver says of itself."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx

S = dx.solvers
MEANS, STD, WEIGHTS = np.array([[-1.0, 0.5], [0.3, -0.8]]), 0.3, np.array([0.4, 0.6])
GRID = np.array([12.0, 7.0, 4.5, 2.0, 1.3, 0.9, 0.35, 0.2])
RALSTON, KUTTA = ([[2 / 3]], [1 / 4, 3 / 4]), ([[1 / 2], [-1, 2]], [1 / 6, 2 / 3, 1 / 6])


def exact(x, s):
    """The denoiser of the mixture, in numpy float64."""
    total = STD**2 + s**2
    far = ((x[:, None] - MEANS) ** 2).sum(-1)
    r = WEIGHTS * np.exp(-(far - far.min(1, keepdims=True)) / (2 * total))
    r = r / r.sum(1, keepdims=True)
    return x * STD**2 / total + r @ MEANS * s**2 / total


def ralston(x, sigmas, time):
    """Ralston's method written out: two thirds of the way, then a quarter and three quarters of the slopes."""

    def slope(x, s):
        return (x - exact(x, s)) / (s if time == "sigma" else 1)

    of, back = (lambda s: s, lambda u: u) if time == "sigma" else (np.log, np.exp)
    for s, t in itertools.pairwise(sigmas):
        if t == 0:
            return exact(x, s)
        h = of(t) - of(s)
        first = slope(x, s)
        second = slope(x + 2 / 3 * h * first, back(of(s) + 2 / 3 * h))
        x = x + h * (first + 3 * second) / 4
    return x


@pytest.mark.parametrize("end", [[], [0.0]])
@pytest.mark.parametrize("time", ["sigma", "log_sigma"])
def test_ralston_is_the_loop(time, end):
    sigmas, x = np.append(GRID, end), 12 * np.random.default_rng(0).normal(size=(5, 2))
    with jax.enable_x64(True):
        denoise = dx.gaussian_mixture(MEANS, STD, WEIGHTS)
        got = dx.sample(denoise, x, sigmas, solver=S.runge_kutta(*RALSTON, order=2, time=time))
        np.testing.assert_allclose(got, ralston(x, sigmas, time), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("tableau", "order"), [(([], [1.0]), 1), (([[1.0]], [0.5, 0.5]), 2), (RALSTON, 2), (KUTTA, 3)])
def test_the_order_in_sigma(tableau, order):
    """Of Gaussian data, whose solution is known: x in proportion to sqrt(sigma^2 + c^2)."""
    solver, c, errors = S.runge_kutta(*tableau, order=order, time="sigma"), 0.5, []
    assert solver.order == order and solver.nfe(7) == len(tableau[1]) * 6 + 1
    with jax.enable_x64(True):
        for n in (32, 64, 128):
            sigmas = 10 * (0.1 / 10) ** (np.arange(n + 1) / n)
            x = dx.sample(lambda x, s: x * c**2 / (c**2 + s**2), np.ones((1, 1)), sigmas, solver=solver)
            errors.append(abs(float(x[0, 0]) - np.hypot(c, 0.1) / np.hypot(c, 10)))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)
    assert np.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.2)


def test_heun_is_a_tableau_in_sigma_and_euler_the_smallest():
    for sigmas, to_zero in ((GRID, False), (np.append(GRID, 0.0), True)):
        for solver, tableau in ((S.heun(), ([[1]], [0.5, 0.5])), (S.euler(), ([], [1]))):
            x = np.random.default_rng(0).normal(size=(3, 2))
            table = S.runge_kutta(*tableau, order=solver.order, time="sigma").rows(sigmas, to_zero)
            want = solver.rows(sigmas, to_zero)
            np.testing.assert_array_equal(table.sigma, want.sigma)
            with jax.enable_x64(True):
                ends = [
                    dx.sample(dx.gaussian_mixture(MEANS, STD), x, sigmas, solver=s)
                    for s in (solver, S.runge_kutta(*tableau, order=solver.order, time="sigma"))
                ]
            np.testing.assert_allclose(*ends, rtol=1e-10)


def test_stages_stay_above_zero():
    for tableau in (RALSTON, KUTTA):
        for end in (1e-6, 0.0):
            rows = S.runge_kutta(*tableau, order=2, time="sigma").rows(np.array([80.0, 1e-3, end]), end == 0)
            assert rows.sigma.min() > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([[0.5]], [0.0, 1.0], None), "order = None: must be an integer >= 1"),
        (([[0.5]], [0.0, 1.0], "2"), "order = '2'"),
        (([[0.5]], [0.0, 1.0], 2, "sigmas"), "time = 'sigmas': must be one of 'log_sigma', 'sigma'"),
        (([[0.5]], [0.0, 1.0], 2, None), "time = None"),
        (([[np.nan]], [0.0, 1.0], 2), "inner[0] = [nan]: must be finite"),
        (([["a"]], [0.0, 1.0], 2), "inner[0][0] = 'a'"),
        ((None, [1.0], 1), "inner = None: must be a sequence"),
        (([0.5], [0.0, 1.0], 2), "inner[0] = 0.5: must be a sequence"),
        (([[0.5]], "ab", 2), "final = 'ab': must be a sequence"),
        (([[0.5]], [np.nan, 1.0], 2), "must sum to 1"),
        (([[1.5]], [0.0, 1.0], 2, "sigma"), "inner has rows of the sums [1.5]: must lie in [0, 1]"),
    ],
)
def test_bad_tableaux_are_named(arguments, words):
    with pytest.raises(ValueError) as error:
        S.runge_kutta(*arguments)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: S.dpm_solver_2(None), "r = None: must lie strictly between 0 and 1"),
        (lambda: S.dpmpp_2s("0.5"), "r = '0.5': must lie strictly between 0 and 1"),
        (lambda: S.dpmpp_3s(1e-300), "r1 = 1e-300: must lie strictly between 0 and 1"),
        (lambda: S.dpm_solver_3(r2=np.ones(2) / 2), "r2 has shape (2,): must be one number"),
        (lambda: S.euler_vp(0.0), "beta_min = 0.0"),
        (lambda: S.euler_vp(beta_max=np.inf), "beta_max = inf: must be finite"),
        (lambda: S.euler_vp("a"), "beta_min = 'a'"),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)


# ---- what every solver says of itself -------------------------------------------------------------------------------

METHODS = [n for n in S.__all__ if n not in ("Solver", "learned", "load_learned", "save_learned", "runge_kutta")]


@pytest.mark.parametrize("name", METHODS)
def test_nfe_wants_a_number_of_steps(name):
    solver = getattr(S, name)()
    for n in (0, -1, "a", None, 1.5, True, np.ones(2)):
        with pytest.raises(ValueError, match=r"n = .*: must be an integer >= 1"):
            solver.nfe(n)
    assert solver.nfe(1) is None or solver.nfe(1) >= 1


# ---- a solver that is no table --------------------------------------------------------------------------------------


class Steps(NamedTuple):
    sigma: Any
    end: Any
    ends: Any = None


def own(evaluations=lambda n: 2 * n - 1):
    """The midpoint rule in sigma with a step of its own, which asks twice and knows how often."""

    def step(denoise, carry, row, noise):
        (x,) = carry
        slope = (x - denoise(x, row.sigma)) / row.sigma
        middle = (row.sigma + row.end) / 2
        there = (x + (middle - row.sigma) * slope - denoise(x + (middle - row.sigma) * slope, middle)) / middle
        return (x + (row.end - row.sigma) * jnp.where(row.end > 0, there, slope),)

    return S.Solver(2, evaluations, lambda s, z: Steps(s[:-1], s[1:]), lambda x, rows: (x,), step)


def test_a_solver_with_a_step_of_its_own_is_used_and_fitted(tmp_path):
    denoise, sigmas = dx.gaussian_mixture(MEANS, STD), dx.grids.plain(5)
    x = 80 * jax.random.normal(jax.random.key(0), (64, 2), jnp.float32)
    fine = dx.sample(denoise, x, dx.grids.plain(300))

    def error(sigmas):
        return float(jnp.abs(dx.sample(denoise, x, sigmas, solver=own()) - fine).mean())

    midpoint = dx.sample(denoise, x, GRID, solver=S.runge_kutta([[0.5]], [0, 1], 2, "sigma"))
    np.testing.assert_allclose(dx.sample(denoise, x, GRID, solver=own()), midpoint, rtol=1e-3, atol=1e-3)
    assert error(dx.grids.fit(denoise, x, 5, solver=own(), iterations=40, reference=64)) < 0.9 * error(sigmas)
    for refused in (
        lambda: dx.grids.fit_solver(denoise, x, 5, solver=own(lambda n: n)),
        lambda: dx.solvers.save_learned(tmp_path / "own.json", sigmas, own()),
    ):
        with pytest.raises(ValueError, match="solver has no table of coefficients: must be"):
            refused()
    assert not list(tmp_path.iterdir())
