"""The array idioms that every module needs."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffax import _check

__all__ = [
    "FAR",
    "Scalar",
    "aligned",
    "alpha",
    "at_least_float32",
    "clip",
    "common",
    "finite",
    "held",
    "known",
    "level",
    "per_sample",
    "points",
]

Scalar = float | Array
"""A parameter of a constructor: a number, or an array (which may be traced: learned) that broadcasts with the
argument."""

FAR = 80.0
"""A logSNR so far out that no float, of 32 bits or of 64, tells x_0 + sigma n from its limit; exp(80) is a float32."""


def at_least_float32(x: ArrayLike) -> Array:
    """`x` as an array of float32 or better: noise levels and coefficients are never held in bfloat16."""
    if not isinstance(x, Array) and _check.concrete(x):
        x = np.asarray(x)
        x = x.astype(np.float32) if x.dtype.kind in "biu" else x  # before JAX wraps an integer that is too large for it
    x = jnp.asarray(x)
    better = x.dtype in (jnp.float32, jnp.float64, jnp.complex64, jnp.complex128)
    return x.astype(x.dtype if better else jnp.float32)  # not by promote_types, which strict promotion refuses


def clip(x: Array, low: ArrayLike, high: ArrayLike) -> Array:
    """x held in [low, high], with the slope of the inside at the ends themselves (jnp.clip halves it there)."""
    return jnp.where(x < low, low, jnp.where(x > high, high, x))


def common(*arrays: Array) -> np.dtype:
    """The real dtype, float32 or better, in which a sum of the arrays is taken; coefficients are cast to it."""
    return np.finfo(np.result_type(*(at_least_float32(a).dtype for a in arrays))).dtype


def finite(values: Array | np.ndarray) -> bool:
    """Whether all of the values, which are not traced, are; without a copy of a large array in float64."""
    values = np.asarray(values)  # what JAX computes within jit is traced, of constants too
    return bool(np.isfinite(values if values.dtype.kind in "fc" else values.astype(np.float32)).all())


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


# ---- arguments that go with a batch ---------------------------------------------------------------------------------


def known(logsnr: Any) -> Array:
    """logSNR, of any shape, in float32 or better. Raises ValueError unless it holds numbers, infinite ones or not."""
    values = _check.real("logsnr", logsnr, "be numbers, none of them NaN")
    if values is not None and np.isnan(values).any():
        raise ValueError(f"logsnr = {_check.shown(logsnr)}: must be numbers, none of them NaN")
    return at_least_float32(logsnr)


def points(name: str, x: Any) -> Array:
    """`x` as an array [batch, ...] of its own dtype. Raises ValueError unless it holds floating-point numbers."""
    if isinstance(x, Array | np.ndarray) and x.ndim and x.size and jnp.issubdtype(x.dtype, jnp.complexfloating):
        return jnp.asarray(x)  # of a complex-valued model
    _check.samples(name, x)
    return jnp.asarray(x)


def level(sigma: Any, x: Array) -> Array:
    """The noise level of x in float32 or better: a scalar, [batch], or per pixel, see `_check.level`.

    Raises ValueError unless it is that; the sentence on an infinite one says what to do.
    """
    values = _check.real("sigma", sigma, "be finite and >= 0")
    if values is not None and np.isposinf(values).any():
        raise ValueError(
            "sigma = inf: must be finite and >= 0, for x = x_0 + sigma n has no finite value there: truncate the "
            "schedule, as in dx.schedules.truncate(schedule, logsnr_min=-12, logsnr_max=12)"
        )
    if values is not None and np.asarray(sigma).dtype.kind in "iu":
        sigma = np.asarray(sigma, np.float32)
    return _check.level("sigma", sigma, x)


def aligned(name: str, value: ArrayLike, x: Array) -> Array:
    """A number, [batch], or [batch, ...] with the axes of x -> a shape that multiplies x.

    Raises ValueError for any other shape: it might be broadcast along the wrong axis.
    """
    array = at_least_float32(value)
    whole = array.ndim == x.ndim and all(a in (1, b) for a, b in zip(array.shape, x.shape, strict=True))
    if array.shape not in ((), x.shape[:1]) and not whole:
        raise ValueError(
            f"{name} has shape {array.shape} for x of shape {x.shape}: must be a number, [batch] = {x.shape[:1]}, or "
            "have the axes of x, each as long as that of x or 1"
        )
    return per_sample(array, x)
