"""Solvers and the loop that runs them: order, evaluations, exact solutions, independence of the batch."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx

SOLVERS = {"euler": dx.solvers.euler(), "heun": dx.solvers.heun()}
MEANS = np.array([[-1.0, 0.5], [0.3, -0.8], [1.2, 1.0]])


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def start(n, sigma=10.0):
    return sigma * np.random.default_rng(0).normal(size=(n, 2))


@pytest.mark.parametrize("name", SOLVERS)
def test_order_of_convergence(name, x64):
    """The end-point error on an exact-score mixture falls as steps^-order, in float64."""
    denoise, x = dx.gaussian_mixture(MEANS, 0.3), start(16)

    def solve(n):
        grid = 10 * (0.05 / 10) ** np.linspace(0, 1, n + 1)  # sigma 10 -> 0.05
        return np.asarray(dx.sample(denoise, x, grid, solver=SOLVERS[name]))

    fine = 10 * (0.05 / 10) ** np.linspace(0, 1, 8193)
    exact = np.asarray(dx.sample(denoise, x, fine, solver=dx.solvers.heun()))
    steps = np.array([64, 128, 256, 512])
    errors = [np.sqrt(np.mean((solve(n) - exact) ** 2)) for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(SOLVERS[name].order, abs=0.25), errors


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_evaluations_are_as_declared(name, n):
    calls = []

    def denoise(x, sigma):
        jax.debug.callback(lambda s: calls.append(float(s)), sigma)
        return 0.5 * x

    dx.sample(denoise, jnp.ones((2, 3)), dx.schedules.sigmas(dx.schedules.karras(), n), solver=SOLVERS[name])
    jax.effects_barrier()
    assert len(calls) == SOLVERS[name].nfe(n)
    assert min(calls) > 0  # nothing is evaluated at sigma = 0


@pytest.mark.parametrize("name", SOLVERS)
def test_gaussian_data_has_the_closed_form(name, x64):
    # x(sigma) = x(sigma_0) sqrt((sigma^2 + c^2) / (sigma_0^2 + c^2)) for data N(0, c^2)
    c, x = 0.5, start(4, 80.0)
    sigmas = np.asarray(dx.schedules.sigmas(dx.schedules.karras(), 2000))
    got = dx.sample(lambda x, s: x * c**2 / (c**2 + s**2), x, sigmas, solver=SOLVERS[name])
    tolerance = {"euler": 5e-3, "heun": 1e-5}[name]
    np.testing.assert_allclose(got, x * c / np.sqrt(80**2 + c**2), rtol=tolerance)


def test_euler_is_ddim():
    # DDIM (Song et al. 2021, eq. 12, eta = 0) in its own variables: x_t = alpha x, eps = (x - D) / sigma
    denoise, x = dx.gaussian_mixture(MEANS, 0.3), start(8)
    sigmas = np.float64(dx.schedules.sigmas(dx.schedules.karras(0.01, 10.0), 7))
    alpha_bar = 1 / (1 + sigmas**2)
    xt = np.sqrt(alpha_bar[0]) * x
    for a, b, s in zip(alpha_bar[:-1], alpha_bar[1:], sigmas[:-1], strict=True):
        x0 = np.float64(denoise(jnp.float32(xt / np.sqrt(a)), s))
        eps = (xt - np.sqrt(a) * x0) / np.sqrt(1 - a)
        xt = np.sqrt(b) * x0 + np.sqrt(1 - b) * eps
    np.testing.assert_allclose(dx.sample(denoise, x, sigmas, solver=dx.solvers.euler()), xt, atol=2e-5)


def test_heun_is_algorithm_one_of_karras():
    denoise, x = dx.gaussian_mixture(MEANS, 0.3), start(8)
    t = np.float64(dx.schedules.sigmas(dx.schedules.karras(0.01, 10.0), 7))

    def slope(x, sigma):
        return (x - np.float64(denoise(jnp.float32(x), sigma))) / sigma

    y = x
    for a, b in itertools.pairwise(t):
        d = slope(y, a)
        euler = y + (b - a) * d
        y = euler if b == 0 else y + (b - a) * (d + slope(euler, b)) / 2
    np.testing.assert_allclose(dx.sample(denoise, x, t, solver=dx.solvers.heun()), y, atol=2e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_traced_sigmas_give_the_same_and_a_gradient(name):
    denoise, x = dx.gaussian_mixture(MEANS, 0.3), start(4)
    sigmas = dx.schedules.sigmas(dx.schedules.karras(0.01, 10.0), 6)

    def solve(grid):
        return dx.sample(denoise, x, grid, solver=SOLVERS[name])

    np.testing.assert_allclose(jax.jit(solve)(sigmas), solve(sigmas), atol=1e-4)
    grad = jax.grad(lambda g: jnp.sum(solve(g) ** 2))(sigmas)
    assert np.isfinite(grad).all() and np.abs(grad[1:-1]).max() > 0


def test_a_grid_above_zero_is_the_same_in_and_outside_jit():
    denoise, x, schedule = dx.gaussian_mixture(MEANS, 0.3), np.float32(start(4)), dx.schedules.karras(0.1, 10.0)

    def solve(x):
        return dx.sample(denoise, x, dx.schedules.sigmas(schedule, 6, final=None))

    np.testing.assert_allclose(jax.jit(solve)(x), solve(x), atol=1e-5)
    traced = jax.jit(lambda x, s: dx.sample(denoise, x, s, to_zero=False))(x, jnp.array([10.0, 3.0, 1.0, 0.5]))
    np.testing.assert_allclose(traced, dx.sample(denoise, x, [10.0, 3.0, 1.0, 0.5]), atol=1e-5)


def test_other_dtypes_are_promoted():
    half = dx.sample(lambda x, s: (x * 0.5).astype(jnp.bfloat16), jnp.ones((2, 3), jnp.bfloat16), [10.0, 1.0, 0.0])
    assert half.dtype == jnp.float32


@pytest.mark.parametrize("name", SOLVERS)
def test_per_sample_sigmas(name):
    denoise, x = dx.gaussian_mixture(MEANS, 0.3), start(2)
    grids = [np.asarray(dx.schedules.sigmas(dx.schedules.karras(0.01, high), 6)) for high in (10.0, 5.0)]
    both = dx.sample(denoise, x, np.stack(grids, axis=1), solver=SOLVERS[name])
    each = [dx.sample(denoise, x[i : i + 1], g, solver=SOLVERS[name])[0] for i, g in enumerate(grids)]
    np.testing.assert_allclose(both, np.stack(each), atol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_sample_does_not_depend_on_its_batch(name):
    denoise, x = dx.gaussian_mixture(MEANS, 0.3), start(6)
    sigmas = dx.schedules.sigmas(dx.schedules.karras(0.01, 10.0), 8)
    whole = dx.sample(denoise, x, sigmas, solver=SOLVERS[name])
    np.testing.assert_allclose(whole[2:4], dx.sample(denoise, x[2:4], sigmas, solver=SOLVERS[name]), atol=1e-6)


def test_the_denoiser_is_compiled_once_whatever_n():
    traces = []

    def denoise(x, sigma):
        traces.append(1)
        return 0.5 * x

    def size(n):
        traces.clear()
        jaxpr = jax.make_jaxpr(lambda x: dx.sample(denoise, x, dx.schedules.sigmas(dx.schedules.karras(), n)))(
            jnp.ones((2, 3))
        )
        return len(jaxpr.eqns), len(traces)

    assert size(3) == size(300) and size(3)[1] == 1


def test_long_grids_lose_nothing_in_float32():
    denoise, x = dx.gaussian_mixture(MEANS, 0.3), start(16)
    sigmas = np.asarray(dx.schedules.sigmas(dx.schedules.karras(0.01, 10.0), 512))
    single = dx.sample(denoise, np.float32(x), sigmas)
    with jax.enable_x64(True):
        double = np.asarray(dx.sample(dx.gaussian_mixture(MEANS, 0.3), np.float64(x), np.float64(sigmas)))
    assert single.dtype == jnp.float32
    assert np.max(np.abs(single - double)) < 2e-5


@pytest.mark.parametrize(
    ("sigmas", "solver", "words"),
    [
        ([3.0, 2.0, 2.0, 0.0], None, "strictly descending"),
        ([1.0, 2.0, 0.0], None, "strictly descending"),
        ([2.0, np.nan, 0.0], None, "finite"),
        ([2.0, 1.0, -1.0], None, ">= 0"),
        ([2.0], None, "shape (1,)"),
        (np.ones((3, 5)), None, "shape (3, 5)"),
        (np.array([[2.0, 2.0], [0.0, 1.0]]), None, "for every sample or for none"),
        ([2.0, 0.0], "heun", "solver = 'heun'"),
    ],
)
def test_bad_input_is_named(sigmas, solver, words):
    with pytest.raises(ValueError) as error:
        dx.sample(lambda x, s: x, jnp.ones((2, 3)), sigmas, solver=solver)
    assert words in str(error.value)
