"""The ODE solvers against independent truth: orders, evaluations, the papers' formulas, closed forms, rounding.

A solver is a table of numbers, so most of this runs the table itself: by `walk`, in numpy, with a numpy denoiser. One
test says that `dx.sample` walks as `walk` does. The default solver is more than a table: see test_falling.py.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.optimize import brentq

import diffax as dx

S = dx.solvers
ORDERS = (1, 2, 3, 4)
GRID = np.array([12.0, 7.0, 4.5, 2.0, 1.3, 0.9, 0.35, 0.2, 0.12])  # of no regularity
MEANS, STD = np.array([[-1.0, 0.5], [0.3, -0.8], [1.2, 1.0]]), 0.3


def every_solver():
    kutta = S.runge_kutta([[1 / 2], [-1, 2]], [1 / 6, 2 / 3, 1 / 6], order=3)
    found = {"ralston": S.runge_kutta([[2 / 3]], [1 / 4, 3 / 4], order=2), "kutta": kutta}
    for name in (
        "euler",
        "euler_vp",
        "heun",
        "dpm2",
        "rk4",
        "dpm_solver_2",
        "dpm_solver_3",
        "dpmpp_2s",
        "dpmpp_3s",
        "dpmpp_2m",
    ):
        found[name] = getattr(S, name)()
    for name, more in (("dpm_solver_2", [0.3]), ("dpmpp_2s", [0.7]), ("dpm_solver_3", [0.4]), ("dpmpp_3s", [0.5])):
        found[f"{name}({more[0]})"] = getattr(S, name)(*more)
    for name in ("dpm_solver_3", "dpmpp_3s"):
        found[f"{name}(0.4, 0.8)"] = getattr(S, name)(0.4, 0.8)
    for order, boot in [(1, False), (2, False), (3, False), (4, False), (3, True), (4, True)]:
        end = f"{order}, bootstrap" if boot else f"{order}"
        for space in ("x0", "eps"):
            found[f"exponential_ab({space}, {end})"] = S.exponential_ab(order, space, boot)
        for space in ("v", "flow", "eps", "log"):
            found[f"adams_bashforth({space}, {end})"] = S.adams_bashforth(order, space, boot)
        found[f"lms({end})"], found[f"deis({end})"] = S.lms(order, boot), S.deis(order, boot)
        for variant, corrector in itertools.product(("bh1", "bh2"), (True, False)):
            name = f"{'unipc' if corrector else 'unip'}({variant}, {end})"
            found[name] = S.unipc(order, variant, corrector, boot)
    for order in ORDERS:
        found[f"ipndm({order})"] = S.ipndm(order)
        found[f"unipc(lower, {order})"] = S.unipc(order, lower_order_final=True)
        found[f"unipc(eps, lower, {order})"] = S.unipc(order, space="eps", lower_order_final=True)
        for variant in ("bh1", "bh2"):
            found[f"unipc(eps, {variant}, {order})"] = S.unipc(order, variant, space="eps")
    for corrected, boot in itertools.product((False, True), (False, True)):
        name = "dpmpp_3m" + ", corrected" * corrected + ", bootstrap" * boot
        found[name] = S.dpmpp_3m(corrected, boot)
    return found


SOLVERS = every_solver()
PLAIN = [name for name in SOLVERS if "bootstrap" not in name]
TRACED = ["euler", "heun", "rk4", "dpm_solver_3", "dpmpp_3s", "dpmpp_3m, corrected, bootstrap", "ipndm(4)", "lms(4)"]
TRACED += ["exponential_ab(x0, 4, bootstrap)", "exponential_ab(eps, 3)", "adams_bashforth(v, 3, bootstrap)"]
TRACED += ["adams_bashforth(flow, 3)", "deis(3, bootstrap)", "unipc(bh1, 2)", "unipc(bh2, 4, bootstrap)"]
each_solver = pytest.mark.parametrize("name", SOLVERS)
ALL = {**SOLVERS, "default": S.default()}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def karras(n, high, low, zero=False):
    levels = (high ** (1 / 7) + np.linspace(0, 1, n if zero else n + 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    return np.append(levels, 0.0) if zero else levels


def start(n, sigma):
    """Draws of the mixture at noise level sigma."""
    rng = np.random.default_rng(0)
    return MEANS[rng.integers(0, len(MEANS), n)] + np.hypot(sigma, STD) * rng.normal(size=(n, 2))


def denoise(x, sigma):
    """E[x_0 | x] of the mixture, in the precision of x."""
    sigma = np.reshape(sigma, (-1, 1))
    means, total = MEANS.astype(x.dtype), (STD**2 + sigma**2).astype(x.dtype)
    logits = -((x[:, None] - means) ** 2).sum(-1) / (2 * total)
    r = np.exp(logits - logits.max(-1, keepdims=True))
    keep = STD**2 / total
    return (keep * x + (1 - keep) * (r / r.sum(-1, keepdims=True) @ means)).astype(x.dtype)


def exact(x, s, t):
    """The ODE from sigma = s to t, by an integrator of order 8 with a tolerance of 1e-13."""

    def slope(level, y):
        y = y.reshape(x.shape)
        return (y - denoise(y, np.exp(level))).ravel()

    solved = solve_ivp(slope, (np.log(s), np.log(t)), x.ravel(), method="DOP853", rtol=1e-13, atol=1e-14)
    return solved.y[:, -1].reshape(x.shape)


def walk(rows, denoise, x, trajectory=False):
    """What the table says, a row at a time; see diffax.solvers.linear."""
    state, history, points = x, [0 * x] * (rows.state.shape[1] - 1), [x]
    for i, sigma in enumerate(rows.sigma):
        value = denoise(points[-1], sigma)
        if rows.value is not None:
            value = rows.value[i, 0] * points[-1] + rows.value[i, 1] * value
        known = [state, value, *history[:-1]]
        points.append(sum(c * k for c, k in zip(rows.point[i], known, strict=True)))
        state, history = sum(c * k for c, k in zip(rows.state[i], known, strict=True)), known[1:]
    ends = np.arange(len(rows.sigma)) if rows.ends is None else rows.ends
    return np.stack([x, *(points[i + 1] for i in ends)]) if trajectory else points[-1]


def solve(name, sigmas, x, denoise=denoise):
    sigmas = np.asarray(sigmas)
    return walk(SOLVERS[name].rows(sigmas, bool(sigmas[-1] == 0)), denoise, x)


def in_jax(x, sigma):
    """The numpy denoiser for dx.sample; needs jax.disable_jit."""
    return jnp.asarray(denoise(np.asarray(x), np.asarray(sigma)))


# ---- order and evaluations ------------------------------------------------------------------------------------------


@functools.cache
def reference(high, low):
    x = start(16, high)
    return x, exact(x, high, low)


@each_solver
def test_order_of_convergence(name):
    """The grid starts where the ODE bends most, so that the first step of a multistep method shows; or it ends there,
    to show a last step of lower order."""
    high, low = (3.0, 0.3) if "lower" in name else (0.5, 0.05)
    x, truth = reference(high, low)
    steps, errors = np.array([100, 200, 400]), []
    for n in steps:
        u = np.linspace(0, 1, n + 1)
        u = 0.5 * u + 0.5 * u * u if "lower" in name else 1.5 * u - 0.5 * u * u  # steps in log sigma change threefold
        grid = high * (low / high) ** u
        errors.append(np.sqrt(np.mean((solve(name, grid, x) - truth) ** 2)))
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(SOLVERS[name].order, abs=0.25), errors


def test_declared_orders():
    orders = {name: SOLVERS[name].order for name in SOLVERS}
    assert orders["rk4"] == 4 and orders["kutta"] == orders["dpm_solver_3"] == orders["dpmpp_3s"] == 3
    assert orders["dpm_solver_3(0.4, 0.8)"] == 2  # only r2 = 2/3 has order 3
    for order in ORDERS:
        for family in ("exponential_ab(x0", "exponential_ab(eps", "adams_bashforth(v", "adams_bashforth(log"):
            assert orders[f"{family}, {order})"] == min(order, 2)
            assert order < 3 or orders[f"{family}, {order}, bootstrap)"] == order
        assert orders[f"unipc(bh2, {order})"] == min(order + 1, 3)
        assert order < 3 or orders[f"unipc(bh2, {order}, bootstrap)"] == 4


@pytest.mark.parametrize("make", [S.exponential_ab, S.adams_bashforth, S.lms, S.deis, S.unipc])
def test_a_bootstrap_costs_what_it_says(make):
    for order in ORDERS:
        plain, boot = make(order, bootstrap=False), make(order, bootstrap=True)
        more = max(0, order - 2) if make is not S.unipc else int(order > 2)
        assert boot.nfe(10) == plain.nfe(10) + more == 10 + more
        if not more:  # there is nothing to lift, and the tables are the same
            np.testing.assert_array_equal(boot.rows(GRID, False).point, plain.rows(GRID, False).point)
            assert boot.order == plain.order


@pytest.mark.parametrize(
    "name", ["exponential_ab(x0, 4, bootstrap)", "adams_bashforth(v, 4, bootstrap)", "unipc(bh2, 3)"]
)
def test_high_order_pays_from_few_steps_on(name):
    x, truth = reference(10.0, 0.05)
    few, more = (np.sqrt(np.mean((solve(name, karras(n, 10.0, 0.05), x) - truth) ** 2)) for n in (16, 64))
    euler = np.sqrt(np.mean((solve("euler", karras(64, 10.0, 0.05), x) - truth) ** 2))
    assert more < few / 4**2.5 and more < euler / 200


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_evaluations_are_as_declared_and_none_is_below_the_last_sigma(name, n):
    for zero in (True, False):
        sigmas = karras(n, 80.0, 0.5, zero)
        rows = ALL[name].rows(sigmas, zero)
        low = sigmas[-1] if not zero else sigmas[-2] if n > 1 else sigmas[0] / 2
        assert rows.sigma.max() <= sigmas[0] * (1 + 1e-12) and rows.sigma.min() >= low * (1 - 1e-12)
        assert rows.ends is None or (len(rows.ends) == n and rows.ends[-1] == len(rows.sigma) - 1)
        if zero:
            assert len(rows.sigma) == ALL[name].nfe(n)
        for field in rows[:-1]:
            assert field is None or (field.dtype == np.float64 and np.isfinite(field).all())


@each_solver
def test_sample_walks_the_table(name, x64):
    x, sigmas, seen = start(3, 10.0), karras(5, 10.0, 0.05, zero=True), []

    def counted(x, sigma):
        seen.append(float(sigma))
        return in_jax(x, sigma)

    with jax.disable_jit():
        path = dx.sample(counted, x, sigmas, solver=SOLVERS[name], trajectory=True)
    assert len(seen) == SOLVERS[name].nfe(5) and seen[0] == sigmas[0]
    rows = SOLVERS[name].rows(sigmas, True)
    np.testing.assert_allclose(path, walk(rows, denoise, x, trajectory=True), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(path[0], x)


@pytest.mark.parametrize("name", [name for name in PLAIN if "lower" not in name])
def test_a_trajectory_is_the_ends_of_shorter_runs(name):
    x, sigmas = start(3, 10.0), karras(6, 10.0, 0.05, zero=True)
    path = walk(SOLVERS[name].rows(sigmas, True), denoise, x, trajectory=True)
    assert path.shape == (7, 3, 2)
    for k in range(1, 6):
        np.testing.assert_allclose(path[k], solve(name, sigmas[: k + 1], x), rtol=0, atol=1e-12)
    if not name.startswith(("lms", "adams_bashforth(v", "adams_bashforth(flow", "adams_bashforth(eps", "ipndm")):
        np.testing.assert_allclose(path[-1], denoise(path[-2], sigmas[-2]), rtol=0, atol=1e-12)  # the step to 0


# ---- formulas of the papers, in the variance-preserving form x_t = alpha x_0 + std eps ------------------------------


def vp(sigma):
    """alpha, std and log(alpha / std)."""
    alpha = 1 / np.sqrt(1 + sigma**2)
    return alpha, sigma * alpha, -np.log(sigma)


def data(x, sigma):
    return denoise(x / vp(sigma)[0], sigma)


def noise(x, sigma):
    alpha, std, _ = vp(sigma)
    return (x - alpha * data(x, sigma)) / std


def in_vp(name, method, sigmas=GRID):
    """The solver agrees with method(x_t, sigmas) -> x_t."""
    x = start(5, sigmas[0])
    expected = method(vp(sigmas[0])[0] * x, sigmas) / vp(sigmas[-1])[0]
    np.testing.assert_allclose(solve(name, sigmas, x), expected, rtol=0, atol=1e-11)


def by_steps(step):
    return lambda x, sigmas: functools.reduce(lambda x, pair: step(x, *pair), itertools.pairwise(sigmas), x)


def ddim(x, s, t):  # Song et al. 2021, eq. 12 with eta = 0
    return vp(t)[0] * data(x, s) + vp(t)[1] * noise(x, s)


def dpm_solver_1(x, s, t):
    (alpha_s, _, l_s), (alpha_t, std_t, l_t) = vp(s), vp(t)
    return alpha_t / alpha_s * x - std_t * np.expm1(l_t - l_s) * noise(x, s)


def dpm_solver_2(x, s, t, r=0.5):
    (alpha_s, _, l_s), (alpha_t, std_t, l_t) = vp(s), vp(t)
    h = l_t - l_s
    m = np.exp(-(l_s + r * h))
    e, u = noise(x, s), dpm_solver_1(x, s, m)
    return alpha_t / alpha_s * x - std_t * np.expm1(h) * (e + (noise(u, m) - e) / (2 * r))


def dpm_solver_3(x, s, t, r1=1 / 3, r2=2 / 3):
    (alpha_s, _, l_s), (alpha_t, std_t, l_t) = vp(s), vp(t)
    h = l_t - l_s
    m1, m2 = np.exp(-(l_s + r1 * h)), np.exp(-(l_s + r2 * h))
    e = noise(x, s)
    d1 = noise(dpm_solver_1(x, s, m1), m1) - e
    alpha_2, std_2, _ = vp(m2)
    u2 = alpha_2 / alpha_s * x - std_2 * np.expm1(r2 * h) * e
    u2 = u2 - std_2 * r2 / r1 * (np.expm1(r2 * h) / (r2 * h) - 1) * d1
    return alpha_t / alpha_s * x - std_t * np.expm1(h) * e - std_t / r2 * (np.expm1(h) / h - 1) * (noise(u2, m2) - e)


def dpmpp_2s(x, s, t, r=0.5):
    (_, std_s, l_s), (alpha_t, std_t, l_t) = vp(s), vp(t)
    h = l_t - l_s
    m = np.exp(-(l_s + r * h))
    alpha_m, std_m, _ = vp(m)
    d = data(x, s)
    u = std_m / std_s * x - alpha_m * np.expm1(-r * h) * d
    return std_t / std_s * x - alpha_t * np.expm1(-h) * (d + (data(u, m) - d) / (2 * r))


def dpmpp_3s(x, s, t, r1=1 / 3, r2=2 / 3):
    (_, std_s, l_s), (alpha_t, std_t, l_t) = vp(s), vp(t)
    h = l_t - l_s
    m1, m2 = np.exp(-(l_s + r1 * h)), np.exp(-(l_s + r2 * h))
    (alpha_1, std_1, _), (alpha_2, std_2, _) = vp(m1), vp(m2)
    d = data(x, s)
    d1 = data(std_1 / std_s * x - alpha_1 * np.expm1(-r1 * h) * d, m1) - d
    u2 = std_2 / std_s * x - alpha_2 * np.expm1(-r2 * h) * d
    u2 = u2 + alpha_2 * r2 / r1 * (np.expm1(-r2 * h) / (r2 * h) + 1) * d1
    slope = alpha_t / r2 * (np.expm1(-h) / h + 1)
    return std_t / std_s * x - alpha_t * np.expm1(-h) * d + slope * (data(u2, m2) - d)


def song_euler(x, s, t, beta_min=0.1, beta_max=20.0):  # in t, of the probability flow of x_t
    def time(sigma):
        return brentq(lambda t: beta_min * t + (beta_max - beta_min) * t * t / 2 - np.log1p(sigma**2), 0, 9, xtol=1e-15)

    alpha, std, _ = vp(s)
    score = (alpha * data(x, s) - x) / std**2
    beta = beta_min + (beta_max - beta_min) * time(s)
    return x - (time(t) - time(s)) * beta / 2 * (x + score)


def karras_heun(x, s, t):  # algorithm 1, on x_t / alpha
    y, (alpha_s, alpha_t) = x / vp(s)[0], (vp(s)[0], vp(t)[0])
    d = (y - data(alpha_s * y, s)) / s
    euler = y + (t - s) * d
    return alpha_t * (y + (t - s) * (d + (euler - data(alpha_t * euler, t)) / t) / 2)


def k_diffusion_dpm2(x, s, t):
    y, middle = x / vp(s)[0], np.sqrt(s * t)
    half = y + (middle - s) * (y - denoise(y, s)) / s
    return vp(t)[0] * (y + (t - s) * (half - denoise(half, middle)) / middle)


def runge_kutta_4(x, s, t):
    h, slope = np.log(t / s), lambda y, fraction: y - denoise(y, s * (t / s) ** fraction)
    y = x / vp(s)[0]
    k1 = slope(y, 0)
    k2 = slope(y + h / 2 * k1, 1 / 2)
    k3 = slope(y + h / 2 * k2, 1 / 2)
    k4 = slope(y + h * k3, 1)
    return vp(t)[0] * (y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))


SINGLE_STEP = {
    "euler": ddim,
    "euler_vp": song_euler,
    "dpm2": k_diffusion_dpm2,
    "heun": karras_heun,
    "rk4": runge_kutta_4,
    "dpm_solver_2": dpm_solver_2,
    "dpm_solver_2(0.3)": functools.partial(dpm_solver_2, r=0.3),
    "dpm_solver_3": dpm_solver_3,
    "dpm_solver_3(0.4, 0.8)": functools.partial(dpm_solver_3, r1=0.4, r2=0.8),
    "dpmpp_2s": dpmpp_2s,
    "dpmpp_2s(0.7)": functools.partial(dpmpp_2s, r=0.7),
    "dpmpp_3s": dpmpp_3s,
    "dpmpp_3s(0.5)": functools.partial(dpmpp_3s, r1=0.5),
}


@pytest.mark.parametrize("name", SINGLE_STEP)
def test_single_step_solvers_are_their_papers(name):
    in_vp(name, by_steps(SINGLE_STEP[name]))


DDIM = ["unip(bh1, 1)", "unip(bh2, 1)", "exponential_ab(x0, 1)", "exponential_ab(eps, 1)", "lms(1)", "deis(1)"]


@pytest.mark.parametrize("name", ["euler", *DDIM, "ipndm(1)", "adams_bashforth(eps, 1)", "adams_bashforth(flow, 1)"])
@pytest.mark.parametrize("step", [ddim, dpm_solver_1])
def test_order_one_is_ddim(name, step):
    in_vp(name, by_steps(step))
    in_vp(name, by_steps(step), np.array([80.0, 10.0, 0.17, 0.002]))


def dpmpp_2m(x, sigmas):
    values = []
    for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
        (_, std_s, l_s), (alpha_t, std_t, l_t) = vp(s), vp(t)
        values.append(data(x, s))
        d, h = values[-1], l_t - l_s
        if i:
            r0 = (l_s - vp(sigmas[i - 1])[2]) / h
            d = d + (values[-1] - values[-2]) / (2 * r0)
        x = std_t / std_s * x - alpha_t * np.expm1(-h) * d
    return x


def dpmpp_3m(x, sigmas, factor=1.0):
    values = []
    for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
        (_, std_s, l_s), (alpha_t, std_t, l_t) = vp(s), vp(t)
        values.append(data(x, s))
        h = l_t - l_s
        p1 = np.expm1(-h)
        y = std_t / std_s * x - alpha_t * p1 * values[-1]
        if i:
            r0 = (l_s - vp(sigmas[i - 1])[2]) / h
            d0 = (values[-1] - values[-2]) / r0
        if i == 1:
            y = y - alpha_t * p1 * d0 / 2
        if i > 1:
            r1 = (vp(sigmas[i - 1])[2] - vp(sigmas[i - 2])[2]) / h
            d1 = (values[-2] - values[-3]) / r1
            p2 = p1 / h + 1
            p3 = p2 / h - 1 / 2
            first, second = d0 + r0 / (r0 + r1) * (d0 - d1), factor * (d0 - d1) / (r0 + r1)
            y = y + alpha_t * p2 * first - alpha_t * p3 * second
        x = y
    return x


def test_dpm_solver_pp_multistep_is_its_paper():
    in_vp("dpmpp_2m", dpmpp_2m)
    in_vp("dpmpp_3m", dpmpp_3m)
    in_vp("dpmpp_3m, corrected", functools.partial(dpmpp_3m, factor=2.0))


def unipc(x, sigmas, order, variant, corrector, space="x0", lower=False):
    """The paper's recipe: R rho = b, predictor and corrector of order min(order, step, and if asked steps left)."""
    evaluate = data if space == "x0" else noise

    def combine(x, s, t, order, past, now, new=None):
        """From s to t through D at s (`now`) and before (`past`, newest first), and at t (`new`) for the corrector."""
        (_, std_s, l_s), (alpha_t, std_t, l_t) = vp(s), vp(t)
        h = l_t - l_s
        hh = -h if space == "x0" else h
        b_of_h = hh if variant == "bh1" else np.expm1(hh)
        r = [(vp(level)[2] - l_s) / h for level, _ in past[: order - 1]]
        d = [(value - now) / r_k for (_, value), r_k in zip(past, r, strict=False)]
        if new is not None:
            r, d = [*r, 1.0], [*d, new - now]
        g, b = np.expm1(hh) / hh - 1, []
        for k in range(1, len(r) + 1):
            b.append(g * math.factorial(k) / b_of_h)
            g = g / hh - 1 / math.factorial(k + 1)
        if len(r) == 1:
            rho = [1 / 2]
        else:
            rho = np.linalg.solve([[r_k**j for r_k in r] for j in range(len(r))], b) if r else []
        kept, unit = (std_t / std_s, alpha_t) if space == "x0" else (alpha_t / vp(s)[0], std_t)
        y = kept * x - unit * np.expm1(hh) * now
        return y - unit * b_of_h * sum((w * v for w, v in zip(rho, d, strict=True)), 0 * x)

    past, now = [], evaluate(x, sigmas[0])
    for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
        used = min(order, i + 1, len(sigmas) - 1 - i if lower else order)
        predicted = combine(x, s, t, used, past, now)
        if i == len(sigmas) - 2:
            return predicted
        new = evaluate(predicted, t)
        x = combine(x, s, t, used, past, now, new) if corrector else predicted
        past, now = [(s, now), *past], new


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("corrector", [True, False])
def test_unipc_is_its_paper(order, variant, corrector):
    name = f"{'unipc' if corrector else 'unip'}({variant}, {order})"
    in_vp(name, functools.partial(unipc, order=order, variant=variant, corrector=corrector))
    x, last = start(4, 12.0), np.append(GRID, 0.0)  # the step to 0 is x = D of the predicted point
    np.testing.assert_allclose(solve(name, last, x), denoise(solve(name, GRID, x), GRID[-1]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["unipc(eps, bh1", "unipc(eps, bh2", "unipc(lower", "unipc(eps, lower"])
def test_unipc_in_noise_space_and_with_a_lower_order_at_the_end(name, order):
    space, lower = "eps" if "eps" in name else "x0", "lower" in name
    variant = "bh1" if "bh1" in name else "bh2"
    paper = functools.partial(unipc, order=order, variant=variant, corrector=True, space=space, lower=lower)
    in_vp(f"{name}, {order})", paper)
    x, last = start(4, 12.0), np.append(GRID, 0.0)  # a step to 0 denoises and does not count among the last
    ends = solve(f"{name}, {order})", last, x), denoise(solve(f"{name}, {order})", GRID, x), GRID[-1])
    np.testing.assert_allclose(*ends, rtol=0, atol=1e-12)


def adams(order, times, decay, value, weight, x, finish=1.0):
    """x_{i+1} = decay_i x_i + sum_j weight(i, j, Lagrange basis of node j) g_j, with i + 1 values in step i."""
    values = []
    for i in range(len(times) - 1):
        values.insert(0, value(i, x))
        nodes = times[max(0, i + 1 - order) : i + 1][::-1]
        x = decay(i) * x + sum(weight(i, lagrange(nodes, j)) * values[j] for j in range(len(nodes)))
    return x * finish


def lagrange(nodes, j):
    others = [node for i, node in enumerate(nodes) if i != j]
    return np.poly1d(others, r=True) / np.prod([nodes[j] - o for o in others]) if others else np.poly1d([1.0])


def over(times):
    """The exact integral over step i of a polynomial."""
    return lambda i, basis: basis.integ()(times[i + 1]) - basis.integ()(times[i])


def euler_slope(i, x):
    return (x - denoise(x, GRID[i])) / GRID[i]


@pytest.mark.parametrize("order", ORDERS)
def test_lms_is_the_integral_of_polynomials_in_sigma(order):
    expected = adams(order, GRID, lambda i: 1.0, euler_slope, over(GRID), start(5, 12.0))
    for name in (f"lms({order})", f"adams_bashforth(eps, {order})"):
        np.testing.assert_allclose(solve(name, GRID, start(5, 12.0)), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("order", ORDERS)
def test_adams_bashforth_in_log_sigma(order):
    times = np.log(GRID)
    expected = adams(order, times, lambda i: 1.0, lambda i, x: x - denoise(x, GRID[i]), over(times), start(5, 12.0))
    np.testing.assert_allclose(solve(f"adams_bashforth(log, {order})", GRID, start(5, 12.0)), expected, atol=1e-9)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("c", [1.0, 0.5])
def test_adams_bashforth_of_velocities(order, c):
    x = start(5, 12.0)

    def clean(i, y):
        d = denoise(y, GRID[i])
        return d / c, (y - d) / GRID[i]

    angle = np.arctan(GRID / c)  # d(cos x_0 + sin eps)/dangle = v = cos eps - sin x_0, for data of scale 1

    def v(i, z):
        x0, eps = clean(i, c * z / np.cos(angle[i]))
        return np.cos(angle[i]) * eps - np.sin(angle[i]) * x0

    end = c / np.cos(angle[-1])
    expected = adams(order, angle, lambda i: 1.0, v, over(angle), x * np.cos(angle[0]) / c, end)
    solver = S.adams_bashforth(order, "v", bootstrap=False, sigma_data=c)
    np.testing.assert_allclose(walk(solver.rows(GRID, False), denoise, x), expected, rtol=0, atol=1e-9)

    time = GRID / (c + GRID)  # d((1 - t) x_0 + t eps)/dt = eps - x_0

    def velocity(i, z):
        x0, eps = clean(i, c * z / (1 - time[i]))
        return eps - x0

    expected = adams(order, time, lambda i: 1.0, velocity, over(time), x * (1 - time[0]) / c, c / (1 - time[-1]))
    solver = S.adams_bashforth(order, "flow", bootstrap=False, sigma_data=c)
    np.testing.assert_allclose(walk(solver.rows(GRID, False), denoise, x), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sigmas", [GRID, np.array([40.0, 5.0, 0.9, 0.17, 0.004])])
def test_deis_is_the_quadrature_of_polynomials_in_t(order, sigmas):
    low, high = 0.1, 20.0

    def sigma(t):
        return np.sqrt(np.expm1(low * t + (high - low) * t**2 / 2))

    times = np.array([brentq(lambda t, s=s: sigma(t) - s, 1e-9, 2.0, xtol=1e-15, rtol=1e-14) for s in sigmas])

    def weight(i, basis):
        """int L(t) dsigma, in u = sqrt(t), in which dsigma/du is smooth."""

        def integrand(u):
            t = u * u
            return basis(t) * (low + (high - low) * t) * (1 + sigma(t) ** 2) / (2 * sigma(t)) * 2 * u

        return quad(integrand, np.sqrt(times[i]), np.sqrt(times[i + 1]), epsabs=1e-14, epsrel=1e-13)[0]

    def slope(i, x):
        return (x - denoise(x, sigmas[i])) / sigmas[i]

    x = start(4, sigmas[0])
    expected = adams(order, times, lambda i: 1.0, slope, weight, x)
    np.testing.assert_allclose(solve(f"deis({order})", sigmas, x), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("order", ORDERS)
def test_ipndm_has_the_classical_coefficients(order):
    table = {1: [1], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
    x = expected = start(5, 12.0)
    slopes = []
    for i, (s, t) in enumerate(itertools.pairwise(GRID)):
        slopes.insert(0, euler_slope(i, expected))
        mix = table[min(order, i + 1)]
        expected = expected + (t - s) * sum(c * d for c, d in zip(mix, slopes, strict=False))
    np.testing.assert_allclose(solve(f"ipndm({order})", GRID, x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("order", ORDERS)
def test_exponential_adams_bashforth_integrates_polynomials_in_log_snr(order):
    times, x = -np.log(GRID), start(5, 12.0)

    def weighted(sign, scale):
        def weight(i, basis):
            found = quad(lambda v: basis(v) * np.exp(sign * v), times[i], times[i + 1], epsabs=1e-14, epsrel=1e-13)
            return scale(i) * found[0]

        return weight

    expected = adams(
        order,
        times,
        lambda i: GRID[i + 1] / GRID[i],
        lambda i, x: denoise(x, GRID[i]),
        weighted(1, lambda i: GRID[i + 1]),
        x,
    )
    np.testing.assert_allclose(solve(f"exponential_ab(x0, {order})", GRID, x), expected, rtol=0, atol=1e-9)
    expected = adams(order, times, lambda i: 1.0, euler_slope, weighted(-1, lambda i: -1.0), x)
    np.testing.assert_allclose(solve(f"exponential_ab(eps, {order})", GRID, x), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("one", "other", "first"),
    [
        ("unip(bh2, 2)", "dpmpp_2m", 0),
        ("unip(bh1, 4)", "exponential_ab(x0, 4)", 2),
        ("unip(bh2, 3)", "exponential_ab(x0, 3)", 2),
        ("dpmpp_3m, corrected", "exponential_ab(x0, 3)", 2),
        ("unipc(bh1, 4)", "unipc(bh2, 4)", 3),
    ],
)
def test_methods_that_are_one_from_some_step_on(one, other, first):
    a, b = (SOLVERS[name].rows(GRID, True) for name in (one, other))
    np.testing.assert_allclose(a.point[first:], b.point[first:], rtol=0, atol=1e-12)
    np.testing.assert_allclose(a.state[first:], b.state[first:], rtol=0, atol=1e-12)


# ---- closed forms, inversion ----------------------------------------------------------------------------------------


@each_solver
def test_gaussian_data_has_the_closed_form(name):
    # x(sigma) = x(sigma_0) sqrt((sigma^2 + c^2) / (sigma_0^2 + c^2)) for data N(0, c^2)
    c, x = 0.5, np.linspace(-160.0, 160.0, 7)[:, None]
    got = solve(name, karras(200, 80.0, 0.002, zero=True), x, lambda x, s: x * c**2 / (c**2 + s**2))
    tolerance = {1: 4e-2, 2: 2e-3, 3: 2e-4, 4: 2e-4}[SOLVERS[name].order] * (4 if "log" in name else 1)
    np.testing.assert_allclose(got, x * c / np.hypot(80.0, c), rtol=tolerance)


@each_solver
def test_down_and_up_again_is_where_it_began(name):
    x = start(8, 10.0)

    def back(n):
        down = karras(n, 10.0, 0.05)
        return np.sqrt(np.mean((solve(name, down[::-1], solve(name, down, x)) - x) ** 2))

    order = SOLVERS[name].order
    few, more = back(40), back(240)
    assert more < few / 6 ** (order - 0.7), (few, more)
    assert more < {1: 0.7, 2: 5e-3, 3: 5e-4, 4: 5e-5}[order]


# ---- rounding, tracing, per-sample grids ----------------------------------------------------------------------------


def rounded(rows):
    return rows._replace(**{k: np.float32(v) for k, v in rows._asdict().items() if k != "ends" and v is not None})


@each_solver
@pytest.mark.parametrize(("n", "high", "low"), [(512, 10.0, 0.01), (256, 80.0, 0.002), (40, 700.0, 1e-4)])
def test_float32_loses_nothing_on_long_grids(name, n, high, low):
    x, rows = start(4, high), SOLVERS[name].rows(karras(n, high, low, zero=True), True)
    single = walk(rounded(rows), denoise, np.float32(x))
    assert single.dtype == np.float32
    assert np.abs(single - walk(rows, denoise, x)).max() < 5e-5


@pytest.mark.parametrize("name", ALL)
def test_per_sample_sigmas_are_tables_side_by_side(name):
    for zero in (True, False):
        grids = [karras(6, 10.0, 0.05, zero), karras(6, 3.0, 0.2, zero), np.append(GRID[:6], 0.0 if zero else 0.3)]
        both = ALL[name].rows(np.stack(grids, axis=1), zero)
        for i, grid in enumerate(grids):
            one = ALL[name].rows(grid, zero)
            for a, b in zip(both[:-1], one[:-1], strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    np.testing.assert_allclose(a[..., i], b, rtol=1e-12, atol=1e-14)
            np.testing.assert_array_equal(both.ends, one.ends)


def tables(sigmas, zero):
    return {name: SOLVERS[name].rows(sigmas, zero)._replace(ends=None) for name in TRACED}


@functools.cache
def traced_tables(zero, sigmas):
    """The tables of all at traced sigmas; one program, compiled once and in a hurry."""
    jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    return jax.tree.map(np.asarray, jit(lambda s: tables(s, zero))(jnp.array(sigmas)))


@functools.cache
def slopes_of_tables(sigmas, direction):
    jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    jvp = jit(lambda s, d: jax.jvp(lambda s: tables(s, True), (s,), (d,))[1])
    return jax.tree.map(np.asarray, jvp(jnp.array(sigmas), jnp.array(direction)))


def each_field(*rows):
    for fields in zip(*(r._replace(ends=None) for r in rows), strict=True):
        if fields[0] is not None:
            yield fields


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize("zero", [True, False])
def test_traced_sigmas_give_the_same_table(name, zero, x64):
    sigmas = np.append(GRID[:6], 0.0 if zero else 0.3)
    for traced, concrete in each_field(traced_tables(zero, tuple(sigmas))[name], SOLVERS[name].rows(sigmas, zero)):
        np.testing.assert_allclose(traced, concrete, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", TRACED)
def test_tables_have_the_derivatives_of_their_differences(name, x64):
    sigmas, d = np.append(GRID[:6], 0.0), 1e-6
    direction = sigmas * np.array([0.3, -0.2, 0.5, 0.1, -0.4, 0.2, 0.0])
    up, down = (SOLVERS[name].rows(sigmas + step * direction, True) for step in (d, -d))
    for slope, a, b in each_field(slopes_of_tables(tuple(sigmas), tuple(direction))[name], up, down):
        np.testing.assert_allclose(slope, (a - b) / (2 * d), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TRACED)
def test_traced_sigmas_are_accurate_in_float32(name):
    sigmas, x = np.float32(karras(20, 10.0, 0.05, zero=True)), start(4, 10.0)
    rows = traced_tables(True, tuple(sigmas))[name]
    assert all(field.dtype == np.float32 for (field,) in each_field(rows))
    got = walk(rows, denoise, np.float32(x))
    np.testing.assert_allclose(got, solve(name, np.float64(sigmas), x), rtol=0, atol=1e-4)


def equations(jaxpr):
    """Their number, those of inner programs (of the scan) included: each is printed as "a = ..."."""
    return str(jaxpr).count(" = ")


@pytest.mark.parametrize("name", ALL)
def test_the_program_does_not_grow_with_the_grid(name):
    def sizes(n):
        sigmas, x = np.float32(karras(n, 10.0, 0.05, zero=True)), jnp.ones((2, 3))
        concrete = jax.make_jaxpr(lambda x: dx.sample(lambda x, s: 0.5 * x, x, sigmas, solver=ALL[name]))(x)
        traced = jax.make_jaxpr(lambda s: ALL[name].rows(s, True)._replace(ends=None))(sigmas)
        return equations(concrete), equations(traced)

    assert sizes(8) == sizes(300)


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [S.exponential_ab, S.adams_bashforth, S.lms, S.deis, S.ipndm, S.unipc])
@pytest.mark.parametrize("order", [0, 5, -1, True, 2.0, "2", None])
def test_orders_run_from_1_to_4(make, order):
    with pytest.raises(ValueError, match="must be an integer from 1 to 4"):
        make(order)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: S.exponential_ab(2, "y"), "space = 'y': must be one of 'x0', 'eps'"),
        (lambda: S.adams_bashforth(2, "x0"), "space = 'x0': must be one of 'v', 'flow', 'eps', 'log'"),
        (lambda: S.unipc(3, "bh3"), "variant = 'bh3': must be one of 'bh1', 'bh2'"),
        (lambda: S.dpm_solver_2(0.0), "r = 0.0: must lie strictly between 0 and 1"),
        (lambda: S.dpmpp_2s(1.0), "r = 1.0: must lie strictly between 0 and 1"),
        (lambda: S.dpmpp_2s(math.nan), "r = nan: must lie strictly between 0 and 1"),
        (lambda: S.dpm_solver_3(r1=-0.1), "r1 = -0.1: must lie"),
        (lambda: S.dpmpp_3s(r2=1.5), "r2 = 1.5: must lie"),
        (lambda: S.runge_kutta([[0.5], [1.0]], [0.5, 0.5, 0.0], 2), "rows of [1, 1] and 3 entries: must be [1, 2"),
        (lambda: S.runge_kutta([[0.5]], [1.0], 2), "rows of [1] and 1 entries: must be"),
        (lambda: S.runge_kutta([[1.0]], [0.5, 0.6], 2), "must sum to 1"),
        (lambda: S.runge_kutta([[1.0]], [0.5, math.nan], 2), "must sum to 1"),
        (lambda: S.adams_bashforth(2, "v", sigma_data=0.0), "sigma_data = 0.0: must be positive"),
        (lambda: S.adams_bashforth(2, "flow", sigma_data=math.nan), "sigma_data = nan: must be positive"),
        (lambda: S.deis(3, beta_min=0.0), "beta_min = 0.0: must be positive"),
        (lambda: S.deis(3, beta_min=2.0, beta_max=1.0), "beta_min = 2.0: must be less than beta_max = 1.0"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError) as error:
        make()
    assert words in str(error.value)
