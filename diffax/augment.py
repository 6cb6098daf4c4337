"""Geometric augmentation that the network is told of, so that it does not leak into what is sampled.

    x0, told = augment.geometric(key, x0, probability=0.12)      # told goes to the network as the condition "augment"

Asked with zeros, which say "as it was", the network draws images that were not augmented (Karras et al. 2022, section 5
and appendix F.2, table 6):

| how | amount | when | told |
|---|---|---|---|
| mirrored left to right | - | half of the images | 0 or 1 |
| mirrored top to bottom | - | half of those chosen | 0 or 1 |
| scaled | by 2^(0.2 n) | chosen | n |
| turned | by a in (-pi, pi) | chosen | cos a - 1, sin a |
| stretched along a, squeezed across | by 2^(0.2 n) | chosen | n cos a, n sin a |
| moved, each axis | by n / 8 of its length | chosen | n, n |

with n ~ Normal(0, 1), each chosen apart with the probability given. Outside of the image stands its mirror image;
between pixels values are interpolated linearly (the paper's filter is a wavelet's). As in the paper, n along a is told
as -n along a + pi is, the opposite on one axis.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates

from diffax import _check
from diffax._array import common
from diffax.noise import sample_keys

__all__ = ["TOLD", "geometric"]

TOLD = 9
"""Numbers that say what was done: the size of the condition."""


def geometric(key: Array, x: Array, probability: float = 0.12, index: Array | None = None) -> tuple[Array, Array]:
    """Images x [batch, height, width, channels] -> images of that shape, and what was done to each [batch, 9].

    Sample i draws from fold_in(key, i); index [batch] are their numbers, 0, 1, 2, ... by default.
    Raises ValueError unless probability is in [0, 1] and x holds images of floating-point numbers.
    """
    _check.between("probability", probability, 0, 1)
    _check.one("probability", probability)
    _check.samples("x", x)
    x = jnp.asarray(x)
    if x.ndim != 4:
        raise ValueError(f"x has shape {x.shape}: must be [batch, height, width, channels]")
    keys = sample_keys(key, _check.index(index, len(x)))
    back, moved, told = jax.vmap(lambda k: _draw(k, probability))(keys)
    return jax.vmap(_warp)(x, back, moved), told


def _draw(key: Array, probability: float) -> tuple[Array, Array, Array]:
    """Draws a linear map [2, 2], a move [2] and what the network is told [9] for one image, all in float32.

    The map leads from places (row, column) in the result to places in the image. The move is in lengths of the axes.
    """
    kind = jnp.float32
    which_key, mirror_key, angle_key, amount_key = jax.random.split(key, 4)
    chosen = jax.random.bernoulli(which_key, probability, (5,)).astype(kind)
    mirrored = jax.random.bernoulli(mirror_key, 0.5, (2,)).astype(kind) * jnp.stack([jnp.ones((), kind), chosen[0]])
    turn, axis = jax.random.uniform(angle_key, (2,), kind, minval=-math.pi, maxval=math.pi)
    turn = turn * chosen[2]
    size, stretch, down, right = jax.random.normal(amount_key, (4,), kind) * chosen[jnp.array([1, 3, 4, 4])]

    along = 2 ** (0.2 * stretch * jnp.array([1, -1], kind))
    stretched = _turned(axis) @ jnp.diag(along) @ _turned(-axis)
    linear = _turned(turn) @ stretched @ jnp.diag((1 - 2 * mirrored)[::-1]) * 2 ** (0.2 * size)
    told = [*mirrored, size, jnp.cos(turn) - 1, jnp.sin(turn), stretch * jnp.cos(axis), stretch * jnp.sin(axis)]
    return jnp.linalg.inv(linear), jnp.stack([down, right]) / 8, jnp.stack([*told, down, right])


def _turned(angle: Array) -> Array:
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.array([[c, -s], [s, c]])


def _warp(image: Array, back: Array, moved: Array) -> Array:
    """image [height, width, channels], read where each place of the result comes from."""
    height, width, _ = image.shape
    length = jnp.array([height, width], jnp.float32)
    middle = (length - 1) / 2
    rows, columns = jnp.arange(height, dtype=jnp.float32), jnp.arange(width, dtype=jnp.float32)
    places = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)
    at = ((places - middle - moved * length) @ back.T + middle).astype(common(image))
    channel = lambda c: map_coordinates(c, [at[..., 0], at[..., 1]], order=1, mode="mirror")
    return jax.vmap(channel, in_axes=-1, out_axes=-1)(image)
