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
    run = lambda solver: dx.sample(
        dx.guidance.classifier_free(*both, scale), jnp.asarray(x), dx.grids.plain(nfe), solver=solver
    )
    error = lambda solver: np.sqrt(((run(solver) - exact) ** 2).mean(1)).mean()
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
