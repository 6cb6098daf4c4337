"""Exponential moving average of the parameters: the weights that are sampled from."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffax._array import at_least_float32

__all__ = ["decay", "start", "update"]


def decay(step: Array, batch_size: int, halflife: float, ramp: float = 0.05) -> Array:
    """beta = 0.5^(batch / halflife), with the half-life, in images, held below `ramp` times the images seen so far.

    The ramp keeps the initial weights out of the average early on (Karras et al. 2022, appendix F.2, and its code).
    step: number of updates done before this one. Returns a float32 scalar.
    """
    seen = (step + 1.0) * batch_size  # float: 2^31 images are not many
    return 0.5 ** (batch_size / jnp.maximum(jnp.minimum(halflife, ramp * seen), 1e-8))


def start(params: Any) -> Any:
    """The average before the first update: a copy, in float32 at least, as bfloat16 would swallow its small steps."""
    return jax.tree.map(lambda p: jnp.array(at_least_float32(p)), params)


def update(ema: Any, params: Any, beta: Array) -> Any:
    """beta ema + (1 - beta) params, leaf by leaf."""
    return jax.tree.map(lambda e, p: e + (1 - beta).astype(e.dtype) * (p - e), ema, params)
