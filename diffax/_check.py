"""Checks of constructor arguments: one clear sentence now instead of a NaN later.

Values that JAX is tracing (learned parameters, arguments of a jitted function) have no value yet and pass unchecked.
"""

from typing import Any

import jax
import numpy as np

__all__ = ["between", "concrete", "finite", "less", "numbers", "positive", "whole"]


def concrete(*values: Any) -> bool:
    """True when no value, nor any leaf of one, is being traced by JAX."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def finite(name: str, value: Any) -> None:
    """Raise ValueError unless every entry of `value` is a finite number."""
    if concrete(value) and not (np.size(value) and np.isfinite(np.asarray(value, np.float64)).all()):
        raise ValueError(f"{name} = {value}: must be finite")


def numbers(name: str, values: np.ndarray) -> None:
    """Raise ValueError unless all of many values are finite; says how many are not."""
    if bad := int((~np.isfinite(values)).sum()):
        raise ValueError(f"{name}: {bad} of {np.size(values)} values are not finite")


def positive(name: str, value: Any) -> None:
    """Raise ValueError unless every entry of `value` is finite and > 0."""
    if concrete(value):
        array = np.asarray(value, np.float64)
        if not (array.size and np.isfinite(array).all() and (array > 0).all()):
            raise ValueError(f"{name} = {value}: must be positive and finite")


def between(name: str, value: Any, low: float, high: float) -> None:
    """Raise ValueError unless low <= value <= high everywhere."""
    if concrete(value):
        array = np.asarray(value, np.float64)
        if not ((array >= low) & (array <= high)).all():
            raise ValueError(f"{name} = {value}: must lie in [{low}, {high}]")


def whole(name: str, value: Any, least: int = 1, most: float = np.inf) -> None:
    """Raise ValueError unless `value` is an integer from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
        bounds = f">= {least}" if most == np.inf else f"from {least} to {most}"
        raise ValueError(f"{name} = {value!r}: must be an integer {bounds}")


def less(low_name: str, low: Any, high_name: str, high: Any) -> None:
    """Raise ValueError unless `low` < `high` everywhere."""
    if concrete(low, high) and not np.all(np.asarray(low) < np.asarray(high)):
        raise ValueError(f"{low_name} = {low}: must be less than {high_name} = {high}")
