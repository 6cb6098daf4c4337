"""What the rest of diffax sees of a network: two pure functions.

    params = network.init(key)
    F = network.apply(params, x, c_noise, cond)                  # deterministic
    F = network.apply(params, x, c_noise, cond, key=dropout_key)  # training: dropout is on

params is a plain nested dict of arrays, x and F are [batch, ...] float, c_noise is [batch], cond is whatever the
network is conditioned on (or None). Adapters make one from a Flax Linen or a Flax NNX module.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.sharding import PartitionSpec

from diffax.models.layers import Drawn, draw

if TYPE_CHECKING:
    from flax import nnx

__all__ = ["Network", "from_linen", "from_nnx", "initialiser"]


class Network(NamedTuple):
    """init(key) -> params; apply(params, x, c_noise, cond, key=None) -> F."""

    init: Callable[[Array], Any]
    apply: Callable[..., Array]


def from_linen(module: nn.Module, shape: tuple[int, ...], cond: Any = None) -> Network:
    """A Linen module called as module(x, c_noise, cond, train=bool).

    Args:
      module: has parameters only (no batch statistics), and draws its dropout from the rng named "dropout".
      shape: of one sample, e.g. (height, width, channels).
      cond: a condition of a batch of one, to initialise with, or None.
    """
    init = initialiser(module, jnp.zeros((1, *shape)), jnp.zeros(1), cond)

    def apply(params: Any, x: Array, c_noise: Array, cond: Any = None, *, key: Array | None = None) -> Array:
        rngs = None if key is None else {"dropout": key}
        with _split_by_batch(len(x)):
            return module.apply({"params": params}, x, c_noise, cond, train=key is not None, rngs=rngs)  # type: ignore

    return Network(init, apply)


def _split_by_batch(batch: int) -> contextlib.AbstractContextManager:
    """What a layer returns is split over devices along the batch, where a mesh with such axes is set (`train_step`).

    Without that word the compiler may follow the slices of a layer's weights instead, and gather the batch. Other axes
    are left to it.
    """
    axes = tuple(axis for axis in ("data", "fsdp") if axis in jax.sharding.get_abstract_mesh().axis_names)
    if not axes:
        return contextlib.nullcontext()

    def split(a: Any) -> Any:
        if not isinstance(a, Array) or a.ndim == 0 or a.shape[0] % batch:
            return a
        return jax.lax.with_sharding_constraint(a, PartitionSpec(axes, *[PartitionSpec.UNCONSTRAINED] * (a.ndim - 1)))

    def interceptor(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        return jax.tree.map(split, call(*args, **kwargs))

    return nn.intercept_methods(interceptor)


def initialiser(module: nn.Module, *inputs: Any) -> Callable[[Array], Any]:
    """init(key) -> parameters of a Linen module, called with the inputs.

    If all of them say how they are drawn (`diffax.models.layers.Drawn`, as those of this package do), they are made by
    one draw; if not, by the module's own initialisers, which may take longer to compile than a train step.
    """

    def initialise(key: Array) -> Any:
        return module.init(key, *inputs)["params"]

    def init(key: Array) -> Any:
        shapes = jax.eval_shape(initialise, key)
        if all(isinstance(leaf, Drawn) for leaf in jax.tree.leaves(shapes, is_leaf=lambda a: isinstance(a, Drawn))):
            return jax.jit(functools.partial(draw, shapes))(key)
        return nn.meta.unbox(initialise(key))

    return init


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """An NNX module called as module(x, c_noise, cond), built by make(rngs).

    It is split into a static graph and a plain dict of its nnx.Param, and put together again at each call: inside
    jax.jit, as in the train step, that costs nothing. A key turns its dropout on (`module.train()`) and seeds it.
    """
    from flax import nnx  # 0.15 s that a start without it need not wait for

    graph, _, rest = nnx.split(make(nnx.Rngs(0)), nnx.Param, ...)  # type: ignore[misc]  # rest: rng counters

    def init(key: Array) -> Any:
        params = nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key)), nnx.Param))
        return _string_keys(params)

    def apply(params: Any, x: Array, c_noise: Array, cond: Any = None, *, key: Array | None = None) -> Array:
        module = nnx.merge(graph, nnx.State(nnx.restore_int_paths(params)), rest, copy=True)
        if key is None:
            module.eval()
        else:
            module.train()
            nnx.reseed(module, default=key)
        return module(x, c_noise, cond)

    return Network(init, apply)


def _string_keys(tree: Any) -> Any:
    """NNX numbers the layers of a list with ints; checkpoints and sorted paths want strings."""
    return {str(k): _string_keys(v) for k, v in tree.items()} if isinstance(tree, dict) else tree
