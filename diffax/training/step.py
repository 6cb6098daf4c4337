"""The training state and the step that moves it: one jit over a mesh, state donated, randomness from the step."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from diffax import _check, _compile
from diffax.losses import Aux, Part
from diffax.training import ema, guard
from diffax.training.metrics import LossPerLevel, TrainMetrics
from diffax.training.sharding import batch_shards, place, replicated, sharded

__all__ = ["Seen", "TrainState", "init_state", "train_step"]


class TrainState(NamedTuple):
    """Everything a step changes: step (int32 scalar, updates done), params, their average, the optimizer's state, the
    state of an adaptive sampler of noise levels (None without one), averages of power functions (one a width), and what
    the guard counts.
    """

    step: Array
    params: Any
    ema: Any
    optimizer: Any
    sampler: Any
    powers: tuple[Any, ...]
    guard: guard.Guard


class Seen(NamedTuple):
    """What a step says of itself, on the device: the loss, the norms of the gradient and of the parameters after it,
    the loss per bin of logSNR, and how many updates in a row were left out, this one included (0: it counted)."""

    loss: Array
    grad_norm: Array
    param_norm: Array
    levels: LossPerLevel
    skipped_in_a_row: Array


def init_state(
    init: Callable[[Array], Any],
    optimizer: optax.GradientTransformation,
    key: Array,
    mesh: Mesh,
    sampler: Any = None,
    powers: int = 0,
) -> TrainState:
    """The state before the first step, made on the devices where it will live. powers: averages of power functions."""

    def make(key: Array) -> TrainState:
        params = init(key)
        averages = tuple(ema.start(params) for _ in range(powers))
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, params, ema.start(params), optimizer.init(params), sampler, averages, guard.init())

    return jax.jit(make, out_shardings=place(jax.eval_shape(make, key), mesh))(key)


def train_step(
    loss: Callable[..., tuple[Array, Aux]],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    batch_size: int,
    ema_halflife: float,
    powers: Sequence[float] = (),
    accumulate: int = 1,
    spike: float = 0.0,
    adapt: Callable[[Any, Array, Aux], Any] | None = None,
) -> jax.stages.Wrapped:
    """The jitted step(state, metrics, batch, key) -> (state, metrics, seen).

    Args:
      loss: loss(params, batch, key, step, sampler) -> (scalar, Aux); with accumulate also a last argument, `Part`.
      batch_size: of the whole batch, over all devices and processes; ema_halflife: in images.
      powers: relative widths sigma_rel of the averages by power functions (EDM2), as many as the state has.
      accumulate: into how many parts the batch is split, which follow one another and whose gradients are averaged:
        the same step but for rounding (and for dropout in the network), in a part of the memory.
      spike: see `guard.judge`.
      adapt: adapt(sampler, step, aux) -> sampler, where the noise levels are drawn adaptively.

    The step draws from fold_in(key, state.step), so a resumed run repeats an unbroken one. `state` and `metrics` are
    donated, and keep their dtypes. The state lies where `sharding.place` says; the batch is split over the axes
    `sharding.BATCH`. An update that is not finite is left out (`diffax.training.guard`). A loop must not be more than
    30 steps ahead of several devices of one CPU (wait for the `seen` of an earlier step): XLA takes 32 at a time, and
    the next one can then hold the thread that the others wait for, for ever.

    Raises: ValueError if the batch does not divide by its shards times accumulate, or a number is out of range.
    """
    _check.whole("accumulate", accumulate)
    shards = batch_shards(mesh)
    if batch_size < 1 or batch_size % (shards * accumulate):
        times = f" times accumulate = {accumulate}" if accumulate > 1 else ""
        raise ValueError(f"batch_size = {batch_size}: must be a positive multiple of the {shards} devices{times}")
    if not ema_halflife >= 0:
        raise ValueError(f"ema_halflife = {ema_halflife}: must be >= 0 images")
    if not (spike == 0 or spike > 1):
        raise ValueError(f"spike = {spike}: must be greater than 1, or 0 for no such check")

    def gradient(state: TrainState, batch: Any, draws: Array) -> tuple[Array, Aux, Any]:
        of = jax.value_and_grad(loss, has_aux=True)
        if accumulate == 1:
            (value, aux), grads = of(state.params, batch, draws, state.step, state.sampler)
            return value, aux, grads
        # Sample i goes to part i % accumulate, so that each device splits the rows that it has.
        each = batch_size // accumulate
        parts = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(each, accumulate, *a.shape[1:]), 1, 0), batch)

        def add(total: Any, part: Any) -> tuple[Any, Aux]:
            i, rows = part
            rows = jax.lax.with_sharding_constraint(rows, sharded(mesh))
            index = jnp.arange(each) * accumulate + i
            (value, aux), grads = of(state.params, rows, draws, state.step, state.sampler, Part(index, batch_size))
            return jax.tree.map(lambda t, new: t + (new / accumulate).astype(t.dtype), total, (value, grads)), aux

        zeros = jnp.zeros((), jnp.float32), jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), state.params)
        (value, grads), aux = jax.lax.scan(add, zeros, (jnp.arange(accumulate), parts))
        return value, Aux(*(a.swapaxes(0, 1).reshape(-1) for a in aux)), grads

    def step(state: TrainState, metrics: TrainMetrics, batch: Any, key: Array) -> tuple[TrainState, TrainMetrics, Seen]:
        draws = jax.random.fold_in(key, state.step)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # seen by `models.network`
            value, aux, grads = gradient(state, batch, draws)
        grad_norm = optax.tree.norm(grads)
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        average = ema.update(state.ema, params, ema.decay(state.step, batch_size, ema_halflife))
        averages = tuple(
            ema.power_update(old, params, state.step, width) for old, width in zip(state.powers, powers, strict=True)
        )
        sampler = state.sampler if adapt is None else adapt(state.sampler, state.step, aux)

        param_norm = optax.tree.norm(params)
        ok, judged = guard.judge(state.guard, value, grad_norm, param_norm, spike=spike)
        levels = LossPerLevel.from_model_output(sample_loss=aux.loss, logsnr=aux.logsnr)
        merged = metrics.merge(
            TrainMetrics.single_from_model_output(
                loss=value, grad_norm=grad_norm, sample_loss=aux.loss, logsnr=aux.logsnr
            )
        )
        new = TrainState(state.step + 1, params, average, moments, sampler, averages, judged)
        kept = state._replace(step=new.step, guard=judged)

        def chosen(a: Array, b: Array) -> Array:
            """Of the dtype that it had, whatever the loss, the optimizer and jax_enable_x64 make of it."""
            return jnp.where(ok, a if a.dtype == b.dtype else a.astype(b.dtype), b)

        new, metrics = jax.tree.map(chosen, (new, merged), (kept, metrics))
        new = jax.lax.with_sharding_constraint(new, place(new, mesh))
        return new, metrics, Seen(value, grad_norm, param_norm, levels, judged.in_a_row)

    here = replicated(mesh)
    return jax.jit(
        step,
        in_shardings=(None, here, sharded(mesh), here),
        out_shardings=(None, here, here),
        donate_argnums=(0, 1),
        compiler_options=_compile.options(),
    )
