"""Schedules as sampling grids."""

import jax
import numpy as np
import pytest

import diffax as dx

S = dx.schedules


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


def test_a_grid_is_a_constant_under_jit_and_a_function_of_learned_parameters():
    def first(x):
        grid = S.sigmas(S.karras(0.01, 10.0), 3)
        assert not isinstance(grid, jax.core.Tracer)
        return x * grid[0]

    np.testing.assert_allclose(jax.jit(first)(1.0), 10.0, rtol=1e-6)
    slope = jax.jit(jax.grad(lambda rho: S.sigmas(S.karras(0.01, 10.0, rho), 3)[1]))(7.0)
    middle = [((0.01 ** (1 / r) + 10 ** (1 / r)) / 2) ** r for r in (6.999, 7.001)]
    np.testing.assert_allclose(slope, (middle[1] - middle[0]) / 0.002, rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: S.sigmas(S.karras(), 0), "n = 0"),
        (lambda: S.sigmas(S.karras(), 2.5), "n = 2.5"),
        (lambda: S.sigmas(S.karras(), True), "n = True"),
        (lambda: S.sigmas(S.cosine(), 5), "truncate"),
        (lambda: S.sigmas(S.linear_beta(), 5, final=None), "truncate"),  # infinite at u = 0 alone
        (lambda: S.sigmas(S.karras(), 5, final=1.0), "final = 1.0"),
        (lambda: S.sigmas(S.karras(), 5, final=-1.0), "final = -1.0"),
        (lambda: S.sigmas(S.karras(), 5, final=np.nan), "final = nan"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)
