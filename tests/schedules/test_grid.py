"""Schedules as sampling grids."""

import jax
import jax.numpy as jnp
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


def test_a_part_of_a_grid_gives_the_same_with_jit_and_without():
    denoise = lambda x, sigma: x * 0.25 / (0.25 + sigma**2)  # of N(0, 0.5^2)
    f = lambda x: dx.sample(denoise, x, S.sigmas(S.karras(), 40)[:21])
    x = jnp.full((1, 1), 80.0)
    exact = 80 * np.sqrt((0.25 + float(S.sigmas(S.karras(), 40)[20]) ** 2) / (0.25 + 80**2))  # x / sqrt(0.25 + sigma^2)
    np.testing.assert_allclose(f(x), exact, rtol=1e-4)
    np.testing.assert_allclose(jax.jit(f)(x), f(x), rtol=1e-5)


def test_a_grid_is_an_array_for_numpy_and_for_jax():
    grid = S.sigmas(S.karras(), 8)
    values = np.asarray(grid).tolist()
    assert isinstance(grid, np.ndarray) and grid.dtype == jnp.result_type(float) and not grid.flags.writeable
    total = jax.lax.fori_loop(0, 8, lambda i, t: t + grid[i] - grid[i + 1], 0.0)  # a traced number indexes it
    np.testing.assert_allclose(total, 80, rtol=1e-6)
    assert float(jax.vmap(lambda i: grid[i, ...])(jnp.arange(9))[8]) == 0
    assert grid.at[8].set(0.5).tolist() == [*values[:8], 0.5] and grid.tolist() == values
    assert jax.lax.scan(lambda c, s: (c + s, None), 0.0, grid[1:])[0] == pytest.approx(sum(values[1:]), rel=1e-6)
    assert isinstance(jax.jit(lambda s: s * 2)(grid), jax.Array) and isinstance(grid[0] * jnp.ones(2), jax.Array)
    assert (jnp.bfloat16(1) * grid[0]).dtype == grid.dtype


def test_under_x64_a_grid_is_in_float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        grid = S.sigmas(S.karras(), 18)
        i = np.arange(18)
        exact = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        assert grid.dtype == np.float64
        np.testing.assert_allclose(grid[:-1], exact, rtol=1e-12)


def test_zero_terminal_levels_do_not_repeat():
    schedule = S.truncate(S.zero_terminal_snr(S.uniform(-10, 20)), -12, 30)
    grid = S.sigmas(schedule, 2000)
    np.testing.assert_allclose(grid[[0, -2]], np.exp([6, -10]), rtol=1e-5)


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
        (lambda: S.sigmas(S.karras(), 5, final=np.inf), "final = inf"),
        (lambda: S.sigmas(S.karras(), 5, final=0.0025), "must be below the last sigma of the schedule, 0.00"),
        (lambda: S.sigmas(S.beta(S.linear_betas(), 0.1, 0.1), 50), "levels 0 and 1 of the grid are both 157.4"),
        (lambda: S.sigmas(S.Schedule(lambda u, v: u, lambda x: (x, x), lambda x: x), 5), "must fall as u rises"),
        (lambda: S.sigmas(S.edm(jnp.zeros(3)), 3), "must be one schedule, not one per sample"),
        (lambda: S.sigmas(S.karras(), 10**9), "n = 1000000000: must be an integer from 1 to 1000000"),
        (lambda: S.sigmas(S.karras(), 5, final=np.nan), "final = nan"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError) as error, jax.enable_x64(False):  # in float64 levels 0 and 1 differ
        make()
    assert words in str(error.value)
