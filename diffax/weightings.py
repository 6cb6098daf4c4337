"""Weightings w(logsnr): how much the squared error of the denoiser counts at each noise level.

Convention: w multiplies ||D(x, sigma) - x_0||^2, the error of the clean image, as lambda(sigma) does in EDM. Errors of
other targets are multiples of it (SNR = exp(logsnr); variance preserving; t = sigma / (1 + sigma)):

    ||eps error||^2 = SNR ||x0 error||^2,           ||v error||^2 = (SNR + 1) ||x0 error||^2,
    ||flow error||^2 = ||x0 error||^2 / t^2,        ||F error||^2 = ||x0 error||^2 / c_out^2 in general,

so `target(preconditioning)`, 1 / c_out^2, is the plain squared error of what the network predicts, and a weight
published for the eps loss is multiplied by SNR to stand here.

**Schedule x weighting x prediction.** What a model is asked for is the product w(logsnr) p(logsnr): the weight times
the density with which training draws the level. The prediction target enters through its plain loss alone. `effective`
gives the product, in the eps form of the ELBO view (Kingma & Gao 2023, arXiv:2303.00848: loss = 1/2 E[w(l) / p(l)
||eps error||^2], the ELBO being w = 1), so that recipes can be laid over each other. With l = logsnr, up to a constant:

| recipe | schedule p | prediction | weighting here | effective weight of the eps error |
|---|---|---|---|---|
| DDPM, iDDPM | linear_beta, cosine | eps | snr() = target(eps()) | p(l) |
| v-prediction | cosine | v | target(v()) = SNR + 1 | p(l) (1 + e^-l) ~ e^(-l/2) |
| flow matching | flow | flow | target(flow()) = 1 / t^2 | p(l) (1 + e^(-l/2))^2 ~ e^(-l/2) |
| SD3 | logit_normal | flow | target(flow()) = 1 / t^2 | p(l) (1 + e^(-l/2))^2 |
| EDM | edm | edm | edm(sd) = SNR + 1 / sd^2 | p(l) (1 + e^-l / sd^2) |
| Hang & Gu | laplace(0, 0.5) | v | target(v()) | p(l) (1 + e^-l) |
| min-SNR | cosine | any | min_snr(5) = min(SNR, 5) | p(l) min(1, 5 e^-l) |
| VDM, likelihood | any | any | elbo(schedule) = SNR / p | 1 |

The second and the third row are one objective. Two recipes of equal effective weight differ in the noise of their
gradients and in what the network finds easy, not in what is asked.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffax import _check
from diffax._array import Scalar, at_least_float32, clip, common, held
from diffax.noise import threefry
from diffax.preconditioning import Preconditioning
from diffax.schedules import Schedule

__all__ = [
    "Uncertainty",
    "Weighting",
    "edm",
    "effective",
    "elbo",
    "min_snr",
    "p2",
    "resampled",
    "sigmoid",
    "snr",
    "soft_min_snr",
    "target",
    "truncated_snr",
    "uncertainty",
    "uncertainty_init",
    "uniform",
]


@dataclasses.dataclass(frozen=True)
class Weighting:
    """Call it with logsnr (any shape) for the weight there, >= 0, of the same shape.

    At -inf and inf that is its limit, which may be inf. Raises ValueError unless logsnr holds numbers.

    Fields (what a new weighting has to state), each a function of logsnr:
      weight: -> w.
      root: -> the square root of w. State it where w leaves float32 and the root does not.
    """

    weight: Callable[[Array], Array]
    root: Callable[[Array], Array] | None = None

    def __call__(self, logsnr: ArrayLike) -> Array:
        logsnr = _check.logsnr(logsnr)
        return self.weight(logsnr).astype(logsnr.dtype)

    def of_output(self, logsnr: ArrayLike, c_out: Array) -> Array:
        """w c_out^2, by which the squared error of a network's output counts; neither w nor c_out^2 overflows."""
        if self.root is None:
            return self(logsnr) * c_out * c_out
        return (self.root(_check.logsnr(logsnr)) * c_out) ** 2


def uniform() -> Weighting:
    """w = 1: the plain squared error of the clean image."""
    return Weighting(lambda logsnr: jnp.ones_like(logsnr))


def snr() -> Weighting:
    """w = SNR: the plain squared error of the noise (DDPM's L_simple, Ho et al. 2020, eq. 14)."""
    return Weighting(lambda logsnr: jnp.exp(logsnr))


def edm(sigma_data: Scalar = 0.5) -> Weighting:
    """w = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 = SNR + 1 / sigma_data^2 (Karras et al. 2022, table 1).

    With `preconditioning.edm` of the same sigma_data every level counts alike: w c_out^2 = 1.
    Raises ValueError unless sigma_data > 0.
    """
    _check.positive("sigma_data", sigma_data)
    return Weighting(lambda logsnr: jnp.exp(logsnr) + 1 / jnp.asarray(sigma_data, logsnr.dtype) ** 2)


def min_snr(gamma: Scalar = 5.0) -> Weighting:
    """w = min(SNR, gamma) (Hang et al. 2023, arXiv:2303.09556). Raises ValueError unless gamma > 0."""
    _check.positive("gamma", gamma)
    return Weighting(lambda logsnr: jnp.minimum(jnp.exp(logsnr), jnp.asarray(gamma, logsnr.dtype)))


def soft_min_snr(gamma: Scalar = 5.0) -> Weighting:
    """w = SNR gamma / (SNR + gamma): min_snr without the corner (HDiT, Crowson et al. 2024). gamma > 0."""
    _check.positive("gamma", gamma)

    def weight(logsnr: Array) -> Array:
        most = jnp.asarray(gamma, logsnr.dtype)
        return most * jax.nn.sigmoid(logsnr - jnp.log(most))

    return Weighting(weight)


def truncated_snr(least: Scalar = 1.0) -> Weighting:
    """w = max(SNR, least) (Salimans & Ho 2022, arXiv:2202.00512, with least 1). least > 0."""
    _check.positive("least", least)
    return Weighting(lambda logsnr: jnp.maximum(jnp.exp(logsnr), jnp.asarray(least, logsnr.dtype)))


def p2(k: Scalar = 1.0, gamma: Scalar = 1.0) -> Weighting:
    """w = SNR / (k + SNR)^gamma: the eps loss over (k + SNR)^gamma (Choi et al. 2022, arXiv:2204.00227). k > 0."""
    _check.positive("k", k)
    _check.finite("gamma", gamma)

    def weight(logsnr: Array) -> Array:
        power, log_k = jnp.asarray(gamma, logsnr.dtype), jnp.log(jnp.asarray(k, logsnr.dtype))
        logsnr = clip(logsnr, -1e30, 1e30)  # of two infinities there is no difference
        return jnp.exp(logsnr - power * jnp.logaddexp(logsnr, log_k))

    return Weighting(weight)


def sigmoid(bias: Scalar = 0.0) -> Weighting:
    """w = SNR sigmoid(bias - logsnr): weight sigmoid(bias - logsnr) of the eps error.

    Kingma & Gao 2023 (arXiv:2303.00848); with a bias of about -3 at high resolution, SiD2 (arXiv:2410.19324). It is a
    weight per unit of logSNR: `resampled` or `elbo`-like division by the density makes it independent of the schedule.
    """
    _check.finite("bias", bias)

    def weight(logsnr: Array) -> Array:
        middle = jnp.asarray(bias, logsnr.dtype)
        return jnp.exp(middle) * jax.nn.sigmoid(logsnr - middle)

    return Weighting(weight)


def target(preconditioning: Preconditioning) -> Weighting:
    """w = 1 / c_out^2: the plain squared error of what the network predicts."""
    _check.instance("preconditioning", preconditioning, Preconditioning, "dx.preconditioning.v()")

    def root(logsnr: Array) -> Array:
        return 1 / preconditioning(logsnr).c_out

    return Weighting(lambda logsnr: root(logsnr) ** 2, root)


def elbo(schedule: Schedule) -> Weighting:
    """w = SNR / (2 p(logsnr)), p the density of `schedule`, which is also the one to draw from.

    The mean loss, per dimension, is then the diffusion term of the variational bound in nats per dimension, whatever
    the schedule (VDM, arXiv:2107.00630, eq. 17; exactly so between the ends of the schedule). It is 0 where the
    schedule has no density, since no level is drawn there.
    """
    _schedule("schedule", schedule)

    def weight(logsnr: Array) -> Array:
        drawn, level, density = _drawn(schedule, logsnr)
        return jnp.where(drawn, jnp.exp(level) / (2 * density), jnp.where(jnp.isnan(logsnr), logsnr, 0))

    return Weighting(weight)


def resampled(weighting: Weighting, wanted: Schedule, drawn: Schedule) -> Weighting:
    """The weighting with which drawing from `drawn` optimises what `weighting` does when drawing from `wanted`.

    w(logsnr) p_wanted(logsnr) / p_drawn(logsnr): weight and density of the draws are so chosen apart. `drawn` must
    have mass wherever `wanted` has; the weight is 0 where one of them has no density.
    """
    _weighting(weighting)
    _schedule("wanted", wanted)
    _schedule("drawn", drawn)

    def weight(logsnr: Array) -> Array:
        there, level, density = _drawn(drawn, logsnr)
        asked, level, share = _drawn(wanted, level)
        ratio = weighting(level) * share / density
        return jnp.where(there & asked, ratio, jnp.where(jnp.isnan(logsnr), logsnr, 0))

    return Weighting(weight)


def effective(schedule: Schedule, weighting: Weighting) -> Callable[[ArrayLike], Array]:
    """logsnr -> w(logsnr) p(logsnr) / SNR: the weight that a recipe gives to the eps error per unit of logSNR.

    Two recipes whose functions differ by a constant factor ask for the same. See the table above. It is 0 where the
    schedule has no density. Beyond |logsnr| = 80, w / SNR is taken as it is there: exp(logsnr) leaves float32.
    """
    _schedule("schedule", schedule)
    _weighting(weighting)

    def weight(logsnr: ArrayLike) -> Array:
        lam = _check.logsnr(logsnr)
        drawn, level, density = _drawn(schedule, lam)
        level = held(level)
        return jnp.where(drawn, density * (weighting(level) * jnp.exp(-level)), jnp.where(jnp.isnan(lam), lam, 0))

    return weight


def _drawn(schedule: Schedule, logsnr: Array) -> tuple[Array, Array, Array]:
    """Where the schedule has a density, the level there, and the density; 0 and 1 elsewhere, for finite derivatives."""
    finite = jnp.isfinite(logsnr)
    density = jnp.asarray(schedule.density(jnp.where(finite, logsnr, 0))).astype(logsnr.dtype)
    drawn = finite & (density > 0)
    return drawn, jnp.where(drawn, logsnr, 0), jnp.where(drawn, density, 1)


def _schedule(name: str, schedule: Schedule) -> None:
    _check.instance(name, schedule, Schedule, "dx.schedules.cosine()")


def _weighting(weighting: Weighting) -> None:
    _check.instance("weighting", weighting, Weighting, "dx.weightings.snr()")


class Uncertainty(NamedTuple):
    """Parameters of a learned log-variance of the loss: frequencies and phases (fixed), weights [features]."""

    frequency: Array
    phase: Array
    weight: Array


def uncertainty_init(key: Array, features: int = 128) -> Uncertainty:
    """Parameters that say log-variance 0 everywhere. Raises ValueError unless features >= 1 and key is a JAX key."""
    _check.whole("features", features, 1, 2**20)
    frequency_key, phase_key = jax.random.split(threefry(key))
    return Uncertainty(
        jax.random.normal(frequency_key, (features,)), jax.random.uniform(phase_key, (features,)), jnp.zeros(features)
    )


def uncertainty(params: Uncertainty, loss: Array, logsnr: Array) -> Array:
    """loss / exp(g) + g, with g(logsnr) learned: levels of great loss do not drown the others. Shapes [batch].

    At the optimum g = log E[loss | logsnr], so every level contributes equally (EDM2, Karras et al. 2024,
    arXiv:2312.02696, appendix B.3: random Fourier features of log(sigma) / 4, one linear layer). Beyond
    |logsnr| = 80 g is as it is there. Raises ValueError unless loss holds finite numbers and logsnr is of its shape.
    """
    _check.instance("params", params, Uncertainty, "dx.weightings.uncertainty_init(key)")
    _check.finite("loss", loss)
    loss, logsnr = at_least_float32(loss), _check.logsnr(logsnr)
    if loss.shape != logsnr.shape:
        raise ValueError(f"loss has shape {loss.shape} for logsnr of shape {logsnr.shape}: must be the same")
    dtype = common(loss)
    frequency, phase, weights = (jnp.asarray(leaf).astype(dtype) for leaf in params)
    frequency, phase = jax.lax.stop_gradient((frequency, phase))
    angle = 2 * math.pi * (frequency * (-held(logsnr).astype(dtype) / 8)[..., None] + phase)
    g = math.sqrt(2) * jnp.cos(angle) @ weights / math.sqrt(weights.shape[0])
    return loss / jnp.exp(g) + g
