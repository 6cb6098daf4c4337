"""A checksum of arrays that is computed where they are, and is the same however they are split over devices.

Each 32-bit word w at place i of an array gives two numbers mix_k(w, i), and the checksum is their sum over the array,
modulo 2^32. Sums do not ask for an order, so every device sums its own slice; and since mix_k(., i) is one-to-one, a
word that changed always changes both sums. 64 bits against accidents: disks, transfers, software; not against forgery.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

__all__ = ["manifest"]


def manifest(tree: Any) -> dict[str, list]:
    """{path: [dtype, shape, checksum in hexadecimal]} of the arrays of a tree.

    The path of an array is its keys joined by "/". One transfer from the devices for all.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    sums = jax.device_get([_checksum(leaf) for _, leaf in leaves])
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): [
            str(np.dtype(leaf.dtype)),
            list(leaf.shape),
            "".join(f"{int(s):08x}" for s in pair),
        ]
        for (path, leaf), pair in zip(leaves, sums, strict=True)
    }


@functools.partial(jax.jit)
def _checksum(x: Array) -> Array:
    """[2] uint32."""
    words = _words(x)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    first = _mix(words ^ _mix(place + jnp.uint32(0x9E3779B9)))
    second = _mix(words * jnp.uint32(0x85EBCA6B) + _mix(place ^ jnp.uint32(0xC2B2AE35)))
    return jnp.stack([first.sum(dtype=jnp.uint32), second.sum(dtype=jnp.uint32)])


def _words(x: Array) -> Array:
    """The bits of an array as uint32, one word an element, or two on a last axis for elements of 8 bytes."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    size = x.dtype.itemsize
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mix(h: Array) -> Array:
    """A one-to-one map of 32 bits in which each bit in moves about half of those out: MurmurHash3's last step."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
