"""diffax: diffusion models as small pure functions over log-SNR, in JAX.

Four nouns: a `schedules.Schedule` (where the noise is), a `preconditioning.Preconditioning` (what the network
predicts), a denoiser `denoise(x, sigma) -> x0`, and a `solvers.Solver`. They need jax and numpy alone. `models`,
`training`, `data` and `metrics` need `pip install 'diffax[train]'` and are imported by name, as in
`import diffax.models`.
"""

import sys

from diffax import (
    adaptive,
    consistency,
    curricula,
    draws,
    grids,
    guidance,
    likelihood,
    losses,
    noise,
    optics,
    plot,
    preconditioning,
    schedules,
    solvers,
    variational,
    weightings,
)
from diffax._public import list_names
from diffax.denoiser import Denoiser, denoiser, gaussian_mixture
from diffax.sample import sample

__version__ = "0.1.0"

__all__ = [
    "Denoiser",
    "adaptive",
    "consistency",
    "curricula",
    "denoiser",
    "draws",
    "gaussian_mixture",
    "grids",
    "guidance",
    "likelihood",
    "losses",
    "noise",
    "optics",
    "plot",
    "preconditioning",
    "sample",
    "schedules",
    "solvers",
    "variational",
    "weightings",
]

list_names(__name__, *(f"{__name__}.{name}" for name in __all__ if f"{__name__}.{name}" in sys.modules))
