"""The integral that every solver of the probability-flow ODE approximates, and its weights.

With D the denoiser, the ODE is dx/dsigma = (x - D) / sigma. Multiplied by an integrating factor mu(sigma) it becomes

    d(mu x) = g dnu,    so    mu(t) x(t) = mu(s) x(s) + int_s^t g dnu.

A `Space` is a choice of mu and nu, and thereby of the quantity g that has to be smooth:

| space | mu | dnu/dsigma | g | used by |
|---|---|---|---|---|
| x0() | 1 / sigma | -1 / sigma^2 | D | DPM-Solver++, UniPC, SA-Solver |
| x0(f) | 1 / f | (1 / f)' | D | the same for SDEs: f = sigma^(1 + eta), ER-SDE |
| eps() | 1 | 1 | (x - D) / sigma | DDIM, DPM-Solver, DEIS, LMS, PNDM |
| v(c) | 1 / sqrt(c^2 + sigma^2) | c / (c^2 + sigma^2) | v of x0 / c | variance-preserving models |
| flow(c) | 1 / (c + sigma) | c / (c + sigma)^2 | eps - D / c | rectified flows |
| log() | 1 | 1 / sigma | x - D | Runge-Kutta in log sigma |

A method replaces g by a polynomial through known values g_j, in a `Coordinate` u(sigma): int g dnu = sum_j w_j g_j with
w_j = int L_j(u) dnu, L_j the Lagrange polynomials. `weights` takes this integral by Gauss-Legendre quadrature, which
keeps all its digits at small steps, where the closed forms cancel (peers lose theirs at a few hundred steps), which
is exact to rounding for every choice of space and coordinate, and which can be differentiated.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffax import _check
from diffax.solvers.linear import numpy_for, scalar

__all__ = ["Coordinate", "Rule", "Space", "angle", "eps", "exact", "flow", "flow_time", "log", "log_sigma", "sigma"]
__all__ += ["v", "vp_time", "weights", "x0"]

_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(24)


class Space(NamedTuple):
    """mu(sigma), dnu/dsigma, (a, b) of g = a x + b D (None: g = D), and whether int g dnu converges at sigma = 0."""

    mu: Callable[[Any], Any]
    rate: Callable[[Any], Any]
    value: Callable[[Any], tuple[Any, Any]] | None
    finite: bool


class Coordinate(NamedTuple):
    """u(sigma), its inverse, dsigma/du as a function of sigma, and whether it is smooth at sigma = 0."""

    of: Callable[[Any], Any]
    sigma: Callable[[Any], Any]
    rate: Callable[[Any], Any]
    finite: bool


def x0(f: Callable[[Any], Any] = lambda s: s, slope: Callable[[Any], Any] = lambda s: 1.0) -> Space:
    """Data space: x = f(t) / f(s) x + (1 - f(t) / f(s)) D for constant D; slope is df/dsigma."""
    return Space(lambda s: 1 / f(s), lambda s: -slope(s) / f(s) ** 2, None, False)


def eps() -> Space:
    """Noise space."""
    return Space(_ones, _ones, lambda s: (1 / s, -1 / s), True)


def v(c: float = 1.0) -> Space:
    """Velocity space of a variance-preserving model for data of standard deviation c."""
    c = _scale(c)
    return Space(
        lambda s: 1 / _root(s, c),
        lambda s: c / (c * c + s * s),
        lambda s: (c / (s * _root(s, c)), -_root(s, c) / (c * s)),
        True,
    )


def flow(c: float = 1.0) -> Space:
    """Velocity space of a rectified flow for data of standard deviation c."""
    c = _scale(c)
    return Space(lambda s: 1 / (c + s), lambda s: c / (c + s) ** 2, lambda s: (1 / s, -(c + s) / (c * s)), True)


def log() -> Space:
    """dx / dlog sigma = x - D as it stands."""
    return Space(_ones, lambda s: 1 / s, lambda s: (_ones(s), -_ones(s)), False)


def log_sigma() -> Coordinate:
    """u = log sigma = -logsnr / 2."""
    return Coordinate(lambda s: numpy_for(s).log(s), lambda u: numpy_for(u).exp(u), lambda s: s, False)


def sigma() -> Coordinate:
    """u = sigma."""
    return Coordinate(lambda s: s, lambda u: u, _ones, True)


def angle(c: float = 1.0) -> Coordinate:
    """u = atan(sigma / c)."""
    c = _scale(c)
    return Coordinate(
        lambda s: numpy_for(s).arctan(s / c), lambda u: c * numpy_for(u).tan(u), lambda s: (c * c + s * s) / c, True
    )


def flow_time(c: float = 1.0) -> Coordinate:
    """u = sigma / (c + sigma), the time of a rectified flow."""
    c = _scale(c)
    return Coordinate(lambda s: s / (c + s), lambda u: c * u / (1 - u), lambda s: (c + s) ** 2 / c, True)


def vp_time(beta_min: float = 0.1, beta_max: float = 20.0) -> Coordinate:
    """u = t of the variance-preserving SDE: 1 + sigma^2 = exp(beta_min t + (beta_max - beta_min) t^2 / 2).

    Raises ValueError unless 0 < beta_min < beta_max.
    """
    _check.positive("beta_min", beta_min)
    _check.less("beta_min", beta_min, "beta_max", beta_max)
    _check.finite("beta_max", beta_max)
    beta_min, beta_max = scalar("beta_min", beta_min), scalar("beta_max", beta_max)
    rise = beta_max - beta_min

    def of(s: Any) -> Any:
        xp = numpy_for(s)
        total = xp.log1p(s * s)
        return 2 * total / (beta_min + xp.sqrt(beta_min**2 + 2 * rise * total))

    def sigma_of(u: Any) -> Any:
        xp = numpy_for(u)
        return xp.sqrt(xp.expm1(u * (beta_min + rise / 2 * u)))

    return Coordinate(of, sigma_of, lambda s: (beta_min + rise * of(s)) * (1 + s * s) / (2 * s), False)


Rule = Callable[[Sequence[Any], Any, Any], list[Any]]
"""(nodes, s, t) -> the coefficients of the values at the nodes in x(t) - mu(s) / mu(t) x(s)."""


def exact(space: Space, coordinate: Coordinate) -> Rule:
    """The rule that is exact where g is a polynomial in the coordinate: Adams methods, exponential if mu or nu is."""

    def rule(nodes: Sequence[Any], s: Any, t: Any) -> list[Any]:
        return [w / space.mu(t) for w in weights(space, coordinate, nodes, s, t)]

    return rule


def weights(space: Space, coordinate: Coordinate, nodes: Sequence[Any], start: Any, end: Any) -> list[Any]:
    """w_j = int_start^end L_j(u) dnu for the nodes (sigmas), each an array [...] as start and end are."""
    # Where the step may end at 0 all is smooth in the coordinate; where not, nothing is smoother than log sigma.
    along = coordinate if space.finite and coordinate.finite else log_sigma()
    xp = numpy_for((nodes, start, end))
    start, end, nodes = xp.asarray(start), xp.asarray(end), [xp.asarray(s) for s in nodes]
    v_start, v_end, at = along.of(start), along.of(end), [coordinate.of(s) for s in nodes]
    half = (v_end - v_start) / 2

    def spread(a: Any) -> Any:  # the points of the quadrature last
        return xp.asarray(a)[..., None]

    v = spread((v_start + v_end) / 2) + spread(half) * _NODES.astype(half.dtype)
    s = along.sigma(v)
    measure = spread(half) * _NODE_WEIGHTS.astype(half.dtype) * along.rate(s) * space.rate(s)
    u = coordinate.of(s)

    def lagrange(j: int) -> Any:
        others = [(u - spread(o)) / spread(at[j] - o) for i, o in enumerate(at) if i != j]
        return functools.reduce(lambda a, b: a * b, others, 1.0)

    return [(lagrange(j) * measure).sum(-1) for j in range(len(at))]


def _ones(s: Any) -> Any:
    return numpy_for(s).ones_like(s)


def _scale(c: float) -> float:
    _check.positive("c", c)
    return scalar("c", c)


def _root(s: Any, c: float) -> Any:
    return numpy_for(s).sqrt(c * c + s * s)
