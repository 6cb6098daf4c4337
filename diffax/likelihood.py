"""How likely data is under a denoiser, in bits per dimension: the variational bound and the probability-flow ODE.

Both speak of x = x_0 + sigma n, logsnr = -2 log sigma, and of d numbers per sample; bits/dim = nats / (d log 2).

**The bound** (VDM, Kingma et al. 2021, arXiv:2107.00630, sections 4 and 5), in nats:

    -log p(x_0) <= prior + diffusion + reconstruction
    prior          = KL(N(x_0, sigma_max^2) || N(0, sigma_max^2 + c^2))        c = sigma_data; VDM's N(0, I) is c = 1
    diffusion      = 1/2 int_{logsnr_min}^{logsnr_max} E||e||^2 dlogsnr,       e = (x_0 - D(x, sigma)) / sigma
                   = 1/2 sum_{i=1}^T expm1(logsnr_{i-1} - logsnr_i) E||e_i||^2    in T steps, logsnr_i = schedule(i/T)
    reconstruction = E[-log p(x_0 | x_0 + sigma_min n)]

e is also the error of the predicted noise. In continuous time the schedule enters by its ends alone; inside it is the
importance sampler, with weight 1 / density.

**The ODE** (Song et al. 2021, arXiv:2011.13456, appendix D.2; in sigma, Karras et al. 2022, arXiv:2206.00364, eq. 3):

    dx/dlog sigma = x - D(x, sigma) from sigma_min to sigma_max,
    log p(x_0)    = log N(x(sigma_max); 0, sigma_max^2 + c^2) + int div(x - D) dlog sigma

**One Gaussian does most of the work.** For data N(0, c^2 I) the denoiser is R = x c^2 / (c^2 + sigma^2) and every
term above has a closed form. So only what D differs from R is estimated, which is little where noise is low:

    E||e||^2 = E||e_R||^2 + E[||e||^2 - ||e_R||^2],   E||e_R||^2 = d a^2 + ||x_0||^2 a (1 - a) / c^2,
    a = c^2 / (c^2 + sigma^2) = sigmoid(logsnr + 2 log c),

with the same noise in both errors: a control variate, which changes no expectation (as in Information-theoretic
diffusion, Kong et al. 2023, arXiv:2302.03792). Likewise the ODE is solved for y = x / r, r^2 = sigma^2 + c^2, where
dy/dlog sigma = (R - D) / r: at rest for that Gaussian, of order one for all sigma.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffax import _check, noise
from diffax._array import Scalar, per_sample
from diffax.denoiser import Denoiser
from diffax.draws import low_discrepancy
from diffax.schedules import Schedule, sigma_from_logsnr
from diffax.solvers.adaptive import MOST_STEPS, advance, root_mean_square, setting_out
from diffax.solvers.linear import magnitude

__all__ = ["Elbo", "Ode", "elbo_bits_per_dim", "ode_bits_per_dim"]

_MOST = 100_000
"""Of draws and steps, which are held in memory."""


class Elbo(NamedTuple):
    """Bits/dim of each sample, [batch]: bits = prior + diffusion + reconstruction."""

    bits: Array
    prior: Array
    diffusion: Array
    reconstruction: Array


class Ode(NamedTuple):
    """Bits/dim of each sample, [batch]: bits = base + divergence + cell.

    base is of the end point under the Gaussian at sigma_max, divergence of the change of volume on the way there,
    cell of the dequantisation (0 without levels). evaluations [batch] counts the points where the denoiser was asked.
    """

    bits: Array
    base: Array
    divergence: Array
    cell: Array
    evaluations: Array


def elbo_bits_per_dim(
    denoise: Denoiser,
    x0: ArrayLike,
    key: Array,
    *,
    schedule: Schedule,
    steps: int | None = None,
    levels: int | None = None,
    dequantise: bool = False,
    draws: int = 16,
    sigma_data: Scalar = 1.0,
    index: ArrayLike | None = None,
) -> Elbo:
    """The variational bound on -log2 p(x0) / d, an unbiased estimate; jit-able, and differentiable in the denoiser.

    Three reconstructions:
      levels=None: x0 is continuous, p(x0 | x) = N(x, sigma_min^2); the bound is of a density and may be negative.
      levels=L: x0 holds L levels (2 to 65536), as `data.to_unit` maps them to [-1, 1]; p(x0 | x) is the categorical
        over levels of each number with logits -(x - level)^2 / (2 sigma_min^2) (VDM). A bound on the probability of x0.
        It wants sigma_min of about a sixth of the spacing 2 / (L - 1): lower noise is no harder to clean, only to
        average.
      levels=L, dequantise=True: uniform noise of one spacing is added to x0, and log2 of the spacing taken off the
        density's bound. A bound on the same probability, for models that were trained so.

    Args:
      denoise: denoise(x, sigma) -> x0 of the shape of x, with sigma [batch].
      x0: clean data [batch, ...], floating-point and finite. The results have its dtype, float32 at least.
      key: a JAX key; sample i draws from fold_in(key, index[i]).
      schedule: its ends are logsnr_min and logsnr_max of the bound, both finite; see `schedules.truncate`.
      steps: T, the bound of an ancestral sampler with T steps on schedule(i / T), up to 100,000; None for continuous
        time.
      draws: noise levels per sample, up to 100,000, evenly spread over the schedule from a random start, one evaluation
        each. A multiple of `steps` visits every step equally often.
      sigma_data: c, the standard deviation of the prior's data and of the control variate. The nearer to that of the
        data, the tighter the prior and the less the noise.
      index: [batch] int, the samples' numbers in their data set; 0, 1, ... by default.

    Raises: ValueError for arguments that are not as described.
    """
    _check.callable_("denoise", denoise, "denoise(x, sigma) -> x0")
    _check.instance("schedule", schedule, Schedule, "dx.schedules.edm()")
    key = noise.threefry(key)
    x0, dim = _samples(x0, levels)
    sigma_data = magnitude("sigma_data", sigma_data)
    _check.whole("draws", draws, most=_MOST)
    _check.whole("steps", 1 if steps is None else steps, most=_MOST)
    _check.flags(dequantise=dequantise)
    if dequantise and levels is None:
        raise ValueError("dequantise = True: must come with levels, which give the width of the noise")
    logsnr_max, logsnr_min = (end.astype(x0.dtype) for end in _ends(schedule))
    index = _check.index(index, x0.shape[0])
    draw_key, noise_key, cell_key = jax.random.split(key, 3)

    sigma_min, spacing = sigma_from_logsnr(logsnr_max), 0.0 if levels is None else 2 / (levels - 1)
    if dequantise:
        x0 = _dequantised(cell_key, index, x0, spacing)
    c2 = jnp.asarray(sigma_data, x0.dtype) ** 2
    log_c2, norm2 = jnp.log(c2), _sum(x0**2)

    # prior, with 1 / (sigma_max^2 + c^2) and c^2 / (sigma_max^2 + c^2) written so that no digits cancel
    shrink_max = jax.nn.sigmoid(logsnr_min + log_c2)
    prior = (shrink_max * (norm2 / c2 - dim) + dim * jnp.log1p(c2 * jnp.exp(logsnr_min))) / 2

    # diffusion of the Gaussian reference: a2 and b2 are the integrals (sums) of a^2 and a (1 - a)
    if steps is None:
        upper, lower = logsnr_max + log_c2, logsnr_min + log_c2
        b2 = jax.nn.sigmoid(upper) - jax.nn.sigmoid(lower)
        a2 = jax.nn.softplus(upper) - jax.nn.softplus(lower) - b2
    else:
        i = jnp.arange(steps + 1)
        grid = schedule.quantile(i / steps, (steps - i) / steps)
        jumps, grid = jnp.expm1(grid[:-1] - grid[1:]).astype(x0.dtype), grid.astype(x0.dtype)
        a = jax.nn.sigmoid(grid[1:] + log_c2)
        a2, b2 = jnp.sum(jumps * a**2), jnp.sum(jumps * a * jax.nn.sigmoid(-grid[1:] - log_c2))
    reference = (dim * a2 + norm2 * b2 / c2) / 2

    def draw(at: tuple[Array, Array]) -> tuple[Array, Array]:
        """Of each sample at one level: what the diffusion exceeds its reference by, and the reconstruction."""
        u, number = at
        if steps is None:
            logsnr = schedule(u)
            logsnr, weight = logsnr.astype(x0.dtype), (1 / schedule.density(logsnr)).astype(x0.dtype)
        else:
            i = jnp.clip(jnp.ceil(u * steps).astype(int), 1, steps)
            logsnr, weight = grid[i], steps * jumps[i - 1]
        sigma = sigma_from_logsnr(logsnr)
        n = noise.normal(jax.random.fold_in(noise_key, number), index, x0.shape[1:], x0.dtype)
        x = x0 + per_sample(sigma, x0) * n
        estimate = _check.output("denoise", denoise(x, sigma), x).astype(x.dtype)
        gaussian = per_sample(jax.nn.sigmoid(logsnr + log_c2), x0) * x
        # ||e||^2 - ||e_R||^2 as a product, of which the first factor is small where noise is low
        scale = per_sample(1 / sigma, x0)
        excess = _sum(((gaussian - estimate) * scale) * ((2 * x0 - estimate - gaussian) * scale))
        nats = jnp.zeros_like(excess) if levels is None or dequantise else _categorical(x0, n, sigma_min, levels)
        return weight * excess / 2, nats

    u = jax.vmap(low_discrepancy, (0, None), 1)(noise.sample_keys(draw_key, index), draws)
    excess, nats = (total.sum(0) for total in jax.lax.map(draw, (u, jnp.arange(draws))))
    diffusion = reference + excess / draws

    reconstruction = nats / draws
    if levels is None or dequantise:
        gaussian_nats = (math.log(2 * math.pi * math.e) - logsnr_max) / 2 - (math.log(spacing) if dequantise else 0.0)
        reconstruction = jnp.full_like(norm2, dim * gaussian_nats)
    prior, diffusion, reconstruction = (nats / (dim * math.log(2)) for nats in (prior, diffusion, reconstruction))
    return Elbo(prior + diffusion + reconstruction, prior, diffusion, reconstruction)


def ode_bits_per_dim(
    denoise: Denoiser,
    x0: ArrayLike,
    key: Array | None = None,
    *,
    sigma_min: Scalar,
    sigma_max: Scalar,
    probes: int | None = None,
    levels: int | None = None,
    sigma_data: Scalar = 1.0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 1000,
    index: ArrayLike | None = None,
) -> Ode:
    """-log2 p(x0) / d of the probability-flow ODE, for x0 taken as a point of the model at sigma_min; jit-able.

    Not a bound: what is computed is the log-density of the data blurred by N(0, sigma_min^2), at x0 itself, as in
    Song et al. For a smooth density the blur changes log p by sigma_min^2 / 2 (laplacian p) / p to first order, so
    take sigma_min far below the finest scale of the data. The base knows no mean: if the data has one, m, a sample is
    off by the order of m / sigma_max, the average by its square.

    The solver is Dormand and Prince's 5(4) pair in log sigma. Each sample has its own steps while the denoiser sees
    the whole batch (so a batched condition works): no result depends on its neighbours. Forward only: no gradient
    passes the adaptive loop. A denoiser that computes in bfloat16 wants a larger rtol and atol.

    Args:
      denoise: denoise(x, sigma) -> x0 of the shape of x, with sigma [batch]; differentiable, and without interaction
        between samples.
      x0: data [batch, ...], floating-point and finite. The results have its dtype, float32 at least.
      key: a JAX key, for probes and levels; sample i draws from fold_in(key, index[i]).
      sigma_min, sigma_max: the range of noise, 1e-15 <= sigma_min < sigma_max <= 1e15.
      probes: None for the exact divergence, d products with the Jacobian per evaluation; k (1 to 10,000) for
        Hutchinson's unbiased estimate of it by k Rademacher probes, held fixed along the path (FFJORD,
        arXiv:1810.01367).
      levels: None for a density. L (2 to 65536) for data on the L levels of `data.to_unit`: uniform noise of one
        spacing is added to x0 and log2 of the spacing taken off, which bounds the bits of the discrete x0 in
        expectation.
      sigma_data: c of the base N(0, sigma_max^2 + c^2) and of the coordinates of the solver.
      rtol, atol: tolerance of a step, on x / sqrt(sigma^2 + c^2) and on the log-density in nats/dim.
      max_steps: how many steps are tried; samples unfinished by then, or whose steps vanish, come out as NaN.
      index: [batch] int, the samples' numbers in their data set; 0, 1, ... by default.

    Raises: ValueError for arguments that are not as described.
    """
    _check.callable_("denoise", denoise, "denoise(x, sigma) -> x0")
    x0, dim = _samples(x0, levels)
    sigma_min, sigma_max = magnitude("sigma_min", sigma_min), magnitude("sigma_max", sigma_max)
    _check.less("sigma_min", sigma_min, "sigma_max", sigma_max)
    sigma_data = magnitude("sigma_data", sigma_data)
    rtol, atol = magnitude("rtol", rtol), magnitude("atol", atol)
    _check.whole("max_steps", max_steps, most=MOST_STEPS)
    _check.whole("probes", 1 if probes is None else probes, most=10_000)
    if key is None:
        if probes is not None or levels is not None:
            raise ValueError("key = None: must be a JAX key where probes or levels are given")
        key = jax.random.key(0)  # not used
    key = noise.threefry(key)
    index = _check.index(index, x0.shape[0])
    cell_key, probe_key = jax.random.split(key)

    cell = 0.0
    if levels is not None:
        x0, cell = _dequantised(cell_key, index, x0, 2 / (levels - 1)), math.log2((levels - 1) / 2)
    if probes is None:
        directions = jnp.arange(dim)  # of the axes
    else:
        keys = noise.sample_keys(probe_key, index)
        directions = jax.vmap(lambda k: jax.random.rademacher(k, (probes, *x0.shape[1:]), x0.dtype), 0, 1)(keys)

    c2 = jnp.asarray(sigma_data, x0.dtype) ** 2
    start, end = jnp.log(jnp.asarray(sigma_min, x0.dtype)), jnp.log(jnp.asarray(sigma_max, x0.dtype))
    log_r0, log_r1 = (jnp.log(c2 + jnp.exp(2 * s)) / 2 for s in (start, end))

    def rate(s: Array, state: Array) -> Array:
        """Of y and of the log-density per dimension, side by side in [batch, d + 1]; s = log sigma [batch]."""
        y, sigma = state[:, :-1].reshape(x0.shape), jnp.exp(s)
        r = per_sample(jnp.sqrt(c2 + sigma**2), y)

        def velocity(y: Array) -> Array:
            x = r * y
            return c2 / r**2 * y - _check.output("denoise", denoise(x, sigma), x).astype(x.dtype) / r

        value, push = jax.linearize(velocity, y)

        def along(direction: Array) -> Array:
            """Of each sample, v J v."""
            v = direction
            if probes is None:
                v = jnp.zeros_like(y).reshape(len(y), dim).at[:, direction].set(1).reshape(y.shape)
            return _sum(v * push(v))

        trace = jax.lax.map(along, directions).sum(0) / (dim if probes is None else dim * probes)
        return jnp.append(value.reshape(len(s), -1), trace[:, None], axis=1)

    def norm(error: Array) -> Array:
        """The log-density is what one came for: not averaged away among the others."""
        return jnp.maximum(root_mean_square(error[:, :-1]), abs(error[:, -1]))

    state = jnp.pad((x0 * jnp.exp(-log_r0)).reshape(x0.shape[0], -1), ((0, 0), (0, 1)))
    walk = setting_out(jnp.full(x0.shape[0], start), state, 0.03 * (end - start))
    walk = advance(rate, walk, end, rtol, atol, max_steps, norm)
    state = jnp.where((walk.s == end)[:, None], walk.z, jnp.nan)
    y, volume = state[:, :-1], state[:, -1]
    base = (_sum(y**2) / dim + math.log(2 * math.pi)) / 2 + log_r1
    base, divergence = base / math.log(2), -(volume + log_r1 - log_r0) / math.log(2)
    return Ode(base + divergence + cell, base, divergence, jnp.full_like(base, cell), walk.evaluations)


# ---- parts --------------------------------------------------------------------------------------------------------


def _samples(x0: ArrayLike, levels: int | None) -> tuple[Array, int]:
    """x0 in float32 or better, and the numbers per sample. With levels, x0 must lie on them."""
    x0 = _check.samples("x0", x0)
    if levels is not None:
        _check.whole("levels", levels, 2, 2**16)
        if _check.concrete(x0):
            pixel = (np.asarray(x0) + 1) * ((levels - 1) / 2)
            whole = np.round(pixel)
            if not (np.abs(pixel - whole) < 1e-2).all() or whole.min() < 0 or whole.max() > levels - 1:
                raise ValueError(
                    f"x0 is not on the levels of levels = {levels}: must hold 2 k / (levels - 1) - 1 for whole k "
                    "from 0 to levels - 1, as data.to_unit gives"
                )
    return x0, math.prod(x0.shape[1:])


def _ends(schedule: Schedule) -> tuple[Array, Array]:
    """logSNR at u = 0 and u = 1, checked also under jit where the schedule was made outside."""
    with jax.ensure_compile_time_eval():
        zero, one = jnp.zeros(()), jnp.ones(())
        ends = schedule.quantile(zero, one), schedule.quantile(one, zero)
    if ends[0].shape != ():
        raise ValueError(f"schedule has logSNR of shape {ends[0].shape}: must have one for all pixels")
    if _check.concrete(ends) and not np.isfinite(np.asarray(ends)).all():
        raise ValueError(
            f"schedule has logSNR {float(ends[1])} to {float(ends[0])}: must have finite ends, "
            "as in truncate(schedule, logsnr_min=-12, logsnr_max=12)"
        )
    return ends


def _sum(x: Array) -> Array:
    """[batch, ...] -> [batch]."""
    return x.reshape(x.shape[0], -1).sum(1)


def _dequantised(key: Array, index: Array, x0: Array, spacing: float) -> Array:
    keys = noise.sample_keys(key, index)
    return x0 + spacing * jax.vmap(lambda k: jax.random.uniform(k, x0.shape[1:], x0.dtype, -0.5, 0.5))(keys)


def _categorical(x0: Array, n: Array, sigma: Array, levels: int) -> Array:
    """-log softmax_k(-(x0 + sigma n - level_k)^2 / (2 sigma^2)) at the level of x0, summed over a sample.

    Relative to the logit of the true level, level k has -n d_k - d_k^2 / 2 <= n^2 / 2, d_k = (x0 - level_k) / sigma,
    so the sum of exponentials cannot overflow.
    """
    true = jnp.round((x0 + 1) * ((levels - 1) / 2))[..., None]
    d = (true - jnp.arange(levels, dtype=x0.dtype)) * (2 / (levels - 1)) / sigma
    return _sum(jnp.log(jnp.exp(-n[..., None] * d - d**2 / 2).sum(-1)))
