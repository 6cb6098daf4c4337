"""The denoising loss: schedule x preconditioning x weighting.

    E_{u ~ U(0,1), n}  w(logsnr(u)) ||D(x_0 + sigma n, sigma) - x_0||^2       (Karras et al. 2022, eq. 2)

with the mean over dimensions for the squared norm, so that losses of different picture sizes compare.

The schedule is the importance sampler of logSNR, the preconditioning says what the network predicts, the weighting what
is asked for. The error is computed in the space of the network's output, as w c_out^2 ||F - F_target||^2: the same
number, without the loss of digits at low noise.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffax import draws, noise, schedules, weightings
from diffax import preconditioning as preconditionings
from diffax._array import at_least_float32, per_sample
from diffax.preconditioning import Preconditioning
from diffax.schedules import Schedule
from diffax.weightings import Weighting

__all__ = ["Aux", "Part", "denoising"]


class Aux(NamedTuple):
    """What `denoising` saw, per sample: loss [batch] (weighted) and logsnr [batch] (the mean of a per-pixel one)."""

    loss: Array
    logsnr: Array


class Part(NamedTuple):
    """A part of a batch: the places of its samples, rows [batch] int, and the size of the whole."""

    rows: Array
    whole: int


def denoising(
    apply: Callable[..., Array],
    params: Any,
    key: Array,
    x0: Array,
    cond: Any = None,
    *,
    schedule: Schedule | None = None,
    preconditioning: Preconditioning | None = None,
    weighting: Weighting | None = None,
    draw: Callable[[Array, int], Array] = draws.stratified,
    part: Part | None = None,
) -> tuple[Array, Aux]:
    """The weighted denoising loss of a batch.

    Args:
      apply: apply(params, x, c_noise, cond) -> F, x and F [batch, ...], c_noise [batch]; any framework's function.
      params: its parameters, any pytree.
      key: a JAX key; sample i draws its noise from fold_in(key, i).
      x0: clean data [batch, ...], float, of order one.
      cond: handed to apply as it is.
      schedule, preconditioning, weighting: default to EDM's recipe (sigma_data = 0.5). With a schedule per pixel apply
        sees c_noise [batch, ...].
      draw: how the u of the batch are drawn, see `dx.draws`.
      part: which samples of a larger batch these are, if they are a part of one: they draw what they would draw in it.

    Returns: the mean loss, a float32 scalar, and `Aux` with the loss and logSNR of each sample.
    """
    schedule = schedules.edm() if schedule is None else schedule
    preconditioning = preconditionings.edm() if preconditioning is None else preconditioning
    weighting = weightings.edm() if weighting is None else weighting

    x0 = at_least_float32(x0)
    batch = x0.shape[0]
    index, whole = Part(jnp.arange(batch), batch) if part is None else part
    level_key, noise_key = jax.random.split(key)
    logsnr = schedule(draw(level_key, whole)[index])
    n = noise.normal(noise_key, index, x0.shape[1:], x0.dtype)

    c = preconditioning(logsnr)
    x = x0 + per_sample(schedules.sigma_from_logsnr(logsnr), x0) * n
    output = at_least_float32(apply(params, per_sample(c.c_in, x) * x, c.c_noise, cond))
    error = output - preconditioning.target(x0, n, logsnr)
    weight = per_sample(weighting(logsnr) * c.c_out**2, error)
    loss = jnp.mean(weight * error**2, axis=tuple(range(1, x0.ndim)))
    return loss.mean(), Aux(loss, logsnr.reshape(batch, -1).mean(-1))
