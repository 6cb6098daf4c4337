"""The training objective on images that were not trained on: what is compared between parameters of one run."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array

from diffax.data import Dataset
from diffax.training.metrics import TrainMetrics, scalars
from experiments.recipe import Recipe, loss

__all__ = ["everything", "held_out_loss"]

DRAWS = 16
"""Noise levels drawn per held-out image."""


def everything(dataset: Dataset) -> dict[str, np.ndarray]:
    """At most 10,000 examples, read at once."""
    return dataset.read(np.arange(min(dataset.size, 10_000)))


def held_out_loss(rec: Recipe, test: dict[str, np.ndarray], key: Array, step: int) -> Callable[[Any], dict[str, float]]:
    """measure(params) -> the loss on at most 1,000 images, and per bin of logSNR, without dropout.

    Each call draws the same noise, so that differences between parameters are theirs alone.
    """

    objective = loss(rec, train=False)

    @jax.jit
    def measure(params, batch, key):
        value, aux = objective(params, batch, key, step)
        return TrainMetrics.single_from_model_output(loss=value, grad_norm=0.0, sample_loss=aux.loss, logsnr=aux.logsnr)

    batch = {name: values[:1000] for name, values in test.items()}

    def over_draws(params: Any) -> dict[str, float]:
        total = TrainMetrics.empty()
        for draw in range(DRAWS):
            total = total.merge(measure(params, batch, jax.random.fold_in(key, draw)))
        return {name: value for name, value in scalars(total).items() if name != "grad_norm"}

    return over_draws
