"""The arguments of the constructors of schedules: checked, and in the form that the formulas want.

A parameter is a number, or an array that broadcasts with logSNR and may be traced.
"""

from typing import Any

import numpy as np
from jax import Array

from diffax import _check
from diffax._array import Scalar
from diffax.schedules.schedule import Schedule

__all__ = ["base", "between", "finite", "positive"]


def base(schedule: Any, name: str = "schedule") -> Schedule:
    """`schedule` itself. Raises ValueError unless it is a Schedule."""
    return _check.instance(name, schedule, Schedule, "dx.schedules.edm()")


def finite(name: str, value: Any) -> Scalar:
    """The value as a parameter. Raises ValueError unless it is finite."""
    _check.finite(name, value)
    return _parameter(name, value)


def positive(name: str, value: Any) -> Scalar:
    """The value as a parameter. Raises ValueError unless it is finite and > 0."""
    _check.positive(name, value)
    return _parameter(name, value)


def between(name: str, value: Any, low: float, high: float) -> Scalar:
    """The value as a parameter. Raises ValueError unless it lies in [low, high]."""
    _check.between(name, value, low, high)
    return _parameter(name, value)


def _parameter(name: str, value: Any) -> Scalar:
    """An array as it is, and a number as one of Python's, which takes any dtype."""
    if isinstance(value, Array) or type(value) is float or (type(value) is int and abs(value) < 2**31):
        return value  # a greater integer is none of JAX's
    if not isinstance(value, np.ndarray | np.generic | float | int):
        raise ValueError(f"{name} = {_check.shown(value)}: must be a number or an array")
    return value if np.ndim(value) else float(value)  # type: ignore[return-value]
