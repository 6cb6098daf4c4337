"""Conditional diffusion for restoration, with a noise schedule that is fixed, learned, or learned for each pixel.

The network is one for all schedules: diffax's U-Net of (x, measurement, level), the level of each pixel being a channel
of its input, and its mean over the pixels the embedded one. It predicts v and is asked for the plain error of that
(Salimans & Ho 2022), which unlike the eps of CVDM says something at pure noise too, where restoration begins.

A learned schedule is alpha^2 = exp(-rate m(u)), m a monotone network of u, and rate > 0 one number ("learned") or a
small convolutional network of the measurement ("learned per pixel"), trained by `dx.variational.conditional`.

Draws are made by the default solver on its grid, stretched to begin at the noisy end of the schedule of training; a
schedule per pixel goes down it in the mean of the pixels, each at its own level. (The authors take even u of the
learned schedule, 200 of them, and ancestral steps. In as few as 16, those lose a fifth or more of a posterior's spread,
also where the model is exact; and of a learned schedule, which has little to say near the clean end, the last of 16
even steps goes from logSNR 2 to 9.)
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array
from jax.sharding import Mesh
from tqdm import tqdm

import diffax as dx
from diffax import metrics, models
from diffax.losses import Aux
from diffax.models.layers import conv
from diffax.models.network import initialiser
from diffax.schedules import Schedule
from diffax.training import sharding
from diffax.training.metrics import TrainMetrics
from diffax.training.optimizer import adam_with_warmup
from diffax.training.step import init_state, train_step
from experiments.lab.microscopy import Pairs

__all__ = ["FIXED", "LEARNED", "Model", "levels", "model", "path", "posterior", "scores", "trainer"]

_ENDS = dict(logsnr_min=-10.0, logsnr_max=10.0)


def _cosine(by: float) -> Schedule:
    return dx.schedules.truncate(dx.schedules.cosine_shifted(by), **_ENDS)


def _linear(beta_max: float) -> Schedule:
    return dx.schedules.truncate(dx.schedules.linear_beta(beta_max=beta_max), **_ENDS)


FIXED: Mapping[str, Callable[[], Schedule]] = {
    "cosine": lambda: _cosine(0.0),
    "cosine -4": lambda: _cosine(-4.0),
    "cosine -2": lambda: _cosine(-2.0),
    "cosine +2": lambda: _cosine(2.0),
    "cosine +4": lambda: _cosine(4.0),
    "linear": lambda: _linear(20.0),
    "linear 10": lambda: _linear(10.0),
}
"""The sweep: the cosine schedule and ones that are moved in logSNR, DDPM's linear betas (to 20) and ones to 10. A
greater beta would change nothing: cut where logSNR is -10, all that get there are one schedule."""
LEARNED = ("learned", "learned per pixel")
_RATE = 10.0
"""Of a learned schedule at first: alpha^2 = e^-10 at u = 1, the noisy end of the fixed ones (but of "linear 10", whose
betas sum to 5)."""
_PRECONDITIONING = dx.preconditioning.v()


class Model(NamedTuple):
    """A network and the schedule it lives on.

    Fields:
      init: key -> params, a dict: "network", and for learned ones "monotone" and "rate".
      apply: (params["network"], x, c_noise, measured) -> v; c_noise [batch] or per pixel.
      schedule: (params, measured) -> the schedule of each sample, or of each pixel.
      loss: (params, batch, key, step, sampler) -> (loss, Aux), as `train_step` takes it; batch is a dict of `Pairs`.
    """

    init: Callable[[Array], Any]
    apply: Callable[..., Array]
    schedule: Callable[[Any, Array], Schedule]
    loss: Callable[..., tuple[Array, Aux]]


def model(variant: str, shape: tuple[int, int, int], measured: int, *, channels: int = 16) -> Model:
    """The model of a schedule named in FIXED or LEARNED.

    Args:
      shape: of the truth, (height, width, 1).
      measured: channels of the measurement.
      channels: width of the U-Net at full resolution.

    Raises ValueError for another name.
    """
    if variant not in FIXED and variant not in LEARNED:
        raise ValueError(f"variant = {variant!r}: must be one of {', '.join([*FIXED, *LEARNED])}")
    network = models.unet(shape, channels=channels, multipliers=(1, 2, 2), blocks=1, image=measured + 1)

    def apply(params: Any, x: Array, c_noise: Array, measured: Array) -> Array:
        per_pixel = c_noise.reshape(c_noise.shape + (1,) * (x.ndim - c_noise.ndim))
        level = jnp.broadcast_to(per_pixel, (*x.shape[:-1], 1))
        return network.apply(params, x, level.mean((1, 2, 3)), jnp.concatenate([measured, level], axis=-1))

    init: Callable[[Array], Any]
    schedule: Callable[[Any, Array], Schedule]
    loss_of: Callable[..., tuple[Array, Aux]]
    if variant in FIXED:
        fixed = FIXED[variant]()
        init = lambda key: {"network": network.init(key)}
        schedule = lambda params, measured: fixed
        loss_of = functools.partial(dx.losses.denoising, weighting=dx.weightings.target(_PRECONDITIONING))
    else:
        rate = _one_rate() if variant == "learned" else _rates(shape, measured)
        init = lambda key: {
            "network": network.init(jax.random.fold_in(key, 0)),
            "monotone": dx.schedules.learned_init(jax.random.fold_in(key, 1)),
            "rate": rate.init(jax.random.fold_in(key, 2)),
        }
        schedule = lambda params, measured: dx.schedules.per_pixel(
            params["monotone"], rate.apply(params["rate"], measured)
        )
        loss_of = dx.variational.conditional

    def loss(params: Any, batch: Any, key: Array, step: Array, sampler: Any = None) -> tuple[Array, Aux]:
        return loss_of(
            apply,
            params["network"],
            key,
            batch["truth"],
            batch["measured"],
            schedule=schedule(params, batch["measured"]),
            preconditioning=_PRECONDITIONING,
        )

    return Model(init, apply, schedule, loss)


class _Rate(NamedTuple):
    """init(key) -> params; apply(params, measured [batch, height, width, channels]) -> rate > 0, `_RATE` at first."""

    init: Callable[[Array], Any]
    apply: Callable[[Any, Array], Array]


def _one_rate() -> _Rate:
    """One number for all, as [batch, 1, 1, 1]."""
    return _Rate(
        lambda key: jnp.asarray(_RATE, jnp.float32),
        lambda params, measured: jnp.broadcast_to(nn.softplus(params), (len(measured), 1, 1, 1)),
    )


def _rates(shape: tuple[int, int, int], measured: int) -> _Rate:
    """Of each pixel, [batch, height, width, 1], from three convolutions."""

    class Convolutions(nn.Module):
        @nn.compact
        def __call__(self, h: Array) -> Array:
            for i in range(2):
                h = nn.silu(conv(16, 3, 2, name=f"conv{i}")(h))
            return nn.softplus(conv(1, 3, 2, gain=0, name="conv_out")(h) + _RATE)

    module: Any = Convolutions()
    init = initialiser(module, jnp.zeros((1, *shape[:2], measured)))
    return _Rate(init, lambda params, measured: module.apply({"params": params}, measured))


# ---- training -------------------------------------------------------------------------------------------------------


def trainer(
    model: Model, pairs: Pairs, mesh: Mesh, *, steps: int, batch_size: int
) -> Callable[[int, str], tuple[Any, float]]:
    """(seed, title of the progress bar) -> the averaged parameters after `steps` steps, and the seconds they took but
    for the first, which compiles. A seed draws the same batches whatever the model.
    """

    def kinds(params: Any) -> Any:
        """Networks, and the few numbers of a schedule, which have a longer way to go."""
        return {name: "network" if isinstance(part, dict) else "numbers" for name, part in params.items()}

    rates = {"network": 1e-3, "numbers": 2e-2}
    adams = {kind: adam_with_warmup(rate, warmup_steps=steps // 20) for kind, rate in rates.items()}
    optimizer = optax.partition(adams, kinds)
    step = train_step(model.loss, optimizer, mesh, batch_size=batch_size, ema_halflife=steps * batch_size / 20)

    def train(seed: int, title: str) -> tuple[Any, float]:
        init_key, step_key = jax.random.split(jax.random.key(seed))
        state = init_state(model.init, optimizer, init_key, mesh)
        seen = sharding.put_replicated(TrainMetrics.empty(), mesh)
        rng, started = np.random.default_rng(seed), time.perf_counter()
        before: Any = None
        for k in tqdm(range(steps), desc=title, unit="step", mininterval=1, leave=False):
            index = rng.integers(len(pairs.truth), size=batch_size)
            batch = {"truth": pairs.truth[index], "measured": pairs.measured[index]}
            state, seen, said = step(state, seen, sharding.put_batch(batch, mesh), step_key)
            jax.block_until_ready(said if k in (0, steps - 1) else before)  # not far ahead, see train_step
            before = said
            started = time.perf_counter() if k == 0 else started
        if skipped := int(state.guard.skipped):
            raise ValueError(f"{title}: {skipped} updates were left out, since they were not finite")
        return state.ema, time.perf_counter() - started

    return train


# ---- restoring ------------------------------------------------------------------------------------------------------


def posterior(model: Model, steps: int) -> Callable[[Any, Array, Array], Array]:
    """A compiled (params, measured [n, ...], key) -> one draw of the truth for each measurement [n, ..., 1]."""

    @jax.jit
    def draw(params: Any, measured: Array, key: Array) -> Array:
        sigmas = dx.schedules.sigma_from_logsnr(path(model, params, measured, steps))
        sigmas = jnp.concatenate([sigmas, 0 * sigmas[:1]])
        shape = (*measured.shape[1:-1], 1)
        x = sigmas[0] * dx.noise.normal(key, jnp.arange(len(measured)), shape)
        denoise = dx.denoiser(model.apply, params["network"], _PRECONDITIONING, measured)
        return dx.sample(denoise, x, sigmas, to_zero=True)

    return draw


def path(model: Model, params: Any, measured: Array, steps: int) -> Array:
    """logSNR of each step, shaped as by `levels`: of `dx.grids.plain(steps)`, from the noisy end of the schedule to no
    more than its clean one."""
    plain = -2 * np.log(dx.grids.plain(steps)[:-1])
    from_last = jnp.asarray((plain - plain[-1]) / (plain[0] - plain[-1]), jnp.float32)
    logit = jnp.linspace(12, -12, 1025)  # of u: levels change fast near both ends
    at = jax.vmap(model.schedule(params, measured).quantile)
    known = at(jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit))
    mean = known if known.ndim == 1 else known.mean(tuple(range(2, known.ndim)))

    def find(mean: Array) -> Array:
        last = jnp.minimum(plain[-1], mean[-1])
        return jnp.interp(last + (mean[0] - last) * from_last, mean, logit)

    found = find(mean) if mean.ndim == 1 else jax.vmap(find, 1, 1)(mean)
    return at(jax.nn.sigmoid(found), jax.nn.sigmoid(-found))


def levels(model: Model, params: Any, measured: Array, n: int) -> Array:
    """logSNR at n even u from 1 to 0: [n], or [n, batch, height or 1, width or 1, 1] of a learned schedule."""
    schedule = model.schedule(params, measured)
    u = jnp.linspace(1, 0, n)
    return jax.vmap(schedule.quantile)(u, u[::-1])


def scores(samples: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Of draws [k, n, height, width, 1] of the posterior: their mean's quality, that of single ones, and calibration.

    coverage_P is the share of pixels whose truth lies in the central interval that should hold P % of them.
    """
    found = {}
    for name, images in (("mean", samples.mean(0)), ("single", samples[0])):
        for metric in (metrics.psnr, metrics.ssim, metrics.multi_scale_ssim):
            found[f"{metric.__name__}_{name}"] = float(metric(images, truth).mean())
    spread = metrics.calibration(samples, truth)
    found["spread_skill"] = spread.spread_skill
    for nominal, coverage in zip(spread.nominal, spread.coverage, strict=True):
        found[f"coverage_{100 * nominal:.0f}"] = float(coverage)
    return found
