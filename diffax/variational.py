"""Training a schedule together with the network: the loss of conditional variational diffusion (CVDM).

    rate = ...                                                   # > 0, a network of the condition: one number a pixel
    schedule = schedules.per_pixel(params["schedule"], rate)
    loss, aux = variational.conditional(apply, params["network"], key, x0, cond, schedule=schedule)

The variational bound does not say which schedule to take: in continuous time it depends on the ends alone (VDM, Kingma
et al. 2021, arXiv:2107.00630, section 5.1), and between them its gradient with respect to the schedule is noise. CVDM
(della Maggiora et al. 2024, arXiv:2312.02246) trains the schedule by

    L = E_{u, n} ||F - target||^2 + 2 L_prior + 2 L_gamma

through everything in it, as the authors' code does. Each term has its part:

| term | moves the schedule |
|---|---|
| the unweighted error | to where it is small: u is even, so the schedule itself is the weight of a level. To noise |
| L_prior = KL(N(alpha x_0, sigma_t^2) || N(0, 1)) at u = 1 | its noisy end to alpha = 0, where sampling starts |
| L_gamma = 1e-3 (d^2 alpha^2 / du^2)^2 | to alpha^2 even in u: without it the others would spend all of u in noise |

So what is learned is no optimum of the likelihood but a balance, in which the weight of L_gamma counts. For unit normal
data and the exact network the error is alpha^2, and alpha^2(u) hangs between its ends as a beam under its own weight
(`tests/test_variational.py`).

Two things differ from the paper. Its schedule is two networks, alpha^2 and beta, with a loss for d alpha^2 / du = -beta
alpha^2 and for the ends; here alpha^2 = exp(-rate T(u)) with T(0) = 0 and T(1) = 1, so beta = rate T' and both hold
exactly. And L_prior is the bound's, KL(end || prior), where the authors' code has the reverse.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from diffax import _check, draws, losses, weightings
from diffax import preconditioning as preconditionings
from diffax._array import Scalar, at_least_float32, per_sample
from diffax.losses import Aux, Part
from diffax.noise import normal, threefry
from diffax.preconditioning import Preconditioning
from diffax.schedules import Schedule, per_pixel_regulariser
from diffax.weightings import Weighting

__all__ = ["conditional", "prior"]


def conditional(
    apply: Callable[..., Array],
    params: Any,
    key: Array,
    x0: Array,
    cond: Any = None,
    *,
    schedule: Schedule,
    preconditioning: Preconditioning | None = None,
    weighting: Weighting | None = None,
    draw: Callable[[Array, int], Array] = draws.stratified,
    prior_weight: Scalar = 2.0,
    curvature_weight: Scalar = 2e-3,
    noise: Callable[..., Array] = normal,
    part: Part | None = None,
) -> tuple[Array, Aux]:
    """CVDM's loss of a batch: to be differentiated in what `schedule` is made of as well as in params.

    Args:
      apply, params, key, x0, cond, draw, noise, part: as of `losses.denoising`. With a schedule per pixel apply sees
        c_noise [batch, ...], with the axes of x0: the level of each pixel.
      schedule: the one that is learned; logSNR [batch], or per pixel.
      preconditioning: what the network predicts, eps() by default, as in the paper.
      weighting: the plain error of what it predicts by default.
      prior_weight, curvature_weight: of KL at u = 1 and of (d^2 alpha^2 / du^2)^2; the authors' 2 and 2 x 1e-3.

    Returns: the loss, means over pixels and batch throughout, a float32 scalar; and `Aux` of the denoising loss alone.

    Raises: ValueError as `losses.denoising` does, and for weights that are no finite numbers.
    """
    _check.instance("schedule", schedule, Schedule, "dx.schedules.cosine()")
    for name, value in (("prior_weight", prior_weight), ("curvature_weight", curvature_weight)):
        _check.finite(name, value)
        _check.one(name, value)
    curvature_weight = at_least_float32(curvature_weight)
    key, x0 = threefry(key), _check.samples("x0", x0)
    preconditioning = preconditionings.eps() if preconditioning is None else preconditioning
    _check.instance("preconditioning", preconditioning, Preconditioning, "dx.preconditioning.eps()")
    weighting = weightings.target(preconditioning) if weighting is None else weighting
    noise_key, curve_key = jax.random.split(key)
    error, aux = losses.denoising(
        apply,
        params,
        noise_key,
        x0,
        cond,
        schedule=schedule,
        preconditioning=preconditioning,
        weighting=weighting,
        draw=draw,
        noise=noise,
        part=part,
    )
    index, whole = losses.placed(part, len(x0))
    u = losses.drawn(draw, curve_key, whole)[index]
    curvature = per_pixel_regulariser(schedule, u, weight=curvature_weight).astype(x0.dtype)
    prior_weight = at_least_float32(prior_weight).astype(x0.dtype)
    return error + prior_weight * prior(schedule, x0).mean() + curvature.mean(), aux


def prior(schedule: Schedule, x0: Array) -> Array:
    """KL(N(alpha x_0, sigma_t^2) || N(0, 1)) at u = 1 in nats a dimension, [batch]: what is left of x0 in the noise.

    x0 is [batch, ...], the schedule's logSNR [batch] or per pixel; one that ends in pure noise, logSNR -inf, leaves 0.
    Raises ValueError for a schedule or x0 that is not so.
    """
    _check.instance("schedule", schedule, Schedule, "dx.schedules.cosine()")
    x0 = _check.samples("x0", x0)
    logsnr = per_sample(losses.levels(schedule, jnp.ones(len(x0), x0.dtype), x0), x0)
    kl = (jax.nn.sigmoid(logsnr) * (x0**2 - 1) + jax.nn.softplus(logsnr)) / 2  # -log sigma_t^2 is the softplus
    return kl.mean(tuple(range(1, x0.ndim)))
