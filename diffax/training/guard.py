"""Which updates may count: those of a finite loss, gradient and result, and, if asked, of a loss that does not jump.

An update that may not is left out, state, averages and moments as they were before it; the step is counted and the data
go on. The judgement is made on the device, so the loop does not wait for it.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

__all__ = ["Guard", "init", "judge"]

_PATIENCE = 100
"""Updates before the running mean of the loss is believed; also how far it reaches back."""


class Guard(NamedTuple):
    """Scalars on the device: updates left out in a row (int32), in all (int32), updates made (int32), and the running
    mean of the logarithm of the loss (float32).
    """

    in_a_row: Array
    skipped: Array
    made: Array
    log_loss: Array


def init() -> Guard:
    """Nothing seen."""
    zero = jnp.zeros((), jnp.int32)
    return Guard(zero, zero, zero, jnp.zeros((), jnp.float32))


def judge(guard: Guard, loss: Array, *norms: Array, spike: float = 0.0) -> tuple[Array, Guard]:
    """Whether the update counts (a bool scalar), and the guard after it.

    Args:
      loss: of the batch, a scalar.
      norms: other scalars that must be finite: of the gradient, of the parameters after the update.
      spike: also leave out what has a loss more than so many times the running (geometric) mean, once 100 updates were
        made; 0 for never.

    The guard keeps its dtypes, whatever those of the loss are.
    """
    ok = jnp.isfinite(loss)
    for norm in norms:
        ok &= jnp.isfinite(norm)
    log_loss = jnp.log(jnp.maximum(loss.astype(jnp.float32), 1e-30))
    if spike:
        ok &= (guard.made < _PATIENCE) | (log_loss < guard.log_loss + math.log(spike))
    made = guard.made + ok.astype(jnp.int32)
    towards = 1 / jnp.clip(made, 1, _PATIENCE).astype(jnp.float32)
    mean = guard.log_loss + jnp.where(ok, towards * (log_loss - guard.log_loss), 0)
    return ok, Guard(jnp.where(ok, 0, guard.in_a_row + 1), guard.skipped + (~ok).astype(jnp.int32), made, mean)
