"""How good samples are, judged by something other than the model."""

from diffax.metrics.classifier import Judge, accuracy, judge
from diffax.metrics.neighbours import nearest_distance

__all__ = ["Judge", "accuracy", "judge", "nearest_distance"]
