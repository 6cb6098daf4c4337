"""What a network may be told besides x and the noise level, under the same names for every architecture.

| name | array | |
|---|---|---|
| label | [batch] int in [0, num_classes] | a class; num_classes says "no label", for classifier-free guidance |
| vector | [batch, vector] | such as the embedding of a text |
| tokens | [batch, any number, tokens] | such as a text's words, by cross-attention |
| image | [batch, ..., image] | as large as x, joined to it: for super-resolution, inpainting |
| augment | [batch, augment] | how the training image was augmented, zeros for "not at all" (EDM, appendix F.2) |

cond is a dict of these, or the one array of a network that takes one. What is left out counts as "no label" or zeros.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffax.models import sizes
from diffax.models.layers import Dense

__all__ = ["Conditions", "added", "checked", "given", "joined"]

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

    Raises ValueError for what the network does not take.
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
        value = cond.get(name)
        shape = {"label": (batch,), "image": (*x.shape[:-1], size)}.get(name, (batch, size))
        if name == "tokens":
            shape = (batch, 1 if value is None else value.shape[min(1, value.ndim - 1)], size)
        if value is None:
            value = jnp.full(shape, size) if name == "label" else jnp.zeros(shape)
        elif value.shape != shape:
            wanted = f"({batch}, any, {size})" if name == "tokens" else str(shape)
            raise ValueError(f"cond {name} is of shape {value.shape}: must be {wanted}")
        found[name] = jax.nn.one_hot(value, size) if name == "label" else value
    return found


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
