"""The adaptive solver: errors and evaluations, independence of samples, both directions, failure."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx
from diffax.solvers.adaptive import advance, setting_out

MEANS = np.array([[-1.0, 0.5], [0.3, -0.8], [1.2, 1.0]])
GRID = [80.0, 0.002]


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def start(n, sigma=80.0):
    return sigma * np.random.default_rng(0).normal(size=(n, 2))


def solve(denoise, x, grid, **settings):
    """The sample, and how often the denoiser was asked for a batch."""
    calls = []

    def counted(x, sigma):
        jax.debug.callback(lambda s: calls.append(s.shape), sigma)
        return denoise(x, sigma)

    out = np.asarray(dx.sample(counted, x, grid, solver=dx.solvers.adaptive(**settings)))
    jax.effects_barrier()
    return out, len(calls)


def test_errors_and_evaluations_follow_the_tolerance(x64):
    denoise, x = dx.gaussian_mixture(MEANS, 0.3), start(32)
    exact = np.asarray(dx.sample(denoise, x, np.geomspace(80, 0.002, 1025), solver=dx.solvers.rk4()))
    errors, evaluations = [], []
    for tolerance in (1e-3, 1e-5, 1e-7, 1e-9):
        out, count = solve(denoise, x, GRID, rtol=tolerance, atol=tolerance)
        error = np.sqrt(np.mean((out - exact) ** 2, 1))
        assert np.median(error) < 5 * tolerance and error.max() < 20 * tolerance
        assert count % 6 == 1  # six a step, and one to begin with
        errors.append(np.sqrt(np.mean(error**2)))
        evaluations.append(count)
    assert evaluations[0] == 73 and np.all(np.diff(evaluations) > 0)
    # a fixed method of as many evaluations is an order of magnitude off
    fixed = dx.sample(denoise, x, np.geomspace(80, 0.002, 38), solver=dx.solvers.heun())
    assert np.sqrt(np.mean((fixed - exact) ** 2)) > 10 * errors[0]


def test_order_of_convergence(x64):
    """A tolerance that lets everything pass makes every stretch one step: dz/ds = (1 + s) z."""

    def end(n):
        walk = setting_out(jnp.zeros(1), jnp.ones((1, 1)), 0.3)
        for stop in np.arange(1, n + 1) / n:
            walk = advance(lambda s, z: (1 + s[:, None]) * z, walk, jnp.asarray(stop), 1e9, 1e9, 1000)
        assert walk.tries == n + 1
        return abs(float(walk.z[0, 0]) - np.exp(1.5))

    slope = np.log2(end(8) / end(32)) / 2
    assert slope == pytest.approx(dx.solvers.adaptive().order, abs=0.3)


def test_the_step_to_zero_is_the_denoised_and_costs_nothing():
    denoise, x = dx.gaussian_mixture(MEANS, 0.3), start(8)
    before, count = solve(denoise, x, GRID)
    out, with_zero = solve(denoise, x, [*GRID, 0.0])
    assert with_zero == count
    np.testing.assert_allclose(out, denoise(jnp.asarray(before), 0.002), atol=1e-6)
    only, count = solve(denoise, x, [2.0, 0.0])
    assert count == 1
    np.testing.assert_allclose(only, denoise(jnp.float32(x), 2.0), atol=1e-4)


def test_levels_in_between_are_met_and_the_step_is_kept(x64):
    denoise, x, levels = dx.gaussian_mixture(MEANS, 0.3), start(8), np.geomspace(80, 0.02, 41)
    solver = dx.solvers.adaptive(1e-6, 1e-6)
    path = dx.sample(denoise, x, np.append(levels, 0.0), solver=solver, trajectory=True)
    fine = dx.sample(denoise, x, np.geomspace(80, 0.02, 1001), solver=dx.solvers.rk4(), trajectory=True)
    assert path.shape == (42, 8, 2)
    np.testing.assert_allclose(path[:-1], fine[::25], rtol=1e-5, atol=1e-5)
    # one step an interval, if the last one's length is not forgotten: its cut must not shorten the next
    assert solve(denoise, x, levels)[1] <= 6 * 40 + 1 + 12


def test_there_and_back(x64):
    denoise, x = dx.gaussian_mixture(MEANS, 0.3), start(8)
    down = dx.sample(denoise, x, [80.0, 3.0, 0.01], solver=dx.solvers.adaptive(1e-7, 1e-7))
    up = dx.sample(denoise, down, [0.01, 3.0, 80.0], solver=dx.solvers.adaptive(1e-7, 1e-7))
    np.testing.assert_allclose(up, x, rtol=1e-3, atol=1e-3)


def test_gaussian_data_is_at_rest():
    c, x = 0.5, np.float32(start(4))
    out, count = solve(lambda x, s: x * c**2 / (c**2 + s[:, None] ** 2), x, GRID, sigma_data=c)
    assert count == 73
    np.testing.assert_allclose(out, x * np.hypot(c, 0.002) / np.hypot(c, 80), rtol=1e-5)


def test_jit_traced_sigmas_and_one_compilation():
    denoise, x, traces = dx.gaussian_mixture(MEANS, 0.3), np.float32(start(4)), []

    def counted(x, sigma):
        traces.append(sigma.shape)
        return denoise(x, sigma)

    def run(x, sigmas):
        return dx.sample(counted, x, sigmas, solver=dx.solvers.adaptive(), to_zero=True)

    want = run(x, np.array([*GRID, 0.0]))
    assert set(traces) == {(4,)} and len(traces) <= 2  # a loop may trace its body twice; it compiles it once
    np.testing.assert_allclose(jax.jit(run)(x, jnp.array([*GRID, 0.0])), want, atol=1e-4)


def test_a_sample_does_not_depend_on_its_batch():
    denoise, x = dx.gaussian_mixture(MEANS, 0.3), start(6)
    grids = np.stack([[80.0 - 10 * i, 1.0, 0.01 + 0.01 * i] for i in range(6)], axis=1)
    solver = dx.solvers.adaptive()
    whole = dx.sample(denoise, x, grids, solver=solver)
    np.testing.assert_allclose(whole[2:4], dx.sample(denoise, x[2:4], grids[:, 2:4], solver=solver), atol=1e-5)
    np.testing.assert_allclose(whole[:1], dx.sample(denoise, x[:1], grids[:, 0], solver=solver), atol=1e-5)


def test_failure_is_a_nan_of_that_sample_alone():
    denoise, x = dx.gaussian_mixture(MEANS, 0.3), jnp.asarray(start(4), jnp.float32)

    def broken(x, sigma):  # the third sample, below sigma = 1
        bad = (jnp.arange(4) == 2) & (sigma < 1)
        return jnp.where(bad[:, None], jnp.nan, denoise(x, sigma))

    for grid in (GRID, [*GRID, 0.0]):
        out, count = solve(broken, x, grid)
        np.testing.assert_array_equal(np.isnan(out).any(1), np.arange(4) == 2)
        assert count < 300
        good = np.arange(4) != 2
        np.testing.assert_allclose(out[good], solve(denoise, x, grid)[0][good], atol=1e-6)
    assert np.isnan(solve(denoise, x, GRID, max_steps=5)[0]).all()
    with pytest.raises(FloatingPointError, match="step 2"):
        dx.sample(broken, x, [80.0, 2.0, 0.5], solver=dx.solvers.adaptive(), check=True)


@pytest.mark.parametrize("end", [-2.0, 3.0])
def test_a_walk_in_either_direction(end, x64):
    walk = setting_out(jnp.zeros(2), jnp.array([[1.0], [2.0]]), 0.1)
    for stop in (end / 2, end):
        walk = advance(lambda s, z: s[:, None] * z, walk, jnp.asarray(stop), 1e-9, 1e-9, 1000)
        np.testing.assert_array_equal(walk.s, stop)
        np.testing.assert_allclose(walk.z[:, 0], np.exp(stop**2 / 2) * np.array([1, 2]), rtol=1e-7)
        np.testing.assert_allclose(walk.slope, stop * walk.z, rtol=1e-7)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rtol": 0.0}, "rtol = 0.0"),
        ({"atol": -1.0}, "atol = -1.0"),
        ({"sigma_data": 0.0}, "sigma_data = 0.0"),
        ({"max_steps": 0}, "max_steps = 0: must be an integer from 1 to"),
        ({"rtol": "1e-3"}, "rtol = '1e-3': must be positive"),
        ({"atol": np.nan}, "atol = nan: must be positive"),
        ({"sigma_data": np.ones(3)}, "sigma_data has shape (3,): must be one number"),
        ({"sigma_data": None}, "sigma_data = None"),
    ],
)
def test_bad_arguments_are_named(settings, words):
    with pytest.raises(ValueError) as error:
        dx.solvers.adaptive(**settings)
    assert words in str(error.value)
    assert dx.solvers.adaptive().nfe(5) is None
    with pytest.raises(ValueError, match="n = 0: must be an integer >= 1"):
        dx.solvers.adaptive().nfe(0)


@pytest.mark.parametrize("grid", [GRID, [*GRID, 0.0]])
def test_shards_at_the_defaults_of_shard_map(grid):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    rows = jax.sharding.PartitionSpec("data")
    x = jnp.float32(start(4))

    def run(x):
        return dx.sample(dx.gaussian_mixture(MEANS, 0.3), x, grid, solver=dx.solvers.adaptive())

    split = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=rows, out_specs=rows))(x)
    np.testing.assert_allclose(split, run(x), atol=1e-5)


def test_strict_promotion_and_any_dtype_of_its_parameters():
    x, c = np.float32(start(4)), 0.5
    want = x * np.hypot(c, 0.002) / np.hypot(c, 80)

    def denoise(x, s):
        return x / (1 + (s[:, None] / jnp.asarray(c, x.dtype)) ** 2)

    for wide in (False, True):
        with jax.enable_x64(wide), jax.numpy_dtype_promotion("strict"):
            for scale in (c, np.float64(c), jnp.float32(c)):
                solver = dx.solvers.adaptive(np.float64(1e-4), np.float32(1e-4), sigma_data=scale)
                out = dx.sample(denoise, x, GRID, solver=solver)
                assert out.dtype == np.float32
                np.testing.assert_allclose(out, want, rtol=1e-5)


def test_a_denoiser_may_give_float64(x64):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = jnp.ones((2, 3), jnp.float32)
        end = dx.sample(lambda x, s: 0.5 * x.astype(jnp.float64), x, [2.0, 1.0], solver=dx.solvers.adaptive())
    assert end.dtype == jnp.float32
