"""Single-step solvers of the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma  (Karras et al. 2022, eq. 4).

A step goes from sigma = s to t; r = t / s, h = t - s. The step to t = 0 is x = D(x, s), whatever the method.
"""

from typing import Any

from diffax.solvers.linear import Rows, Solver, columns, interleave, numpy_for

__all__ = ["euler", "heun"]


def euler() -> Solver:
    """x(t) = r x + (1 - r) D: Euler's method in sigma, which is DDIM and DPM-Solver-1. Order 1, n evaluations."""

    def rows(sigmas: Any, to_zero: bool) -> Rows:
        s, t = sigmas[:-1], sigmas[1:]
        step = columns(s, t / s, 1 - t / s)
        return Rows(s, step, step)

    return Solver(order=1, nfe=lambda n: n, rows=rows)


def heun() -> Solver:
    """The average of the slopes at both ends of an Euler step (Karras et al. 2022, algorithm 1).

    Order 2; 2n - 1 evaluations, since the step to sigma = 0 is Euler's.
    """

    def rows(sigmas: Any, to_zero: bool) -> Rows:
        xp = numpy_for(sigmas)
        s, t = sigmas[:-1], sigmas[1:]
        r, h = t / s, t - s
        if to_zero:
            t = xp.concatenate([t[:-1], s[-1:]])  # a stand-in for t = 0, whose second stage is dropped below
        predict = Rows(s, columns(s, r, 1 - r, 0), columns(s, 1, 0, 0))
        # x + h/2 [(x - D_1) / s + (x_euler - D_0) / t], gathered
        corrected = columns(s, r, -h / (2 * t), h / (2 * t) - h / s)
        sigma, point, state = interleave(predict, Rows(t, corrected, corrected))
        if to_zero:
            sigma, point, state = sigma[:-1], point[:-1], xp.concatenate([state[:-2], point[-2:-1]])
        return Rows(sigma, point, state)

    return Solver(order=2, nfe=lambda n: 2 * n - 1, rows=rows)
