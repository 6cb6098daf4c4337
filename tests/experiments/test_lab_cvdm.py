"""The laboratory's CVDM: honest pairs, one network for all schedules, draws of an exact posterior, the command."""

import itertools
import json
import statistics
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx
from experiments.lab import microscopy, restoration

pytest.importorskip("skimage")
RANDOM = np.random.default_rng(0)


# ---- pairs ----------------------------------------------------------------------------------------------------------


def plain(bins):
    """Left all values are below 0.5 and right above; measured without blur or noise."""
    truth = np.float32(np.where(np.arange(80) < 48, 0, 0.5) + RANDOM.uniform(0, 0.5, size=(64, 80)))
    measure = lambda region: np.asarray(dx.optics.binned(region, bins))
    return microscopy.Task(truth, (44, 52), measure, bins, 1e7, 0.0, lambda y: 2 * y - 1, 0.1, 4)


@pytest.mark.parametrize("bins", [1, 2])
def test_pairs_show_one_place_and_its_regions_are_apart(bins):
    task = plain(bins)
    train, test = microscopy.pairs(task, size=16, train=64, test=20)
    for pairs, count in ((train, 64), (test, 20)):
        assert pairs.truth.shape == pairs.measured.shape == (count, 16, 16, 1)
        coarse = pairs.truth.reshape(count, 16 // bins, bins, 16 // bins, bins, 1).mean((2, 4))
        np.testing.assert_allclose(pairs.measured[:, ::bins, ::bins], coarse, atol=5e-3)
    assert train.truth.max() < 0 <= test.truth.min()
    assert len(np.unique(test.truth[:, 0, 0, 0])) == 20
    again, _ = microscopy.pairs(task, size=16, train=64, test=20)
    np.testing.assert_array_equal(again.measured, train.measured)


def test_training_patches_are_turned_in_all_eight_ways():
    ramp = np.float32(np.indices((64, 80)).sum(0) / 200 + np.arange(80) / 400)  # no orientation is like another
    train, _ = microscopy.pairs(plain(1)._replace(truth=ramp), size=16, train=64, test=1)
    step = lambda axis: np.round(np.diff(train.truth, axis=axis)[:, 0, 0, 0], 4)
    assert len(set(zip(step(1), step(2), strict=True))) == 8


def test_windows_of_contrast_are_those_of_the_standard_deviation():
    image = RANDOM.uniform(size=(40, 44)) * np.linspace(0, 1, 44)
    expected = [(r, c) for r in range(0, 25, 4) for c in range(0, 29, 4) if image[r : r + 16, c : c + 16].std() >= 0.15]
    np.testing.assert_array_equal(microscopy._windows(image, 16, 4, 0.15), expected)


def test_the_microscope_images_are_measured_as_said():
    (_, blurred), (_, defocused) = (microscopy.pairs(make(), train=4) for make in microscopy.TASKS.values())
    assert np.corrcoef(blurred.truth.ravel(), blurred.measured.ravel())[0, 1] > 0.8
    assert (blurred.measured[:, ::2, ::2] == blurred.measured[:, 1::2, 1::2]).all()  # one pixel of the camera for four
    # transport of intensity: where the phase bulges, light gathers behind and thins out before the focus
    bulge = np.diff(defocused.truth, 2, axis=1)[:, :, 1:-1] + np.diff(defocused.truth, 2, axis=2)[:, 1:-1]
    brighter = (defocused.measured[..., :1] - defocused.measured[..., 1:])[:, 1:-1, 1:-1]
    assert np.corrcoef(bulge.ravel(), brighter.ravel())[0, 1] < -0.3
    for pairs in (blurred, defocused):
        assert len(pairs.truth) == 48 and np.abs(pairs.truth).max() <= 1 and np.abs(pairs.measured).max() < 3


def test_bad_sizes_are_named():
    for given, words in (
        ({"size": 15}, "size = 15: must be even"),
        ({"test": 10**6}, "test = 1000000: the test region has"),
        ({"size": 40}, "size = 40: the test region has no window of that size"),
        ({"size": 50}, "size = 50: the training region has no window of that size"),
        ({"train": 0}, "train = 0: must be an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=words):
            microscopy.pairs(plain(1), **{"size": 16, "test": 4, "train": 4} | given)


# ---- models ---------------------------------------------------------------------------------------------------------


BATCH = {
    "truth": jnp.float32(RANDOM.uniform(-1, 1, size=(4, 16, 16, 1))),
    "measured": jnp.float32(RANDOM.uniform(-1, 1, size=(4, 16, 16, 2))),
}


def small(variant):
    return restoration.model(variant, (16, 16, 1), 2, channels=4)


def test_no_two_schedules_of_the_sweep_are_the_same():
    u = jnp.linspace(0, 1, 33)
    levels = [np.asarray(schedule().quantile(u, 1 - u)) for schedule in restoration.FIXED.values()]
    assert min(np.abs(one - other).max() for one, other in itertools.combinations(levels, 2)) > 1


@pytest.mark.parametrize("variant", restoration.LEARNED)
def test_the_loss_trains_the_network_and_the_schedule(variant):
    model = small(variant)
    params = model.init(jax.random.key(0))
    loss = lambda params: model.loss(params, BATCH, jax.random.key(1), jnp.zeros((), int))[0]
    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    assert set(params) == {"network", "monotone", "rate"}
    for name, part in grads.items():
        assert any(np.abs(g).max() > 0 for g in jax.tree.leaves(part)), name
    logsnr = restoration.levels(model, params, BATCH["measured"], 5)
    shape = {"learned": (4, 1, 1, 1), "learned per pixel": (4, 16, 16, 1)}[variant]
    assert logsnr.shape == (5, *shape) and (np.diff(logsnr, axis=0) > 0).all()
    np.testing.assert_allclose(logsnr[0], -10, atol=0.1)  # all of them begin in the same noise
    if variant == "learned per pixel":
        turned = jax.tree.map(lambda p: p + 0.1, params["rate"])
        logsnr = restoration.levels(model, params | {"rate": turned}, BATCH["measured"], 5)
        assert logsnr[0].std() > 0.01  # the schedule is the pixel's own


def test_a_level_for_all_and_the_same_for_each_pixel_are_one_to_the_network():
    model = small("cosine")
    params = jax.tree.map(lambda p: p + 0.05, model.init(jax.random.key(0)))["network"]
    c_noise = jnp.linspace(-1, 1, 4)
    given = model.apply(params, BATCH["truth"], c_noise, BATCH["measured"])
    each = jnp.broadcast_to(c_noise[:, None, None, None], (4, 16, 16, 1))
    np.testing.assert_allclose(model.apply(params, BATCH["truth"], each, BATCH["measured"]), given, atol=1e-6)
    uneven = each.at[:, :8].add(0.2).at[:, 8:].add(-0.2)  # of the same mean
    assert np.abs(model.apply(params, BATCH["truth"], uneven, BATCH["measured"]) - given).max() > 1e-3


@pytest.mark.parametrize("per_pixel", [False, True])
def test_draws_of_an_exact_model_are_those_of_its_posterior(per_pixel):
    """truth = measured + 0.3 Normal, of which E[v | x_t] is known: draws must spread by 0.3, and scores find it so."""

    def exact(params, x_t, c_noise, measured):
        logsnr = (-8 * c_noise).reshape(c_noise.shape + (1,) * (x_t.ndim - c_noise.ndim))
        alpha, sigma_t = jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))
        x, sigma = x_t / alpha, sigma_t / alpha
        x0 = (0.09 * x + sigma**2 * measured) / (0.09 + sigma**2)
        return alpha * (x - x0) / sigma - sigma_t * x0

    rate = jnp.linspace(8.0, 12.0, 256).reshape(1, 16, 16, 1)
    monotone = dx.schedules.learned_init(jax.random.key(0))
    learned = lambda params, measured: dx.schedules.per_pixel(monotone, rate.repeat(len(measured), 0))
    fixed = dx.schedules.truncate(dx.schedules.cosine(), -10, 10)
    schedule = learned if per_pixel else (lambda params, measured: fixed)
    model = small("cosine")._replace(apply=exact, schedule=schedule)
    measured = np.float32(RANDOM.uniform(-1, 1, size=(24, 16, 16, 1)))
    truth = measured + 0.3 * RANDOM.normal(size=measured.shape)
    draw = restoration.posterior(model, 80)
    samples = np.stack([draw({"network": None}, measured, key) for key in jax.random.split(jax.random.key(0), 9)])
    assert (samples - measured).mean() == pytest.approx(0, abs=0.01)
    assert (samples - measured).std() == pytest.approx(0.3, rel=0.03)
    scores = restoration.scores(samples, truth)
    assert scores["spread_skill"] == pytest.approx(1, abs=0.05) and scores["coverage_60"] == pytest.approx(
        0.6, abs=0.03
    )
    # the mean of 9 draws errs by 0.3 sqrt(1 + 1/9), a single one by 0.3 sqrt(2)
    assert scores["psnr_mean"] == pytest.approx(10 * np.log10(4 / (0.09 * 10 / 9)), abs=0.3)
    assert scores["psnr_single"] == pytest.approx(10 * np.log10(4 / (0.09 * 2)), abs=0.3)


def test_the_pixels_go_down_the_grid_in_their_mean():
    rate = jnp.float32(RANDOM.uniform(6, 14, size=(3, 4, 4, 1)))
    monotone = dx.schedules.learned_init(jax.random.key(0))
    measured = jnp.zeros((3, 4, 4, 1))
    plain = -2 * np.log(dx.grids.plain(12)[:-1])
    for name, schedule in (
        ("fixed", dx.schedules.truncate(dx.schedules.cosine(), -10, 10)),
        ("per pixel", dx.schedules.per_pixel(monotone, rate)),
    ):
        model = small("cosine")._replace(schedule=lambda params, measured, schedule=schedule: schedule)
        found = np.asarray(restoration.path(model, None, measured, 12))
        ends = np.asarray(restoration.levels(model, None, measured, 2))
        mean = found.mean((2, 3, 4)) if name == "per pixel" else found[:, None]
        first = ends[0].mean((1, 2, 3)) if name == "per pixel" else ends[:1]
        wanted = plain[-1] + (first - plain[-1]) * ((plain - plain[-1]) / (plain[0] - plain[-1]))[:, None]
        np.testing.assert_allclose(mean, wanted, atol=0.03)
        if name == "per pixel":
            assert found[5].std(axis=(1, 2, 3)).min() > 0.02


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="variant = 'nope': must be one of cosine"):
        small("nope")


# ---- the command ----------------------------------------------------------------------------------------------------


def run(*arguments):
    command = [sys.executable, "-m", "experiments.lab.cvdm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_command_goes_through_and_goes_on(tmp_path):
    tiny = [f"--out={tmp_path}", "--seeds=2", "--steps=2", "--batch_size=8", "--channels=4", "--size=16", "--test=3"]
    tiny += ["--draws=2", "--sampling_steps=2", "--schedules=cosine,learned"]
    done = run(*tiny)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "cvdm_superresolution.json").read_text())
    cosine, learned = (found["scores"][name]["ssim_mean"]["seeds"] for name in ("cosine", "learned"))
    gains = [b - a for a, b in zip(cosine, learned, strict=True)]
    claim = found["claims"]["ssim_mean"]
    assert claim["best_fixed"] == "cosine"
    assert claim["learned"]["mean"] == pytest.approx(statistics.mean(gains))
    assert claim["learned"]["standard_error"] == pytest.approx(abs(gains[0] - gains[1]) / 2)
    assert claim["learned"]["not_worse"] == (statistics.mean(gains) >= -abs(gains[0] - gains[1]) / 2)
    assert set(found["environment"]) and found["settings"]["steps"] == 2 and found["floor"]["psnr_measured"] > 10
    assert (tmp_path / "cvdm_superresolution.png").stat().st_size > 10_000
    kept = tmp_path / "cvdm_superresolution" / "learned" / "1.json"
    written = kept.stat().st_mtime_ns
    again = run(*tiny)
    assert again.returncode == 0 and kept.stat().st_mtime_ns == written
    assert json.loads((tmp_path / "cvdm_superresolution.json").read_text())["scores"] == found["scores"]
    networks = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("2/meta/*")}  # of checkpoints of step 2
    more = run(*tiny, "--draws=3")  # is scored anew, not trained
    assert more.returncode == 0 and kept.stat().st_mtime_ns != written
    assert len(networks) >= 4 and {path: path.stat().st_mtime_ns for path in tmp_path.rglob("2/meta/*")} == networks


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--schedules=cosine,nope"], "--schedules = nope: must be some of cosine"),
        (["--steps=0"], "--steps = 0: must be at least 1"),
        (["--seeds=0"], "--seeds = 0: must be at least 1"),
        (["--size=8"], "--size = 8: must be at least 11"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, words, tmp_path):
    done = run(f"--out={tmp_path / 'w'}", *arguments)
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()
