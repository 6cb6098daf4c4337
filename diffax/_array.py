"""The array idioms that every module needs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

__all__ = ["FAR", "Scalar", "alpha", "at_least_float32", "clip", "common", "concrete", "held", "per_sample"]

Scalar = float | Array
"""A parameter of a constructor: a number, or an array (which may be traced: learned) that broadcasts with the
argument."""

FAR = 80.0
"""A logSNR so far out that no float, of 32 bits or of 64, tells x_0 + sigma n from its limit; exp(80) is a float32."""


def concrete(*values: Any) -> bool:
    """True when no value, nor any leaf of one, is being traced by JAX."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def at_least_float32(x: ArrayLike) -> Array:
    """`x` as an array of float32 or better: noise levels and coefficients are never held in bfloat16.

    An integer is what a Python number is to JAX: float32, or float64 where JAX has 64 bits.
    """
    if not isinstance(x, Array) and concrete(x):
        x = np.asarray(x)
        x = x.astype(np.float64) if x.dtype.kind in "biu" else x  # before JAX wraps an integer that is too large for it
    x = jnp.asarray(x)
    if x.dtype in (jnp.float32, jnp.float64, jnp.complex64, jnp.complex128):
        return x
    whole = jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == bool
    return x.astype(jnp.result_type(float) if whole else jnp.float32)  # promote_types refuses under strict promotion


def clip(x: Array, low: ArrayLike, high: ArrayLike) -> Array:
    """x held in [low, high], with the slope of the inside at the ends themselves (jnp.clip halves it there)."""
    return jnp.where(x < low, low, jnp.where(x > high, high, x))


def common(*arrays: Array) -> np.dtype:
    """The real dtype, float32 or better, in which a sum of the arrays is taken; coefficients are cast to it."""
    return np.finfo(np.result_type(*(at_least_float32(a).dtype for a in arrays))).dtype


def held(logsnr: Array) -> Array:
    """logSNR held in [-80, 80]: at its limits, and near them, nothing that is made of it is infinite."""
    return clip(logsnr, -FAR, FAR)


def alpha(logsnr: Array) -> Array:
    """sqrt(sigmoid(logsnr)), the signal's share of a variance-preserving x_t; alpha(-logsnr) is sigma_t, the noise's.

    The square root of a sigmoid is 0 in float32 from logSNR -88 on. This is right to -174, and at -inf and inf.
    """
    return jnp.exp(jnp.minimum(logsnr, 0) / 2) / jnp.sqrt(1 + jnp.exp(-jnp.abs(logsnr)))


def per_sample(coefficient: Array, x: Array) -> Array:
    """[] or [batch] -> a shape that multiplies x [batch, ...] sample by sample."""
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))
