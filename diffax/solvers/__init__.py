"""Solvers: methods that take noise to data through a denoiser. `dx.sample` runs them.

`linear` says what a solver is; the methods are in `single_step`.
"""

from diffax.solvers.linear import Solver
from diffax.solvers.single_step import euler, heun

__all__ = ["Solver", "euler", "heun"]
