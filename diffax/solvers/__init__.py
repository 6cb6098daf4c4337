"""Solvers: methods that take noise to data through a denoiser. `dx.sample` runs them.

`linear` says what a solver is, `integral` what it approximates; the methods are in `single_step`, `multistep`,
`falling` (the default one), `sde` (with noise) and `adaptive` (whose steps are as long as the error allows).
"""

from diffax.solvers.adaptive import adaptive
from diffax.solvers.falling import default
from diffax.solvers.learned import learned, load_learned, save_learned
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
from diffax.solvers.sde import (
    ancestral,
    annealed_langevin,
    dpmpp_1_sde,
    dpmpp_2m_sde,
    dpmpp_2s_sde,
    dpmpp_3m_sde,
    dpmpp_3s_sde,
    edm_stochastic,
    er_sde,
    predictor_corrector,
    sa_solver,
)
from diffax.solvers.single_step import (
    dpm2,
    dpm_solver_2,
    dpm_solver_3,
    dpmpp_2s,
    dpmpp_3s,
    euler,
    euler_vp,
    heun,
    rk4,
    runge_kutta,
)

__all__ = [
    "Solver",
    "adams_bashforth",
    "adaptive",
    "ancestral",
    "annealed_langevin",
    "default",
    "deis",
    "dpm2",
    "dpm_solver_2",
    "dpm_solver_3",
    "dpmpp_1_sde",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_2s_sde",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_3s",
    "dpmpp_3s_sde",
    "edm_stochastic",
    "er_sde",
    "euler",
    "euler_vp",
    "exponential_ab",
    "heun",
    "ipndm",
    "learned",
    "lms",
    "load_learned",
    "predictor_corrector",
    "rk4",
    "runge_kutta",
    "sa_solver",
    "save_learned",
    "unipc",
]
