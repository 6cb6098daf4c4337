"""The default solver: its formula by a loop in NumPy, order 4 where the denoiser moves steadily, calm elsewhere."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx

S = dx.solvers
MEANS = np.random.default_rng(42).standard_normal((8, 16))


def posterior(means, std):
    """The denoiser of a mixture of equal Gaussians, in float64."""

    def denoise(x, sigma):
        total = std**2 + sigma**2
        log_r = -((x[:, None] - means) ** 2).sum(-1) / (2 * total)
        r = np.exp(log_r - log_r.max(1, keepdims=True))
        r /= r.sum(1, keepdims=True)
        return (std**2 * x + sigma**2 * r @ means) / total

    return denoise


def guided(some, every, scale):
    return lambda x, sigma: every(x, sigma) + scale * (some(x, sigma) - every(x, sigma))


def weights(times, end):
    """w with sum_j w_j (t_j - t_0)^k = int_t0^end (t - t_0)^k dt: exact for polynomials through values at the times."""
    t = np.array(times)
    moments = [(end - t[0]) ** (k + 1) / (k + 1) for k in range(len(t))]
    return np.linalg.solve(np.vander(t - t[0], increasing=True).T, moments)


def fall(a, low, high):
    return np.clip((high - a) / (high - low), 0, 1)[:, None]


def by_hand(denoise, x, sigmas, c):
    """The formula of `diffax.solvers.falling`, in the time sigma / (c + sigma) of z = x / (c + sigma): dz = g dtime,
    g = eps - D / c. The step to 0 takes as many values as amplify no error tenfold."""
    times, values, last, before, qs, vs = [], [], None, None, [], []
    for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
        D = denoise(x, s)
        times, values = [s / (c + s), *times], [(x - D) / s - D / c, *values]

        def step(order, t=t, s=s, x=x, times=times, values=values):
            w = weights(times[:order], t / (c + t))
            if t == 0 and len(w) > 1 and np.abs(w).sum() > 10 * abs(w.sum()):
                return step(len(w) - 1)
            return (x / (c + s) + np.tensordot(w, np.stack(values[:order]), 1)) * (c + t)

        q = v = np.zeros(len(x))
        if last is not None:
            move = (1 - s / sigmas[i - 1]) * (D - last) / s
            q = np.sqrt((move**2).mean(1))
            cosine = np.zeros(len(x))
            if before is not None:
                cosine = (move * before).sum(1) / (np.linalg.norm(move, axis=1) * np.linalg.norm(before, axis=1))
            v, before = q * np.sqrt(1 - np.maximum(cosine, 0) ** 2), move
        last, qs, vs = D, [q, *qs[:2]], [v, *vs[:2]]
        calm, steady = fall(np.max(qs, 0), 0.6, 1.8), fall(np.max(vs, 0), 0.06, 0.54)
        x = step(1) + calm * (step(2) - step(1) + steady * (step(4) - step(2)))
    return x


@pytest.mark.parametrize("scale", [1.0, 7.5, 15.0])
def test_the_formula_of_the_module(scale):
    denoise = guided(posterior(MEANS[:2], 0.1), posterior(MEANS, 0.1), scale)
    x, sigmas = 80 * np.random.default_rng(0).standard_normal((6, 16)), dx.grids.plain(9)
    with jax.enable_x64(True):
        both = dx.gaussian_mixture(MEANS[:2], 0.1), dx.gaussian_mixture(MEANS, 0.1)
        got = dx.sample(dx.guidance.classifier_free(*both, scale), x, sigmas)
    np.testing.assert_allclose(got, by_hand(denoise, x, sigmas, 2.0), rtol=0, atol=1e-5)


def test_where_the_denoiser_moves_steadily_it_is_adams_bashforth_of_order_4():
    gaussian = lambda x, sigma: x / (1 + sigma**2)  # D moves along one line
    x, sigmas = 80 * np.float32(np.random.default_rng(1).standard_normal((4, 3))), dx.grids.plain(16)
    fourth = S.adams_bashforth(4, "flow", bootstrap=False, sigma_data=2.0)
    np.testing.assert_allclose(dx.sample(gaussian, x, sigmas), dx.sample(gaussian, x, sigmas, solver=fourth), atol=1e-5)


def run(x, sigmas):
    """The solver on the mixture, in float64."""
    with jax.enable_x64(True):
        return np.asarray(dx.sample(dx.gaussian_mixture(MEANS, 0.3), x, sigmas))


def between(n, high, low):
    """Levels of no regularity: their steps in log sigma change threefold."""
    u = np.linspace(0, 1, n + 1)
    return high * (low / high) ** (1.5 * u - 0.5 * u * u)


def test_it_converges_with_the_order_that_it_declares():
    x = 3 * np.random.default_rng(2).standard_normal((8, 16))
    exact, steps = run(x, between(3000, 3.0, 0.1)), np.array([100, 200, 400])
    errors = [np.sqrt(np.mean((run(x, between(n, 3.0, 0.1)) - exact) ** 2)) for n in steps]
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(S.default().order, abs=0.25), errors


def test_down_and_up_again_is_where_it_began():
    x = 10 * np.random.default_rng(4).standard_normal((8, 16))

    def back(n):
        down = between(n, 10.0, 0.05)
        return np.sqrt(np.mean((run(run(x, down), down[::-1]) - x) ** 2))

    few, more = back(40), back(240)
    assert more < few / 6**1.3 and more < 5e-3, (few, more)


def test_gaussian_data_has_the_closed_form():
    # x(sigma) = x(sigma_0) sqrt((sigma^2 + c^2) / (sigma_0^2 + c^2)) for data N(0, c^2)
    c, x = 0.5, np.linspace(-160.0, 160.0, 7)[:, None]
    with jax.enable_x64(True):
        got = dx.sample(lambda x, s: x * c**2 / (c**2 + s**2), x, np.append(np.geomspace(80, 0.002, 200), 0.0))
    np.testing.assert_allclose(got, x * c / np.hypot(80.0, c), rtol=2e-3)


@pytest.mark.parametrize(("n", "high", "low"), [(512, 10.0, 0.01), (256, 80.0, 0.002), (40, 700.0, 1e-4)])
def test_float32_loses_nothing_on_long_grids(n, high, low):
    x, sigmas = high * np.random.default_rng(5).standard_normal((4, 16)), np.append(between(n - 1, high, low), 0.0)
    single = dx.sample(dx.gaussian_mixture(MEANS, 0.3), np.float32(x), sigmas)
    assert single.dtype == np.float32 and np.abs(single - run(x, sigmas)).max() < 5e-5


def test_a_trajectory_is_the_ends_of_shorter_runs():
    x, sigmas = 10 * np.random.default_rng(6).standard_normal((3, 16)), np.append(between(5, 10.0, 0.05), 0.0)
    with jax.enable_x64(True):
        path = dx.sample(dx.gaussian_mixture(MEANS, 0.3), x, sigmas, trajectory=True)
    np.testing.assert_array_equal(path[0], x)
    for k in range(1, 7):
        np.testing.assert_allclose(path[k], run(x, sigmas[: k + 1]), rtol=0, atol=1e-11)


@pytest.mark.parametrize("nfe", [6, 8, 12])
@pytest.mark.parametrize("scale", [7.5, 15.0])
def test_strong_guidance_in_few_steps(scale, nfe):
    """The case that breaks methods of high order: the error is not above that of the better of two calm ones by 1.2."""
    x = 80 * np.random.default_rng(3).standard_normal((64, 16))
    fine, denoise = np.geomspace(80, 1e-3, 801), guided(posterior(MEANS[:2], 0.1), posterior(MEANS, 0.1), scale)
    exact, h = x, np.log(fine[1] / fine[0])
    slope = lambda y, s: y - denoise(y, s)
    for s in fine[:-1]:  # RK4 in log sigma
        half = s * np.exp(h / 2)
        k1 = slope(exact, s)
        k2 = slope(exact + h / 2 * k1, half)
        k3 = slope(exact + h / 2 * k2, half)
        exact = exact + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(exact + h * k3, s * np.exp(h)))
    exact = denoise(exact, fine[-1])

    both = dx.gaussian_mixture(MEANS[:2], 0.1), dx.gaussian_mixture(MEANS, 0.1)
    strong = dx.guidance.classifier_free(*both, scale)

    def error(solver):
        end = dx.sample(strong, jnp.asarray(x), dx.grids.plain(nfe), solver=solver)
        return np.sqrt(((end - exact) ** 2).mean(1)).mean()

    assert error(S.default()) < 1.2 * min(error(S.euler()), error(S.dpmpp_2m()))


def test_a_gradient_passes_it_also_where_nothing_moves():
    sigmas = jnp.asarray(dx.grids.plain(5), jnp.float32)
    still = lambda x, sigma: jnp.zeros_like(x)
    mixture = dx.gaussian_mixture(MEANS, 0.1)
    x = jnp.asarray(80 * np.random.default_rng(0).standard_normal((2, 16)), jnp.float32)
    for denoise in (still, mixture):
        loss = lambda s, denoise=denoise: jnp.sum(dx.sample(denoise, x, s, to_zero=True) ** 2)
        assert np.isfinite(jax.grad(loss)(sigmas)).all()


@pytest.mark.parametrize("sigma_data", [0, -1.0, np.nan, "1", None, [1.0, 2.0]])
def test_bad_input_is_named(sigma_data):
    with pytest.raises(ValueError, match="sigma_data"):
        S.default(sigma_data)
