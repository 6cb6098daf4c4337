"""Metrics of a training run, as CLU collections: they are gathered on the device and read when they are logged."""

import itertools
from typing import Any

import flax
import jax.numpy as jnp
import numpy as np
from clu import metrics
from jax import Array

__all__ = ["LEVEL_EDGES", "LossPerLevel", "TrainMetrics", "per_level", "scalars"]

LEVEL_EDGES = tuple(range(-12, 15, 3))
"""Edges of the logSNR bins in which the loss is reported; the first and the last bin also hold what lies outside."""


@flax.struct.dataclass
class LossPerLevel(metrics.Metric):
    """The mean loss in bins of logSNR: where along the noise levels the model is good and where it is not."""

    total: Array
    count: Array

    @classmethod
    def empty(cls) -> "LossPerLevel":
        bins = len(LEVEL_EDGES) - 1
        return cls(total=jnp.zeros(bins), count=jnp.zeros(bins))

    @classmethod
    def from_model_output(cls, *, sample_loss: Array, logsnr: Array, **_: Any) -> "LossPerLevel":
        """sample_loss, logsnr: [batch]."""
        bins = len(LEVEL_EDGES) - 1
        index = jnp.clip(jnp.searchsorted(jnp.asarray(LEVEL_EDGES), logsnr, side="right") - 1, 0, bins - 1)
        member = index[:, None] == jnp.arange(bins)
        # where, not a product: a NaN must stay in its own bin
        return cls(total=jnp.where(member, sample_loss[:, None], 0).sum(0), count=member.sum(0).astype(jnp.float32))

    def merge(self, other: "LossPerLevel") -> "LossPerLevel":
        return LossPerLevel(total=self.total + other.total, count=self.count + other.count)

    def compute(self) -> Array:
        """[bins] mean losses, NaN where no sample fell."""
        return self.total / self.count


@flax.struct.dataclass
class TrainMetrics(metrics.Collection):
    """loss and gradient norm, averaged over steps, and the loss per logSNR bin."""

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    grad_norm: metrics.Average.from_output("grad_norm")  # type: ignore[valid-type]
    levels: LossPerLevel


def scalars(collection: metrics.Collection) -> dict[str, float]:
    """A collection as flat, named numbers; what nothing was seen of, a bin or the whole, is left out."""
    out: dict[str, float] = {}
    for name, value in collection.compute().items():
        metric = getattr(collection, name)
        if isinstance(metric, LossPerLevel):
            out |= {f"{name}/{bin_name}": v for bin_name, v in per_level(metric)}
        elif np.any(metric.count):
            out[name] = float(np.asarray(value))
    return out


def per_level(metric: LossPerLevel) -> list[tuple[str, float]]:
    """("logsnr_-3_to_0", mean loss) of the bins in which samples fell."""
    names = [f"logsnr_{low}_to_{high}" for low, high in itertools.pairwise(LEVEL_EDGES)]
    counts, means = np.asarray(metric.count), np.asarray(metric.compute())
    return [(name, float(mean)) for name, mean, count in zip(names, means, counts, strict=True) if count]
