"""Denoisers: functions denoise(x, sigma) -> x0, the posterior mean E[x_0 | x_0 + sigma n = x].

x is [batch, ...] and sigma > 0 a scalar or [batch], or per pixel, [batch, ...] with the axes of x. A denoiser may come
from a network (`denoiser`) or from an exact formula (`gaussian_mixture`); guidance and editing turn denoisers into
denoisers; solvers see nothing else of a model. The score is (denoise(x, sigma) - x) / sigma^2 (Tweedie).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffax import _check
from diffax._array import at_least_float32, common, per_sample
from diffax.preconditioning import Preconditioning
from diffax.schedules import logsnr_from_sigma

__all__ = ["Denoiser", "denoiser", "gaussian_mixture"]

Denoiser = Callable[[Array, ArrayLike], Array]


def denoiser(apply: Callable[..., Array], params: Any, preconditioning: Preconditioning, cond: Any = None) -> Denoiser:
    """D(x, sigma) = c_skip x + c_out F(c_in x, c_noise) from a network F = apply(params, x, c_noise, cond).

    The result has the dtype of x: coefficients and sums stay in float32 or better also when F computes in bfloat16.
    A sigma per pixel, [batch, ...] with the axes of x, reaches apply as a c_noise of that shape. At sigma = 0 D is x,
    or F where the network predicts x_0; the level it is told is then the smallest that float32 has.

    Raises ValueError unless apply can be called and preconditioning is one; and D for an x or a sigma that is not so
    (sigma = inf among them, where x is not finite), and where F has another shape than x.
    """
    _check.callable_("apply", apply, "apply(params, x, c_noise, cond) -> F")
    _check.instance("preconditioning", preconditioning, Preconditioning, "dx.preconditioning.edm()")

    def denoise(x: Array, sigma: ArrayLike) -> Array:
        x = _check.points("x", x)
        dtype, wide = common(x), at_least_float32(x)
        sigma = _check.level(sigma, x).astype(dtype)
        sigma = jnp.broadcast_to(sigma, x.shape[:1]) if sigma.ndim < 2 else sigma
        c = preconditioning(logsnr_from_sigma(jnp.maximum(sigma, float(jnp.finfo(jnp.float32).tiny))))
        output = _check.output("apply", apply(params, per_sample(c.c_in, x) * wide, c.c_noise, cond), wide)
        return (per_sample(c.c_skip, x) * wide + per_sample(c.c_out, x) * output.astype(wide.dtype)).astype(x.dtype)

    return denoise


def gaussian_mixture(means: ArrayLike, std: ArrayLike, weights: ArrayLike | None = None) -> Denoiser:
    """The exact denoiser of the mixture sum_k weights_k Normal(means_k, std_k^2 I).

    Given x, component k has probability r_k ~ weights_k Normal(x; means_k, (std_k^2 + sigma^2) I) and posterior mean
    means_k + std_k^2 / (std_k^2 + sigma^2) (x - means_k); the denoiser is their average.

    With a sigma per pixel each dimension has a level of its own: Normal(x; means_k, .) is the product over dimensions.

    Args:
      means: [components, ...], each of the shape of one sample.
      std: scalar or [components], > 0.
      weights: [components], > 0, normalised here; None for equal ones.

    Raises: ValueError unless means are finite, std and weights positive and of such a shape; and of the denoiser for an
      x that is not of the shape of the means, or a sigma that is not so.
    """
    means = _means(means)
    flat = means.reshape(means.shape[0], -1)
    count, dim = flat.shape
    var, log_weights = _each("std", std, means) ** 2, jnp.zeros(count, means.dtype)
    if weights is not None:
        log_weights = jnp.log(_each("weights", weights, means))
        if np.shape(weights) != (count,):
            raise ValueError(f"weights has shape {np.shape(weights)}: must be [components] = ({count},)")

    def denoise(x: Array, sigma: ArrayLike) -> Array:
        x = _check.points("x", x)
        if x.shape[1:] != means.shape[1:]:
            raise ValueError(f"x has shape {x.shape}: must be [batch, ...] with samples of shape {means.shape[1:]}")
        dtype = common(x, means)
        sigma, most = _check.level(sigma, x).astype(dtype), float(jnp.finfo(dtype).max) ** 0.47
        if _check.concrete(sigma) and (np.asarray(sigma) > most).any():
            raise ValueError(f"sigma = {_check.shown(sigma)}: must be at most {most:.0e}, whose square a {dtype} holds")
        y = x.reshape(x.shape[0], -1).astype(dtype)
        m, log_w = flat.astype(dtype), log_weights.astype(dtype)
        if sigma.ndim < 2:
            total = var.astype(dtype) + jnp.broadcast_to(sigma, x.shape[:1])[:, None] ** 2  # [batch, components]
            distance = jnp.sum((y[:, None] - m) ** 2, -1)  # not by a product: that cancels when sigma is small
            r = jax.nn.softmax(log_w - distance / (2 * total) - dim / 2 * jnp.log(total), axis=-1)
            shrink = var.astype(dtype) / total
            d = y * (r * shrink).sum(-1, keepdims=True) + (r * (1 - shrink)) @ m
        else:
            v = var.astype(dtype)[:, None]
            total = v + jnp.broadcast_to(sigma, x.shape).reshape(len(y), 1, dim) ** 2  # [batch, components, dim]
            difference = y[:, None] - m
            r = jax.nn.softmax(log_w - jnp.sum(difference**2 / total + jnp.log(total), -1) / 2, axis=-1)
            d = jnp.sum(r[..., None] * (m + v / total * difference), 1)
        return d.reshape(x.shape).astype(x.dtype)

    return denoise


def _means(means: ArrayLike) -> Array:
    """[components, ...] finite numbers in float32 or better. They may be a whole data set: no copy in float64."""
    if not isinstance(means, Array | np.ndarray):
        _check.finite("means", means)
        means = np.asarray(means)
    if not (jnp.issubdtype(means.dtype, jnp.floating) or jnp.issubdtype(means.dtype, jnp.integer)):
        raise ValueError(f"means is of {means.dtype}: must be real numbers")
    if means.ndim < 1 or not means.size:
        raise ValueError(f"means has shape {means.shape}: must be [components, ...] with at least one component")
    _check.numbers("means", means)
    return at_least_float32(means)


def _each(name: str, value: ArrayLike, means: Array) -> Array:
    """One positive number for each component."""
    _check.positive(name, value)
    if np.shape(value) not in ((), means.shape[:1]):
        raise ValueError(f"{name} has shape {np.shape(value)}: must be a number or [components] = {means.shape[:1]}")
    return jnp.broadcast_to(jnp.asarray(value, means.dtype), means.shape[:1])
