"""Preconditioning: what a raw network F predicts, and hence how it becomes a denoiser D at each noise level.

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise),        x = x_0 + sigma n       (Karras et al. 2022, eq. 7)

Every prediction target of the field is F = a x_0 + b n with two numbers a, b that depend on the noise level alone.
That D returns x_0 whenever F is right fixes the rest, c_out = sigma / (a sigma - b) and c_skip = -b / (a sigma - b), so
no target needs a converter of its own. Both are computed with numerator and denominator multiplied by alpha,
sigma_t / (a sigma_t - b alpha) and -b alpha / (a sigma_t - b alpha), which hold at both infinities of logSNR too. With
alpha^2 = sigmoid(logsnr) and sigma_t^2 = sigmoid(-logsnr) (variance preserving, x_t = alpha x),
sigma = sigma_t / alpha, t = sigma / (1 + sigma), sd the standard deviation of the data, and s = sqrt(sigma^2 + sd^2):

| target | a | b | c_in | c_skip | c_out |
|---|---|---|---|---|---|
| eps  | 0 | 1 | alpha | 1 | -sigma |
| x0   | 1 | 0 | alpha | 0 | 1 |
| v    | -sigma_t | alpha | alpha | alpha^2 | -sigma_t |
| flow | -1 | 1 | 1 - t | 1 - t | -t |
| score | 0 | -1 / sigma | 1 | 1 | sigma^2 |
| edm  | sigma / (sd s) | -sd / s | 1 / s | sd^2 / s^2 | sigma sd / s |

c_noise, how the network is told the level, is log(sigma) / 4 as in EDM: smooth, of order one, free of any time index.
For a network trained elsewhere on another input: `dataclasses.replace(v(), c_noise=lambda logsnr: ...)`.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.nn import sigmoid
from jax.typing import ArrayLike

from diffax import _check
from diffax._array import Scalar, alpha, at_least_float32, common
from diffax.schedules import sigma_from_logsnr

__all__ = ["Coefficients", "Preconditioning", "edm", "eps", "flow", "score", "unscaled_input", "v", "x0"]


class Coefficients(NamedTuple):
    """c_in, c_skip, c_out and c_noise, each of the shape of the logsnr they were asked at, float32 or better."""

    c_in: Array
    c_skip: Array
    c_out: Array
    c_noise: Array


def _quarter_log_sigma(logsnr: Array) -> Array:
    return -logsnr / 8


@dataclasses.dataclass(frozen=True)
class Preconditioning:
    """What a network predicts and sees. Call it with logsnr (any shape) for the `Coefficients` there.

    Fields (what a new target has to state), each a function of logsnr:
      predicts: -> (a, b), the network being asked for a x_0 + b n.
      c_in: -> scale of its input, best such that c_in x has unit variance.
      c_noise: -> how it is told the level; log(sigma) / 4 by default.
    """

    predicts: Callable[[Array], tuple[Array, Array]]
    c_in: Callable[[Array], Array]
    c_noise: Callable[[Array], Array] = _quarter_log_sigma

    def __call__(self, logsnr: ArrayLike) -> Coefficients:
        """The coefficients at logsnr. Raises ValueError unless it holds numbers; both infinities are allowed."""
        logsnr = _check.logsnr(logsnr)
        c_skip, c_out = _skip_and_out(*self.predicts(logsnr), logsnr)
        return Coefficients(self.c_in(logsnr), c_skip, c_out, self.c_noise(logsnr))

    def target(self, x0: Array, n: Array, logsnr: ArrayLike) -> Array:
        """a x_0 + b n: what F should output. x0 and n [batch, ...], logsnr a number, [batch], or per pixel.

        Raises ValueError for other shapes.
        """
        x0, n = _check.points("x0", x0), _check.points("n", n)
        if x0.shape != n.shape:
            raise ValueError(f"n has shape {n.shape} for x0 of shape {x0.shape}: must be the same")
        dtype = common(x0, n)
        a, b = self.predicts(_check.aligned("logsnr", _check.logsnr(logsnr), x0).astype(dtype))
        return a * at_least_float32(x0) + b * at_least_float32(n)


def eps() -> Preconditioning:
    """F predicts the noise (DDPM, Ho et al. 2020). c_out = -sigma amplifies F's error without bound at high noise."""
    return Preconditioning(lambda lam: (jnp.zeros_like(lam), jnp.ones_like(lam)), alpha)


def x0() -> Preconditioning:
    """F predicts the clean image."""
    return Preconditioning(lambda lam: (jnp.ones_like(lam), jnp.zeros_like(lam)), alpha)


def v() -> Preconditioning:
    """F predicts v = alpha n - sigma_t x_0 (Salimans & Ho 2022, arXiv:2202.00512)."""
    return Preconditioning(lambda lam: (-alpha(-lam), alpha(lam)), alpha)


def score() -> Preconditioning:
    """F predicts the score of x at its level, (D - x) / sigma^2, of which -n / sigma is a sample (Song et al. 2021).

    Its input is x itself, as in variance-exploding models; c_in can be replaced for others.
    """
    return Preconditioning(lambda lam: (jnp.zeros_like(lam), -jnp.exp(lam / 2)), jnp.ones_like)


def flow() -> Preconditioning:
    """F predicts the velocity n - x_0 of the straight path x_t = (1 - t) x_0 + t n (arXiv:2209.03003)."""
    # 1 - t = 1 / (1 + sigma) = sigmoid(logsnr / 2)
    return Preconditioning(lambda lam: (-jnp.ones_like(lam), jnp.ones_like(lam)), lambda lam: sigmoid(lam / 2))


def edm(sigma_data: Scalar = 0.5) -> Preconditioning:
    """Input and target of unit variance at every level, for data of standard deviation sigma_data.

    Karras et al. 2022, table 1 and appendix B.6. Raises ValueError unless sigma_data > 0.
    """
    _check.positive("sigma_data", sigma_data)

    def shares(lam: Array) -> tuple[Array, Array]:
        """Square roots of the shares that data and noise have in the variance sigma^2 + sigma_data^2 of x."""
        relative = lam + 2 * jnp.log(jnp.asarray(sigma_data, lam.dtype))
        return alpha(relative), alpha(-relative)

    def predicts(lam: Array) -> tuple[Array, Array]:
        data, noise = shares(lam)
        return noise / sigma_data, -data

    return Preconditioning(predicts, lambda lam: shares(lam)[0] / sigma_data)


def unscaled_input(preconditioning: Preconditioning) -> Preconditioning:
    """The same target for a network that sees x itself, c_in = 1, which grows with sigma: a pitfall that Karras et al.
    2022 name (section 5)."""
    _check.instance("preconditioning", preconditioning, Preconditioning, "dx.preconditioning.v()")
    return dataclasses.replace(preconditioning, c_in=jnp.ones_like)


def _skip_and_out(a: ArrayLike, b: ArrayLike, logsnr: Array) -> tuple[Array, Array]:
    """c_skip and c_out of F = a x_0 + b n.

    Where one of a and b is 0 the other alone says them, so that an infinite sigma is not multiplied by 0. The numbers
    of the branch that is not taken are replaced, so that its derivatives are finite too.
    """
    a, b = jnp.asarray(a, logsnr.dtype), jnp.asarray(b, logsnr.dtype)
    noise, clean = a == 0, (a != 0) & (b == 0)  # F predicts that alone
    both = ~(noise | clean)
    signal = -jnp.where(both, b, -1) * alpha(logsnr)
    spread = alpha(-logsnr)
    total = jnp.where(both, a, 1) * spread + signal
    sigma = sigma_from_logsnr(jnp.where(noise, logsnr, 0))
    c_skip = jnp.where(noise, 1, jnp.where(clean, 0, signal / total))
    of_noise, of_clean = -sigma / jnp.where(noise, b, 1), 1 / jnp.where(clean, a, 1)
    return c_skip, jnp.where(noise, of_noise, jnp.where(clean, of_clean, spread / total))
