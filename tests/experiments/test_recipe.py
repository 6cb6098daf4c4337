"""Curricula and adaptive draws in a real run, and that what is asked for stays what it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx
from diffax import data
from experiments.recipe import loss, recipe
from experiments.train import train


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
