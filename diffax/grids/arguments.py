"""Checks of what the grids are given. Each raises ValueError with a sentence that says what is allowed."""

from typing import Any

from jax import Array
from jax.typing import ArrayLike

from diffax import _check
from diffax.solvers.linear import magnitude

__all__ = ["MOST_STEPS", "fixed", "level", "samples", "whole"]

MOST_STEPS = 100_000
"""Of any grid. More cost minutes and are of no use."""


def whole(least: int = 1, most: int = MOST_STEPS, **values: Any) -> None:
    """Each value must be an integer from `least` to `most`."""
    for name, value in values.items():
        _check.whole(name, value, least, most)


def level(name: str, value: Any, most: float = 1e15) -> float:
    """One noise level or scale of data, as a float in [1 / most, most]."""
    fixed(name, value)
    return magnitude(name, value, most)


def samples(name: str, value: ArrayLike) -> Array:
    """A batch [batch, ...] of finite floating-point numbers, in float32 or better."""
    fixed(name, value)
    return _check.samples(name, value)


def fixed(name: str, value: Any) -> None:
    """The value must not be traced by JAX: a search looks at numbers, so it does not run under jit."""
    if not _check.concrete(value):
        raise ValueError(f"{name} is traced: must be concrete, since a grid is sought outside jit")
