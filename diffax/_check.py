"""Checks of arguments: one clear sentence now instead of a NaN, or an error from inside JAX, later.

Each check raises ValueError with a sentence that names the argument, its value, and what is allowed. Values that JAX is
tracing (learned parameters, arguments of a jitted function) have no value yet: their shape and dtype are checked, their
numbers pass.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffax._array import at_least_float32, concrete, per_sample

__all__ = [
    "aligned",
    "between",
    "callable_",
    "concrete",
    "finite",
    "flags",
    "index",
    "instance",
    "key",
    "less",
    "level",
    "logsnr",
    "numbers",
    "one",
    "one_of",
    "one_positive",
    "output",
    "per_pixel",
    "points",
    "positive",
    "real",
    "same_axes",
    "samples",
    "shown",
    "whole",
]

Kind = TypeVar("Kind")


def shown(value: Any) -> str:
    """The value as an error names it: on one line, and not longer than a reader wants."""
    text = " ".join((str if isinstance(value, Array | np.ndarray) else repr)(value).split())
    return text if len(text) <= 120 else text[:100] + " ..."


# ---- numbers --------------------------------------------------------------------------------------------------------


def real(name: str, value: Any, must: str = "be a number") -> np.ndarray | None:
    """The value in float64, or None where it is traced. Raises ValueError unless it holds real numbers."""
    array = _array(name, value, must)
    if not (_is(array, np.floating) or _is(array, np.integer)) or not array.size:
        raise ValueError(f"{name} = {shown(value)}: must {must}")
    return np.asarray(array, np.float64) if concrete(array) else None


def finite(name: str, value: Any) -> None:
    """Raise ValueError unless every entry of `value` is a finite number."""
    array = real(name, value, "be finite")
    if array is not None and not np.isfinite(array).all():
        raise ValueError(f"{name} = {shown(value)}: must be finite")


def numbers(name: str, values: ArrayLike) -> None:
    """Raise ValueError unless all of many values, where they are not traced, are finite; says how many are not."""
    if not concrete(values):
        return
    values = np.asarray(values)  # what JAX computes within jit is traced, of constants too
    finite = np.isfinite(values if values.dtype.kind in "fc" else values.astype(np.float32))
    if not finite.all():
        raise ValueError(f"{name}: {(~finite).sum()} of {finite.size} values are not finite: must all be")


def positive(name: str, value: Any) -> None:
    """Raise ValueError unless every entry of `value` is finite and > 0."""
    array = real(name, value, "be positive and finite")
    if array is not None and not (np.isfinite(array).all() and (array > 0).all()):
        raise ValueError(f"{name} = {shown(value)}: must be positive and finite")


def between(name: str, value: Any, low: float, high: float) -> None:
    """Raise ValueError unless low <= value <= high everywhere."""
    array = real(name, value, f"lie in [{low}, {high}]")
    if array is not None and not ((array >= low) & (array <= high)).all():
        raise ValueError(f"{name} = {shown(value)}: must lie in [{low}, {high}]")


def whole(name: str, value: Any, least: int = 1, most: float = np.inf) -> None:
    """Raise ValueError unless `value` is an integer from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
        bounds = f">= {least}" if most == np.inf else f"from {least} to {most}"
        raise ValueError(f"{name} = {shown(value)}: must be an integer {bounds}")


def less(low_name: str, low: Any, high_name: str, high: Any) -> None:
    """Raise ValueError unless `low` < `high` everywhere."""
    lower, upper = real(low_name, low), real(high_name, high)
    if lower is not None and upper is not None and not np.all(lower < upper):
        raise ValueError(f"{low_name} = {shown(low)}: must be less than {high_name} = {shown(high)}")


def one(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a single number, and not an array of them."""
    if np.ndim(value):
        raise ValueError(f"{name} has shape {np.shape(value)}: must be one number")


def one_positive(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is one number, finite and > 0."""
    positive(name, value)
    one(name, value)


def flags(**values: Any) -> None:
    """Raise ValueError unless each value is True or False."""
    for name, value in values.items():
        one_of(name, value, (True, False))


# ---- kinds ----------------------------------------------------------------------------------------------------------


def instance(name: str, value: Any, kind: type[Kind], example: str) -> Kind:
    """`value` itself. Raises ValueError unless it is a `kind`, which `example` is; asks for forgotten parentheses."""
    if isinstance(value, kind):
        return value
    if callable(value) and not isinstance(value, type):
        raise ValueError(
            f"{name} = {_called(value)}: is a function: did you forget the parentheses? It must be a "
            f"{kind.__name__} such as {example}"
        )
    raise ValueError(f"{name} = {shown(value)}: must be a {kind.__name__} such as {example}")


def callable_(name: str, value: Any, signature: str) -> None:
    """Raise ValueError unless `value` can be called; `signature` says how it will be, as in denoise(x, sigma) -> x0."""
    if not callable(value):
        raise ValueError(f"{name} = {shown(value)}: must be a function {signature}")


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise ValueError unless `value` is one of those allowed."""
    if not any(value is a or (isinstance(value, type(a)) and value == a) for a in allowed):
        raise ValueError(f"{name} = {shown(value)}: must be one of {', '.join(map(repr, allowed))}")


def key(name: str, value: Any) -> Array:
    """`value` itself. Raises ValueError unless it is one JAX key, typed or raw."""
    array = isinstance(value, Array | np.ndarray)
    typed = array and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    if not typed and not (array and value.dtype == np.uint32 and value.ndim >= 1):
        raise ValueError(f"{name} = {shown(value)}: must be a JAX key such as jax.random.key(0)")
    batch = value.shape if typed else value.shape[:-1]
    if batch:
        raise ValueError(f"{name} holds {' x '.join(map(str, batch))} keys: must be one, such as jax.random.key(0)")
    return value  # type: ignore[return-value]


# ---- batches --------------------------------------------------------------------------------------------------------


def samples(name: str, value: Any) -> Array:
    """`value` in float32 or better. Raises ValueError unless it is a batch [batch, ...] of floating-point numbers that
    are finite where they have values."""
    array = _floating(name, value)
    numbers(name, array)
    return at_least_float32(array)


def index(value: Any, batch: int, name: str = "index") -> Array:
    """The numbers of the samples, 0, 1, ... for None. Raises ValueError unless they are [batch] integers."""
    if value is None:
        return jnp.arange(batch)
    array = _array(name, value, f"be [batch] = ({batch},) integers")
    if array.shape != (batch,):
        raise ValueError(f"{name} has shape {array.shape}: must be [batch] = ({batch},)")
    if not _is(array, np.integer):
        raise ValueError(f"{name} is of {array.dtype}: must be integers")
    return jnp.asarray(array)


def points(name: str, value: Any) -> Array:
    """`value` as an array [batch, ...] of its own dtype, complex ones of a complex-valued model too.

    Raises ValueError unless it holds floating-point numbers. A denoiser hands NaN on, for `dx.sample` to report.
    """
    if isinstance(value, Array | np.ndarray) and value.ndim and value.size and _is(value, np.complexfloating):
        return jnp.asarray(value)
    return jnp.asarray(_floating(name, value))


# ---- what goes with a batch -----------------------------------------------------------------------------------------


def logsnr(value: Any) -> Array:
    """logSNR, of any shape, in float32 or better. Raises ValueError unless it holds numbers, infinite ones or not."""
    must = "be numbers, none of them NaN"
    values = real("logsnr", value, must)
    if values is not None and np.isnan(values).any():
        raise ValueError(f"logsnr = {shown(value)}: must {must}")
    return at_least_float32(value)


def level(sigma: Any, x: Array) -> Array:
    """The noise level of x in float32 or better: a scalar, [batch], or [batch, ...] per pixel with the axes of x.

    Raises ValueError unless it is of such a shape and, where it has values, finite and >= 0.
    """
    values = real("sigma", sigma, "be finite and >= 0")
    if values is not None and np.isposinf(values).any():
        raise ValueError(
            "sigma = inf: must be finite and >= 0, for x = x_0 + sigma n has no finite value there: truncate the "
            "schedule, as in dx.schedules.truncate(schedule, logsnr_min=-12, logsnr_max=12)"
        )
    if values is not None and not (np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError(f"sigma = {shown(sigma)}: must be finite and >= 0")
    sigma = at_least_float32(sigma)
    if sigma.shape not in ((), x.shape[:1]) and not per_pixel(sigma.shape, x.shape):
        raise ValueError(
            f"sigma has shape {sigma.shape} for x of shape {x.shape}: must be a scalar, [batch] = {x.shape[:1]}, or "
            "[batch, ...] with the axes of x, each as long as that of x or 1"
        )
    return sigma


def aligned(name: str, value: ArrayLike, x: Array) -> Array:
    """A number, [batch], or [batch, ...] with the axes of x -> a shape that multiplies x.

    Raises ValueError for any other shape: it might be broadcast along the wrong axis.
    """
    array = at_least_float32(value)
    if array.shape not in ((), x.shape[:1]) and not same_axes(array.shape, x.shape):
        raise ValueError(
            f"{name} has shape {array.shape} for x of shape {x.shape}: must be a number, [batch] = {x.shape[:1]}, or "
            "have the axes of x, each as long as that of x or 1"
        )
    return per_sample(array, x)


def per_pixel(shape: tuple[int, ...], of: tuple[int, ...]) -> bool:
    """Whether a shape has the axes `of` a batch [batch, ...], the first as long, each other as long or 1."""
    return same_axes(shape, of) and shape[0] == of[0]


def same_axes(shape: tuple[int, ...], of: tuple[int, ...]) -> bool:
    """Whether a shape has the axes `of` another, each as long as that one or 1."""
    return len(shape) == len(of) and all(a in (1, b) for a, b in zip(shape, of, strict=True))


def output(name: str, value: Any, like: Array) -> Array:
    """What the function `name` gave for a batch `like`, as an array.

    Raises ValueError unless it has the shape of `like`: another one might be broadcast, silently.
    """
    if not isinstance(value, Array | np.ndarray | np.generic):
        raise ValueError(f"{name} gave {_kind(value)}: must be an array of shape {like.shape}")
    if value.shape != like.shape:
        raise ValueError(f"{name} gave shape {value.shape} for x of shape {like.shape}: must be the same")
    if not (_is(value, np.floating) or (_is(value, np.complexfloating) and _is(like, np.complexfloating))):
        raise ValueError(f"{name} gave {value.dtype}: must be floating-point numbers")
    return jnp.asarray(value)


# ---- parts ----------------------------------------------------------------------------------------------------------


def _array(name: str, value: Any, must: str) -> Any:
    """The value as an array of numpy or, where it is one or is traced, of JAX."""
    if isinstance(value, Array | np.ndarray):
        return value
    try:
        return np.asarray(value) if concrete(value) else jnp.asarray(value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{name} = {shown(value)}: must {must}") from None


def _floating(name: str, value: Any) -> Any:
    """The value as an array. Raises ValueError unless it is a batch [batch, ...] of floating-point numbers."""
    array = _array(name, value, "be an array [batch, ...] of floating-point numbers")
    if not _is(array, np.floating):
        hint = ": scale pictures to order one first, as diffax.data.to_unit does" if array.dtype == np.uint8 else ""
        raise ValueError(f"{name} is of {array.dtype}: must be floating-point numbers{hint}")
    if array.ndim < 1 or not array.size:
        raise ValueError(f"{name} has shape {array.shape}: must be [batch, ...] with at least one sample")
    return array


def _is(array: Any, kind: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, kind))


def _called(value: Callable) -> str:
    return getattr(value, "__name__", None) or shown(value)


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
