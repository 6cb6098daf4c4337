"""A trained network as a target of the benchmark: the reference is the same network in float64."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

import diffax as dx
from diffax.training import sharding
from diffax.training.summary import fingerprint
from experiments import workdir as workdirs
from experiments.bench.targets import Target
from experiments.recipe import Recipe, build_network

__all__ = ["from_workdir", "target"]

SEEDS, STEPS = 64, 512


def from_workdir(workdir: Path) -> Target:
    """The averaged network of a run, named after its directory and step, and so apart from the exact targets."""
    config = workdirs.read_config(workdir)
    rec, params, step = workdirs.load_ema(workdir, config, sharding.data_mesh())
    if not rec.objective.denoises:
        raise ValueError(f"{workdir}: holds a consistency model; solvers are compared on denoisers")
    name = workdir.resolve().name
    return target(f"{name}@{step}", f"the network of {name} at step {step}", config.model, rec, params)


def target(name: str, title: str, model: Mapping[str, Any], rec: Recipe, params: Any) -> Target:
    """The network of a recipe; sample i is of class i modulo the number of classes."""
    params = jax.device_get(params)
    wide = build_network(model, rec.shape, rec.num_classes, jnp.float64)

    def denoise(x: Array, sigma: ArrayLike) -> Array:
        network = wide if x.dtype == jnp.float64 else rec.network
        label = None if rec.num_classes is None else jnp.arange(len(x)) % rec.num_classes
        cast = jax.tree.map(lambda p: jnp.asarray(p, x.dtype), params)
        return dx.denoiser(network.apply, cast, rec.preconditioning, label)(x, sigma)

    return Target(name, title, rec.shape, SEEDS, network=denoise, made_of=fingerprint(params), steps=STEPS)
