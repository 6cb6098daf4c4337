"""Random numbers that belong to a sample, not to a batch.

Sample number i draws from fold_in(key, i) and from nothing else, so what it gets depends neither on the size of the
batch it sits in, nor on its neighbours, nor on the number of devices.

This holds for keys of every implementation, typed or raw. JAX draws under `jax.vmap` from the first of a batch of rbg
keys alone, so a key that is not of threefry is turned into one first.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from diffax import _check

__all__ = ["normal", "sample_keys", "threefry"]


def threefry(key: Array) -> Array:
    """The key as a typed one of JAX's threefry: a batch of such keys may be drawn from under `jax.vmap`.

    A key of threefry stays as it is. The words of any other are folded into a threefry key, one by one, which is
    arithmetic alone: it means the same under `jax.vmap`. Raises ValueError unless `key` is one key.
    """
    key = _check.key("key", key)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if str(jax.random.key_impl(key)) == _THREEFRY:
            return key
        words = jax.random.key_data(key).reshape(-1)
    else:
        words = jnp.asarray(key)
        if words.shape == (2,):
            return jax.random.wrap_key_data(words, impl=_THREEFRY)
        if words.shape != (4,):
            raise ValueError(f"key has shape {words.shape}: must be a JAX key such as jax.random.key(0)")
    new = jax.random.key(0, impl=_THREEFRY)
    for word in words:
        new = jax.random.fold_in(new, word)
    return new


_THREEFRY = "threefry2x32"


def sample_keys(key: Array, index: Array) -> Array:
    """One key a sample: [batch] keys, of threefry, from one key and the samples' numbers, index [batch] int.

    Raises ValueError unless key is one key, and index holds integers of 32 bits.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(threefry(key), _numbers(index))


def normal(key: Array, index: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Standard normal noise [batch, *shape] for the samples numbered index [batch].

    Raises ValueError for a key, numbers or a shape that are not so, or a dtype that is not of floating-point numbers.
    """
    keys = sample_keys(key, index)
    if not isinstance(shape, tuple | list):
        raise ValueError(f"shape = {_check.shown(shape)}: must be a tuple of integers, the axes of one sample")
    for length in shape:
        _check.whole("shape", length, 0)
    try:
        inexact = jnp.issubdtype(np.dtype(dtype), jnp.inexact)
    except TypeError:
        inexact = False
    if dtype is None or not inexact:
        raise ValueError(f"dtype = {_check.shown(dtype)}: must be one of floating-point numbers, such as jnp.float32")
    return jax.vmap(lambda k: jax.random.normal(k, tuple(shape), dtype))(keys)


def _numbers(index: Array) -> Array:
    """The samples' numbers [batch], as integers that no two of them share unless they are equal."""
    if not isinstance(index, Array | np.ndarray):
        _check.real("index", index, "be [batch] integers")
    array = index if isinstance(index, Array) else np.asarray(index)
    if array.ndim != 1 or not array.size or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"index = {_check.shown(index)}: must be [batch] integers")
    if _check.concrete(array) and array.dtype.itemsize > 4:
        _check.between("index", array, -(2**31), 2**32 - 1)
    return jnp.asarray(array)
