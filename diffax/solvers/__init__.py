"""Solvers: methods that take noise to data through a denoiser. `dx.sample` runs them.

`linear` says what a solver is, `integral` what it approximates; the methods are in `single_step`, `multistep`.
"""

from diffax.solvers.linear import Solver
from diffax.solvers.multistep import (
    adams_bashforth,
    deis,
    dpmpp_2m,
    dpmpp_3m,
    exponential_ab,
    ipndm,
    lms,
    unipc,
)
from diffax.solvers.single_step import (
    dpm2,
    dpm_solver_2,
    dpm_solver_3,
    dpmpp_2s,
    dpmpp_3s,
    euler,
    heun,
    rk4,
    runge_kutta,
)

__all__ = [
    "Solver",
    "adams_bashforth",
    "deis",
    "dpm2",
    "dpm_solver_2",
    "dpm_solver_3",
    "dpmpp_2m",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_3s",
    "euler",
    "exponential_ab",
    "heun",
    "ipndm",
    "lms",
    "rk4",
    "runge_kutta",
    "unipc",
]
