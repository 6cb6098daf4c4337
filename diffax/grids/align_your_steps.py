"""Align Your Steps: the grid that minimises an upper bound on the path's Kullback-Leibler divergence.

The bound (KLUB, Sabour et al. 2024, arXiv:2404.14507, section 3) is, for stochastic DDIM on levels t_0 < ... < t_n,

    KLUB = sum_i int_{t_{i-1}}^{t_i} t^-3 E || D(x_t, t) - D(x_{t_i}, t_i) ||^2 dt,
    x_t = x_0 + t n,    x_{t_i} = x_t + sqrt(t_i^2 - t^2) n'.

It is a sum over intervals, so each inner level is improved alone, by the best of eleven candidates between its
neighbours. The integral is taken at random t of density ~ t^-3 g(t), g = 1 / (t^2 + c^2) - 1 / (t_i^2 + c^2), since
E||.||^2 is proportional to g for Gaussian data; the same draws serve all candidates.

As in the paper, ten steps are found first; then every step is halved in log sigma, only the new levels being tuned, to
20 and 40. Other numbers of steps above ten are read off log-linearly; fewer are searched for as they are.

The first search is to be stopped early, for the bound goes on falling when samples have long been getting worse. That
is the bound's own doing and not the search's: for Gaussian data of standard deviation 0.5, where it is known in closed
form, the best of all grids of 6 steps from 80 to 0.01 falls to 0.31 in the first one. The paper does not say how it
tells when to stop; here `judge` does.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffax import _check, draws, noise
from diffax._array import Scalar, at_least_float32, per_sample
from diffax.denoiser import Denoiser
from diffax.grids.arguments import MOST_STEPS, level, samples, whole
from diffax.schedules import families, grid
from diffax.solvers.linear import magnitude, scalar

__all__ = ["align_your_steps", "klub"]

_COARSE = 10
_FINEST = 40
_MOST = 1e8
"""Of sigmas and scales, whose fourth powers are held in float32."""
_REACH = 0.2
"""How far a level may move in a sweep, in parts of the way to its neighbours: the grids between the sweeps should lie
close enough for a judge to find the best (with 0.8 the first one was often too far already)."""


def align_your_steps(
    denoise: Denoiser,
    x0: ArrayLike,
    n: int,
    key: Array,
    *,
    sigma_max: float = 80.0,
    sigma_min: float = 0.002,
    sigma_data: float = 0.5,
    rounds: int = 12,
    final: float | None = 0.0,
    judge: Callable[[np.ndarray], float] | None = None,
) -> np.ndarray:
    """The n-step grid of least KLUB, found for this model and these data.

    The tables that the authors published are schedules. The ten steps for Stable Diffusion 1.5 are

        sigmas = np.array(dx.schedules.sigmas(dx.schedules.align_your_steps("stable_diffusion_15"), 10, final=None))
        sigmas[-1] = 0  # in place of 0.029, as is usual

    Args:
      denoise: the model, denoise(x, sigma) -> x0 of the shape of x; 44 evaluations of the batch x0 a level and round, 4
        for each of eleven candidates.
      x0: clean data [batch, ...], a draw for each; the paper takes 8,192.
      n: number of steps, 1 to 100,000.
      key: for the draws.
      sigma_max, sigma_min: the ends of the bound, t_n and t_0, in [1e-8, 1e8].
      sigma_data: c, the scale of the data, in [1e-8, 1e8].
      rounds: sweeps over the levels at most, in each stage; >= 0.
      final: what the last sigma is replaced by, as is usual, in [0, sigma_min]; None keeps sigma_min.
      judge: sigmas [min(n, 10) + 1] -> a number, how bad samples are that are drawn along them; of the grids between
        the sweeps of the first stage the best one is taken, the Karras grid that it starts from among them. None takes
        the last, so that `rounds` alone is what stops it early.

    Returns: sigmas [n + 1] in float64, strictly descending.

    Raises: ValueError for arguments that are not as described, and if the denoiser or the judge gives NaN.
    """
    _check.callable_("denoise", denoise, "denoise(x, sigma) -> x0")
    x0, key = samples("x0", x0), noise.threefry(key)
    sigma_min, sigma_max = level("sigma_min", sigma_min, _MOST), level("sigma_max", sigma_max, _MOST)
    _check.less("sigma_min", sigma_min, "sigma_max", sigma_max)
    sigma_data = level("sigma_data", sigma_data, _MOST)
    whole(n=n)
    whole(rounds=rounds, least=0)
    if final is not None:
        _check.between("final", final, 0, sigma_min)
        final = scalar("final", final)
    if judge is not None:
        _check.callable_("judge", judge, "judge(sigmas) -> number")
    two = jax.jit(
        lambda middles, ends, key: jax.lax.map(lambda m: _two(denoise, x0, m, ends, key, sigma_data), middles)
    )

    def compare(middles: np.ndarray, ends: np.ndarray, key: Array) -> Array:
        return two(jnp.asarray(middles, x0.dtype), jnp.asarray(ends, x0.dtype), key)

    def ending(levels: np.ndarray) -> np.ndarray:
        """Downwards, with the ends that were asked for."""
        return np.array([sigma_max, *levels[-2:0:-1], sigma_min if final is None else final])

    steps = min(_COARSE, n)
    levels = np.array(grid.sigmas(families.karras(sigma_min, sigma_max), steps, final=None), np.float64)[::-1].copy()
    grids = [levels, *_tune(compare, levels, np.arange(1, steps), key, rounds)]
    levels = grids[-1] if judge is None else _best(grids, lambda levels: judge(ending(levels)))
    while steps < min(n, _FINEST):
        steps *= 2
        fine = np.empty(steps + 1)
        fine[::2], fine[1::2] = levels, np.sqrt(levels[1:] * levels[:-1])
        *_, levels = fine, *_tune(compare, fine, np.arange(1, steps, 2), jax.random.fold_in(key, steps), rounds)
    return ending(np.exp(np.interp(np.linspace(0, steps, n + 1), np.arange(steps + 1), np.log(levels))))


def klub(denoise: Denoiser, x0: ArrayLike, sigmas: ArrayLike, key: Array, sigma_data: Scalar = 0.5) -> Array:
    """An estimate of the bound for a grid, from a draw per clean sample and interval: a scalar.

    Args:
      denoise, x0, sigma_data: as for `align_your_steps`.
      sigmas: [n + 1], n >= 1, in any order.
      key: for the draws.

    Raises: ValueError for arguments that are not as described, and unless the sigmas are positive, finite and no two
      alike in float32.
    """
    _check.callable_("denoise", denoise, "denoise(x, sigma) -> x0")
    x0, key = _check.samples("x0", x0), noise.threefry(key)
    values = _check.real("sigmas", sigmas)
    if values is not None:
        _check.positive("sigmas", values)
        _check.between("sigmas", values, 1 / _MOST, _MOST)
        sigmas = values
    sigma_data = magnitude("sigma_data", sigma_data, _MOST)
    levels = jnp.sort(jnp.atleast_1d(at_least_float32(sigmas)).astype(x0.dtype))
    if levels.ndim != 1 or levels.size < 2 or (_check.concrete(levels) and (np.diff(levels) == 0).any()):
        raise ValueError(f"sigmas = {_check.shown(sigmas)}: must be [n + 1] with n >= 1, no two of them alike")
    whole(**{"len(sigmas)": levels.size}, most=MOST_STEPS + 1)
    pairs = jnp.stack([levels[:-1], levels[1:]], axis=1)
    keys = jax.random.split(key, len(pairs))
    return jax.lax.map(lambda a: _interval(denoise, x0, a[0][0], a[0][1], a[1], sigma_data), (pairs, keys)).sum()


# ---- parts ----------------------------------------------------------------------------------------------------------


def _tune(two: Callable, levels: np.ndarray, which: np.ndarray, key: Array, rounds: int) -> Iterator[np.ndarray]:
    """The levels after each sweep over those numbered `which`: until none moves at any reach, or rounds are over."""
    levels, reach = levels.copy(), _REACH
    for turn in range(rounds):
        moved = False
        for i in which:
            low, here, high = np.log(levels[i - 1 : i + 2])
            # Towards either neighbour; the level itself is one of the eleven.
            fraction = reach * np.arange(-5, 6) / 5
            middles = np.exp(here + np.where(fraction < 0, fraction * (here - low), fraction * (high - here)))
            values = two(middles, levels[[i - 1, i + 1]], jax.random.fold_in(jax.random.fold_in(key, turn), int(i)))
            if np.isnan(values).all():
                raise ValueError(
                    f"denoise gives NaN for noise of sigma in [{levels[i - 1]:.4g}, {levels[i + 1]:.4g}]: "
                    "must be finite"
                )
            best = int(np.nanargmin(values))
            moved |= best != 5
            levels[i] = middles[best]
        yield levels.copy()
        reach = reach if moved else reach / 2
        if reach < _REACH / 10:
            break


def _best(grids: list[np.ndarray], judge: Callable[[np.ndarray], float]) -> np.ndarray:
    values = [scalar("judge(sigmas)", judge(levels)) for levels in grids]
    if np.isnan(values).any():
        raise ValueError(f"judge gives NaN for {sum(map(np.isnan, values))} of {len(values)} grids: must be numbers")
    return grids[int(np.argmin(values))]


def _two(denoise: Denoiser, x0: Array, middle: Array, ends: Array, key: Array, c: Scalar) -> Array:
    """KLUB of the intervals from ends[0] to middle and on to ends[1]."""
    below = _interval(denoise, x0, ends[0], middle, key, c)
    return below + _interval(denoise, x0, middle, ends[1], jax.random.fold_in(key, 1), c)


def _interval(denoise: Denoiser, x0: Array, low: Array, high: Array, key: Array, c: Scalar) -> Array:
    """int_low^high t^-3 E||D(x_t, t) - D(x_high, high)||^2 dt, one stratified draw of t a sample."""
    batch, index = x0.shape[0], jnp.arange(x0.shape[0])
    knots = jnp.exp(jnp.linspace(jnp.log(low), jnp.log(high), 129))
    middle = jnp.sqrt(knots[1:] * knots[:-1])

    def gap(t: Array) -> Array:  # without the difference of two equal numbers as t -> high
        return (high - t) * (high + t) / ((t**2 + c**2) * (high**2 + c**2))

    mass = middle**-2 * gap(middle) * jnp.log(knots[1:] / knots[:-1])
    share = jnp.concatenate([jnp.zeros(1, mass.dtype), jnp.cumsum(mass)]) / jnp.sum(mass)
    keys = jax.random.split(key, 3)
    u = draws.stratified(keys[0], batch).astype(x0.dtype)
    bin = jnp.clip(jnp.searchsorted(share, u) - 1, 0, 127)
    # Within a bin t is that of its middle, which makes the sum over bins the midpoint rule.
    t = middle[bin]
    first, second = (noise.normal(k, index, x0.shape[1:], x0.dtype) for k in keys[1:])
    x_t = x0 + per_sample(t, x0) * first
    x_high = x_t + per_sample(jnp.sqrt((high - t) * (high + t)), x0) * second

    def denoised(x: Array, sigma: Array) -> Array:
        return _check.output("denoise", denoise(x, sigma), x).astype(x.dtype)

    difference = denoised(x_t, t) - denoised(x_high, jnp.broadcast_to(high, t.shape))
    square = jnp.sum(difference**2, axis=tuple(range(1, x0.ndim)))
    return jnp.mean(square / gap(t)) * jnp.sum(mass)
