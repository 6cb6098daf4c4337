"""The training state and the step that moves it: one jit over a mesh, state donated, randomness from the step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from diffax import _compile
from diffax.losses import Aux
from diffax.training import ema
from diffax.training.metrics import TrainMetrics
from diffax.training.sharding import replicated, sharded

__all__ = ["TrainState", "init_state", "train_step"]


class TrainState(NamedTuple):
    """Everything a step changes: step (int32 scalar, updates done), params, their average, the optimizer's state, and
    the state of an adaptive sampler of noise levels (None without one).
    """

    step: Array
    params: Any
    ema: Any
    optimizer: Any
    sampler: Any = None


def init_state(
    init: Callable[[Array], Any], optimizer: optax.GradientTransformation, key: Array, mesh: Mesh, sampler: Any = None
) -> TrainState:
    """The state before the first step, made on the devices where it will live."""

    def make(key: Array) -> TrainState:
        params = init(key)
        return TrainState(jnp.zeros((), jnp.int32), params, ema.start(params), optimizer.init(params), sampler)

    return jax.jit(make, out_shardings=replicated(mesh))(key)


def train_step(
    loss: Callable[[Any, Any, Array, Array, Any], tuple[Array, Aux]],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    batch_size: int,
    ema_halflife: float,
    adapt: Callable[[Any, Array, Aux], Any] | None = None,
) -> Callable[[TrainState, TrainMetrics, Any, Array], tuple[TrainState, TrainMetrics, Array]]:
    """A compiled step(state, metrics, batch, key) -> (state, metrics, loss).

    Args:
      loss: loss(params, batch, key, step, sampler) -> (scalar, Aux).
      batch_size: of the whole batch, over all devices and processes; ema_halflife: in images.
      adapt: adapt(sampler, step, aux) -> sampler, where the noise levels are drawn adaptively.

    The step draws from fold_in(key, state.step), so a resumed run repeats an unbroken one. `state` and `metrics` are
    donated. The batch is split over the mesh; the mean over it is the collective that keeps the copies of the
    parameters equal. Raises ValueError if the batch does not divide by the number of devices, or ema_halflife < 0.
    """
    if batch_size < 1 or batch_size % mesh.size:
        raise ValueError(f"batch_size = {batch_size}: must be a positive multiple of the {mesh.size} devices")
    if not ema_halflife >= 0:
        raise ValueError(f"ema_halflife = {ema_halflife}: must be >= 0 images")

    def step(
        state: TrainState, metrics: TrainMetrics, batch: Any, key: Array
    ) -> tuple[TrainState, TrainMetrics, Array]:
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        draws = jax.random.fold_in(key, state.step)
        (value, aux), grads = value_and_grad(state.params, batch, draws, state.step, state.sampler)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        average = ema.update(state.ema, params, ema.decay(state.step, batch_size, ema_halflife))
        seen = TrainMetrics.single_from_model_output(
            loss=value, grad_norm=optax.tree.norm(grads), sample_loss=aux.loss, logsnr=aux.logsnr
        )
        sampler = state.sampler if adapt is None else adapt(state.sampler, state.step, aux)
        return TrainState(state.step + 1, params, average, optimizer_state, sampler), metrics.merge(seen), value

    here = replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(here, here, sharded(mesh), here),
        out_shardings=(here, here, here),
        donate_argnums=(0, 1),
        compiler_options=_compile.options(),
    )
