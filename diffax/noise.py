"""Random numbers that belong to a sample, not to a batch.

Sample number i draws from fold_in(key, i) and from nothing else, so what it gets depends neither on the size of the
batch it sits in, nor on its neighbours, nor on the number of devices.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

__all__ = ["normal", "sample_keys"]


def sample_keys(key: Array, index: Array) -> Array:
    """One key a sample: [batch] keys from one key and the samples' numbers, index [batch] int."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def normal(key: Array, index: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Standard normal noise [batch, *shape] for the samples numbered index [batch]."""
    return jax.vmap(lambda k: jax.random.normal(k, shape, dtype))(sample_keys(key, index))
