"""Consistency models: f(x, sigma) leads from any point of a trajectory to its clean end in one evaluation.

The probability-flow ODE carries x_0 + sigma n to data, and f is constant along each of its trajectories. Two conditions
make it so: the boundary f(x, e) = x at the lowest level e, which is built in by

    f(x, t) = c_skip x + c_out F(c_in x, log(t) / 4),
    c_skip = sd^2 / ((t - e)^2 + sd^2),   c_out = sd (t - e) / s,   c_in = 1 / s,   s = sqrt(t^2 + sd^2)

(Song et al. 2023, arXiv:2303.01469, appendix C; these are no `Preconditioning`: at t = e nothing is asked of F, so
there is no a x_0 + b n that it predicts), and equal values at neighbours t_n < t_{n+1} of a grid of N levels, which are
learned:

    h(f(x_{n+1}, t_{n+1}) - f(x_n, t_n)) / (t_{n+1} - t_n),    h(r) = sqrt(||r||^2 + c^2) - c,   c = 0.00054 sqrt(dim r)

with no gradient through the second f, of the same parameters (iCT: Song & Dhariwal 2023, arXiv:2310.14189) or of their
moving average (target_params: Song et al. 2023, algorithms 2 and 3). `training`
takes both points from one pair of data and noise, x_n = x_0 + t_n n; `distillation` goes from x_{n+1} to x_n by one
step of a solver with a trained denoiser.

N grows while training goes on (`dx.curricula`), inside one compiled step: `levels` has a fixed size, in which places
that are not in use repeat the last level. Which neighbours are compared is said by a schedule, as is where a denoiser
is trained: a level is drawn from it, between the ends of the grid, and the pair is the one that it falls between. Of a
grid in Karras's spacing that is, with u uniform,

| schedule | pair n of 0, ..., N - 2 | from |
|---|---|---|
| edm(p_mean=-1.1, p_std=2) | p(n) ~ Phi((log t_{n+1} + 1.1) / 2) - Phi((log t_n + 1.1) / 2) | iCT |
| karras() | all alike | Song et al. 2023 |
| polynomial(power=4), and jitter = 1 | floor(u^4 (N - 1)), moved by a rounded normal number | Gokmen et al. 2024 |

(Gokmen et al., arXiv:2404.06353; the floor is the paper's rounding half a place down.)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffax import _check, draws, noise, schedules, solvers
from diffax._array import Scalar, at_least_float32, common, per_sample
from diffax.denoiser import Denoiser
from diffax.losses import Aux, Part, drawn, placed
from diffax.sample import sample as integrate
from diffax.schedules import Schedule, logsnr_from_sigma, sigma_from_logsnr
from diffax.solvers.linear import Solver

__all__ = ["distillation", "function", "levels", "sample", "training"]

_ROUNDING = 1e-5
"""In logSNR: by so much the ends of a grid may miss those of a schedule that are the same."""


def function(
    apply: Callable[..., Array], params: Any, cond: Any = None, *, sigma_min: Scalar = 0.002, sigma_data: Scalar = 0.5
) -> Denoiser:
    """f(x, sigma) from a network F = apply(params, x, c_noise, cond); it has the shape of a denoiser.

    f(x, sigma_min) is x itself, whatever F says. sigma is a scalar or [batch], >= sigma_min, or per pixel with the axes
    of x: c_noise is then of that shape. The result has the dtype of x. Raises ValueError unless apply can be called and
    sigma_min and sigma_data are positive numbers; and f for an x or a sigma that is not so, or where F has another
    shape than x.
    """
    _check.callable_("apply", apply, "apply(params, x, c_noise, cond) -> F")
    _check.one_positive("sigma_min", sigma_min)
    _check.one_positive("sigma_data", sigma_data)

    def f(x: Array, sigma: ArrayLike) -> Array:
        x = _check.points("x", x)
        dtype, wide = common(x), at_least_float32(x)
        at = _check.level(sigma, x).astype(dtype)
        if _check.concrete(sigma, sigma_min) and not (np.asarray(sigma) > (1 - _ROUNDING) * sigma_min).all():
            raise ValueError(f"sigma = {_check.shown(sigma)}: must be at least sigma_min = {sigma_min}")
        at = jnp.broadcast_to(at, x.shape[:1]) if at.ndim < 2 else at
        least, data = jnp.asarray(sigma_min, dtype), jnp.asarray(sigma_data, dtype)
        above, scale = at - least, 1 / jnp.hypot(at, data)
        skip = per_sample(1 / (1 + (above / data) ** 2), x)
        output = _check.output("apply", apply(params, per_sample(scale, x) * wide, jnp.log(at) / 4, cond), wide)
        return (skip * wide + per_sample(data * above * scale, x) * output.astype(wide.dtype)).astype(x.dtype)

    return f


def levels(count: ArrayLike, most: int, *, schedule: Schedule | None = None, pool: int | None = None) -> Array:
    """The grid of `count` levels: the sigmas of a schedule at even u, ascending.

    Args:
      count: N, at least 2 and at most `most` (held there); a number, or traced, as `dx.curricula` give it.
      most: the size of the result, at least 2.
      schedule: with finite ends; `schedules.karras()` by default.
      pool: take the levels from one fixed grid of so many (at least `most`), spread evenly over it, so that another
        count brings no sigma of its own (the Karras pool of Gokmen et al. 2024; that it is so spread is our reading).

    Returns: [most] sigmas; from place count - 1 on all are the last one.

    Raises: ValueError if count is no number, most (at most a million) or pool is out of range, or the schedule's ends
      are not finite.
    """
    _check.finite("count", count)
    _check.one("count", count)
    _check.whole("most", most, 2, 1_000_000)
    if pool is not None:
        _check.whole("pool", pool, most, 30_000)
    schedule = schedules.karras() if schedule is None else schedule
    _check.instance("schedule", schedule, Schedule, "dx.schedules.karras()")
    ends = schedule.quantile(jnp.arange(2.0), 1 - jnp.arange(2.0))
    if _check.concrete(ends) and not np.isfinite(ends).all():
        raise ValueError(f"schedule: goes from logSNR {ends[0]} to {ends[1]}; must have finite ends, see truncate")
    last = jnp.clip(at_least_float32(count), 2, most).astype(jnp.int32) - 1
    place = jnp.minimum(jnp.arange(most, dtype=jnp.int32), last)
    if pool is not None:
        place = (2 * place * (pool - 1) + last) // (2 * last)  # rounded half up, in whole numbers
        last = jnp.asarray(pool - 1, jnp.int32)
    return sigma_from_logsnr(schedule.quantile(place / last, (last - place) / last))


def training(
    apply: Callable[..., Array],
    params: Any,
    key: Array,
    x0: Array,
    cond: Any = None,
    *,
    sigmas: Array,
    target_params: Any = None,
    schedule: Schedule | None = None,
    jitter: float = 0.0,
    sigma_data: float = 0.5,
    huber: float = 0.00054,
    draw: Callable[[Array, int], Array] = draws.stratified,
    part: Part | None = None,
) -> tuple[Array, Aux]:
    """The loss of consistency training: neighbours share data and noise.

    Args:
      apply: apply(params, x, c_noise, cond) -> F, as for `losses.denoising`. It is called twice, at two levels; one
        with dropout should drop the same both times, as it does with a key that is bound to it.
      params: its parameters, any pytree.
      key: a JAX key; sample i draws its noise from fold_in(key, i).
      x0: clean data [batch, ...], float, of order one.
      cond: handed to apply as it is.
      sigmas: [levels], ascending, as `levels` makes them; those at the end that repeat the last one are not in use.
      target_params: parameters of the second f, such as a moving average of params; params itself by
        default. No gradient goes to them.
      schedule: where pairs are drawn, see above; edm(-1.1, 2.0) by default.
      jitter: a pair is moved by so many places times a normal number, rounded; one that would leave the grid stays.
      sigma_data: of the coefficients of f.
      huber: c / sqrt(dim), the root mean square from which on a difference counts linearly.
      draw: how the u of the batch are drawn, see `dx.draws`.
      part: which samples of a larger batch these are, as in `losses.denoising`.

    Returns: the mean loss, a scalar of float32 (float64 for x0 of float64), and `losses.Aux` with the loss of each
      sample and the logSNR of the noisier of its two levels.

    Raises: ValueError unless huber and sigma_data are positive and jitter at least 0, all finite, the sigmas, where
      they have values, are as described, the first two different, and all else is of the kind described; and for an
      apply or a draw that gives another shape.
    """

    def neighbour(x0: Array, n: Array, x: Array, high: Array, low: Array) -> Array:
        return x0 + per_sample(low, x0) * n

    options = (sigmas, target_params, schedule, jitter, sigma_data, huber, draw, part)
    return _loss(neighbour, apply, params, key, x0, cond, *options)


def distillation(
    apply: Callable[..., Array],
    params: Any,
    key: Array,
    x0: Array,
    cond: Any = None,
    *,
    teacher: Denoiser,
    solver: Solver | None = None,
    sigmas: Array,
    target_params: Any = None,
    schedule: Schedule | None = None,
    jitter: float = 0.0,
    sigma_data: float = 0.5,
    huber: float = 0.00054,
    draw: Callable[[Array, int], Array] = draws.stratified,
    part: Part | None = None,
) -> tuple[Array, Aux]:
    """The loss of consistency distillation: the neighbour is one step of a solver away (Song et al. 2023, algorithm 2).

    Args:
      teacher: a trained denoiser, teacher(x, sigma) -> x0 with sigma [batch], with what it is conditioned on and guided
        by; f learns where its ODE leads.
      solver: of that step, deterministic; Heun's by default, two evaluations of the teacher.
      the others: as for `training`. Algorithm 2 has target_params, the moving average of params.

    Returns: as `training`. Raises ValueError for a stochastic solver, and as `training` does.
    """
    _check.callable_("teacher", teacher, "teacher(x, sigma) -> x0")
    solver = solvers.heun() if solver is None else solver
    _check.instance("solver", solver, Solver, "dx.solvers.heun()")
    if solver.stochastic:
        raise ValueError("solver draws noise: must be a deterministic one, such as dx.solvers.heun()")

    def neighbour(x0: Array, n: Array, x: Array, high: Array, low: Array) -> Array:
        return integrate(teacher, x, jnp.stack([high, low]), solver=solver, to_zero=False)

    options = (sigmas, target_params, schedule, jitter, sigma_data, huber, draw, part)
    return _loss(neighbour, apply, params, key, x0, cond, *options)


def sample(
    f: Denoiser,
    x: Array,
    sigmas: ArrayLike,
    *,
    key: Array | None = None,
    index: Array | None = None,
    sigma_min: float = 0.002,
) -> Array:
    """f(x, sigmas[0]); then, for each further level t, noise is added up to it and f asked again:

        x <- f(x + sqrt(t^2 - sigma_min^2) z, t)        (Song et al. 2023, algorithm 1)

    Args:
      f: a consistency function, see `function`.
      x: noise at sigmas[0], [batch, ...].
      sigmas: [n], descending, greater than sigma_min; n evaluations.
      key: for more than one level.
      index: [batch] int, the samples' numbers; 0, 1, ... by default. Sample i draws from fold_in(key, index[i]) alone.

    Returns: samples of the shape and the dtype of x. Raises ValueError for arguments that are not so, a key that is
      missing, and an f that gives another shape.
    """
    _check.callable_("f", f, "f(x, sigma) -> x0")
    x = _check.points("x", x)
    _check.numbers("x", x)
    _check.real("sigmas", sigmas, "be [n] numbers that descend")
    _check.finite("sigma_min", sigma_min)
    _check.one("sigma_min", sigma_min)
    levels = at_least_float32(sigmas)
    if levels.ndim != 1:
        raise ValueError(f"sigmas has shape {levels.shape}: must be [n] with n >= 1")
    if _check.concrete(levels, sigma_min):
        values = np.asarray(levels)
        if not (np.isfinite(values).all() and (np.diff(values) < 0).all() and values[-1] > sigma_min):
            raise ValueError(f"sigmas = {values}: must descend, and be greater than sigma_min = {sigma_min}")
    numbers = _check.index(index, len(x))
    if levels.size > 1 and key is None:
        raise ValueError(
            "key is missing: sampling at several levels draws noise, give it one such as jax.random.key(0)"
        )
    key = None if key is None else noise.threefry(key)

    def clean(x: Array, sigma: Array) -> Array:
        return _check.output("f", f(x, sigma), x).astype(x.dtype)

    if levels.size == 1:
        return clean(x, levels[0])
    added = jnp.sqrt(levels**2 - sigma_min**2).at[0].set(0)  # x is noise already

    def again(x: Array, at: tuple[Array, Array, Array]) -> tuple[Array, None]:
        number, sigma, more = at
        z = noise.normal(jax.random.fold_in(key, number), numbers, x.shape[1:], x.dtype)  # type: ignore[arg-type]
        return clean(x + more.astype(x.dtype) * z, sigma), None

    return jax.lax.scan(again, x, (jnp.arange(levels.size), levels, added))[0]


# ---- the two losses -------------------------------------------------------------------------------------------------


def _loss(
    neighbour: Callable[..., Array],
    apply: Callable[..., Array],
    params: Any,
    key: Array,
    x0: Array,
    cond: Any,
    sigmas: Array,
    target_params: Any,
    schedule: Schedule | None,
    jitter: float,
    sigma_data: float,
    huber: float,
    draw: Callable[[Array, int], Array],
    part: Part | None,
) -> tuple[Array, Aux]:
    """neighbour: (x0, n, x, high, low) -> the point at level low that belongs to x at level high."""
    _check.callable_("apply", apply, "apply(params, x, c_noise, cond) -> F")
    key, x0 = noise.threefry(key), _check.samples("x0", x0)
    _check.one_positive("huber", huber)
    _check.one_positive("sigma_data", sigma_data)
    _check.between("jitter", jitter, 0, 1e6)
    _check.one("jitter", jitter)
    _ascending(sigmas)
    schedule = schedules.edm(-1.1, 2.0) if schedule is None else schedule
    _check.instance("schedule", schedule, Schedule, "dx.schedules.edm()")
    structure: Any = jax.tree.structure
    if target_params is None:
        target_params = params
    elif structure(target_params) != structure(params):
        raise ValueError("target_params has another structure than params: must be parameters of the same network")
    sigmas = at_least_float32(sigmas).astype(x0.dtype)
    batch = x0.shape[0]
    index, whole = placed(part, batch)
    level_key, jitter_key, noise_key = jax.random.split(key, 3)

    u = drawn(draw, level_key, whole)[index]
    places = _places(schedule, u, sigmas)
    if not _check.concrete(jitter) or jitter:
        moved = places + jnp.round(jitter * noise.normal(jitter_key, index, ())).astype(places.dtype)
        places = jnp.where((moved >= 0) & (moved <= _last(sigmas)), moved, places)
    low, high = sigmas[places], sigmas[places + 1]

    n = noise.normal(noise_key, index, x0.shape[1:], x0.dtype)
    x = x0 + per_sample(high, x0) * n
    f, target_f = (
        function(apply, p, cond, sigma_min=sigmas[0], sigma_data=sigma_data) for p in (params, target_params)
    )
    target = jax.lax.stop_gradient(target_f(neighbour(x0, n, x, high, low), low))
    squared = jnp.sum((f(x, high) - target).reshape(batch, -1) ** 2, -1)
    c = huber * (x0.size / batch) ** 0.5
    loss = squared / (jnp.sqrt(squared + c**2) + c) / (high - low)  # not by a difference: that cancels
    return loss.mean(), Aux(loss, logsnr_from_sigma(high))


def _places(schedule: Schedule, u: Array, sigmas: Array) -> Array:
    """Of each u the place of the lower of the two neighbouring sigmas between which the schedule has its level."""
    ends = logsnr_from_sigma(sigmas[-1]) - _ROUNDING, logsnr_from_sigma(sigmas[0]) + _ROUNDING
    level = sigma_from_logsnr(schedules.truncate(schedule, *ends)(u)).astype(sigmas.dtype)
    place = jnp.searchsorted(sigmas, level, side="right").astype(jnp.int32) - 1
    return jnp.clip(place, 0, _last(sigmas))


def _last(sigmas: Array) -> Array:
    """The place of the lower of the last two neighbours in use."""
    return jnp.count_nonzero(jnp.diff(sigmas) > 0).astype(jnp.int32) - 1


def _ascending(sigmas: Any) -> None:
    """Raise ValueError unless the sigmas are a grid as `levels` makes them, where they have values."""
    values = _check.real("sigmas", sigmas, "be [levels] positive numbers")
    if np.ndim(sigmas) != 1 or np.size(sigmas) < 2:
        raise ValueError(f"sigmas has shape {np.shape(sigmas)}: must be [levels], two or more")
    if values is not None:
        if not (np.diff(values) >= 0).all() or values[0] == values[1]:
            raise ValueError(f"sigmas = {values}: must be [levels], two or more, ascending, the first two different")
        _check.positive("sigmas", values)
