"""The loop that runs the solvers: compiled once, trajectories, inversion, tracing, independence, reports, bad input.

The solvers themselves are proved in tests/solvers.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx

S = dx.solvers
SOLVERS = {  # one of each make: single-step in eps and D, multistep with a start and an end of its own, corrected
    "euler": S.euler(),
    "heun": S.heun(),
    "dpmpp_3s": S.dpmpp_3s(),
    "dpmpp_2m": S.dpmpp_2m(),
    "lms": S.lms(),
    "exponential_ab": S.exponential_ab(4),
    "unipc": S.unipc(),
}
each_solver = pytest.mark.parametrize("name", SOLVERS)
MEANS = np.array([[-1.0, 0.5], [0.3, -0.8], [1.2, 1.0]])
denoise = dx.gaussian_mixture(MEANS, 0.3)


def start(n, sigma=10.0):
    return np.float32(sigma * np.random.default_rng(0).normal(size=(n, 2)))


def grid(n, high=10.0):
    return np.asarray(dx.schedules.sigmas(dx.schedules.karras(0.01, high), n))


# ---- the loop -------------------------------------------------------------------------------------------------------


@each_solver
def test_evaluations_are_as_declared(name):
    calls = []

    def counted(x, sigma):
        jax.debug.callback(lambda s: calls.append(float(s)), sigma)
        return 0.5 * x

    dx.sample(counted, jnp.ones((2, 3)), grid(5), solver=SOLVERS[name])
    jax.effects_barrier()
    assert len(calls) == SOLVERS[name].nfe(5) and min(calls) > 0


@pytest.mark.parametrize("trajectory", [False, True])
def test_the_denoiser_is_compiled_once_whatever_n(trajectory):
    traces = []

    def denoise(x, sigma):
        traces.append(sigma.shape)
        return 0.5 * x

    def size(n):
        traces.clear()
        jaxpr = jax.make_jaxpr(lambda x: dx.sample(denoise, x, grid(n), trajectory=trajectory))(jnp.ones((2, 3)))
        return len(jaxpr.eqns), list(traces)

    assert size(3) == size(300) and size(3)[1] == [()]


def test_a_solver_need_not_be_named():
    x, sigmas = start(3), grid(4)
    np.testing.assert_array_equal(dx.sample(denoise, x, sigmas), dx.sample(denoise, x, sigmas, solver=S.default()))


@each_solver
def test_the_loop_in_float32_is_the_loop_in_float64(name):
    single = dx.sample(denoise, start(4), grid(30), solver=SOLVERS[name])
    assert single.dtype == jnp.float32
    with jax.enable_x64(True):
        double = dx.sample(dx.gaussian_mixture(MEANS, 0.3), np.float64(start(4)), grid(30), solver=SOLVERS[name])
    assert double.dtype == np.float64
    np.testing.assert_allclose(single, double, rtol=0, atol=3e-5)


def test_other_dtypes_are_promoted():
    def half(x, sigma):
        assert x.dtype == sigma.dtype == jnp.float32
        return (x * 0.5).astype(jnp.bfloat16)

    for dtype in (jnp.bfloat16, jnp.float16):
        assert dx.sample(half, jnp.ones((2, 3), dtype), [10.0, 1.0, 0.0]).dtype == jnp.float32
    expected = dx.sample(denoise, start(2), [8.0, 4.0, 1.0, 0.0])
    for sigmas in ([8, 4, 1, 0], jnp.array([8, 4, 1, 0], jnp.float16), np.array([8, 4, 1, 0], np.float64)):
        np.testing.assert_array_equal(dx.sample(denoise, start(2), sigmas), expected)
    traced = jax.jit(lambda s: dx.sample(denoise, start(2), s, to_zero=True))(jnp.array([8, 4, 1, 0], jnp.float16))
    np.testing.assert_allclose(traced, expected, atol=1e-5)  # coefficients in float32 at least


def test_any_shape_of_sample():
    for shape in ((3,), (3, 1), (2, 4, 4, 3)):
        got = dx.sample(lambda x, s: x / (1 + s**2), jnp.full(shape, 20.0), grid(40, 20.0))
        np.testing.assert_allclose(got, np.full(shape, 20 / np.sqrt(401)), rtol=1e-2)


# ---- trajectories and inversion -------------------------------------------------------------------------------------


@each_solver
def test_a_trajectory_passes_through_every_sigma(name):
    x, sigmas = start(3), grid(6)
    path = dx.sample(denoise, x, sigmas, solver=SOLVERS[name], trajectory=True)
    assert path.shape == (7, 3, 2)
    np.testing.assert_array_equal(path[0], x)
    np.testing.assert_allclose(path[-1], dx.sample(denoise, x, sigmas, solver=SOLVERS[name]), atol=1e-6)
    if name != "exponential_ab":  # whose first step depends on n
        np.testing.assert_allclose(path[3], dx.sample(denoise, x, sigmas[:4], solver=SOLVERS[name]), atol=2e-5)


@each_solver
def test_up_and_down_again(name):
    """From data to noise on the reversed grid, and back."""
    data, up = start(4, 1.0), grid(60)[:-1][::-1]
    latent = dx.sample(denoise, data, up, solver=SOLVERS[name])
    back = dx.sample(denoise, latent, up[::-1], solver=SOLVERS[name])
    assert np.abs(latent).max() > 3
    np.testing.assert_allclose(back, data, atol=0.5 if name == "euler" else 0.05)


# ---- traced sigmas --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "to_zero"), [("heun", True), ("euler", False), ("lms", True), ("exponential_ab", False), ("unipc", True)]
)
def test_traced_sigmas_give_the_same_and_a_gradient(name, to_zero):
    x, sigmas = start(4), grid(6) if to_zero else grid(7)[:-1]

    def solve(sigmas):
        return dx.sample(denoise, x, sigmas, solver=SOLVERS[name], to_zero=to_zero)

    def loss(sigmas):
        got = solve(sigmas)
        return jnp.sum(got**2), got

    (_, got), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.asarray(sigmas))
    np.testing.assert_allclose(got, solve(sigmas), atol=1e-4)
    assert np.isfinite(grad).all() and np.abs(grad[1:-1]).min() > 0


def test_a_grid_above_zero_is_the_same_in_and_outside_jit():
    x, schedule = start(4), dx.schedules.karras(0.1, 10.0)

    def solve(x):
        return dx.sample(denoise, x, dx.schedules.sigmas(schedule, 6, final=None))

    np.testing.assert_allclose(jax.jit(solve)(x), solve(x), atol=1e-5)


def test_a_traced_grid_says_where_it_ends_or_is_refused():
    """The step to 0 is another one: a grid cut up under jit gives what it gives outside, or nothing."""
    exact = lambda x, sigma: x * 0.25 / (0.25 + sigma**2)  # of N(0, 0.5^2)
    x, whole = jnp.full((1, 1), 80.0), jnp.asarray(grid(40, 80.0))
    cut = lambda sigmas, to_zero=None: dx.sample(exact, x, sigmas[:21], to_zero=to_zero)
    expected = cut(whole)
    with pytest.raises(ValueError, match="to_zero is missing: traced sigmas"):
        jax.jit(cut)(whole)
    np.testing.assert_allclose(jax.jit(lambda s: cut(s, False))(whole), expected, rtol=1e-5)
    # cut at a level and taken as if at 0, it is another number, which must not be told
    assert np.isnan(jax.jit(lambda s: cut(s, True))(whole)).all()


@pytest.mark.parametrize(
    "sigmas",
    [
        [2.0, 3.0, 1.0, 0.0],
        [2.0, 2.0, 1.0, 0.0],
        [2.0, 1.0, np.nan, 0.0],
        [np.inf, 2.0, 1.0, 0.0],
        [3.0, 2.0, 1.0, 0.5],
    ],
)
def test_traced_sigmas_that_are_no_grid_give_nan(sigmas):
    solve = jax.jit(lambda s: dx.sample(denoise, start(2), s, solver=S.euler(), to_zero=True))
    assert np.isfinite(solve(jnp.array([3.0, 2.0, 1.0, 0.0]))).all()
    assert np.isnan(solve(jnp.array(sigmas))).all()


def test_gradients_pass_through_the_denoiser():
    def end(c):
        return dx.sample(lambda x, s: x * c**2 / (c**2 + s**2), jnp.ones((1, 1)), grid(20), solver=S.unipc())[0, 0]

    slope = float(end(0.5 + 1e-2) - end(0.5 - 1e-2)) / 2e-2
    assert float(jax.grad(end)(0.5)) == pytest.approx(slope, rel=1e-2)


# ---- samples are independent ----------------------------------------------------------------------------------------


@each_solver
def test_per_sample_sigmas(name):
    x, grids = start(2), [grid(6), grid(6, 5.0)]

    def seen(x, sigma):
        assert sigma.shape == (2,)
        return denoise(x, sigma)

    both = dx.sample(seen, x, np.stack(grids, axis=1), solver=SOLVERS[name], trajectory=True)
    for i, sigmas in enumerate(grids):
        alone = dx.sample(denoise, x[i : i + 1], sigmas, solver=SOLVERS[name], trajectory=True)
        np.testing.assert_allclose(both[:, i], alone[:, 0], atol=1e-5)


@pytest.mark.parametrize("traced", [False, True])
@each_solver
def test_per_pixel_sigmas(name, traced):
    """Pixels that do not see one another are samples of their own; channels may share their levels."""
    one = dx.gaussian_mixture(means=np.array([[-1.0], [1.0]]), std=0.3)  # of a number

    def apart(x, sigma):
        assert sigma.shape == (2, 3, 1)
        sigma = jnp.broadcast_to(sigma, x.shape).reshape(-1)
        return one(x.reshape(-1, 1), sigma).reshape(x.shape)

    x = np.float32(5 * np.random.default_rng(0).normal(size=(2, 3, 2)))
    sigmas = np.stack([grid(5, high) for high in (5, 6, 7, 8, 9, 10)], 1).reshape(6, 2, 3, 1)
    solve = lambda sigmas: dx.sample(apart, x, sigmas, solver=SOLVERS[name], to_zero=True)
    each = np.broadcast_to(sigmas, (6, 2, 3, 2)).reshape(6, -1)
    alone = dx.sample(one, x.reshape(-1, 1), each, solver=SOLVERS[name])
    got = jax.jit(solve)(jnp.asarray(sigmas)) if traced else solve(sigmas)
    np.testing.assert_allclose(np.reshape(got, (-1, 1)), alone, atol=2e-4 if traced else 1e-5)


@each_solver
def test_a_sample_does_not_depend_on_its_batch(name):
    x, sigmas = start(6), grid(8)
    whole = dx.sample(denoise, x, sigmas, solver=SOLVERS[name])
    np.testing.assert_allclose(whole[2:4], dx.sample(denoise, x[2:4], sigmas, solver=SOLVERS[name]), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "stream"), [("ancestral", 1), ("edm_stochastic", 0), ("dpmpp_2m_sde", 1), ("sa_solver", 1)]
)
def test_noise_of_ones_own_is_what_a_key_would_have_drawn(name, stream):
    x, sigmas, key, solver = start(3), grid(5), jax.random.key(7), getattr(S, name)()
    count = len(solver.rows(np.float64(sigmas), True).sigma)
    drawn = jnp.stack(
        [dx.noise.normal(jax.random.fold_in(key, 2 * i + stream), jnp.arange(3), (2,)) for i in range(count)]
    )
    given = dx.sample(denoise, x, sigmas, solver=solver, noise=lambda i, stream: drawn[i])
    np.testing.assert_allclose(given, dx.sample(denoise, x, sigmas, solver=solver, key=key), atol=1e-5)


@pytest.mark.parametrize("factor", [1 / 80, 10.0])
def test_a_start_that_is_not_at_its_level_is_warned_of(factor):
    x = 80 * jax.random.normal(jax.random.key(0), (20, 2))
    with pytest.warns(UserWarning, match=r"at sigmas\[0\] = 80"):
        dx.sample(denoise, factor * x, grid(3, 80.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dx.sample(denoise, x, grid(3, 80.0))
        dx.sample(denoise, x / 80 + 1, grid(3, 1.0))  # from an image


# ---- reports and bad input ------------------------------------------------------------------------------------------


def broken(below, value=np.nan):
    return lambda x, sigma: jnp.where(sigma < below, value, 0.5 * x)


@pytest.mark.parametrize(
    ("solver", "words"),
    [
        (S.euler(), "step 4, evaluation 4 of 5, sigma = 0.5"),
        (S.unipc(), "step 4, evaluation 4 of 5, sigma = 0.5"),
        (S.heun(), "step 3, evaluation 6 of 9, sigma = 0.5"),  # at the end of the step from 1.0
        (S.rk4(), "step 3, evaluation 10 of 17, sigma = 0.7071"),  # and half-way
        (S.lms(4, bootstrap=True), "step 4, evaluation 6 of 7, sigma = 0.5"),  # two for the bootstrap
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_check_says_where_a_number_went_bad(solver, words, value):
    x, sigmas = jnp.ones((2, 3)), [4.0, 2.0, 1.0, 0.5, 0.25, 0.0]
    with pytest.raises(FloatingPointError) as error:
        dx.sample(broken(0.9, value), x, sigmas, solver=solver, check=True)
    assert words in str(error.value)
    fine = dx.sample(broken(0.0), x, sigmas, solver=solver, check=True)
    np.testing.assert_allclose(fine, dx.sample(broken(0.0), x, sigmas, solver=solver), rtol=1e-6)


def test_check_of_per_sample_sigmas_and_of_a_trajectory():
    sigmas = np.array([[4.0, 2.0], [2.0, 1.0], [1.0, 0.5], [0.0, 0.0]])
    with pytest.raises(FloatingPointError, match=r"step 3, evaluation 3 of 3, sigma = \[1.  0.5\]"):
        dx.sample(
            lambda x, s: jnp.where((s < 0.9)[:, None], jnp.nan, x),
            jnp.ones((2, 3)),
            sigmas,
            solver=S.euler(),
            check=True,
            trajectory=True,
        )


def test_check_is_refused_under_jit():
    with pytest.raises(ValueError, match="check = True: must not be under jit"):
        jax.jit(lambda x: dx.sample(denoise, x, [2.0, 1.0, 0.0], check=True))(start(2))


NOISY = S.euler()._replace(stochastic=True)
PER_PIXEL = np.array([2.0, 1.0, 0.0]).reshape(3, 1, 1) * np.ones((3, 2, 3))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sigmas": [3.0, 2.0, 2.0, 0.0]}, "strictly descending"),
        ({"sigmas": [1.0, 2.0, 0.0]}, "strictly descending"),
        ({"sigmas": [0.0, 1.0, 2.0]}, "strictly ascending and > 0"),
        ({"sigmas": [2.0, np.nan, 0.0]}, "finite"),
        ({"sigmas": [np.inf, 1.0, 0.0]}, "finite"),
        ({"sigmas": [2.0, 1.0, -1.0]}, ">= 0"),
        ({"sigmas": [-2.0, -1.0, 1.0]}, "> 0"),
        ({"sigmas": [2.0]}, "shape (1,)"),
        ({"sigmas": 2.0}, "shape ()"),
        ({"sigmas": np.ones((3, 5))}, "shape (3, 5): must be [n + 1] or [n + 1, batch = 2]"),
        ({"sigmas": np.ones((3, 2, 4))}, "shape (3, 2, 4): must be [n + 1] or [n + 1, batch = 2]"),
        ({"sigmas": np.ones((3, 1, 3))}, "or per pixel [n + 1, ...] with the axes (2, 3) of x"),
        ({"sigmas": PER_PIXEL, "solver": S.adaptive()}, "sigmas are per pixel: the solver must take the steps"),
        ({"sigmas": np.array([[2.0, 2.0], [0.0, 1.0]])}, "for every sample or for none"),
        ({"sigmas": np.array([[2.0, 1.0], [1.0, 2.0]])}, "strictly descending"),
        ({"solver": "heun"}, "solver = 'heun'"),
        ({"solver": S.heun}, "solver = heun: is a function: did you forget the parentheses?"),
        ({"solver": 3}, "must be a Solver such as dx.solvers.heun()"),
        ({"x": jnp.ones((2, 3), jnp.int32)}, "x is of int32: must be floating-point numbers"),
        ({"x": jnp.ones((2, 3), jnp.complex64)}, "x is of complex64"),
        ({"x": "noise"}, "x is of <U5"),
        ({"x": None}, "x is of object"),
        ({"denoise": None}, "denoise = None: must be a function denoise(x, sigma) -> x0"),
        ({"denoise": lambda x, s: None}, "denoise gave None"),
        ({"denoise": lambda x, s: (x, x)}, "denoise gave a tuple"),
        ({"denoise": lambda x, s: x > 0}, "denoise gave bool"),
        ({"sigmas": dx.schedules.karras()}, "sigmas is a Schedule: must be an array, such as dx.schedules.sigmas("),
        ({"sigmas": dx.schedules.karras}, "sigmas is a function: must be an array, such as dx.schedules.sigmas("),
        ({"sigmas": "plain"}, "sigmas = 'plain': must be an array"),
        ({"sigmas": None}, "sigmas = None: must be an array"),
        ({"sigmas": [2.0 + 1j, 0.0]}, "must be an array"),
        ({"key": "zzz"}, "key = 'zzz': must be a JAX key"),
        ({"key": 0}, "key = 0: must be a JAX key"),
        ({"key": jax.random.split(jax.random.key(0), 2)}, "key holds 2 keys"),
        ({"to_zero": False}, "to_zero = False: must be True"),
        ({"to_zero": "no"}, "to_zero = 'no': must be one of None, True, False"),
        ({"noise": 3}, "noise = 3: must be a function"),
        ({"noise": lambda i, stream: jnp.ones(3), "solver": S.ancestral()}, "noise gave shape (3,)"),
        ({"x": 1.0}, "x has shape ()"),
        ({"x": jnp.ones((0, 3))}, "with at least one sample"),
        ({"index": jnp.arange(3)}, "index has shape (3,): must be [batch] = (2,)"),
        ({"index": 0}, "index has shape ()"),
        ({"index": jnp.arange(2, dtype=jnp.float32)}, "index is of float32"),
        ({"solver": NOISY}, "key is missing"),
        ({"solver": NOISY, "key": jax.random.key(0), "sigmas": [1.0, 2.0]}, "only deterministic solvers"),
        ({"denoise": lambda x, s: x[:, :1]}, "denoise gave shape (2, 1) for x of shape (2, 3)"),
        ({"denoise": lambda x, s: x.mean(), "solver": S.unipc()}, "denoise gave shape () for x of shape (2, 3)"),
    ],
)
def test_bad_input_is_named(given, words):
    given = {"denoise": lambda x, s: x, "x": jnp.ones((2, 3)), "sigmas": [2.0, 1.0, 0.0]} | given
    with pytest.raises(ValueError) as error:
        dx.sample(given.pop("denoise"), given.pop("x"), given.pop("sigmas"), **given)
    assert words in str(error.value)
