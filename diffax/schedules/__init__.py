"""Noise schedules: every one of the field as a monotone map u in [0, 1] -> logSNR, from clean (u = 0) to noise (u = 1).

`schedule` says what a schedule is, `families` has the closed forms, `tables` those given as numbers, `learned` those
with parameters, `combinators` makes schedules from schedules, `inversion` finds the direction that has no closed form,
and `grid` uses a schedule as a sampling grid.
"""

from diffax.schedules.combinators import (
    Curriculum,
    anneal,
    beta,
    interpolate,
    mix,
    power,
    scale,
    shift,
    truncate,
    zero_terminal_snr,
)
from diffax.schedules.families import (
    cauchy,
    cosine,
    cosine_scaled,
    cosine_shifted,
    edm,
    flow,
    geometric,
    karras,
    laplace,
    linear_beta,
    logit_normal,
    polynomial,
    sigmoid,
    uniform,
)
from diffax.schedules.grid import sigmas
from diffax.schedules.inversion import from_quantile, from_tails
from diffax.schedules.learned import Monotone, learned, learned_init, per_pixel, per_pixel_regulariser
from diffax.schedules.schedule import Schedule, logsnr_from_sigma, sigma_from_logsnr
from diffax.schedules.tables import align_your_steps, from_betas, linear_betas, scaled_linear_betas, tabulated

__all__ = [
    "Curriculum",
    "Monotone",
    "Schedule",
    "align_your_steps",
    "anneal",
    "beta",
    "cauchy",
    "cosine",
    "cosine_scaled",
    "cosine_shifted",
    "edm",
    "flow",
    "from_betas",
    "from_quantile",
    "from_tails",
    "geometric",
    "interpolate",
    "karras",
    "laplace",
    "learned",
    "learned_init",
    "linear_beta",
    "linear_betas",
    "logit_normal",
    "logsnr_from_sigma",
    "mix",
    "per_pixel",
    "per_pixel_regulariser",
    "polynomial",
    "power",
    "scale",
    "scaled_linear_betas",
    "shift",
    "sigma_from_logsnr",
    "sigmas",
    "sigmoid",
    "tabulated",
    "truncate",
    "uniform",
    "zero_terminal_snr",
]
