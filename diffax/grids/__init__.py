"""Grids: the sigmas that a solver steps through. Every schedule is one (`dx.schedules.sigmas`); here are those found
for a model, and the one to take without looking.

| grid | asks of the model | minimises |
|---|---|---|
| plain | nothing | |
| dynamic | pilot trajectories | how far Euler steps stray from them |
| align_your_steps | clean data | a bound on the divergence of the stochastic path |
| auto, fit | pilot trajectories and gradients | the error of the end point, of the very solver that will be used |
| fit_solver | the same | the same, over the solver's coefficients too |
"""

from diffax.grids.align_your_steps import align_your_steps, klub
from diffax.grids.dynamic import dynamic
from diffax.grids.fit import Fitted, auto, fit, fit_solver
from diffax.grids.plain import plain

__all__ = ["Fitted", "align_your_steps", "auto", "dynamic", "fit", "fit_solver", "klub", "plain"]
