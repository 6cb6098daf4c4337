"""Consistency models against their formulas in numpy float64, and against Gaussian data, whose f is known."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffax as dx

C = dx.consistency
E, SD = 0.002, 0.5
KEY = jax.random.key(0)


def karras(n, low=0.002, high=80.0, rho=7):
    return (low ** (1 / rho) + np.arange(n) / (n - 1) * (high ** (1 / rho) - low ** (1 / rho))) ** rho


def coefficients(t, e=E, sd=SD):
    return sd**2 / ((t - e) ** 2 + sd**2), sd * (t - e) / np.sqrt(sd**2 + t**2), 1 / np.sqrt(t**2 + sd**2)


def linear(params, x, c_noise, cond):
    return params * x + c_noise[:, None]


def exact(std, e, sd=SD):
    """The network F whose f is that of N(0, std^2): x(e) = x(t) sqrt((e^2 + std^2) / (t^2 + std^2))."""

    def apply(params, x, c_noise, cond):
        t = jnp.exp(4 * c_noise)[:, None]
        x = x * jnp.hypot(t, sd)
        f = x * jnp.sqrt((e**2 + std**2) / (t**2 + std**2))
        c_out = sd * (t - e) / jnp.hypot(t, sd)
        return (f - sd**2 / ((t - e) ** 2 + sd**2) * x) / jnp.where(t > e * (1 + 1e-9), c_out, 1)

    return apply


def even(key, n):
    return (jnp.arange(n) + 0.5) / n


# ---- the function and its grid --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_at_the_lowest_level_it_is_the_identity_whatever_the_network_says(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4, 3)), dtype)
    for apply in (lambda p, x, t, c: 1e6 * jnp.ones_like(x), lambda p, x, t, c: x):
        y = C.function(apply, None)(x, 0.002)
        assert y.dtype == dtype
        np.testing.assert_array_equal(np.float32(y), np.float32(x))


def test_its_coefficients_are_those_of_the_paper():
    t = np.array([0.0021, 0.01, 0.5, 3.0, 80.0])
    x = np.random.default_rng(0).normal(size=(5, 6)) * t[:, None]
    skip, out, inside = (c[:, None] for c in coefficients(t, E, 0.7))
    expected = skip * x + out * (0.3 * inside * x + np.log(t)[:, None] / 4)
    f = C.function(linear, 0.3, sigma_data=0.7)
    np.testing.assert_allclose(f(jnp.float32(x), jnp.float32(t)), expected, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(f(jnp.float32(x[2:3]), 0.5), expected[2:3], rtol=2e-5)


@pytest.mark.parametrize("n", [2, 11, 250, 1281])
def test_levels_are_a_karras_grid_that_repeats_its_last(n):
    grid = np.asarray(jax.jit(lambda n: C.levels(n, 1281))(n))
    np.testing.assert_allclose(grid[:n], karras(n), rtol=1e-5)
    assert (grid[n:] == grid[n - 1]).all() and (np.diff(grid[:n]) > 0).all()


@pytest.mark.parametrize("n", [2, 3, 20, 149, 250])
def test_a_pool_gives_no_level_of_its_own(n):
    grid, pool = np.asarray(C.levels(n, 250, pool=251))[:n], np.asarray(C.levels(251, 251))
    assert np.isin(grid, pool).all() and len(set(grid)) == n
    assert (grid[0], grid[-1]) == (pool[0], pool[-1])
    wanted = np.arange(n) / (n - 1) * 250  # places in the pool
    assert abs(np.searchsorted(pool, grid) - wanted).max() <= 0.5 + 1e-9


# ---- where pairs are drawn ------------------------------------------------------------------------------------------


def drawn(n, most, draws=200_000, **options):
    """The share of draws of each pair, from the level of the noisier neighbour."""
    sigmas = C.levels(n, most)

    @jax.jit
    def logsnr(key):
        return C.training(linear, 0.0, key, jnp.zeros((draws, 1)), sigmas=sigmas, draw=even, **options)[1].logsnr

    place = np.searchsorted(np.asarray(sigmas[:n]), np.exp(-np.asarray(logsnr(jax.random.key(0))) / 2) * (1 - 1e-4)) - 1
    return np.bincount(place, minlength=n - 1) / draws


@pytest.mark.parametrize(("n", "most"), [(11, 11), (21, 1281), (161, 1281)])
def test_log_normal_pairs_have_the_shares_of_ict(n, most):
    t = karras(n)
    p = np.diff([math.erf((math.log(s) + 1.1) / (math.sqrt(2) * 2.0)) for s in t])
    np.testing.assert_allclose(drawn(n, most), p / p.sum(), atol=2e-5)


@pytest.mark.parametrize(("schedule", "power"), [(dx.schedules.karras(), 1), (dx.schedules.polynomial(4.0), 4)])
@pytest.mark.parametrize("n", [20, 121])
def test_uniform_and_polynomial_pairs(schedule, power, n):
    shares = np.diff((np.arange(n) / (n - 1)) ** (1 / power))  # of floor(u^power (n - 1))
    np.testing.assert_allclose(drawn(n, 151, schedule=schedule), shares, atol=3e-5)


def test_jitter_moves_pairs_and_leaves_none_outside():
    n = 20
    base = np.diff((np.arange(n) / (n - 1)) ** 0.25)
    phi = np.vectorize(lambda z: (1 + math.erf(z / math.sqrt(2))) / 2)
    move = {k: float(phi(k + 0.5) - phi(k - 0.5)) for k in range(-8, 9)}
    expected = np.zeros(n - 1)
    for i, share in enumerate(base):
        for k, p in move.items():
            expected[i + k if 0 <= i + k < n - 1 else i] += share * p
    found = drawn(n, 151, schedule=dx.schedules.polynomial(4.0), jitter=1.0)
    np.testing.assert_allclose(found, expected, atol=5 * 0.5 / 200_000**0.5)
    assert abs(expected - base).max() > 0.1


# ---- the losses -----------------------------------------------------------------------------------------------------


def by_hand(student, teacher, key, x0, sigmas, aux, huber=0.00054):
    """The loss of each sample of the network `linear`, in numpy float64."""
    n = np.float64(dx.noise.normal(jax.random.split(key, 3)[2], jnp.arange(len(x0)), x0.shape[1:]))
    place = np.searchsorted(sigmas, np.exp(-np.float64(aux.logsnr) / 2) * (1 - 1e-4)) - 1
    values = []
    for params, t in ((student, sigmas[place + 1]), (teacher, sigmas[place])):
        skip, out, inside = (c[:, None] for c in coefficients(t))
        x = x0 + t[:, None] * n
        values.append(skip * x + out * (params * inside * x + np.log(t)[:, None] / 4))
    c = huber * math.sqrt(x0.shape[1])
    distance = np.sqrt(((values[0] - values[1]) ** 2).sum(-1) + c**2) - c
    return distance / (sigmas[place + 1] - sigmas[place])


def test_the_loss_is_that_of_the_paper_and_only_the_student_learns():
    key, sigmas = jax.random.key(3), karras(15)
    x0 = np.random.default_rng(0).normal(size=(64, 5))
    objective = lambda p: C.training(linear, p, key, jnp.float32(x0), sigmas=jnp.float32(sigmas))
    (loss, aux), slope = jax.jit(jax.value_and_grad(objective, has_aux=True))(0.3)
    np.testing.assert_allclose(aux.loss, by_hand(0.3, 0.3, key, x0, sigmas, aux), rtol=1e-3)
    np.testing.assert_allclose(loss, np.mean(aux.loss), rtol=1e-6)
    up, down = (by_hand(0.3 + h, 0.3, key, x0, sigmas, aux).mean() for h in (1e-5, -1e-5))
    assert float(slope) == pytest.approx((up - down) / 2e-5, rel=1e-3)


def gaussian(counts, loss, std=0.7, dim=4, batch=8192):
    """The mean loss of the exact f on Gaussian data, where differences count by their square, on grids of n levels."""

    @jax.jit
    def measure(x0, n):
        grid = dx.schedules.karras(0.1, 10.0)
        options = dict(sigmas=C.levels(n, max(counts), schedule=grid), schedule=grid, huber=1e4)
        return loss(exact(std, 0.1), None, jax.random.key(1), x0, **options)[0]

    with jax.enable_x64(True):
        x0 = std * jax.random.normal(jax.random.key(0), (batch, dim), jnp.float64)
        return [float(measure(x0, n)) for n in counts]


def test_consistency_training_of_the_exact_function_falls_as_the_grid_is_refined():
    std, dim, counts = 0.7, 4, (20, 40, 80)
    losses = gaussian(counts, C.training)
    for n, loss in zip(counts, losses, strict=True):
        t = karras(n, 0.1, 10.0)
        k = np.sqrt((0.1**2 + std**2) / (t**2 + std**2))
        squared = std**2 * np.diff(k) ** 2 + np.diff(k * t) ** 2  # of k' (x_0 + t' n) - k (x_0 + t n), a dimension
        expected = np.mean(dim * squared / np.diff(t)) / (2 * 1e4 * math.sqrt(dim))
        assert loss == pytest.approx(expected, rel=0.03)
    np.testing.assert_allclose(np.log2(np.array(losses[:-1]) / losses[1:]), 1, atol=0.15)


@pytest.mark.parametrize(("solver", "order"), [(dx.solvers.euler(), 1), (dx.solvers.heun(), 2)])
def test_consistency_distillation_of_the_exact_function_falls_with_the_error_of_a_step(solver, order):
    """A step errs by its length to order + 1; the loss is the square of that over the length."""
    teacher = dx.gaussian_mixture(np.zeros((1, 4)), 0.7)
    loss = lambda *a, **k: C.distillation(*a, teacher=teacher, solver=solver, **k)
    losses = gaussian((80, 160, 320), loss, batch=2048)
    np.testing.assert_allclose(np.log2(np.array(losses[:-1]) / losses[1:]), 2 * order + 1, atol=0.15)


def test_one_compiled_step_serves_a_whole_curriculum():
    x0, traces = jnp.float32(np.random.default_rng(0).normal(size=(32, 3))), []

    @jax.jit
    def step(k):
        traces.append(k)
        sigmas = C.levels(dx.curricula.doubling(k, 800, 10, 160), 161)
        return C.training(linear, 0.3, jax.random.key(0), x0, sigmas=sigmas, jitter=1.0)

    for k, n in ((0, 11), (700, 161)):
        loss, aux = step(k)
        fixed = jax.jit(lambda: C.training(linear, 0.3, jax.random.key(0), x0, sigmas=C.levels(n, n), jitter=1.0))  # noqa: B023
        alone = fixed()
        np.testing.assert_allclose(aux.logsnr, alone[1].logsnr, rtol=1e-5)
        np.testing.assert_allclose(loss, alone[0], rtol=1e-3)
    assert len(traces) == 1


def test_parts_of_a_batch_draw_what_they_would_in_the_whole():
    x0, sigmas = jnp.float32(np.random.default_rng(0).normal(size=(12, 3))), C.levels(40, 40)
    teacher = dx.gaussian_mixture(np.zeros((1, 3)), 1.0)
    options = dict(sigmas=sigmas, jitter=1.0)
    for function in (C.training, functools.partial(C.distillation, teacher=teacher)):
        loss = jax.jit(
            lambda x0, rows, f=function: f(linear, 0.3, KEY, x0, part=dx.losses.Part(rows, 12), **options)[1]
        )
        whole = jax.jit(lambda x0, f=function: f(linear, 0.3, KEY, x0, **options)[1])(x0)
        for start in range(3):
            rows = jnp.arange(start, 12, 3)
            part = loss(x0[rows], rows)
            np.testing.assert_allclose(part.logsnr, whole.logsnr[rows], rtol=1e-6)
            np.testing.assert_allclose(part.loss, whole.loss[rows], rtol=1e-4)


def test_nothing_is_infinite_on_the_finest_grid():
    x0 = jnp.ones((512, 3))
    objective = lambda p: C.training(linear, p, KEY, x0, sigmas=C.levels(1281, 1281))[0]
    loss, slope = jax.jit(jax.value_and_grad(objective))(0.1)
    assert np.isfinite(loss) and np.isfinite(slope)


# ---- sampling -------------------------------------------------------------------------------------------------------


def test_samples_in_one_and_in_several_steps():
    f = C.function(linear, 0.3)
    x = 80 * dx.noise.normal(jax.random.key(1), jnp.arange(6), (2,))
    np.testing.assert_allclose(C.sample(f, x, [80.0]), f(x, 80.0), rtol=1e-6)
    key, by_hand = jax.random.key(2), f(x, 80.0)
    for number, t in ((1, 5.0), (2, 0.8)):
        z = dx.noise.normal(jax.random.fold_in(key, number), jnp.arange(6), (2,))
        by_hand = f(by_hand + math.sqrt(t**2 - E**2) * z, t)
    found = C.sample(f, x, [80.0, 5.0, 0.8], key=key)
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)
    alone = C.sample(f, x[3:], [80.0, 5.0, 0.8], key=key, index=jnp.arange(3, 6))
    np.testing.assert_allclose(alone, found[3:], rtol=1e-6)


@pytest.mark.parametrize("sigmas", [[80.0], [80.0, 0.8]])
def test_the_exact_function_samples_gaussian_data(sigmas):
    f = C.function(exact(0.7, E), None)
    x = 80 * jax.random.normal(jax.random.key(0), (40_000, 2))
    assert float(C.sample(f, x, sigmas, key=jax.random.key(1)).std()) == pytest.approx(0.7, rel=0.02)


def test_a_small_network_learns_to_sample_in_one_step():
    means, widths, total = jnp.array([[-1.0, 0.5], [1.0, -0.5]]), [3, 64, 64, 2], 1500
    grid, ends = dx.schedules.karras(0.02, 10.0), dict(sigma_data=0.8)
    keys = jax.random.split(jax.random.key(0), 3)
    params = [
        (jax.random.normal(k, (i, o)) / i**0.5, jnp.zeros(o)) for k, i, o in zip(keys, widths, widths[1:], strict=False)
    ]

    def apply(params, x, c_noise, cond):
        h = jnp.concatenate([x, c_noise[:, None]], -1)
        for w, b in params[:-1]:
            h = jax.nn.silu(h @ w + b)
        return h @ params[-1][0] + params[-1][1]

    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, total))

    def step(carry, k):
        params, moments = carry
        mode, place, key = jax.random.split(jax.random.fold_in(jax.random.key(1), k), 3)
        x0 = means[jax.random.randint(mode, (256,), 0, 2)] + 0.1 * jax.random.normal(place, (256, 2))
        options = dict(sigmas=C.levels(dx.curricula.doubling(k, total, 10, 40), 41, schedule=grid), **ends)
        loss = lambda p: C.training(apply, p, key, x0, schedule=dx.schedules.edm(0.0, 1.5), **options)[0]
        updates, moments = optimizer.update(jax.grad(loss)(params), moments)
        return (optax.apply_updates(params, updates), moments), None

    train = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), jnp.arange(total))[0][0])
    f = C.function(apply, train(params), sigma_min=0.02, **ends)
    x = C.sample(f, 10 * jax.random.normal(jax.random.key(2), (2000, 2)), [10.0])
    # The data have a standard deviation of 0.1 around each mean; one step of a denoiser ends between the means.
    near = np.linalg.norm(np.asarray(x)[:, None] - np.asarray(means), axis=-1) < 0.4
    assert near.any(1).mean() > 0.7 and near.mean(0).min() > 0.3


# ---- a target network, levels per pixel, keys, devices, dtypes ------------------------------------------------------


@pytest.mark.parametrize("distilled", [False, True])
def test_the_target_may_have_parameters_of_its_own(distilled):
    """Algorithms 2 and 3 of Song et al. compare with the moving average of the parameters; no gradient reaches it."""
    key, sigmas = jax.random.key(3), karras(15)
    x0 = np.random.default_rng(0).normal(size=(64, 5))
    function = C.training
    if distilled:  # one Euler step with the denoiser that knows x_0 goes to the same point
        exactly = lambda x, sigma: jnp.float32(x0)
        function = functools.partial(C.distillation, teacher=exactly, solver=dx.solvers.euler())

    def objective(student, average):
        return function(linear, student, key, jnp.float32(x0), sigmas=jnp.float32(sigmas), target_params=average)

    (loss, aux), slopes = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))(0.3, 0.7)
    np.testing.assert_allclose(aux.loss, by_hand(0.3, 0.7, key, x0, sigmas, aux), rtol=1e-3)
    up, down = (by_hand(0.3 + h, 0.7, key, x0, sigmas, aux).mean() for h in (1e-5, -1e-5))
    assert float(slopes[0]) == pytest.approx((up - down) / 2e-5, rel=1e-3) and slopes[1] == 0
    np.testing.assert_allclose(objective(0.3, None)[1].loss, objective(0.3, 0.3)[1].loss)
    assert loss == pytest.approx(float(aux.loss.mean()), rel=1e-6)


def test_a_level_per_pixel():
    t, x = np.array([[0.5, 3.0], [0.002, 80.0]]), np.random.default_rng(0).normal(size=(2, 2))
    skip, out, inside = coefficients(t)
    f = C.function(lambda p, x, c, cond: 0.3 * x + c, None)
    expected = skip * x + out * (0.3 * inside * x + np.log(t) / 4)
    np.testing.assert_allclose(f(jnp.float32(x), jnp.float32(t)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
def test_keys_of_any_implementation_belong_to_the_sample(implementation):
    key, x0 = jax.random.key(1, impl=implementation), jnp.ones((6, 2))
    loss = lambda x0, part: C.training(linear, 0.3, key, x0, sigmas=C.levels(10, 10), jitter=1.0, part=part)[1].loss
    whole = loss(x0, None)
    assert len(np.unique(np.asarray(whole))) == 6
    np.testing.assert_allclose(loss(x0[4:], dx.losses.Part(jnp.array([4, 5]), 6)), whole[4:], rtol=1e-4)
    f, x = C.function(linear, 0.3), 80 * jnp.ones((6, 2))
    drawn = C.sample(f, x, [80.0, 2.0], key=key)
    np.testing.assert_allclose(C.sample(f, x[4:], [80.0, 2.0], key=key, index=[4, 5]), drawn[4:], rtol=1e-5)


def test_under_shard_map_each_device_has_its_rows():
    mesh, spec = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",)), jax.sharding.PartitionSpec("data")
    x0, rows, f = jnp.float32(np.random.default_rng(0).normal(size=(8, 3))), jnp.arange(8), C.function(linear, 0.3)
    options, teacher = dict(sigmas=C.levels(40, 40)), dx.gaussian_mixture(np.zeros((1, 3)), 1.0)
    for function in (
        lambda x0, rows: C.training(linear, 0.3, KEY, x0, part=dx.losses.Part(rows, 8), **options)[1].loss,
        lambda x0, rows: (
            C.distillation(linear, 0.3, KEY, x0, teacher=teacher, part=dx.losses.Part(rows, 8), **options)[1].loss
        ),
        lambda x0, rows: C.sample(f, 80 * x0, [80.0, 2.0], key=KEY, index=rows),
    ):
        split = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(spec, spec), out_specs=spec))
        np.testing.assert_allclose(split(x0, rows), function(x0, rows), rtol=1e-3)


@pytest.mark.parametrize("promotion", ["standard", "strict"])
def test_with_x64_all_has_the_dtype_of_the_data(promotion):
    with jax.enable_x64(promotion == "standard"), jax.numpy_dtype_promotion(promotion):
        x0, sigmas, p = jnp.ones((4, 2), jnp.float32), C.levels(10, 10), jnp.float32(0.3)
        teacher = dx.gaussian_mixture(np.zeros((1, 2), np.float32), 1.0)
        for loss, aux in (
            C.training(linear, p, KEY, x0, sigmas=sigmas, jitter=1.0),
            C.distillation(linear, p, KEY, x0, sigmas=sigmas, teacher=teacher),
        ):
            assert loss.dtype == aux.loss.dtype == aux.logsnr.dtype == jnp.float32
        assert C.sample(C.function(linear, p), 80 * x0, [80.0, 2.0], key=KEY).dtype == jnp.float32
    assert C.sample(lambda x, s: 0.5 * x, x0.astype(jnp.bfloat16), [80.0, 2.0], key=KEY).dtype == jnp.bfloat16


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: C.function(linear, 0, sigma_min=0.0), "sigma_min = 0.0: must be positive"),
        (lambda: C.function(linear, 0, sigma_data=-1), "sigma_data = -1: must be positive"),
        (lambda: C.function(linear, 0.3)(jnp.ones((2, 1)), 0.001), "sigma = 0.001: must be at least sigma_min = 0.002"),
        (lambda: C.levels(3, 4, schedule=dx.schedules.cosine()), "schedule: goes from logSNR inf to -inf"),
        (lambda: C.levels(3, 1), "most = 1: must be an integer from 2 to 1000000"),
        (lambda: C.levels(3, 20, pool=19), "pool = 19: must be an integer from 20"),
        (lambda: C.sample(lambda x, s: x, jnp.ones((2, 1)), [1.0, 2.0]), "must descend"),
        (lambda: C.sample(lambda x, s: x, jnp.ones((2, 1)), [1.0, 0.002]), "greater than sigma_min = 0.002"),
        (lambda: C.sample(lambda x, s: x, jnp.ones((2, 1)), [2.0, 1.0]), "key is missing"),
        (lambda: C.sample(lambda x, s: x, jnp.ones((2, 1)), []), "sigmas = []: must be [n] numbers"),
        (lambda: C.sample(lambda x, s: x, jnp.ones((2, 1)), "1"), "sigmas = '1': must be [n] numbers"),
        (lambda: C.sample(lambda x, s: x, jnp.ones((2, 1)), 1.0), "sigmas has shape (): must be [n]"),
        (lambda: C.sample(None, jnp.ones((2, 1)), [1.0]), "f = None: must be a function"),
        (lambda: C.sample(lambda x, s: x[:, 0], jnp.ones((2, 1)), [1.0]), "f gave shape (2,) for x of shape (2, 1)"),
        (lambda: C.sample(lambda x, s: x[:, 0], jnp.ones((2, 1)), [2.0, 1.0], key=KEY), "f gave shape (2,) for x"),
        (lambda: C.sample(lambda x, s: x, np.ones((2, 1), np.int32), [1.0]), "x is of int32"),
        (lambda: C.sample(lambda x, s: x, jnp.ones((2, 1)), [2.0, 1.0], key="zzz"), "key = 'zzz': must be a JAX key"),
        (
            lambda: C.sample(lambda x, s: x, jnp.ones((2, 1)), [2.0, 1.0], key=KEY, index=[0]),
            "index has shape (1,): must be [batch] = (2,)",
        ),
        (lambda: C.function(None, 0), "apply = None: must be a function"),
        (lambda: C.function(linear, 0, sigma_min="0"), "sigma_min = '0': must be positive"),
        (lambda: C.function(linear, 0, sigma_data=np.ones(2)), "sigma_data has shape (2,): must be one number"),
        (lambda: C.function(lambda *a: jnp.ones(2), 0)(jnp.ones((2, 1)), 1.0), "apply gave shape (2,) for x of shape"),
        (lambda: C.function(linear, 0.3)(jnp.ones((2, 1)), np.inf), "truncate the schedule"),
        (lambda: C.levels("3", 4), "count = '3': must be finite"),
        (lambda: C.levels(np.nan, 4), "count = nan: must be finite"),
        (lambda: C.levels([2, 3], 4), "count has shape (2,): must be one number"),
        (lambda: C.levels(3, 4, schedule=dx.schedules.karras), "schedule = karras: is a function: did you forget"),
        (lambda: C.levels(3, 10**9), "most = 1000000000: must be an integer from 2"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"huber": 0.0}, "huber = 0.0"),
        ({"jitter": -1.0}, "jitter = -1.0"),
        ({"jitter": np.inf}, "jitter = inf"),
        ({"sigmas": C.levels(5, 5)[::-1]}, "ascending"),  # as the grids of samplers do
        ({"sigmas": jnp.array([1.0])}, "two or more"),
        ({"sigmas": jnp.array([1.0, 1.0])}, "the first two different"),
        ({"sigmas": jnp.array([0.0, 1.0])}, "must be positive"),
        ({"sigmas": None}, "sigmas = None: must be [levels]"),
        ({"sigmas": 1.0}, "sigmas has shape (): must be [levels], two or more"),
        ({"huber": "1"}, "huber = '1'"),
        ({"jitter": "1"}, "jitter = '1'"),
        ({"sigma_data": -1.0}, "sigma_data = -1.0: must be positive"),
        ({"schedule": dx.schedules.edm}, "schedule = edm: is a function: did you forget the parentheses?"),
        ({"draw": lambda key, n: jnp.ones(n + 1)}, "draw gave shape (5,): must be [n] = (4,)"),
        ({"part": dx.losses.Part(jnp.arange(3), 8)}, "part.rows has shape (3,): must be [batch] = (4,)"),
        ({"part": dx.losses.Part(jnp.arange(4), 3)}, "must lie in [0, 2]"),
        ({"target_params": (0.3,)}, "target_params has another structure than params"),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_bad_options_of_a_loss_are_named(options, words, compiled):
    options = {"sigmas": C.levels(5, 5)} | options

    def loss(x0):
        return C.training(linear, 0.3, jax.random.key(0), x0, **options)[0]

    with pytest.raises(ValueError) as error:
        (jax.jit(loss) if compiled else loss)(jnp.ones((4, 2)))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"apply": lambda p, x, c, cond: x[:, 0]}, "apply gave shape (4,) for x of shape (4, 2)"),
        ({"apply": None}, "apply = None: must be a function"),
        ({"key": None}, "key = None: must be a JAX key"),
        ({"x0": np.ones((4, 2), np.int32)}, "x0 is of int32: must be floating-point numbers"),
        ({"x0": np.ones((4, 2), np.uint8)}, "x0 is of uint8"),
        ({"x0": None}, "x0 is of object"),
    ],
)
def test_bad_arguments_of_a_loss_are_named(arguments, words):
    good = {"apply": linear, "params": 0.3, "key": KEY, "x0": jnp.ones((4, 2)), "sigmas": C.levels(5, 5)}
    for function in (C.training, functools.partial(C.distillation, teacher=lambda x, s: x)):
        with pytest.raises(ValueError) as error:
            function(**(good | arguments))
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"teacher": None}, "teacher = None: must be a function"),
        ({"solver": dx.solvers.heun}, "solver = heun: is a function: did you forget the parentheses?"),
        ({"solver": "heun"}, "solver = 'heun': must be a Solver"),
        ({"teacher": lambda x, s: x[:, 0]}, "gave shape (4,) for x of shape (4, 2)"),
    ],
)
def test_bad_teachers_are_named(options, words):
    options = {"teacher": lambda x, s: x} | options
    with pytest.raises(ValueError) as error:
        C.distillation(linear, 0.3, KEY, jnp.ones((4, 2)), sigmas=C.levels(5, 5), **options)
    assert words in str(error.value)


def test_a_solver_that_draws_noise_is_named():
    with pytest.raises(ValueError, match="solver draws noise"):
        C.distillation(
            linear,
            0.3,
            jax.random.key(0),
            jnp.ones((4, 2)),
            sigmas=C.levels(5, 5),
            teacher=dx.gaussian_mixture(np.zeros((1, 2)), 1.0),
            solver=dx.solvers.sa_solver(),
        )
