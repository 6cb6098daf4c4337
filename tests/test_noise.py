"""Noise belongs to a sample, for keys of every implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx

KEYS = {
    "threefry": lambda seed: jax.random.key(seed, impl="threefry2x32"),
    "rbg": lambda seed: jax.random.key(seed, impl="rbg"),
    "unsafe_rbg": lambda seed: jax.random.key(seed, impl="unsafe_rbg"),
    "raw threefry": lambda seed: jax.random.PRNGKey(seed, impl="threefry2x32"),
    "raw rbg": lambda seed: jax.random.PRNGKey(seed, impl="rbg"),
    "raw unsafe_rbg": lambda seed: jax.random.PRNGKey(seed, impl="unsafe_rbg"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_noise_belongs_to_the_sample_not_to_the_batch(kind):
    key = KEYS[kind](0)
    whole = dx.noise.normal(key, jnp.arange(9), (3, 2))
    parts = [dx.noise.normal(key, jnp.arange(i, i + 3), (3, 2)) for i in range(0, 9, 3)]
    np.testing.assert_array_equal(whole, jnp.concatenate(parts))
    assert len(np.unique(np.asarray(whole))) == whole.size
    assert not (dx.noise.normal(KEYS[kind](1), jnp.arange(9), (3, 2)) == whole).any()


@pytest.mark.parametrize("kind", KEYS)
def test_a_batch_of_keys_is_each_of_them(kind):
    """`jax.vmap` over keys of rbg draws from the first alone; splitting them under it is wrong for unsafe_rbg."""
    keys = jnp.stack([KEYS[kind](seed) for seed in (3, 4)])

    def draws(key):
        first, second = jax.random.split(dx.noise.threefry(key))
        return dx.noise.normal(first, jnp.arange(2), (2,)), dx.draws.stratified(second, 3), dx.draws.iid(key, 3)

    together, alone = jax.vmap(draws)(keys), [draws(key) for key in keys]
    for batch, first, second in zip(together, *alone, strict=True):
        np.testing.assert_array_equal(batch, np.stack([first, second]))
        assert not (first == second).any()


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_a_process_that_asks_for_another_implementation(implementation):
    with jax.default_prng_impl(implementation):
        for key in (jax.random.key(5), jax.random.PRNGKey(5)):
            whole = dx.noise.normal(key, jnp.arange(4), (8,))
            np.testing.assert_array_equal(dx.noise.normal(key, jnp.arange(2, 4), (8,)), whole[2:])
            assert len(np.unique(np.asarray(whole))) == whole.size


def test_of_a_threefry_key_a_sample_draws_from_fold_in():
    for key in (jax.random.key(7), jax.random.PRNGKey(7)):
        by_hand = [jax.random.normal(jax.random.fold_in(jax.random.key(7), i), (4,), np.float32) for i in (0, 5)]
        np.testing.assert_array_equal(dx.noise.normal(key, jnp.array([0, 5]), (4,)), np.stack(by_hand))


@pytest.mark.parametrize("kind", KEYS)
def test_noise_is_standard_normal(kind):
    n = np.asarray(dx.noise.normal(KEYS[kind](1), jnp.arange(1000), (50,)))
    assert abs(n.mean()) < 0.02 and abs(n.std() - 1) < 0.02
    assert abs(np.corrcoef(n[:-1].ravel(), n[1:].ravel())[0, 1]) < 0.02  # neighbours are independent


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"key": None}, "key = None: must be a JAX key"),
        ({"key": 0}, "key = 0: must be a JAX key"),
        ({"key": "zzz"}, "key = 'zzz': must be a JAX key"),
        ({"key": np.zeros(3, np.uint32)}, "key has shape (3,): must be a JAX key"),
        ({"key": jax.random.split(jax.random.key(0))}, "key holds 2 keys: must be one"),
        ({"index": None}, "index = None: must be [batch] integers"),
        ({"index": 3}, "index = 3: must be [batch] integers"),
        ({"index": [0.5]}, "index = [0.5]: must be [batch] integers"),
        ({"index": [0, 2**40]}, "must lie in [-2147483648, 4294967295]"),  # 32 bits of it would be another's
        ({"shape": 3}, "shape = 3: must be a tuple"),
        ({"shape": (2.5,)}, "shape = 2.5: must be an integer"),
        ({"dtype": int}, "must be one of floating-point numbers"),
        ({"dtype": None}, "dtype = None: must be one of floating-point numbers"),
    ],
)
def test_bad_input_is_named(arguments, words):
    good = {"key": jax.random.key(0), "index": [0, 1], "shape": (2,), "dtype": jnp.float32}
    with pytest.raises(ValueError) as error:
        dx.noise.normal(**(good | arguments))
    assert words in str(error.value)
