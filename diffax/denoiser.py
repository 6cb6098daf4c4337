"""Denoisers: functions denoise(x, sigma) -> x0, the posterior mean E[x_0 | x_0 + sigma n = x].

x is [batch, ...] and sigma > 0 a scalar or [batch]. A denoiser may come from a network (`denoiser`) or from an exact
formula (`gaussian_mixture`); guidance and editing turn denoisers into denoisers; solvers see nothing else of a model.
The score is (denoise(x, sigma) - x) / sigma^2 (Tweedie).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffax import _check
from diffax._array import at_least_float32, per_sample
from diffax.preconditioning import Preconditioning
from diffax.schedules import logsnr_from_sigma

__all__ = ["Denoiser", "denoiser", "gaussian_mixture"]

Denoiser = Callable[[Array, ArrayLike], Array]


def denoiser(apply: Callable[..., Array], params: Any, preconditioning: Preconditioning, cond: Any = None) -> Denoiser:
    """D(x, sigma) = c_skip x + c_out F(c_in x, c_noise) from a network F = apply(params, x, c_noise, cond).

    The result has the dtype of x: coefficients and sums stay in float32 or better also when F computes in bfloat16.
    A sigma per pixel, [batch, ...] with the axes of x, reaches apply as a c_noise of that shape.
    """

    def denoise(x: Array, sigma: ArrayLike) -> Array:
        sigma = at_least_float32(sigma)
        sigma = jnp.broadcast_to(sigma, x.shape[:1]) if sigma.ndim < 2 else sigma
        c = preconditioning(logsnr_from_sigma(sigma))
        output = apply(params, per_sample(c.c_in, x) * x, c.c_noise, cond)
        return (per_sample(c.c_skip, x) * x + per_sample(c.c_out, x) * output).astype(x.dtype)

    return denoise


def gaussian_mixture(means: ArrayLike, std: ArrayLike, weights: ArrayLike | None = None) -> Denoiser:
    """The exact denoiser of the mixture sum_k weights_k Normal(means_k, std_k^2 I).

    Given x, component k has probability r_k ~ weights_k Normal(x; means_k, (std_k^2 + sigma^2) I) and posterior mean
    means_k + std_k^2 / (std_k^2 + sigma^2) (x - means_k); the denoiser is their average.

    Args:
      means: [components, ...], each of the shape of one sample.
      std: scalar or [components], > 0.
      weights: [components], > 0, normalised here; None for equal ones.

    Raises: ValueError unless std and weights are positive.
    """
    _check.positive("std", std)
    means = at_least_float32(means)
    flat = means.reshape(means.shape[0], -1)
    count, dim = flat.shape
    var = jnp.broadcast_to(jnp.asarray(std, means.dtype) ** 2, (count,))
    if weights is None:
        log_weights = jnp.zeros(count, means.dtype)
    else:
        _check.positive("weights", weights)
        log_weights = jnp.log(jnp.asarray(weights, means.dtype))

    def denoise(x: Array, sigma: ArrayLike) -> Array:
        sigma = jnp.broadcast_to(at_least_float32(sigma), x.shape[:1])
        total = var + sigma[:, None] ** 2  # [batch, components]
        y = x.reshape(x.shape[0], -1)
        distance = jnp.sum((y[:, None] - flat) ** 2, -1)  # not by a product: that cancels when sigma is small
        r = jax.nn.softmax(log_weights - distance / (2 * total) - dim / 2 * jnp.log(total), axis=-1)
        shrink = var / total
        return (y * (r * shrink).sum(-1, keepdims=True) + (r * (1 - shrink)) @ flat).reshape(x.shape).astype(x.dtype)

    return denoise
