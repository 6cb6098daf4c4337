"""What a schedule is: a monotone map u in [0, 1] -> logSNR, its inverse, and its density.

With x_t = alpha x_0 + sigma_t eps, logsnr = 2 log(alpha / sigma_t) and sigma = sigma_t / alpha = exp(-logsnr / 2).
A decreasing map logsnr(u) is the quantile function of a distribution of logSNR: with u uniform on [0, 1],

    P(logsnr > lam) = u(lam),        density p(lam) = -du / dlam,

so choosing a schedule is choosing where training looks (Hang & Gu 2024, arXiv:2407.03297, section 2).

Both tails are exact. Next to u every schedule is given v = 1 - u, because in floating point 1 - (1 - 1e-9) is not 1e-9:
a formula that is sharp at u -> 1 reads v, and combinators hand on both.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffax import _check
from diffax._array import at_least_float32

__all__ = ["SIGNATURES", "Schedule", "logsnr_from_sigma", "sigma_from_logsnr"]

SIGNATURES = {"quantile": "(u, v) -> logsnr", "tails": "(logsnr) -> (u, v)", "density": "(logsnr) -> density"}
"""How the fields of a schedule are called."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A noise schedule.

    Call it for logSNR: `schedule(u)`, any shape, u in [0, 1] (0 clean, 1 noise).
    `schedule.inverse(logsnr)` gives u back and `schedule.density(logsnr)` the density p(logsnr) = -du/dlogsnr, which is
    0 outside the range of the schedule. All take a number, a list or an array, and return an array of the argument's
    dtype, float32 or better.

    Fields (what a new schedule has to state; `from_quantile` and `from_tails` find what has no closed form):
      quantile: (u, v) -> logsnr, with v = 1 - u; decreasing in u.
      tails: logsnr -> (u, v), the inverse; u = P(greater logsnr), v = 1 - u.
      density: logsnr -> p(logsnr).

    Each is a function of arrays. As a field of the schedule it takes numbers and lists too.

    Raises ValueError if a field is no function, if u is not in [0, 1], or if logsnr is not a number.
    """

    quantile: Callable[[Any, Any], Array]
    tails: Callable[[Any], tuple[Array, Array]]
    density: Callable[[Any], Array]

    def __post_init__(self) -> None:
        for name, kind in (("quantile", _Quantile), ("tails", _Tails), ("density", _Density)):
            function = getattr(self, name)
            _check.callable_(name, function, SIGNATURES[name])
            if not isinstance(function, kind):  # it is one where a field of another schedule is given
                object.__setattr__(self, name, kind(function))

    def __call__(self, u: ArrayLike) -> Array:
        """logSNR at u in [0, 1] (0 clean, 1 noise)."""
        must = "lie in [0, 1]"
        _check.real("u", u, must)
        share = at_least_float32(u)
        values = _check.real("u", share, must)  # as rounded: 1 + 1e-16 is 1
        if values is not None and not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"u = {_check.shown(u)}: must {must}")
        return self.quantile(share, 1 - share)

    def inverse(self, logsnr: ArrayLike) -> Array:
        """u in [0, 1] at which the schedule has this logSNR."""
        return self.tails(logsnr)[0]


def sigma_from_logsnr(logsnr: ArrayLike) -> Array:
    """sigma = exp(-logsnr / 2), the noise of x = x_0 + sigma n. Raises ValueError unless logsnr holds numbers."""
    return jnp.exp(-_check.logsnr(logsnr) / 2)


def logsnr_from_sigma(sigma: ArrayLike) -> Array:
    """logsnr = -2 log sigma. Raises ValueError unless sigma is >= 0."""
    _check.between("sigma", sigma, 0, np.inf)
    return -2 * jnp.log(at_least_float32(sigma))


# ---- the fields: functions of arrays, called with numbers -----------------------------------------------------------
#
# Each checks its arguments and gives a result of their dtype. Parameters may be of a better one, as numpy's are under
# x64, so within them types are promoted in the standard way.


@dataclasses.dataclass(frozen=True)
class _Quantile:
    function: Callable[[Array, Array], Array]

    def __call__(self, u: ArrayLike, v: ArrayLike) -> Array:
        u, v = _number("u", u), _number("v", v)
        with jax.numpy_dtype_promotion("standard"):
            return _result("quantile", self.function(u, v), u)


@dataclasses.dataclass(frozen=True)
class _Tails:
    function: Callable[[Array], tuple[Array, Array]]

    def __call__(self, logsnr: ArrayLike) -> tuple[Array, Array]:
        logsnr = _check.logsnr(logsnr)
        with jax.numpy_dtype_promotion("standard"):
            found = self.function(logsnr)
            if not isinstance(found, tuple | list) or len(found) != 2:
                raise ValueError(f"tails gave {_check.shown(found)}: must give a pair of arrays (u, v)")
            return _result("tails", found[0], logsnr), _result("tails", found[1], logsnr)


@dataclasses.dataclass(frozen=True)
class _Density:
    function: Callable[[Array], Array]

    def __call__(self, logsnr: ArrayLike) -> Array:
        logsnr = _check.logsnr(logsnr)
        with jax.numpy_dtype_promotion("standard"):
            return _result("density", self.function(logsnr), logsnr)


def _number(name: str, value: ArrayLike) -> Array:
    values = _check.real(name, value, "be a number")
    if values is not None and np.isnan(values).any():
        raise ValueError(f"{name} = {_check.shown(value)}: must be a number")
    return at_least_float32(value)


def _result(name: str, value: Any, like: Array) -> Array:
    if not isinstance(value, Array | np.ndarray | np.generic | float | int):
        raise ValueError(f"{name} gave {_check.shown(value)}: must give an array")
    return jnp.asarray(value).astype(like.dtype)
