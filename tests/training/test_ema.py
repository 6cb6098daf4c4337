"""Power-function averages and their reconstruction, against averages over whole trajectories in float64."""

import itertools
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax.training import ema

STEPS, EVERY, TRACKED, WIDTH = 4000, 80, (0.05, 0.1), 64


def trajectory(kind):
    """[STEPS, WIDTH] float64: the parameters after each update."""
    rng = np.random.default_rng(0)
    if kind == "linear":
        return np.linspace(-1, 1, WIDTH) * np.arange(1, STEPS + 1)[:, None] / STEPS
    noise = rng.normal(size=(STEPS, WIDTH))
    return noise if kind == "noise" else noise.cumsum(0) / STEPS**0.5


def exact(theta, sigma_rel, time):
    """The average by its definition: the integral of gamma-power weights over [k - 1, k] for the k-th parameters."""
    edges = (np.arange(time + 1) / time) ** (ema.gamma_of(sigma_rel) + 1)
    return np.diff(edges) @ theta[:time]


def stored(theta, every=EVERY, tracked=TRACKED):
    """Times, lengths and averages as a run would keep them: in float32."""
    where = list(itertools.product(range(every, STEPS + 1, every), tracked))
    return *zip(*where, strict=True), [np.float32(exact(theta, s, t)) for t, s in where]


def profile(sigma_rel, time, t):
    gamma = ema.gamma_of(sigma_rel)
    return np.where(t <= time, (gamma + 1) * t**gamma / time ** (gamma + 1), 0)


# ---- lengths ----


@pytest.mark.parametrize(
    ("sigma_rel", "gamma"), [(0.05, 16.972), (0.10, 6.937), (0.15, 3.558), (0.20, 1.826), (0.25, 0.720)]
)
def test_gamma_is_the_published_one(sigma_rel, gamma):
    assert ema.gamma_of(sigma_rel) == pytest.approx(gamma, abs=5e-4)


@pytest.mark.parametrize("sigma_rel", [1e-9, 1e-4, 0.01, 0.1, 12**-0.5, 0.3, ema.MAX_SIGMA_REL])
def test_gamma_and_sigma_rel_are_inverse(sigma_rel):
    assert ema.sigma_rel_of(ema.gamma_of(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-14)


def test_sigma_rel_is_the_standard_deviation_of_the_profile():
    t = (np.arange(10**6) + 0.5) / 10**6
    for sigma_rel in (0.02, 0.1, 0.28):
        p = profile(sigma_rel, 1, t) / 10**6
        assert np.sqrt(p @ t**2 - (p @ t) ** 2) == pytest.approx(sigma_rel, rel=1e-4)
    gammas = np.linspace(-0.99, 1, 10**5)
    widths = np.sqrt(gammas + 1) / (gammas + 2) / np.sqrt(gammas + 3)
    assert widths.max() == pytest.approx(ema.MAX_SIGMA_REL, rel=1e-9)
    assert gammas[widths.argmax()] == pytest.approx(ema.gamma_of(ema.MAX_SIGMA_REL), abs=1e-4)


# ---- tracking ----


@pytest.mark.parametrize("sigma_rel", [1e-4, 0.05, 0.1, 0.25, 0.3])
def test_the_step_of_a_power_function_keeps_its_accuracy(sigma_rel):
    rate = jax.jit(lambda step: ema.power_update(jnp.zeros(()), jnp.ones(()), step, sigma_rel))
    for step in (0, 1, 2, 9, 99_999, 2**24 + 1, 2**31 - 2):
        truth = -np.expm1((ema.gamma_of(sigma_rel) + 1) * np.log1p(-1 / (step + 1))) if step else 1.0
        assert float(rate(jnp.int32(step))) == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("kind", ["linear", "noise", "walk"])
@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.1, 0.25])
def test_a_tracked_average_is_the_closed_form(kind, sigma_rel):
    theta = trajectory(kind)

    @jax.jit
    def track(params):
        def step(state, p):
            k, average = state
            average = ema.power_update(average, p, k, sigma_rel)
            return (k + 1, average), average

        return jax.lax.scan(step, (jnp.int32(0), {"w": jnp.full(WIDTH, 1e3)}), {"w": params})[1]["w"]

    averages = track(jnp.float32(theta))
    for time in (1, 2, 10, 1000, STEPS):
        # each update rounds by half a unit at most, and is remembered for time / (gamma + 2) updates
        gamma = ema.gamma_of(sigma_rel)
        rounding = 2**-24 * (abs(theta).max() * (2 + time / (gamma + 2)) + 2e3 / time ** (gamma + 1))
        np.testing.assert_allclose(averages[time - 1], exact(theta, sigma_rel, time), rtol=0, atol=rounding)


def test_the_average_of_a_line_lags_by_a_fixed_share():
    gamma = ema.gamma_of(0.1)
    mean = exact(trajectory("linear"), 0.1, STEPS)[-1]
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), abs=1 / STEPS)


# ---- reconstruction ----


@pytest.mark.parametrize("kind", ["linear", "noise", "walk"])
@pytest.mark.parametrize("time", [STEPS, STEPS // 2, STEPS // 2 + 33])
@pytest.mark.parametrize("sigma_rel", [0.03, 0.05, 0.07, 0.1, 0.15, 0.2])
def test_a_reconstruction_is_the_average_to_the_error_foretold(kind, time, sigma_rel):
    """|sum_i w_i average_i - average| = |<profile error, theta>| <= ||profile error|| ||theta - constant||, by Cauchy
    and Schwarz, as the error integrates to 0; beyond that, snapshots are float32."""
    theta = trajectory(kind)
    times, lengths, snapshots = stored(theta)
    weights = ema.posthoc_weights(times, lengths, time, sigma_rel)
    got = ema.combine(snapshots, weights)
    norm = np.sqrt(np.mean(profile(sigma_rel, time, (np.arange(10**5) + 0.5) / 10**5 * time) ** 2) * time)
    foretold = ema.posthoc_error(times, lengths, time, sigma_rel) * norm
    spread = np.sqrt(np.sum((theta - theta.mean(0)) ** 2, axis=0))
    off = abs(got - exact(theta, sigma_rel, time))
    assert (off <= foretold * spread * 1.01 + abs(weights).sum() * 1e-7 * abs(theta).max()).all()
    if kind == "noise" and sigma_rel not in TRACKED:  # of white noise the error is what is expected, not a bound
        assert np.sqrt(np.mean(off**2)) == pytest.approx(foretold, rel=0.3)


@pytest.mark.parametrize(("sigma_rel", "share"), [(0.03, 0.02), (0.07, 1e-3), (0.15, 2e-3), (0.2, 0.01)])
def test_a_reconstruction_is_much_nearer_than_any_snapshot(sigma_rel, share):
    theta = trajectory("walk")
    times, lengths, snapshots = stored(theta)
    for time in (STEPS, STEPS // 2):
        truth = exact(theta, sigma_rel, time)
        got = ema.combine(snapshots, ema.posthoc_weights(times, lengths, time, sigma_rel))
        nearest = min(np.linalg.norm(s - truth) for s in snapshots)
        assert np.linalg.norm(got - truth) < share * nearest


@pytest.mark.parametrize("time", [40, 33])
def test_the_foretold_error_is_that_of_the_profiles(time):
    """All inner products at once, against quadrature."""
    times, lengths, weights = [10, 40, 25, 40, 33], [0.05, 0.1, 0.2, 0.25, 0.08], np.array([0.3, -0.2, 1.1, 0.4, -0.6])
    width = 1e-4
    t = np.arange(width / 2, 40, width)
    for sigma_rel in (0.04, 0.1, 0.28):
        wanted = profile(sigma_rel, time, t)
        mixed = sum(w * profile(s, e, t) for w, s, e in zip(weights, lengths, times, strict=True))
        truth = np.sqrt(np.sum((mixed - wanted) ** 2) / np.sum(wanted**2))
        assert ema.posthoc_error(times, lengths, time, sigma_rel, weights) == pytest.approx(truth, rel=1e-4)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.07, 0.25])
def test_the_weights_are_the_best_that_sum_to_one(sigma_rel):
    times, lengths = np.repeat(np.arange(1, 9), 2), np.tile(TRACKED, 8)
    weights = ema.posthoc_weights(times, lengths, 7, sigma_rel)
    assert weights.sum() == pytest.approx(1, abs=1e-13)
    best = ema.posthoc_error(times, lengths, 7, sigma_rel)
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = rng.normal(size=16)
        other = weights + 1e-3 * (other - other.mean())
        assert ema.posthoc_error(times, lengths, 7, sigma_rel, other) > best


def test_a_stored_average_is_found():
    times, lengths = np.repeat([100, 200, 300], 2), np.tile(TRACKED, 3)
    for i in range(6):
        weights = ema.posthoc_weights(times, lengths, times[i], lengths[i])
        np.testing.assert_allclose(weights, np.eye(6)[i], atol=1e-12)
        assert ema.posthoc_error(times, lengths, times[i], lengths[i]) < 1e-7


def test_neither_order_nor_unit_of_time_matters():
    times, lengths = np.repeat(np.arange(1, 6) * 100, 2), np.tile(TRACKED, 5)
    weights = ema.posthoc_weights(times, lengths, 450, 0.07)
    order = np.random.default_rng(0).permutation(10)
    np.testing.assert_allclose(ema.posthoc_weights(times[order], lengths[order], 450, 0.07), weights[order], rtol=1e-9)
    np.testing.assert_allclose(ema.posthoc_weights(times * 512, lengths, 450 * 512, 0.07), weights, rtol=1e-9)


def test_equal_snapshots_share_their_weight():
    times, lengths = np.repeat(np.arange(1, 6), 2), np.tile(TRACKED, 5)
    weights = ema.posthoc_weights(times, lengths, 5, 0.07)
    thrice = ema.posthoc_weights([*times, 5, 5], [*lengths, 0.1, 0.1], 5, 0.07)
    np.testing.assert_allclose(thrice[-3:], weights[-1] / 3, rtol=1e-9)
    np.testing.assert_allclose(thrice[:9], weights[:9], rtol=1e-9, atol=1e-12)


def test_a_thousand_snapshots_are_stable():
    """Closer snapshots only help, and weights stay of order 1: nothing blows up the rounding of the snapshots."""
    errors = []
    for count in (4, 16, 64, 256, 1024):
        times, lengths = np.repeat(np.arange(1, count + 1) / count, 2), np.tile(TRACKED, count)
        weights = ema.posthoc_weights(times, lengths, 1, 0.15)
        assert weights.sum() == pytest.approx(1, abs=1e-12) and abs(weights).sum() < 3
        errors.append(ema.posthoc_error(times, lengths, 1, 0.15, weights))
    assert (np.diff(errors) < 0).all() and errors[-1] < 1e-5


def test_too_few_snapshots_are_foretold():
    assert ema.posthoc_error([100, 200], [0.05, 0.05], 200, 0.25) > 0.5
    assert ema.posthoc_error([100, 200], [0.05, 0.05], 400, 0.05) > 0.9  # no snapshot is near the wanted time
    assert ema.posthoc_error([1000], [0.1], 1000, 0.1) < 1e-7


# ---- combining ----


def test_combining_holds_one_tree_at_a_time_and_adds_in_float64():
    rng = np.random.default_rng(0)
    values, weights, alive = np.float32(rng.normal(size=(8, 5))), np.array([1e6, -1e6, 1, 2, 3, 4, 5, 6]), []
    values[1] = values[0]

    class Leaf(np.ndarray):
        pass

    def read():
        for value in values:
            leaf = value.copy().view(Leaf)
            alive.append(weakref.ref(leaf))
            assert (
                sum(ref() is not None for ref in alive) <= 2
            )  # the one given, and the one before until it is replaced
            yield {"a": {"w": leaf}}
            del leaf

    got = ema.combine(read(), weights)
    assert got["a"]["w"].dtype == np.float32
    np.testing.assert_allclose(got["a"]["w"], weights[2:] @ values[2:].astype(float), rtol=2e-7, atol=1e-9)


def test_one_pass_makes_several_sums():
    rng = np.random.default_rng(0)
    values, weights = np.float32(rng.normal(size=(4, 3))), rng.normal(size=(2, 4))
    got = ema.combine(({"w": value} for value in values), weights)
    for found, row in zip(got, weights, strict=True):
        np.testing.assert_array_equal(found["w"], ema.combine([{"w": value} for value in values], row)["w"])


def test_combining_keeps_structure_and_dtype():
    trees = [{"b": jnp.full(3, i, jnp.bfloat16), "w": (jnp.full((2, 2), i), None)} for i in (1.0, 2.0)]
    got = ema.combine(trees, [0.25, 0.75])
    assert jax.tree.structure(got) == jax.tree.structure(trees[0])
    assert got["b"].dtype == jnp.bfloat16 and (got["b"] == 1.75).all() and (got["w"][0] == 1.75).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ema.gamma_of(0.0), "sigma_rel = 0.0: must lie in"),
        (lambda: ema.gamma_of(0.31), "sigma_rel = 0.31: must lie in"),
        (lambda: ema.gamma_of(float("nan")), "sigma_rel = nan"),
        (lambda: ema.sigma_rel_of(-0.5), "gamma = -0.5: must be"),
        (lambda: ema.sigma_rel_of(float("inf")), "gamma = inf"),
        (lambda: ema.posthoc_weights([], [], 1, 0.1), "at least one snapshot"),
        (lambda: ema.posthoc_weights([1, 2], [0.1], 1, 0.1), r"shape \(2,\) and \(1,\)"),
        (lambda: ema.posthoc_weights([0, 2], [0.1, 0.1], 1, 0.1), "time = 0: must be positive"),
        (lambda: ema.posthoc_weights([1], [0.1], -1, 0.1), "time = -1: must be positive"),
        (lambda: ema.posthoc_error([1], [0.1], 1, 0.4), "sigma_rel = 0.4"),
        (lambda: ema.combine([], []), "no trees"),
        (lambda: ema.combine([{"w": np.ones(2)}], [0.5, 0.5]), "longer"),
    ],
)
def test_errors_name_what_is_wrong(make, words):
    with pytest.raises(ValueError, match=words):
        make()
