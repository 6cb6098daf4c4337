"""Weightings w(logsnr): how much the squared error of the denoiser counts at each noise level.

Convention: w multiplies ||D(x, sigma) - x_0||^2, the error of the clean image, as lambda(sigma) does in EDM. Errors of
other targets are multiples of it (SNR = exp(logsnr); variance preserving):

    ||eps error||^2 = SNR ||x0 error||^2,    ||v error||^2 = (SNR + 1) ||x0 error||^2,
    ||F error||^2 = ||x0 error||^2 / c_out^2   for any preconditioning,

so the plain eps loss of DDPM is `snr()`, and a weight published for the eps loss is multiplied by SNR to stand here.
The weighting is what the model is asked for; where training looks is the schedule's density, chosen apart from it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from diffax import _check
from diffax._array import Scalar, at_least_float32

__all__ = ["Weighting", "edm", "min_snr", "snr", "uniform"]


class Weighting(NamedTuple):
    """Call it with logsnr (any shape) for the weight there, >= 0, of the same shape."""

    weight: Callable[[Array], Array]

    def __call__(self, logsnr: ArrayLike) -> Array:
        return self.weight(at_least_float32(logsnr))


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
    return Weighting(lambda logsnr: jnp.exp(logsnr) + 1 / sigma_data**2)


def min_snr(gamma: Scalar = 5.0) -> Weighting:
    """w = min(SNR, gamma) (Hang et al. 2023, arXiv:2303.09556). Raises ValueError unless gamma > 0."""
    _check.positive("gamma", gamma)
    return Weighting(lambda logsnr: jnp.minimum(jnp.exp(logsnr), gamma))
