"""Stochastic solvers: order in distribution without Monte Carlo, laws of samples, identities, independence."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx
from diffax import noise

S = dx.solvers
SOLVERS = {
    "ancestral": S.ancestral(),
    "ancestral_half": S.ancestral(0.5),
    "ancestral_large": S.ancestral(variance="large"),
    "ancestral_between": S.ancestral(variance=0.4),
    "edm_stochastic": S.edm_stochastic(churn=10.0, s_noise=1.0),
    "dpmpp_1_sde": S.dpmpp_1_sde(0.5),
    "dpmpp_2m_sde": S.dpmpp_2m_sde(),
    "dpmpp_3m_sde": S.dpmpp_3m_sde(0.5),
    "dpmpp_3m_sde_corrected": S.dpmpp_3m_sde(corrected=True),
    "dpmpp_2s_sde": S.dpmpp_2s_sde(0.7),
    "dpmpp_3s_sde": S.dpmpp_3s_sde(),
    "er_sde_1": S.er_sde(1),
    "er_sde_2": S.er_sde(2),
    "er_sde_3": S.er_sde(3),
    "sa_solver": S.sa_solver(),
    "sa_solver_2_2": S.sa_solver(1.0, 2, 2),
    "sa_solver_interval": S.sa_solver(1.0, 2, 2, (0.3, 3.0)),
    "predictor_corrector": S.predictor_corrector(),
    "annealed_langevin": S.annealed_langevin(corrections=3),
}
FEW = ["ancestral", "edm_stochastic", "dpmpp_2m_sde", "dpmpp_3s_sde", "er_sde_3", "sa_solver_interval"]
FEW += ["predictor_corrector", "annealed_langevin"]
MEANS = np.array([[-1.0, 0.5], [0.3, -0.8], [1.2, 1.0]])
M, C = 0.7, 0.5  # mean and standard deviation of Gaussian data


def geometric(n, start=10.0, end=0.05):
    return start * (end / start) ** np.linspace(0, 1, n + 1)


def moments(solver, sigmas, mean, var):
    """Mean and variance of the end point for data N(M, C^2), exactly: all that the table does is linear."""
    rows = solver.rows(sigmas, sigmas[-1] == 0)
    size = rows.state.shape[1] + 1  # point, state, history
    mu, cov = np.zeros(size), np.zeros((size, size))
    mu[:2], cov[:2, :2] = mean, var
    for i, sigma in enumerate(rows.sigma):
        if rows.before is not None:
            cov[:2, :2] += rows.before[i] ** 2
        a = C**2 / (C**2 + sigma**2)  # D = a x + (1 - a) M
        of_point, of_value = (0, 1) if rows.value is None else rows.value[i]
        unit = np.eye(size)
        known = np.stack([unit[1], (of_point + of_value * a) * unit[0], *unit[2:-1]])
        constant = np.zeros(size - 1)
        constant[1] = of_value * (1 - a) * M
        move, shift = (np.stack([rows.point[i] @ k, rows.state[i] @ k, *k[1:]]) for k in (known, constant[:, None]))
        mu, cov = move @ mu + shift[:, 0], move @ cov @ move.T
        if rows.after is not None:
            z = np.zeros(size)
            z[:2] = rows.after[i]
            cov += np.outer(z, z)
    return mu[0], cov[0, 0]


def slopes(errors):
    return np.log2(np.array(errors[:-1]) / errors[1:])


# ---- order ----------------------------------------------------------------------------------------------------------


def errors_of_variance(name):
    """At sigma 0.05, from the right law at 10, relative; the mean stays right whatever the steps."""
    ends = [moments(SOLVERS[name], geometric(n), M, 100 + C**2) for n in (64, 128, 256, 512)]
    assert np.abs([mean - M for mean, _ in ends]).max() < 1e-12
    return np.array([abs(var / (0.05**2 + C**2) - 1) for _, var in ends])


BETTER = ["er_sde_3", "sa_solver_2_2", "sa_solver_interval"]  # whose terms of order 2 are small, to be seen late


@pytest.mark.parametrize("name", [name for name, s in SOLVERS.items() if s.order > 0 and name not in BETTER])
def test_order_in_distribution(name):
    assert slopes(errors_of_variance(name))[1:] == pytest.approx(SOLVERS[name].order, abs=0.2)


@pytest.mark.parametrize("name", BETTER)
def test_better_than_order_two(name):
    assert SOLVERS[name].order == 2 and np.all(errors_of_variance(name) < errors_of_variance("dpmpp_2m_sde"))


STRENGTHS = {
    "ancestral": 1.0,
    "ancestral_half": 0.25,
    "ancestral_large": 1.0,
    "ancestral_between": 1.0,
    "dpmpp_1_sde": 0.5,
    "dpmpp_2m_sde": 1.0,
    "dpmpp_3m_sde": 0.5,
}
STRENGTHS |= {"dpmpp_3m_sde_corrected": 1.0, "dpmpp_2s_sde": 0.7, "dpmpp_3s_sde": 1.0, "sa_solver": 1.0}


@pytest.mark.parametrize("name", STRENGTHS)
def test_any_start_goes_where_the_sde_takes_it(name):
    """x - M shrinks by (r_t / r_s)^(1 + eta), r^2 = sigma^2 + C^2: the strength of the noise is as declared."""
    solver, (s, t) = SOLVERS[name], (10.0, 0.05)
    shrink = math.sqrt((t**2 + C**2) / (s**2 + C**2)) ** (1 + STRENGTHS[name])
    mean, var = M - 3 * shrink, t**2 + C**2 + (900 - s**2 - C**2) * shrink**2
    got = [moments(solver, geometric(n), M - 3, 900.0) for n in (64, 128, 256)]
    assert np.all(slopes([abs(g[1] - var) for g in got]) > solver.order - 0.2)
    assert got[-1][0] == pytest.approx(mean, rel=2e-3)
    assert got[-1][1] == pytest.approx(var, rel=0.03 if solver.order == 1 else 1e-3)


def test_langevin_steps_have_a_bias_of_their_own():
    # V of x += e score + sqrt(2 e) z is stationary at r^2 / (1 - snr^2 sigma^2 / r^2)
    snr, t = 0.3, 0.5
    biased = (t**2 + C**2) / (1 - snr**2 * t**2 / (t**2 + C**2))
    for solver in (S.predictor_corrector(snr, 3), S.annealed_langevin(4 * snr**2, 3)):
        assert solver.order == 0
        var = moments(solver, geometric(4000, end=t), M, 100 + C**2)[1]
        assert var == pytest.approx(biased, rel=2e-3)


def test_a_kink_in_the_noise_keeps_a_constant():
    table = S.sa_solver(2.0, interval=(0.3, 3.0)).rows(geometric(7), False)
    x = c = 1.7  # with D = c the whole of x = c must stay
    point, state, history = x, x, [c] * 4
    for p, q in zip(table.point, table.state, strict=True):
        known = [state, c, *history[:-1]]
        point, state, history = p @ known, q @ known, known[1:]
        assert point == pytest.approx(c, abs=1e-12) and state == pytest.approx(c, abs=1e-12)


# ---- laws of samples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("ancestral", 400),
        ("edm_stochastic", 64),
        ("dpmpp_2m_sde", 64),
        ("dpmpp_3s_sde", 64),
        ("er_sde_3", 64),
        ("sa_solver", 64),
        ("predictor_corrector", 400),
    ],
)
def test_samples_of_a_mixture_have_its_law(name, n):
    """Kolmogorov's distance between samples and the exact distribution, along several directions."""
    count, std, weights, end = 8000, 0.3, np.array([0.3, 0.5, 0.2]), 0.02
    x = 20.0 * jax.random.normal(jax.random.key(1), (count, 2))
    out = dx.sample(
        dx.gaussian_mixture(MEANS, std, weights),
        x,
        geometric(n, 20.0, end),
        solver=SOLVERS[name],
        key=jax.random.key(2),
    )
    for angle in np.linspace(0, np.pi, 5)[:-1]:
        along = np.array([np.cos(angle), np.sin(angle)])
        at = np.sort(np.asarray(out, np.float64) @ along)
        spread = math.sqrt(2 * (std**2 + end**2))
        exact = sum(
            w * (1 + np.vectorize(math.erf)((at - m) / spread)) / 2 for w, m in zip(weights, MEANS @ along, strict=True)
        )
        distance = np.abs(exact - (np.arange(count) + 0.5) / count).max()
        assert distance < 2.2 / math.sqrt(count)  # of which chance has 1e-4


# ---- identities -----------------------------------------------------------------------------------------------------


def test_ancestral_is_ddpms_posterior():
    # Ho et al. 2020, eq. 7, in x_t = alpha x: mean and variance of x_{t-1} given x_t and x_0
    sigmas = np.float64(dx.schedules.sigmas(dx.schedules.karras(0.01, 10.0), 9, final=None))
    ab = 1 / (1 + sigmas**2)
    before, after = ab[:-1], ab[1:]  # alpha_bar_t, alpha_bar_{t-1}
    beta = 1 - before / after
    of_x0 = np.sqrt(after) * beta / (1 - before)
    of_x = np.sqrt(1 - beta) * (1 - after) / (1 - before)
    std = np.sqrt(beta * (1 - after) / (1 - before))
    want = np.stack([of_x * np.sqrt(before / after), of_x0 / np.sqrt(after), std / np.sqrt(after)], axis=1)
    for solver in (S.ancestral(), S.dpmpp_1_sde()):
        rows = solver.rows(sigmas, False)
        np.testing.assert_allclose(np.concatenate([rows.point, rows.after[:, :1]], axis=1), want, rtol=1e-9)


def gaussian(x, s):
    """The denoiser of N(M, C^2)."""
    return (C**2 * x + s**2 * M) / (C**2 + s**2)


def ddpm(betas, x, normal, variance):
    """DDPM's sampler (Ho et al. 2020, algorithm 2) in x_t, from alpha_bar and predicted noise; numpy float64.

    variance is (x_t, sigma, log beta, log beta tilde) -> its logarithm; normal(k) are the numbers of step k.
    """
    ab = np.cumprod(1 - betas)
    x = np.sqrt(ab[-1]) * x
    for k, i in enumerate(reversed(range(len(betas)))):
        sigma = np.sqrt((1 - ab[i]) / ab[i])
        eps = (x - np.sqrt(ab[i]) * gaussian(x / np.sqrt(ab[i]), sigma)) / np.sqrt(1 - ab[i])
        mean = (x - betas[i] / np.sqrt(1 - ab[i]) * eps) / np.sqrt(1 - betas[i])
        if i == 0:
            return mean
        tilde = (1 - ab[i - 1]) / (1 - ab[i]) * betas[i]
        x = mean + np.exp(variance(x, sigma, np.log(betas[i]), np.log(tilde)) / 2) * normal(k)


def predicted(x_t, sigma):
    """v in [-1, 1] of an improved DDPM, by the network's own input x_t and for each pixel."""
    return np.tanh(x_t) * np.cos(sigma) if isinstance(x_t, np.ndarray) else jnp.tanh(x_t) * jnp.cos(sigma)


VARIANCES = {
    "small": ("small", lambda x, s, beta, tilde: tilde),
    "large": ("large", lambda x, s, beta, tilde: beta),
    "between": (0.3, lambda x, s, beta, tilde: 0.3 * beta + 0.7 * tilde),
    "learned": (
        lambda x, s: (predicted(x / jnp.sqrt(1 + s**2), s) + 1) / 2,
        lambda x, s, beta, tilde: (predicted(x, s) + 1) / 2 * beta + (1 - predicted(x, s)) / 2 * tilde,
    ),
}


@pytest.mark.parametrize("name", VARIANCES)
def test_ancestral_is_ddpm_with_each_of_its_variances(name):
    variance, logarithm = VARIANCES[name]
    betas, key = np.linspace(1e-3, 0.4, 12), jax.random.key(5)
    ab = np.cumprod(1 - betas)
    sigmas = np.append(np.sqrt((1 - ab) / ab)[::-1], 0.0)
    with jax.enable_x64(True):
        x = sigmas[0] * np.random.default_rng(0).normal(size=(3, 2))

        def normal(step):
            return np.asarray(noise.normal(jax.random.fold_in(key, 2 * step + 1), jnp.arange(3), (2,), jnp.float64))

        want = ddpm(betas, x, normal, logarithm)
        solver = S.ancestral(variance=variance)
        assert solver.stochastic and solver.nfe(12) == 12
        got = dx.sample(gaussian, x, sigmas, solver=solver, key=key)
        np.testing.assert_allclose(got, want, rtol=1e-10)
        small = ddpm(betas, x, normal, VARIANCES["small"][1])
    assert name == "small" or np.abs(want - small).max() > 1e-2


def test_a_constant_fraction_is_the_number_and_traced_sigmas_have_a_gradient():
    x, key, sigmas = 10 * np.random.default_rng(0).normal(size=(3, 2)), jax.random.key(0), np.append(geometric(5), 0.0)
    table, own = S.ancestral(variance=0.4), S.ancestral(variance=lambda x, s: jnp.full_like(x, 0.4))
    np.testing.assert_allclose(*(dx.sample(gaussian, x, sigmas, solver=s, key=key) for s in (table, own)), rtol=1e-5)
    path = dx.sample(gaussian, x, sigmas, solver=own, key=key, trajectory=True)
    assert path.shape == (7, 3, 2)
    each = np.stack([sigmas, 0.9 * sigmas, 0.8 * sigmas], axis=1)
    whole, alone = (
        dx.sample(lambda x, s: gaussian(x, s[:, None]), x[rows], each[:, rows], solver=own, key=key, index=index)
        for rows, index in ((slice(None), np.arange(3)), (slice(1, 2), np.arange(1, 2)))
    )
    np.testing.assert_allclose(whole[1:2], alone, rtol=1e-5)

    def total(grid):
        return jnp.sum(dx.sample(gaussian, x, grid, solver=own, key=key, to_zero=True) ** 2)

    grad = jax.jit(jax.grad(total))(jnp.float32(sigmas))
    assert np.isfinite(grad).all() and np.abs(grad[1:-1]).max() > 0


@pytest.mark.parametrize("fraction", [lambda x, s: x[:, 0], lambda x, s: 0.5, lambda x, s: None])
def test_a_fraction_of_another_shape_is_refused(fraction):
    solver = S.ancestral(variance=fraction)
    with pytest.raises(ValueError, match=r"variance gave .*: must be"):
        dx.sample(gaussian, jnp.ones((3, 2)), [2.0, 1.0, 0.0], solver=solver, key=jax.random.key(0))


@pytest.mark.parametrize(
    "name", ["sa_solver", "sa_solver_interval", "er_sde_2", "edm_stochastic", "dpmpp_3s_sde", "ancestral_between"]
)
def test_strict_promotion_with_sigmas_traced_and_not(name):
    solver = SOLVERS[name]
    x, sigmas = np.float32(10 * np.random.default_rng(0).normal(size=(3, 2))), np.append(geometric(4), 0.0)

    def denoise(x, s):
        return x / (1 + (s / jnp.asarray(C, x.dtype)) ** 2)

    def run(grid):
        return dx.sample(denoise, x, grid, solver=solver, key=jax.random.key(0), to_zero=True)

    ends = [run(sigmas)]
    with jax.numpy_dtype_promotion("strict"):
        ends.append(jax.jit(run)(jnp.asarray(sigmas, jnp.float32)))
        with jax.enable_x64(True):
            ends += [run(sigmas), jax.jit(run)(jnp.asarray(sigmas, jnp.float32))]
    assert {end.dtype for end in ends} == {np.dtype(np.float32)}
    for end in ends[1:]:
        np.testing.assert_allclose(end, ends[0], rtol=1e-3, atol=1e-3)


def test_ancestral_is_ddim_eta():
    # Song et al. 2021 (DDIM), eq. 12 and 16
    eta, sigmas = 0.6, geometric(9)
    ab = 1 / (1 + sigmas**2)
    before, after = ab[:-1], ab[1:]
    std = eta * np.sqrt((1 - after) / (1 - before)) * np.sqrt(1 - before / after)
    of_eps = np.sqrt(1 - after - std**2)
    rows = S.ancestral(eta).rows(sigmas, False)
    of_x = of_eps / np.sqrt(1 - before) * np.sqrt(before / after)
    np.testing.assert_allclose(rows.point[:, 0], of_x, rtol=1e-9)
    np.testing.assert_allclose(rows.point[:, 1], 1 - of_x, rtol=1e-9)
    np.testing.assert_allclose(rows.after[:, 0], std / np.sqrt(after), rtol=1e-9)


@pytest.mark.parametrize(
    ("stochastic", "ode"),
    [
        (S.ancestral(0.0), S.euler()),
        (S.edm_stochastic(churn=0.0), S.heun()),
        (S.dpmpp_1_sde(0.0), S.euler()),
        (S.dpmpp_2m_sde(0.0), S.dpmpp_2m()),
        (S.dpmpp_3m_sde(0.0), S.dpmpp_3m()),
        (S.dpmpp_3m_sde(0.0, corrected=True), S.dpmpp_3m(corrected=True)),
        (S.dpmpp_2s_sde(0.0), S.dpmpp_2s()),
        (S.dpmpp_3s_sde(0.0), S.dpmpp_3s()),
    ],
)
def test_without_noise_they_are_the_ode_solvers(stochastic, ode):
    assert not stochastic.stochastic
    sigmas = np.append(geometric(6), 0.0)
    table, want = stochastic.rows(sigmas, True), ode.rows(sigmas, True)
    assert table.before is None and table.after is None
    # the tables may remember different things, so what they do is compared: moments of many starts are the solution
    for mean, var in ((M, 1.0), (0.0, 100.0)):
        np.testing.assert_allclose(moments(stochastic, sigmas, mean, var), moments(ode, sigmas, mean, var), rtol=1e-9)
    np.testing.assert_array_equal(table.sigma, want.sigma)


@pytest.mark.parametrize(("predictor", "corrector", "order"), [(1, 2, 2), (2, 2, 2), (2, 3, 3), (3, 4, 4)])
def test_sa_solver_without_noise_has_the_order_of_its_corrector(predictor, corrector, order):
    solver = S.sa_solver(0.0, predictor, corrector, bootstrap=True)
    assert not solver.stochastic and solver.order == order
    ends = [moments(solver, geometric(n), M - 3, 400.0)[0] for n in (64, 128, 256)]
    exact = M - 3 * math.sqrt((0.05**2 + C**2) / (100 + C**2))
    assert slopes(np.abs(np.array(ends) - exact))[-1] > order - 0.3


def test_dpmpp_3m_sde_is_the_published_formula():
    """k-diffusion's names; what is corrected is the factor of the second difference, whose sign is minus."""
    eta, sigmas = 0.8, np.array([10.0, 6.0, 4.0, 1.5, 0.7])
    h_2, h_1, h = np.log(sigmas[1:-1] / sigmas[2:])[-3:]
    for corrected in (False, True):
        row = S.dpmpp_3m_sde(eta, corrected).rows(sigmas, False)
        r0, r1, k = h_1 / h, h_2 / h, (1 + eta) * h
        p1 = -np.expm1(-k)
        p2 = 1 - p1 / k
        p3 = (p2 / k - 0.5) * (2 if corrected else 1)
        d = np.eye(3)  # D_0, D_1, D_2
        d10, d11 = (d[0] - d[1]) / r0, (d[1] - d[2]) / r1
        d1, d2 = d10 + (d10 - d11) * r0 / (r0 + r1), (d10 - d11) / (r0 + r1)
        s, t = sigmas[-2:]
        np.testing.assert_allclose(row.point[-1], [(t / s) ** (1 + eta), *(p1 * d[0] + p2 * d1 - p3 * d2)], rtol=1e-9)
        np.testing.assert_allclose(row.after[-1], t * np.sqrt(-np.expm1(-2 * eta * h)), rtol=1e-9)


def test_the_corrected_3m_is_exact_for_a_parabola_in_log_sigma():
    sigmas, k = np.array([10.0, 6.0, 4.0, 1.5, 0.7]), 1.5
    row, (s, t) = S.dpmpp_3m_sde(k - 1, corrected=True).rows(sigmas, False).point[-1], sigmas[-2:]
    fine = np.linspace(np.log(s), np.log(t), 200001)
    for degree in range(3):
        want = t**k * np.trapezoid(-k * np.exp(-k * fine) * fine**degree, fine)
        assert row[1:] @ np.log(sigmas[[3, 2, 1]]) ** degree == pytest.approx(want, abs=1e-8)


def test_er_sde_is_exact_for_a_parabola_in_sigma():
    sigmas = np.array([10.0, 6.0, 4.0, 1.5, 0.01])

    def f(s):
        return s * (np.exp(s**0.3) + 10)

    fine = np.exp(np.linspace(np.log(1.5), np.log(0.01), 400001))
    rows = S.er_sde(3).rows(sigmas, False)
    for degree in range(3):
        want = f(0.01) * np.trapezoid(fine**degree, 1 / f(fine))
        assert rows.point[-1, 1:] @ sigmas[[3, 2, 1]] ** degree == pytest.approx(want, abs=1e-8)
    assert rows.point[-1, 0] == pytest.approx(f(0.01) / f(1.5))
    assert rows.after[-1, 0] ** 2 == pytest.approx(0.01**2 - (f(0.01) / f(1.5) * 1.5) ** 2)


def test_edm_stochastic_is_algorithm_two_of_karras():
    denoise, x = dx.gaussian_mixture(MEANS, 0.3), np.float32(10 * np.random.default_rng(0).normal(size=(5, 2)))
    t, key = np.float64(dx.schedules.sigmas(dx.schedules.karras(0.01, 10.0), 7)), jax.random.key(3)

    def slope(x, sigma):
        return (x - np.float64(denoise(jnp.float32(x), sigma))) / sigma

    y, row = x, 0
    for a, b in itertools.pairwise(t):
        gamma = min(5.0 / 7, math.sqrt(2) - 1) if 0.05 <= a <= 5.0 else 0.0
        hat = a * (1 + gamma)
        z = noise.normal(jax.random.fold_in(key, 2 * row), jnp.arange(5), (2,), x.dtype)
        y = y + math.sqrt(hat**2 - a**2) * 1.007 * np.float64(z)
        d = slope(y, hat)
        euler = y + (b - hat) * d
        y = euler if b == 0 else y + (b - hat) * (d + slope(euler, b)) / 2
        row += 2
    solver = S.edm_stochastic(5.0, 0.05, 5.0, 1.007)
    np.testing.assert_allclose(dx.sample(denoise, x, t, solver=solver, key=key), y, atol=1e-4)


# ---- what every solver must do --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
def test_it_ends_in_the_denoised_without_noise_after_the_evaluations_declared(name):
    for n in (1, 4):
        rows = SOLVERS[name].rows(np.append(geometric(n - 1) if n > 1 else 10.0, 0.0), True)
        assert len(rows.sigma) == SOLVERS[name].nfe(n) and rows.sigma.min() > 0
        assert len(rows.ends) == n and rows.ends[-1] == len(rows.sigma) - 1
    calls = []

    def denoise(x, sigma):
        jax.debug.callback(lambda s: calls.append(float(s)), sigma)
        return jnp.full_like(x, 3.0)

    out = dx.sample(denoise, jnp.ones((2, 3)), [9.0, 2.0, 0.5, 0.0], solver=SOLVERS[name], key=jax.random.key(0))
    jax.effects_barrier()
    np.testing.assert_array_equal(out, 3.0)
    assert len(calls) == SOLVERS[name].nfe(3)


@pytest.mark.parametrize("name", FEW)
def test_a_sample_depends_on_its_number_and_nothing_else(name):
    denoise, x = dx.gaussian_mixture(MEANS, 0.3), 10 * np.random.default_rng(0).normal(size=(5, 2))
    grids = np.stack([np.append(geometric(4, 10.0 - i), 0.0) for i in range(5)], axis=1)

    def run(rows, sigmas):
        return dx.sample(
            denoise, x[rows], sigmas, solver=SOLVERS[name], key=jax.random.key(0), index=np.arange(5)[rows]
        )

    whole = run(slice(None), grids)
    np.testing.assert_allclose(whole[2:4], run(slice(2, 4), grids[:, 2:4]), atol=1e-5)
    np.testing.assert_allclose(whole[:1], run(slice(1), grids[:, 0]), atol=1e-5)


@pytest.mark.parametrize("name", ["ancestral", "edm_stochastic", "er_sde_2", "sa_solver_interval"])
def test_traced_sigmas_give_the_same_and_a_gradient(name):
    denoise, x = dx.gaussian_mixture(MEANS, 0.3), 10 * np.random.default_rng(0).normal(size=(3, 2))
    sigmas = np.array([10.0, 2.0, 0.5, 0.1, 0.0])

    def solve(grid):
        out = dx.sample(denoise, x, grid, solver=SOLVERS[name], key=jax.random.key(0), to_zero=True)
        return jnp.sum(out**2), out

    grad, out = jax.jit(jax.grad(solve, has_aux=True))(jnp.asarray(sigmas, jnp.float32))
    np.testing.assert_allclose(out, solve(sigmas)[1], atol=1e-3)
    assert np.isfinite(grad).all() and np.abs(grad[1:-1]).max() > 0


def test_noise_wants_a_key_and_a_way_down():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="key is missing"):
        dx.sample(lambda x, s: x, x, [2.0, 1.0, 0.0], solver=S.ancestral())
    with pytest.raises(ValueError, match="sigmas ascend"):
        dx.sample(lambda x, s: x, x, [1.0, 2.0], solver=S.ancestral(), key=jax.random.key(0))
    dx.sample(lambda x, s: x, x, [2.0, 1.0, 0.0], solver=S.ancestral(0.0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: S.ancestral(1.5), "eta = 1.5"),
        (lambda: S.edm_stochastic(-1.0), "churn = -1.0"),
        (lambda: S.dpmpp_2m_sde(-0.1), "eta = -0.1"),
        (lambda: S.dpmpp_3s_sde(math.nan), "eta = nan"),
        (lambda: S.er_sde(4), "order = 4"),
        (lambda: S.sa_solver(corrector=1), "corrector = 1: must be an integer from 2 to 4"),
        (lambda: S.sa_solver(interval=(3.0, 1.0)), "interval = (3.0, 1.0)"),
        (lambda: S.predictor_corrector(0.0), "snr = 0.0"),
        (lambda: S.annealed_langevin(corrections=0), "corrections = 0"),
        (lambda: S.annealed_langevin(corrections=10**7), "corrections = 10000000: must be an integer from 1 to 10000"),
        (lambda: S.annealed_langevin("a"), "step = 'a'"),
        (lambda: S.edm_stochastic(math.nan), "churn = nan"),
        (lambda: S.edm_stochastic(s_min=2.0, s_max=1.0), "s_min = 2.0: must be at most s_max = 1.0"),
        (lambda: S.edm_stochastic(s_noise=None), "s_noise = None"),
        (lambda: S.ancestral(None), "eta = None"),
        (lambda: S.ancestral(np.ones(2)), "eta has shape (2,): must be one number"),
        (lambda: S.ancestral(variance="big"), "variance = 'big': must be one of 'small', 'large'"),
        (lambda: S.ancestral(variance=1.5), "variance = 1.5: must lie in [0, 1]"),
        (lambda: S.ancestral(0.5, "large"), "eta = 0.5: must be 1 with another variance than 'small'"),
        (lambda: S.ancestral(0.5, lambda x, s: x), "eta = 0.5: must be 1"),
        (lambda: S.sa_solver("1"), "tau = '1'"),
        (lambda: S.sa_solver(interval=3.0), "interval = 3.0: must be (low, high)"),
        (lambda: S.sa_solver(interval=(1.0, math.nan)), "interval[1] = nan"),
        (lambda: S.sa_solver(interval=("a", 2.0)), "interval[0] = 'a'"),
        (lambda: S.er_sde("3"), "order = '3'"),
        (lambda: jax.jit(lambda e: S.dpmpp_2m_sde(e).order)(0.5), "eta is traced: must be a number that is known"),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)
