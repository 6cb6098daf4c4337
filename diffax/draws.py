"""How the u of a batch are drawn: each is uniform on (0, 1) by itself, together they may cover it better than chance.

A draw is a function (key, n) -> [n]. The loss is an average over u, so an even cover lowers its variance at no cost.
All raise ValueError unless key is one JAX key and n an integer from 1 to 2^24,
beyond which a float32 has no places of their own for n numbers in (0, 1).
"""

import jax
import jax.numpy as jnp
from jax import Array

from diffax import _check
from diffax.noise import threefry

__all__ = ["antithetic", "iid", "low_discrepancy", "stratified"]


def iid(key: Array, n: int) -> Array:
    """n independent numbers."""
    return _inside(jax.random.uniform(_checked(key, n), (n,)))


def stratified(key: Array, n: int) -> Array:
    """One number in each stratum [i/n, (i+1)/n), in random order: no place in the batch has levels of its own."""
    order_key, key = jax.random.split(_checked(key, n))
    within = jax.random.uniform(key, (n,))
    return _inside((jax.random.permutation(order_key, n).astype(within.dtype) + within) / n)


def low_discrepancy(key: Array, n: int) -> Array:
    """One shift for an even grid, (u_0 + i/n) mod 1 (VDM, arXiv:2107.00630, appendix I.1): n samples, one number."""
    return _inside((jax.random.uniform(_checked(key, n)) + jnp.arange(n) / n) % 1)


def antithetic(key: Array, n: int) -> Array:
    """Pairs u, 1 - u; for odd n the last stands alone."""
    u = jax.random.uniform(_checked(key, n), ((n + 1) // 2,))
    return _inside(jnp.stack([u, 1 - u], axis=1).reshape(-1)[:n])


def _checked(key: Array, n: int) -> Array:
    """The key as one that means the same under `jax.vmap`."""
    _check.whole("n", n, 1, 2**24)
    return threefry(key)


def _inside(u: Array) -> Array:
    """The ends may be infinitely clean or noisy."""
    return jnp.clip(u, 2**-24, 1 - 2**-24)
