"""Guidance: denoisers made from denoisers, and the label dropout that lets one network serve as both."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffax import _check
from diffax._array import Scalar, at_least_float32, per_sample
from diffax.denoiser import Denoiser
from diffax.noise import sample_keys

__all__ = ["classifier_free", "drop_label"]


def classifier_free(
    cond_denoise: Denoiser,
    uncond_denoise: Denoiser,
    scale: Scalar = 2.0,
    interval: tuple[float, float] | None = None,
) -> Denoiser:
    """D = D_uncond + scale (D_cond - D_uncond): classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).

    Args:
      cond_denoise, uncond_denoise: denoisers with and without the condition.
      scale: 1 is the conditional model, 0 the unconditional one, above 1 sharpens; a number or [batch]. (The paper's w
        is scale - 1.)
      interval: (low, high) in sigma; outside low < sigma <= high the conditional model alone speaks, which keeps
        diversity at high noise (Kynkaanniemi et al. 2024, arXiv:2404.07724). Both are evaluated at every level: a
        branch inside a compiled loop would stall a GPU.

    Raises: ValueError unless scale is finite and 0 <= low < high.
    """
    _check.finite("scale", scale)
    if interval is not None:
        if len(interval) != 2:
            raise ValueError(f"interval = {interval}: must be (low, high) in sigma")
        _check.between("interval[0]", interval[0], 0, math.inf)
        _check.less("interval[0]", interval[0], "interval[1]", interval[1])

    def denoise(x: Array, sigma: ArrayLike) -> Array:
        weight = jnp.asarray(scale, x.dtype)
        if interval is not None:
            level = at_least_float32(sigma)
            weight = jnp.where((level > interval[0]) & (level <= interval[1]), weight, 1)
        weight = per_sample(weight, x)
        cond, uncond = cond_denoise(x, sigma), uncond_denoise(x, sigma)
        return uncond + weight * (cond - uncond)

    return denoise


def drop_label(key: Array, label: Array, null: Any, rate: float, index: Array | None = None) -> Array:
    """Replaces each label [batch] by `null` with probability `rate`, so that one network learns both models.

    Sample i decides by fold_in(key, i); index [batch] are their numbers, 0, 1, 2, ... by default. Raises ValueError
    unless 0 <= rate <= 1.
    """
    _check.between("rate", rate, 0, 1)
    keys = sample_keys(key, jnp.arange(label.shape[0]) if index is None else index)
    return jnp.where(jax.vmap(lambda k: jax.random.bernoulli(k, rate))(keys), null, label)
