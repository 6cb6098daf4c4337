"""Grids and coefficients found by gradient: against a grid known to be the best, and on noise not fitted to."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx

MIXTURE = dx.gaussian_mixture([[-1.0, 0.5], [0.3, -0.8], [1.2, 1.0]], 0.1)
TABLE = dx.solvers.adams_bashforth(4, "flow", bootstrap=False, sigma_data=2.0)


def noise(seed, count=128):
    return 80 * jax.random.normal(jax.random.key(seed), (count, 2), jnp.float32)


def exact(x):
    return dx.sample(MIXTURE, x, dx.schedules.sigmas(dx.schedules.karras(), 400), solver=dx.solvers.exponential_ab(4))


def error(x, sigmas, solver=None):
    end = dx.sample(MIXTURE, x, sigmas, solver=solver)
    return float(jnp.mean(jnp.sqrt(jnp.mean((end - exact(x)) ** 2, axis=1))))


@pytest.mark.parametrize("n", [3, 6])
def test_the_best_grid_of_euler_for_gaussian_data(n):
    """Each step of Euler multiplies the standard deviation by the cosine of its angle atan(sigma / c), so equal angles
    lose least (Sabour et al. 2024, theorem 3.1): sigma_i = c tan((1 - i / n) atan(80 / c))."""
    c = 2.0
    x = 80 * jax.random.normal(jax.random.key(0), (32, 3))
    got = dx.grids.fit(lambda x, s: x * c**2 / (c**2 + s**2), x, n, solver=dx.solvers.euler(), iterations=300)
    np.testing.assert_allclose(got, c * np.tan((1 - np.arange(n + 1) / n) * np.arctan(80 / c)), rtol=0.02, atol=1e-6)


@pytest.mark.parametrize(
    ("solver", "ratio"), [(None, 0.9), (TABLE, 0.75), (dx.solvers.unipc(3), 0.75), (dx.solvers.heun(), 0.75)]
)
def test_a_fitted_grid_is_better_on_other_noise(solver, ratio):
    found = dx.grids.fit(MIXTURE, noise(0), 6, solver=solver, iterations=60)
    assert found.shape == (7,) and found[0] == 80 and found[-1] == 0 and (np.diff(found) < 0).all()
    plain = dx.grids.plain(6)
    assert error(noise(0), found, solver) < error(noise(0), plain, solver)
    assert error(noise(1), found, solver) < ratio * error(noise(1), plain, solver)


def test_it_begins_at_the_scale_of_the_data():
    """With one iteration what is returned is the start. For Gaussian data of standard deviation c an Euler step from s
    to t multiplies the deviation by (c^2 + s t) / (c^2 + s^2), so how much each grid loses is known."""
    n, losses = 8, {}
    x = 80 * jax.random.normal(jax.random.key(0), (64, 3))
    for c in (0.02, 10.0):

        def denoise(x, s, c=c):
            return x * c**2 / (c**2 + s**2)

        def loss(sigmas, c=c):
            s, t = sigmas[:-1], sigmas[1:]
            return abs(np.prod((c**2 + s * t) / (c**2 + s**2)) * 80 - 80 * c / np.hypot(c, 80))

        got = dx.grids.fit(denoise, x, n, solver=dx.solvers.euler(), iterations=1)
        octaves = [dx.grids.plain(n, sigma_data=c / np.hypot(c, 80) * float(np.std(x)) * 2.0**k) for k in (-1, 0, 1, 2)]
        np.testing.assert_allclose(got, min(octaves, key=loss), rtol=5e-3)
        losses[c] = loss(got) / loss(dx.grids.plain(n))
    assert all(ratio < 0.7 for ratio in losses.values()), losses


def test_many_pilots_a_few_at_a_time_hold_better_on_other_noise():
    """At equal cost of the iterations."""
    few = dx.grids.fit_solver(MIXTURE, noise(0, 16), 6, iterations=200)
    many = dx.grids.fit_solver(MIXTURE, noise(0, 512), 6, iterations=200, batch=16)
    x = noise(1, 2048)
    assert error(x, many.sigmas, many.solver) < 0.8 * error(x, few.sigmas, few.solver)


@pytest.mark.parametrize("batch", [4, 5, 12, 100, None])
def test_an_iteration_asks_for_a_batch(batch):
    seen = []

    def denoise(x, sigma):
        seen.append(len(x))
        return MIXTURE(x, sigma)

    dx.grids.fit(denoise, noise(0, 12), 3, iterations=2, batch=batch)
    assert set(seen) == {12, min(batch or 12, 12)}


def test_without_batches_pilots_keep_their_places():
    """As a denoiser needs that holds a label for each."""
    shift = jnp.linspace(-1, 1, 6, dtype=jnp.float32)[:, None]
    x = noise(0, 6)
    moved = dx.grids.fit(lambda x, s: MIXTURE(x - shift, s) + shift, x + shift, 4, solver=TABLE, iterations=20)
    np.testing.assert_allclose(moved, dx.grids.fit(MIXTURE, x, 4, solver=TABLE, iterations=20), rtol=1e-2)


def test_auto_is_better_than_plain():
    """On other noise, over two numbers of steps: each alone has the luck of the few samples that change their mode."""
    ratios = [
        error(noise(1, 1024), dx.grids.auto(MIXTURE, noise(0), n)) / error(noise(1, 1024), dx.grids.plain(n))
        for n in (5, 12)
    ]
    assert np.prod(ratios) < 0.7, ratios


def test_a_fitted_solver_is_better_than_a_fitted_grid_and_survives_a_file(tmp_path):
    grid = dx.grids.fit(MIXTURE, noise(0), 5, iterations=100)
    fitted = dx.grids.fit_solver(MIXTURE, noise(0), 5, iterations=200)
    learned = error(noise(1), fitted.sigmas, fitted.solver)
    assert learned < 0.7 * error(noise(1), grid)
    assert fitted.solver.nfe(5) == 5
    dx.solvers.save_learned(tmp_path / "steps.json", *fitted)
    sigmas, solver = dx.solvers.load_learned(tmp_path / "steps.json")
    assert error(noise(1), sigmas, solver) == pytest.approx(learned, rel=1e-6)
    np.testing.assert_array_equal(sigmas, fitted.sigmas)
    assert [p.name for p in tmp_path.iterdir()] == ["steps.json"]
    with pytest.raises(ValueError, match="fitted for n = 5"):
        dx.sample(MIXTURE, noise(1), dx.grids.plain(6), solver=solver)
    with pytest.raises(ValueError, match="fitted for sigmas"):
        dx.sample(MIXTURE, noise(1), dx.grids.plain(5), solver=solver)


@pytest.mark.parametrize("damage", ["not json", "{}", "point", "nan", "format"])
def test_a_damaged_file_is_told(tmp_path, damage):
    path = tmp_path / "steps.json"
    sigmas = dx.grids.plain(3)
    dx.solvers.save_learned(path, sigmas, TABLE)
    content = json.loads(path.read_text())
    if damage == "point":
        content["point"] = content["point"][:-1]
    elif damage == "nan":
        content["state"][0][0] = float("nan")
    elif damage == "format":
        content["format"] = "another"
    path.write_text(damage if damage in ("not json", "{}") else json.dumps(content))
    with pytest.raises(ValueError, match=r"steps.json: is not a solver"):
        dx.solvers.load_learned(path)


def test_every_one_evaluation_solver_can_be_kept_as_numbers(tmp_path):
    sigmas, x = dx.grids.plain(7), noise(2, 4)
    for solver in (dx.solvers.unipc(3), dx.solvers.exponential_ab(3, "eps", bootstrap=False), dx.solvers.heun()):
        dx.solvers.save_learned(tmp_path / "s.json", sigmas, solver)
        again = dx.sample(MIXTURE, x, sigmas, solver=dx.solvers.load_learned(tmp_path / "s.json")[1])
        np.testing.assert_array_equal(again, dx.sample(MIXTURE, x, sigmas, solver=solver))


def test_a_stochastic_solver_that_was_kept_still_draws_noise(tmp_path):
    sigmas, x = dx.grids.plain(4), noise(2, 4)
    for solver in (dx.solvers.dpmpp_2s_sde(), dx.solvers.edm_stochastic(), dx.solvers.sa_solver(bootstrap=True)):
        dx.solvers.save_learned(tmp_path / "s.json", sigmas, solver)
        kept = dx.solvers.load_learned(tmp_path / "s.json")[1]
        again = dx.sample(MIXTURE, x, sigmas, solver=kept, key=jax.random.key(0), trajectory=True)
        whole = dx.sample(MIXTURE, x, sigmas, solver=solver, key=jax.random.key(0), trajectory=True)
        np.testing.assert_array_equal(again, whole)
        with pytest.raises(ValueError, match="key is missing"):
            dx.sample(MIXTURE, x, sigmas, solver=kept)


def test_what_cannot_be_kept_is_told(tmp_path):
    sigmas, x = dx.grids.plain(4), noise(2, 3)
    with pytest.raises(ValueError, match="no table of coefficients"):
        dx.solvers.save_learned(tmp_path / "s.json", sigmas, dx.solvers.adaptive())
    each = np.repeat(sigmas[:, None], 3, 1)
    with pytest.raises(ValueError, match=r"sigmas has shape \(5, 3\): must be"):
        dx.solvers.save_learned(tmp_path / "s.json", each, dx.solvers.euler())
    assert not list(tmp_path.iterdir())
    dx.solvers.save_learned(tmp_path / "s.json", sigmas, dx.solvers.euler())
    with pytest.raises(ValueError, match=r"sigmas has shape \(5, 3\): this solver was fitted for n = 4"):
        dx.sample(MIXTURE, x, each, solver=dx.solvers.load_learned(tmp_path / "s.json")[1])


def test_one_step_has_nothing_to_fit():
    assert dx.grids.fit(MIXTURE, noise(0, 4), 1).tolist() == [80, 0]


def test_progress_is_reported():
    seen = []
    dx.grids.fit(MIXTURE, noise(0, 4), 3, iterations=5, report=lambda i, loss: seen.append((i, loss)))
    assert [i for i, _ in seen] == [1, 2, 3, 4, 5]
    losses = [loss for _, loss in seen]
    assert losses == sorted(losses, reverse=True) and np.isfinite(losses).all()


def test_the_loss_that_counts_is_that_of_whole_passes():
    """12 pilots, 4 at a time: of 8 iterations the first two are no pass, and after a rate of nothing each pass has the
    loss of the start."""
    seen = []
    start, x = dx.grids.plain(3), noise(0, 12)
    dx.grids.fit(MIXTURE, x, 3, start=start, iterations=8, batch=4, rate=0, report=lambda i, loss: seen.append(loss))
    assert np.isinf(seen[:4]).all() and np.isfinite(seen[4:]).all()
    np.testing.assert_allclose(seen[4:], error(x, start), rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": 0}, "n = 0"),
        ({"iterations": 0}, "iterations = 0"),
        ({"batch": 0}, "batch = 0"),
        ({"start": [80.0, 1.0, 0.0]}, "start ="),
        ({"start": [70.0, 3.0, 1.0, 0.0]}, "start[0] = 70.0"),
        ({"solver": dx.solvers.ancestral()}, "solver draws noise"),
        ({"solver": dx.solvers.adaptive()}, "solver chooses its own steps"),
        ({"sigma_max": -1.0}, "sigma_max = -1.0"),
        ({"denoise": lambda x, s: x * jnp.nan}, "NaN or infinity on the pilots"),
        ({"denoise": None}, "denoise = None: must be a function"),
        ({"denoise": lambda x, s: x[:, 0]}, "denoise gave shape (4,)"),
        ({"x": np.ones((4, 2), int)}, "x is of int64: must be floating-point"),
        ({"x": np.ones((0, 2))}, "x has shape (0, 2)"),
        ({"x": 80.0}, "x has shape ()"),
        ({"x": np.full((4, 2), np.inf)}, "x: 8 of 8 values are not finite"),
        ({"n": 1001}, "n = 1001: must be an integer from 1 to 1000"),
        ({"n": "3"}, "n = '3'"),
        ({"reference": 10**7}, "reference = 10000000: must be an integer from 1 to 100000"),
        ({"rate": "fast"}, "rate = 'fast'"),
        ({"rate": np.nan}, "rate = nan"),
        ({"start": "karras"}, "start = 'karras'"),
        ({"start": [80.0, np.nan, 1.0, 0.0]}, "start = [80.0, nan"),
        ({"report": 3}, "report = 3: must be a function"),
        ({"solver": dx.solvers.heun}, "solver = heun: is a function: did you forget the parentheses"),
        ({"solver": "heun"}, "solver = 'heun': must be a Solver"),
    ],
)
def test_bad_input_is_named(change, words):
    with pytest.raises(ValueError) as error:
        dx.grids.fit(**{"denoise": MIXTURE, "x": noise(0, 4), "n": 3} | change)
    assert words in str(error.value)


def test_a_solver_of_several_evaluations_cannot_be_learned():
    def unasked(x, sigma):
        raise AssertionError("the denoiser was asked first")

    with pytest.raises(ValueError, match="must be one that makes one in each"):
        dx.grids.fit_solver(unasked, noise(0, 4), 3, solver=dx.solvers.heun())


def test_grids_are_sought_outside_jit():
    with pytest.raises(ValueError, match="x is traced: must be concrete"):
        jax.jit(lambda x: dx.grids.fit(MIXTURE, x, 3))(noise(0, 4))


def test_what_is_found_may_be_changed_and_has_the_dtype_of_the_pilots_at_work():
    """64 bits and strict promotion: the sigmas are a copy of their own, and no float64 reaches the denoiser."""
    seen = set()

    def denoise(x, sigma):
        seen.update((x.dtype, sigma.dtype))
        return x / (1 + 4 * sigma**2)

    x = np.float32(noise(0, 8))
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        for find in (dx.grids.fit, dx.grids.fit_solver):
            found = find(denoise, x, 3, iterations=4, reference=16)
            sigmas = found if find is dx.grids.fit else found.sigmas
            sigmas[1] *= 1.0  # a view of a JAX array is read-only
            assert sigmas.dtype == np.float64 and (np.diff(sigmas) < 0).all()
    assert seen == {np.dtype(np.float32)}


def test_a_solver_is_fitted_to_data_that_are_a_point():
    for x in (noise(0, 1)[:, :1], noise(0, 2)):
        fitted = dx.grids.fit_solver(lambda x, s: 0 * x, x, 3, iterations=2, reference=8)
        assert np.isfinite(fitted.sigmas).all() and abs(dx.sample(lambda x, s: 0 * x, x, *fitted[:1])).max() < 0.1


def test_the_fine_solution_is_found_once():
    sigmas = []

    def denoise(x, sigma):
        jax.debug.callback(lambda s: sigmas.append(float(s)), sigma)
        return MIXTURE(x, sigma)

    dx.grids.fit_solver(denoise, noise(0, 4), 3, iterations=4, reference=64)
    jax.effects_barrier()
    levels = np.float32(dx.grids.plain(64)[1:-1])  # the first one is that of every grid
    assert sorted(s for s in sigmas if np.isclose(levels, s, rtol=1e-6).any()) == pytest.approx(sorted(levels))
