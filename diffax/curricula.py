"""Curricula of consistency training: into how many levels N the noise is cut at training step k of `total`.

All take the step as a number or a traced array and return an int32 array of its shape, and raise ValueError unless
total, s0 and s1 are whole numbers >= 1 and s0 < s1. The levels themselves are
`consistency.levels(N, most)`. (How the *distribution* of noise moves with the step is `schedules.anneal`.)
"""

import math

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffax import _check
from diffax._array import at_least_float32

__all__ = ["doubling", "sinusoidal", "square_root"]


def square_root(step: ArrayLike, total: int, s0: int = 2, s1: int = 150) -> Array:
    """N = ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 (Song et al. 2023, arXiv:2303.01469, appendix C)."""
    share = _share(step, total, s0, s1)
    return jnp.ceil(jnp.sqrt(share * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1).astype(jnp.int32) + 1


def doubling(step: ArrayLike, total: int, s0: int = 10, s1: int = 1280) -> Array:
    """N = min(s0 2^floor(k / K'), s1) + 1, K' = floor(K / (log2 floor(s1 / s0) + 1)): iCT, equal stages that double.

    Song & Dhariwal 2023 (arXiv:2310.14189, section 3.4).
    """
    _share(step, total, s0, s1)
    stage = max(math.floor(total / (math.log2(s1 // s0) + 1)), 1)
    doublings = jnp.minimum(jnp.asarray(step) // stage, math.ceil(math.log2(s1 / s0)))
    return jnp.minimum(s0 * 2**doublings, s1).astype(jnp.int32) + 1


def sinusoidal(step: ArrayLike, total: int, s0: int = 20, s1: int = 250, rho: float = 7.0) -> Array:
    """N = ceil|(s1 - s0) sin z + s0|, z = floor(10 pi (k / K)^((rho - 1) / 4)) / 10: rises to s1, then falls again.

    Gokmen et al. 2024 (arXiv:2404.06353), as in the code published beside the preprint, whose equation is unconfirmed;
    with rho = 7 it is at s1 by about 0.63 K and near 30 at the end.
    """
    _check.positive("rho", rho)
    share = _share(step, total, s0, s1)
    z = jnp.floor(10 * math.pi * share ** ((rho - 1) / 4)) / 10
    return jnp.ceil(jnp.abs((s1 - s0) * jnp.sin(z) + s0)).astype(jnp.int32)


def _share(step: ArrayLike, total: int, s0: int, s1: int) -> Array:
    """k / K, held in [0, 1], the arguments having been checked."""
    for name, value in (("total", total), ("s0", s0), ("s1", s1)):
        _check.whole(name, value)
    _check.less("s0", s0, "s1", s1)
    return jnp.clip(at_least_float32(step) / total, 0, 1)
