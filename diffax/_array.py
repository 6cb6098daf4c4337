"""The two array idioms that every module needs."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

__all__ = ["Scalar", "at_least_float32", "per_sample"]

Scalar = float | Array
"""A parameter of a constructor: a number, or an array where it is learned or differs by sample or pixel."""


def at_least_float32(x: ArrayLike) -> Array:
    """`x` as an array of float32 or better: noise levels and coefficients are never held in bfloat16."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def per_sample(coefficient: Array, x: Array) -> Array:
    """[] or [batch] -> a shape that multiplies x [batch, ...] sample by sample."""
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))
