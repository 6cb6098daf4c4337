"""The array idioms that every module needs."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

__all__ = ["Scalar", "at_least_float32", "clip", "per_sample"]

Scalar = float | Array
"""A parameter of a constructor: a number, or an array (which may be traced: learned) that broadcasts with the
argument."""


def at_least_float32(x: ArrayLike) -> Array:
    """`x` as an array of float32 or better: noise levels and coefficients are never held in bfloat16."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def clip(x: Array, low: ArrayLike, high: ArrayLike) -> Array:
    """x held in [low, high], with the slope of the inside at the ends themselves (jnp.clip halves it there)."""
    return jnp.where(x < low, low, jnp.where(x > high, high, x))


def per_sample(coefficient: Array, x: Array) -> Array:
    """[] or [batch] -> a shape that multiplies x [batch, ...] sample by sample."""
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))
