"""Draws: each number uniform by itself, in every place of the batch; together an even cover."""

import jax
import numpy as np
import pytest

import diffax as dx

DRAWS = {name: getattr(dx.draws, name) for name in dx.draws.__all__}


@pytest.mark.parametrize("name", DRAWS)
def test_every_place_in_the_batch_is_uniform(name):
    u = np.asarray(jax.vmap(lambda key: DRAWS[name](key, 4))(jax.random.split(jax.random.key(0), 4000)))
    assert u.shape == (4000, 4) and (u > 0).all() and (u < 1).all()
    np.testing.assert_allclose(u.mean(0), 0.5, atol=0.02)
    np.testing.assert_allclose(u.var(0), 1 / 12, atol=0.005)
    for place in range(4):
        np.testing.assert_allclose(np.histogram(u[:, place], 8, (0, 1))[0] / 4000, 1 / 8, atol=0.025)


@pytest.mark.parametrize("name", ["stratified", "low_discrepancy"])
def test_every_stratum_holds_one(name):
    u = np.sort(np.asarray(DRAWS[name](jax.random.key(3), 256)))
    assert (np.floor(u * 256) == np.arange(256)).all()
    gaps = np.diff(u) * 256
    assert gaps.std() > 0.3 if name == "stratified" else gaps.std() < 1e-2  # independent within strata, or one shift


@pytest.mark.parametrize("n", [6, 7])
def test_antithetic_pairs_sum_to_one(n):
    u = np.asarray(dx.draws.antithetic(jax.random.key(1), n))
    assert u.shape == (n,)
    np.testing.assert_allclose(u[0:6:2] + u[1:6:2], 1, atol=1e-6)


def test_an_even_cover_lowers_the_variance_of_an_average():
    keys = jax.random.split(jax.random.key(0), 500)
    spread = {
        name: np.std(np.asarray(jax.vmap(lambda k, d=draw: np.pi * (d(k, 32) ** 2).mean())(keys)))
        for name, draw in DRAWS.items()
    }
    assert spread["stratified"] < spread["iid"] / 10 and spread["low_discrepancy"] < spread["iid"] / 4
    assert spread["antithetic"] < spread["iid"] / 2


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((jax.random.key(0), 0), "n = 0: must be an integer from 1"),
        ((jax.random.key(0), 2.0), "n = 2.0: must be an integer from 1"),
        ((jax.random.key(0), 10**12), "n = 1000000000000: must be an integer from 1 to 16777216"),
        ((None, 3), "key = None: must be a JAX key"),
        ((0, 3), "key = 0: must be a JAX key"),
    ],
)
def test_bad_input_is_named(name, arguments, words):
    with pytest.raises(ValueError) as error:
        DRAWS[name](*arguments)
    assert words in str(error.value)
