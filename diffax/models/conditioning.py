"""What a network may be told besides x and the noise level, under the same names for every architecture.

| name | array | |
|---|---|---|
| label | [batch] int in [0, num_classes] | a class; num_classes says "no label", for classifier-free guidance |
| vector | [batch, vector] | such as the embedding of a text |
| tokens | [batch, any number, tokens] | such as a text's words, by cross-attention |
| image | [batch, ..., image] | as large as x, joined to it: for super-resolution, inpainting |
| augment | [batch, augment] | how the training image was augmented, zeros for "not at all" (EDM, appendix F.2) |

cond is a dict of these, or the one array of a network that takes one. What is left out counts as "no label" or zeros.

A label that is none of these is refused; under jit, where it has no value yet, its row becomes NaN, so that what the
network says of it cannot be taken for an answer.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffax import _check
from diffax.models import sizes
from diffax.models.layers import Dense

__all__ = ["Conditions", "added", "checked", "given", "joined", "told"]

Conditions = tuple[tuple[str, int], ...]
"""(name, size) of each that a network takes."""


def checked(
    num_classes: int | None = None,
    vector: int | None = None,
    tokens: int | None = None,
    image: int | None = None,
    augment: int | None = None,
) -> Conditions:
    """From the arguments of a constructor; None is left out. Raises ValueError unless they are positive integers."""
    asked = {"num_classes": num_classes, "vector": vector, "tokens": tokens, "image": image, "augment": augment}
    sizes.whole(**asked)
    return tuple(("label" if name == "num_classes" else name, size) for name, size in asked.items() if size is not None)


def given(cond: Any, takes: Conditions, x: Array) -> dict[str, Array]:
    """All conditions of x [batch, ...], null where cond has none; labels as rows with a 1, or of zeros for "no label".

    Raises ValueError for what the network does not take: other names, other shapes, no numbers, labels that are no
    integers or lie outside of [0, num_classes].
    """
    names = [name for name, _ in takes]
    if cond is None:
        cond = {}
    elif not isinstance(cond, Mapping):
        if len(names) != 1:
            wanted = f"a dict of {', '.join(names)}, which" if names else "None, as nothing is what"
            raise ValueError(f"cond is an array: must be {wanted} this network takes")
        cond = {names[0]: cond}
    if unknown := set(cond) - set(names):
        raise ValueError(f"cond has {', '.join(sorted(unknown))}: this network takes {', '.join(names) or 'nothing'}")
    batch, found = x.shape[0], {}
    for name, size in takes:
        value = _numbers(name, cond.get(name))
        shape = {"label": (batch,), "image": (*x.shape[:-1], size)}.get(name, (batch, size))
        if name == "tokens":
            shape = (batch, 1 if value is None else value.shape[min(1, value.ndim - 1)] if value.ndim else 1, size)
        if value is None:
            value = jnp.full(shape, size) if name == "label" else jnp.zeros(shape)
        elif value.shape != shape:
            wanted = f"({batch}, any, {size})" if name == "tokens" else str(shape)
            hint = ", the numbers of the classes" if name == "label" else ""
            raise ValueError(f"cond {name} is of shape {value.shape}: must be {wanted}{hint}")
        found[name] = _rows(value, size) if name == "label" else value
    return found


def _numbers(name: str, value: Any) -> Array | None:
    """The condition as an array; None stays."""
    if value is None:
        return None
    if not isinstance(value, Array | np.ndarray):
        _check.real(f"cond {name}", value, "be an array of numbers")
        value = np.asarray(value)
    real = jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
    if not real or (name == "label" and not jnp.issubdtype(value.dtype, jnp.integer)):
        must = "integers" if name == "label" else "real numbers"
        raise ValueError(f"cond {name} is of {value.dtype}: must be {must}")
    return jnp.asarray(value)


def _rows(label: Array, classes: int) -> Array:
    """[batch, classes]: a 1 at the label, zeros for "no label", NaN for what is neither."""
    if _check.concrete(label):
        values = np.asarray(label)  # what JAX computes within jit is traced, of constants too
        if not ((values >= 0) & (values <= classes)).all():
            raise ValueError(f"cond label = {_check.shown(label)}: must lie in [0, {classes}]; {classes} says no label")
    rows, known = jax.nn.one_hot(label, classes), (label >= 0) & (label <= classes)
    return jnp.where(known[:, None], rows, jnp.asarray(jnp.nan, rows.dtype))


def told(c_noise: Any, x: Array) -> Array:
    """c_noise as [batch] numbers, one for each sample of x. Raises ValueError for another shape, such as per pixel."""
    if not isinstance(c_noise, Array | np.ndarray):
        _check.real("c_noise", c_noise)
        c_noise = np.asarray(c_noise)
    if c_noise.shape != x.shape[:1]:
        raise ValueError(
            f"c_noise has shape {c_noise.shape} for x of shape {x.shape}: must be [batch] = {x.shape[:1]}; a network "
            "is told one noise level a sample, not one a pixel"
        )
    return jnp.asarray(c_noise)


def joined(x: Array, conditions: Mapping[str, Array]) -> Array:
    """x, with the image that it is conditioned on in further channels."""
    return jnp.concatenate([x, conditions["image"].astype(x.dtype)], axis=-1) if "image" in conditions else x


def added(h: Array, conditions: Mapping[str, Array], *names: str, use_bias: bool = True, **kind: Any) -> Array:
    """h [batch, width] plus a dense layer of each condition named that is there. To be called within a module."""
    for name in names:
        if name in conditions:
            value = conditions[name]
            gain = math.sqrt(value.shape[-1]) if name == "label" else 1.0  # one entry is 1, all others are 0
            bias = use_bias and name != "augment"
            h = h + Dense(h.shape[-1], gain, use_bias=bias, **kind, name=name)(value.astype(h.dtype))
    return h
