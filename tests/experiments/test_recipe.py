"""Curricula and adaptive draws in a real run, and that what is asked for stays what it was."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import diffax as dx
from diffax import augment, data
from diffax.models.network import Network
from diffax.training import sharding
from experiments import recipe as recipes
from experiments.generate import generate
from experiments.recipe import loss, recipe, sampler
from experiments.train import train
from experiments.workdir import load_ema


def batch_of(config):
    dataset = data.load("digits", "train", config.data.dir)
    return dataset, dataset.read(np.arange(64))


def test_a_curriculum_moves_with_the_step(small):
    config = small(schedule="anneal(laplace(mean=4), laplace(mean=-4), over=100)")
    dataset, batch = batch_of(config)
    rec = recipe(config, dataset)
    params = jax.jit(rec.network.init)(jax.random.key(0))
    measure = jax.jit(loss(rec, train=False))
    means = [float(measure(params, batch, jax.random.key(0), step)[1].logsnr.mean()) for step in (0, 50, 100)]
    np.testing.assert_allclose(means, [4, 0, -4], atol=0.1)


def test_adaptive_draws_leave_the_objective_alone(small):
    config = small(**{"adaptive.bins": 16})
    dataset, batch = batch_of(config)
    rec = recipe(config, dataset)
    params = jax.jit(rec.network.init)(jax.random.key(0))
    uneven = dx.adaptive.Adaptive(jnp.linspace(0.1, 20, 16) ** 2, jnp.ones(16))
    function = loss(rec, train=False)

    @jax.jit
    def mean(sampler, keys):
        return jax.vmap(lambda key: function(params, batch, key, 0, sampler)[0])(keys)

    keys = jax.random.split(jax.random.key(1), 200)
    plain, drawn = mean(None, keys), mean(uneven, keys)
    assert float(drawn.mean()) == pytest.approx(float(plain.mean()), abs=4 * float(drawn.std()) / 200**0.5)


def test_the_adaptive_sampler_is_saved_and_resumed(small, tmp_path):
    adaptive = {"adaptive.bins": 8}
    whole = train(small(**adaptive), tmp_path / "whole")
    train(small(**adaptive, **{"train.steps": 4}), tmp_path / "parts")
    resumed = train(small(**adaptive), tmp_path / "parts")
    assert resumed["resumed_from_step"] == 4
    assert resumed["sha256_params"] == whole["sha256_params"]
    assert whole["sha256_params"] != train(small(), tmp_path / "plain")["sha256_params"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"adaptive.bins": 1}, "config.adaptive.bins = 1"),
        ({"adaptive.floor": 0.0}, "config.adaptive.floor = 0.0"),
        ({"schedule": "anneal(edm(), flow(), over=0)"}, "over = 0"),
        ({"seed": -1}, "config.seed = -1: must lie in [0, 4294967295]"),
        ({"model.multipliers": (1, 2.5)}, "config.model.multipliers = (1, 2.5)"),
        ({"train.warmup_steps": 2**31}, "config.train.warmup_steps"),
        ({"sample.guidance": float("nan")}, "config.sample.guidance = nan"),
        ({"schedule": "truncate(3, 1, 2)"}, "config.schedule = 'truncate(3, 1, 2)'"),
    ],
)
def test_bad_fields_are_named(small, tmp_path, overrides, words):
    with pytest.raises(ValueError) as error:
        train(small(**overrides), tmp_path / "run")
    assert words in str(error.value)
    assert not (tmp_path / "run").exists()


ARCHITECTURES = {
    "dit": dict(patch=2, width=32, depth=1, heads=2),
    "uvit": dict(channels=8, multipliers=(1,), blocks=1, width=16, depth=1, heads=2),
    "edm2": dict(channels=16, multipliers=(1, 2), blocks=1, attention=(), head_channels=16),
}


def with_model(config, architecture, **options):
    keep = {name: config.model[name] for name in ("label_dropout", "dtype")}
    with config.unlocked():
        config.model = ml_collections.ConfigDict({"architecture": architecture} | keep | options)
    return config


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_trains_from_a_config(small, tmp_path, architecture):
    config = with_model(small(), architecture, **ARCHITECTURES[architecture])
    assert np.isfinite(train(config, tmp_path)["losses"]["loss"])
    params = load_ema(tmp_path, config, sharding.data_mesh())[1]
    lengths = [
        float(jnp.sqrt(jnp.mean(jnp.square(p), axis=tuple(range(p.ndim - 1)))).mean())
        for path, p in jax.tree_util.tree_leaves_with_path(params)
        if path[-1].key == "weight"
    ]
    assert bool(lengths) == (architecture == "edm2")
    np.testing.assert_allclose(lengths, 1, atol=0.02)  # of an average of weights of length 1


def test_samples_that_are_not_finite_are_no_black_pictures(small):
    rec = recipe(config := small(), batch_of(config)[0])
    apply = lambda params, x, c_noise, cond: jnp.where((cond == 3)[:, None, None, None], jnp.nan, params * x)
    draw = sampler(rec._replace(network=Network(rec.network.init, apply)), **config.sample)
    among = lambda *labels: generate(
        draw, 0.3, jax.random.key(0), np.array(labels), sharding.data_mesh(), batch_size=8, progress=False
    )
    assert among(0, 1, 2, 4, 5).shape == (5, *rec.shape)
    with pytest.raises(FloatingPointError, match="2 of 8 samples hold NaN or infinity, such as sample 5"):
        among(0, 0, 0, 0, 1, 3, 3, 2)


def test_a_run_goes_on_without_a_grid_of_samples_that_are_not_finite(small, tmp_path, capfd, monkeypatch):
    black = lambda params, key, index, label: (jnp.zeros((len(index), 8, 8, 1), jnp.uint8), index < 0)
    monkeypatch.setattr(recipes, "sampler", lambda *recipe, **how: black)
    train(small(**{"train.steps": 2}), tmp_path)
    assert "no grid of samples at step 2: " in capfd.readouterr().out
    assert not list((tmp_path / "samples").glob("step_*.png")) and (tmp_path / "summary.json").exists()


def test_a_preset_is_an_architecture(small):
    config = with_model(small(), "mnist", channels=8)
    dataset, _ = batch_of(config)
    with pytest.raises(ValueError, match=r"config.model.attention = \(7,\): \[7\] is no level's height"):
        recipe(config, dataset)
    config = with_model(small(), "mnist", channels=8, multipliers=(1, 2), attention=(4,))
    params = jax.eval_shape(recipe(config, dataset).network.init, jax.random.key(0))
    assert params["conv_in"]["kernel"].shape == (3, 3, 1, 8)


def test_what_an_architecture_does_not_know_is_named(small):
    dataset, _ = batch_of(small())
    with pytest.raises(ValueError, match=r"config.model.architecture = 'resnet': must be unet, dit, uvit, edm2, or"):
        recipe(with_model(small(), "resnet"), dataset)
    with pytest.raises(ValueError, match=r"config.model.patch = 2: unet has no such option; it has channels, "):
        recipe(with_model(small(), "unet", patch=2), dataset)


def test_augmented_training_tells_the_network_and_sampling_says_nothing(small, data_dir):
    config = small(**{"model.augment": 1.0})
    dataset = data.load("digits", "train", data_dir)
    rec = recipe(config, dataset)
    params = jax.tree.map(lambda p: p + 0.05, rec.network.init(jax.random.key(0)))
    batch = dataset.read(np.arange(4))
    value = lambda train, params: loss(rec, train=train)(params, batch, jax.random.key(1), jnp.zeros((), int))[0]

    def told(grads):
        leaves = jax.tree_util.tree_flatten_with_path(grads)[0]
        (kernel,) = [leaf for path, leaf in leaves if "augment" in jax.tree_util.keystr(path)]
        return np.abs(kernel).max()

    assert told(jax.jit(jax.grad(lambda p: value(True, p)))(params)) > 0
    assert told(jax.jit(jax.grad(lambda p: value(False, p)))(params)) == 0  # held-out images stay as they are
    x, level, label = jnp.ones((2, 8, 8, 1)), jnp.zeros(2), jnp.array([1, 2])
    plain = rec.network.apply(params, x, level, label)
    zeros = {"label": label, "augment": jnp.zeros((2, augment.TOLD))}
    np.testing.assert_array_equal(plain, rec.network.apply(params, x, level, zeros))
    ones = zeros | {"augment": jnp.ones((2, augment.TOLD))}
    assert np.abs(plain - rec.network.apply(params, x, level, ones)).max() > 1e-3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model.augment": 1.5}, r"config.model.augment = 1.5: must lie in \[0, 1\]"),
        ({"model.augment": 0.1, "model.architecture": "dit"}, "config.model."),
    ],
)
def test_bad_augmentation_is_named(small, data_dir, fields, words):
    with pytest.raises(ValueError, match=words):
        recipe(small(**fields), data.load("digits", "train", data_dir))
