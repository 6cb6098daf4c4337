"""The denoising loss: schedule x preconditioning x weighting.

    E_{u ~ U(0,1), n}  w(logsnr(u)) ||D(x_0 + sigma n, sigma) - x_0||^2       (Karras et al. 2022, eq. 2)

with the mean over dimensions for the squared norm, so that losses of different picture sizes compare.

The schedule is the importance sampler of logSNR, the preconditioning says what the network predicts, the weighting what
is asked for. The error is computed in the space of the network's output, as w c_out^2 ||F - F_target||^2: the same
number, without the loss of digits at low noise.

logSNR is held in [-80, 80], where x_0 + sigma n is its limit to the last bit: a schedule may end at SNR 0, or in data
without noise, and the loss of what has a finite target there is finite.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from diffax import _check, draws, schedules, weightings
from diffax import preconditioning as preconditionings
from diffax._array import at_least_float32, held, per_sample
from diffax.noise import normal, threefry
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
    noise: Callable[..., Array] = normal,
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
      noise: noise(key, index, shape, dtype) -> [batch, *shape] for the samples numbered index, as `dx.noise.normal`,
        the default. With the noise of another library, for comparison: `lambda key, index, *_: mine[index]`; with its
        levels: `draw=lambda key, n: u`.
      part: which samples of a larger batch these are, if they are a part of one: they draw what they would draw in it.

    Returns: the mean loss, a scalar of float32 (float64 for x0 of float64), and `Aux` with the loss and logSNR of each
      sample.

    Raises: ValueError for arguments that are not so, and for an apply, draw or noise that gives another shape.
    """
    _check.callable_("apply", apply, "apply(params, x, c_noise, cond) -> F")
    _check.callable_("noise", noise, "noise(key, index, shape, dtype) -> [batch, *shape]")
    key, x0 = threefry(key), _check.samples("x0", x0)
    schedule = schedules.edm() if schedule is None else schedule
    preconditioning = preconditionings.edm() if preconditioning is None else preconditioning
    weighting = weightings.edm() if weighting is None else weighting

    _check.instance("schedule", schedule, Schedule, "dx.schedules.edm()")
    _check.instance("preconditioning", preconditioning, Preconditioning, "dx.preconditioning.edm()")
    _check.instance("weighting", weighting, Weighting, "dx.weightings.edm()")

    index, whole = placed(part, len(x0))
    level_key, noise_key = jax.random.split(key)
    logsnr = held(levels(schedule, drawn(draw, level_key, whole)[index], x0))
    n = _check.output("noise", noise(noise_key, index, x0.shape[1:], x0.dtype), x0).astype(x0.dtype)

    c = preconditioning(logsnr)
    x = x0 + per_sample(schedules.sigma_from_logsnr(logsnr), x0) * n
    output = _check.output("apply", apply(params, per_sample(c.c_in, x) * x, c.c_noise, cond), x)
    error = output.astype(x0.dtype) - preconditioning.target(x0, n, logsnr)
    weight = per_sample(weighting.of_output(logsnr, c.c_out), error)
    loss = jnp.mean(weight * error**2, axis=tuple(range(1, x0.ndim)))
    return loss.mean(), Aux(loss, logsnr.reshape(len(x0), -1).mean(-1))


# ---- what the losses share ------------------------------------------------------------------------------------------


def placed(part: Part | None, batch: int) -> Part:
    """`part`, or all of the batch for None. Raises ValueError unless it places `batch` samples in a whole."""
    if part is None:
        return Part(jnp.arange(batch), batch)
    _check.instance("part", part, Part, "dx.losses.Part(rows, whole)")
    _check.whole("part.whole", part.whole)
    rows = _check.index(part.rows, batch, "part.rows")
    if _check.concrete(rows):
        _check.between("part.rows", rows, 0, part.whole - 1)
    return Part(rows, int(part.whole))


def drawn(draw: Callable[[Array, int], Array], key: Array, whole: int) -> Array:
    """The u of a whole batch. Raises ValueError unless draw gives [whole] numbers in [0, 1]."""
    _check.callable_("draw", draw, "draw(key, n) -> [n] numbers in [0, 1], such as dx.draws.stratified")
    u = draw(key, whole)
    if not hasattr(u, "dtype") or not jnp.issubdtype(u.dtype, jnp.floating):
        raise ValueError(f"draw gave {_check.shown(u)}: must be [n] = ({whole},) floating-point numbers")
    if u.shape != (whole,):
        raise ValueError(f"draw gave shape {u.shape}: must be [n] = ({whole},)")
    if _check.concrete(u):
        _check.between("draw", u, 0, 1)
    return at_least_float32(u)


def levels(schedule: Schedule, u: Array, x0: Array) -> Array:
    """logSNR at u [batch], in the dtype of x0. Raises ValueError unless it is [batch], or per pixel of x0."""
    logsnr = jnp.asarray(schedule(u))
    if logsnr.shape != x0.shape[:1] and not _check.per_pixel(logsnr.shape, x0.shape):
        raise ValueError(
            f"schedule has logSNR of shape {logsnr.shape} for x0 of shape {x0.shape}: must be [batch], or per pixel "
            "with the axes of x0"
        )
    return logsnr.astype(x0.dtype)
