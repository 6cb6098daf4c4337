"""The loss of a run by noise level: where a training that looked at some levels more than at others is good."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import diffax as dx
from experiments import workdir as workdirs
from experiments.held_out import everything
from experiments.lab import protocol, results
from experiments.recipe import loss

__all__ = ["LEVELS", "by_level", "middles", "over_seeds"]

LEVELS = np.arange(-9.0, 13.0)
"""In logSNR, the lower ends: each level is one unit wide."""


def middles() -> list[float]:
    """Of the levels."""
    return (LEVELS + 0.5).tolist()


def by_level(run: protocol.Run, *whens: str) -> dict[str, list[float]]:
    """{"loss WHEN", "gradient WHEN"}: for each of LEVELS the loss that a run trains on, of 256 held-out images, and the
    norm of its gradient; "before", of the parameters that it began with, and "after", of the averaged ones."""
    config = workdirs.read_config(run.workdir)
    rec, trained, _ = workdirs.load_ema(run.workdir, config, workdirs.mesh_of(config))
    batch = {name: values[:256] for name, values in everything(workdirs.load_dataset(config, "test")).items()}
    key = jax.random.key(protocol.SEED)
    init_key, *_ = jax.random.split(jax.random.key(config.seed), 3)  # as the run does
    parameters = {"before": lambda: rec.network.init(init_key), "after": lambda: trained}

    @jax.jit
    def at(params: Any, low: Array) -> tuple[Array, Array]:
        inside = rec._replace(schedule=dx.schedules.uniform(low, low + 1))
        value, grads = jax.value_and_grad(lambda p: loss(inside, train=False)(p, batch, key, jnp.zeros((), int))[0])(
            params
        )
        return value, optax.tree.norm(grads)

    found: dict[str, list[float]] = {}
    for when in whens:
        params = parameters[when]()
        values = [at(params, low) for low in LEVELS]
        found |= {f"loss {when}": [float(v) for v, _ in values], f"gradient {when}": [float(g) for _, g in values]}
    return found


def over_seeds(of_seeds: list[list[float]]) -> list[dict[str, Any]]:
    """[levels] means and standard errors of values [seeds][levels]."""
    return [results.mean(values) for values in zip(*of_seeds, strict=True)]
