"""Schedules that are learned with the model: their parameters are an ordinary pytree, trained by the same optimizer.

    params = learned_init(key)                               # beside the network's parameters
    schedule = learned(params)                               # inside the loss
    loss = losses.denoising(..., schedule=schedule, weighting=weightings.elbo(schedule))

VDM (Kingma et al. 2021, arXiv:2107.00630, appendix H): -logsnr is a monotone network of time with positive weights.
CVDM (arXiv:2312.02246): the signal decays as exp(-r T(u)) with T one such network and r > 0 a map of the condition, one
number per pixel, so that every pixel has a schedule of its own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from diffax import _check
from diffax._array import Scalar, at_least_float32, per_sample
from diffax.schedules import arguments
from diffax.schedules.inversion import bisected_tails
from diffax.schedules.schedule import Schedule

__all__ = ["Monotone", "learned", "learned_init", "per_pixel", "per_pixel_regulariser"]


class Monotone(NamedTuple):
    """Parameters of a map [0, 1] -> [0, 1], increasing whatever their values.

    m(u) ~ softplus(linear) u + sum_k softplus(height_k) [s(w_k (u - c_k)) - s(-w_k c_k)], s the logistic function and
    w_k = softplus(width_k), scaled so that m(0) = 0 and m(1) = 1. ends: (logsnr at u = 0, logsnr at u = 1).
    """

    linear: Array
    height: Array
    width: Array
    centre: Array
    ends: Array


def learned_init(key: Array, *, units: int = 64, logsnr_min: float = -10.0, logsnr_max: float = 10.0) -> Monotone:
    """Parameters of a schedule that begins nearly uniform in logSNR, from logsnr_max to logsnr_min.

    Raises ValueError unless units is a whole number >= 1 and logsnr_min < logsnr_max, both finite.
    """
    key = _check.key("key", key)
    _check.whole("units", units, 1, 1_000_000)
    for name, value in (("logsnr_min", logsnr_min), ("logsnr_max", logsnr_max)):
        _check.finite(name, value)
        _check.one(name, value)
    _check.less("logsnr_min", logsnr_min, "logsnr_max", logsnr_max)
    kind = jnp.float32  # said, for a number of Python is weakly typed, and a train step would be compiled once more
    return Monotone(
        linear=jnp.asarray(jnp.log(jnp.expm1(1.0)), kind),  # softplus gives 1
        height=jnp.full(units, -6.0, kind),  # and nearly 0
        width=jnp.full(units, jnp.log(jnp.expm1(10.0)), kind),
        centre=jax.random.uniform(key, (units,), kind),
        ends=jnp.array([logsnr_max, logsnr_min], kind),
    )


def learned(params: Monotone, *, train_ends: bool = True) -> Schedule:
    """The schedule of these parameters: logsnr(u) = ends[0] + (ends[1] - ends[0]) m(u).

    train_ends False keeps the ends where `learned_init` put them. The inverse is found by bisection.

    Raises ValueError unless ends[1] < ends[0], where they have values: nothing else keeps them so in training.
    """
    params = _parameters(params)
    _check.flags(train_ends=train_ends)
    _check.less("ends[1]", params.ends[1], "ends[0]", params.ends[0])
    ends = params.ends if train_ends else jax.lax.stop_gradient(params.ends)
    return bisected_tails(lambda u, v: ends[0] + (ends[1] - ends[0]) * _monotone(params, u))


def per_pixel(params: Monotone, rate: Array, *, floor: float = 1e-5) -> Schedule:
    """CVDM: alpha^2 = exp(-rate m(u)), one schedule for each entry of `rate` > 0, e.g. [batch, height, width, 1].

    u is then [batch], or [] for one level for all; logSNR has the shape of `rate`. m runs from `floor` to 1, which
    keeps logsnr finite at u = 0. `rate` is a positive output of a network of the condition; `ends` is not used. The
    inverse and the density take logSNR of the shape of `rate`, or [batch], or [].

    Raises ValueError unless rate is positive and floor in [0, 1).
    """
    params = _parameters(params)
    _check.positive("rate", rate)
    rate = at_least_float32(rate)
    least = _check.real("floor", floor, "lie in [0, 1)")
    if least is None or least.ndim or not 0 <= least < 1:
        raise ValueError(f"floor = {_check.shown(floor)}: must lie in [0, 1)")

    def fits(name: str, value: Array) -> Array:
        axes = list(zip(value.shape, rate.shape, strict=False))
        if value.ndim > rate.ndim or any(a not in (1, b) for a, b in axes):
            raise ValueError(
                f"{name} has shape {value.shape} for a rate of shape {rate.shape}: must be a number, [batch], or have "
                "the shape of rate"
            )
        return value

    def power_lost(u: Array) -> Array:
        fits("u", u)
        m = floor + (1 - floor) * _monotone(params, u)
        return rate * per_sample(m, rate)

    def quantile(u: Array, v: Array) -> Array:
        lost = power_lost(u)
        return -(lost + jnp.log(-jnp.expm1(-lost)))  # log(alpha^2 / (1 - alpha^2))

    def each(lam: Array) -> Array:
        return jnp.broadcast_to(per_sample(fits("logsnr", lam), rate), rate.shape)

    found = bisected_tails(quantile)
    return Schedule(quantile, lambda lam: found.tails(each(lam)), lambda lam: found.density(each(lam)))


def per_pixel_regulariser(schedule: Schedule, u: Array, *, weight: Scalar = 1e-3) -> Array:
    """CVDM's L_gamma: weight (d^2/du^2 alpha^2)^2, which keeps a learned schedule from degenerating. Shape of logSNR.

    (The paper's term is on a truncated SNR, sum_{i <= n} alpha^(2i), with n = 1 in the authors' code.)

    Raises ValueError unless schedule is a Schedule, u in [0, 1], and weight one finite number.
    """
    schedule, weight = arguments.base(schedule), arguments.finite("weight", weight)
    _check.one("weight", weight)
    _check.between("u", u, 0, 1)
    u = at_least_float32(u)

    def signal(u: Array) -> Array:
        return jax.nn.sigmoid(schedule.quantile(u, 1 - u))

    def slope(u: Array) -> Array:
        return jax.jvp(signal, (u,), (jnp.ones_like(u),))[1]

    return weight * jax.jvp(slope, (u,), (jnp.ones_like(u),))[1] ** 2


def _parameters(params: Any) -> Monotone:
    """`params` itself. Raises ValueError unless they are those of one schedule."""
    _check.instance("params", params, Monotone, "dx.schedules.learned_init(key)")
    for name, value in params._asdict().items():
        _check.finite(f"params.{name}", value)
    units = np.shape(params.centre)
    shapes = {"linear": (), "height": units, "width": units, "centre": units, "ends": (2,)}
    for name, shape in shapes.items():
        if len(units) != 1 or np.shape(getattr(params, name)) != shape:
            raise ValueError(
                f"params.{name} has shape {np.shape(getattr(params, name))}: must be [] for linear, [units] for "
                "height, width and centre, and [2] for ends, as dx.schedules.learned_init makes them"
            )
    return params


def _monotone(params: Monotone, u: Array) -> Array:
    width, height = jax.nn.softplus(params.width), jax.nn.softplus(params.height)

    def raw(u: Array) -> Array:
        rise = jax.nn.sigmoid(width * (u[..., None] - params.centre)) - jax.nn.sigmoid(-width * params.centre)
        return jax.nn.softplus(params.linear) * u + jnp.sum(height * rise, -1)

    return raw(u) / raw(jnp.ones_like(u))
