"""Guidance: denoisers made from denoisers, and the label dropout that lets one network serve as both."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffax import _check
from diffax._array import Scalar, at_least_float32, common, per_sample
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
      scale: 1 is the conditional model, 0 the unconditional one, above 1 sharpens; a number, [batch], or per pixel.
        (The paper's w is scale - 1.)
      interval: (low, high) in sigma; outside low < sigma <= high the conditional model alone speaks, which keeps
        diversity at high noise (Kynkaanniemi et al. 2024, arXiv:2404.07724). Both are evaluated at every level: a
        branch inside a compiled loop would stall a GPU.

    Raises: ValueError unless scale is finite and 0 <= low < high; and the denoiser for an x, a sigma or a scale whose
      shapes do not go together, and where one of the two gives another shape than that of x.
    """
    _check.callable_("cond_denoise", cond_denoise, "denoise(x, sigma) -> x0")
    _check.callable_("uncond_denoise", uncond_denoise, "denoise(x, sigma) -> x0")
    _check.finite("scale", scale)
    if interval is not None:
        if not isinstance(interval, tuple | list) or len(interval) != 2 or any(map(_is_more, interval)):
            raise ValueError(f"interval = {_check.shown(interval)}: must be (low, high) in sigma")
        _check.between("interval[0]", interval[0], 0, math.inf)
        _check.less("interval[0]", interval[0], "interval[1]", interval[1])

    def denoise(x: Array, sigma: ArrayLike) -> Array:
        x = _check.points("x", x)
        dtype, wide = common(x), at_least_float32(x).dtype
        weight = _check.aligned("scale", scale, x).astype(dtype)
        at = per_sample(_check.level(sigma, x), x).astype(dtype)
        if interval is not None:
            low, high = (jnp.asarray(end, dtype) for end in interval)
            weight = jnp.where((at > low) & (at <= high), weight, 1)
        cond = _check.output("cond_denoise", cond_denoise(x, sigma), x).astype(wide)
        uncond = _check.output("uncond_denoise", uncond_denoise(x, sigma), x).astype(wide)
        return (uncond + weight * (cond - uncond)).astype(x.dtype)

    return denoise


def drop_label(key: Array, label: Array, null: int, rate: Scalar, index: Array | None = None) -> Array:
    """Replaces each label [batch] int by `null` with probability `rate`, so that one network learns both models.

    Sample i decides by fold_in(key, i); index [batch] are their numbers, 0, 1, 2, ... by default. The result has the
    dtype of the labels. Raises ValueError unless the labels are [batch] integers (not one-hot rows), null is an integer
    of their dtype, and 0 <= rate <= 1.
    """
    if not isinstance(label, Array | np.ndarray):
        _check.real("label", label, "be [batch] integers")
        label = np.asarray(label)
    if not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(f"label is of {label.dtype}: must be [batch] integers, the numbers of the classes")
    if label.ndim != 1 or not label.size:
        raise ValueError(f"label has shape {label.shape}: must be [batch] integers, the numbers of the classes")
    label = jnp.asarray(label)
    limits = jnp.iinfo(label.dtype)
    _check.whole("null", null, int(limits.min), int(limits.max))
    _check.between("rate", rate, 0, 1)
    _check.one("rate", rate)
    keys = sample_keys(key, _check.index(index, len(label)))
    return jnp.where(jax.vmap(lambda k: jax.random.bernoulli(k, rate))(keys), jnp.asarray(null, label.dtype), label)


def _is_more(end: Any) -> bool:
    """Whether an end of an interval is not one number."""
    return bool(np.shape(end)) if isinstance(end, Array | np.ndarray) else isinstance(end, tuple | list)
