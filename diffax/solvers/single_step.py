"""Single-step solvers: each step stands alone, with further evaluations inside it.

A step goes from sigma = s to t < s, with h = log(s / t); r = t / s. The step to t = 0 is x = D(x, s), whatever the
method. All of them solve dx/dsigma = (x - D(x, sigma)) / sigma (Karras et al. 2022, arXiv:2206.00364, eq. 4).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffax import _check
from diffax.solvers import integral
from diffax.solvers.integral import Coordinate, Space
from diffax.solvers.linear import Rows, Solver, columns, known, linear, single_step

__all__ = ["dpm2", "dpm_solver_2", "dpm_solver_3", "dpmpp_2s", "dpmpp_3s", "euler", "euler_vp", "heun", "rk4"]
__all__ += ["heun_stages", "runge_kutta", "three_stages", "two_stages"]

Noise = Callable[[Any, Any], Any]


def euler() -> Solver:
    """x(t) = r x + (1 - r) D: Euler's method in sigma, which is DDIM and DPM-Solver-1. Order 1, n evaluations."""

    def rows(sigmas: Any, to_zero: bool) -> Rows:
        s, t = sigmas[:-1], sigmas[1:]
        step = columns(s, t / s, 1 - t / s)
        return Rows(s, step, step)

    return linear(1, lambda n: n, rows)


def euler_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Solver:
    """Euler's method in the time t of the variance-preserving probability flow (Song et al. 2021, arXiv:2011.13456, eq.
    13): dx_t/dt = -beta(t) / 2 (x_t + score). Order 1, n evaluations.

    What EDM improves on (table 1, "VP"); of the same order as `euler`, which bends with the flow. Where sigma grows
    faster than its slope at s foretells, as from t = 0, its steps must be small.
    """
    space, time = integral.v(), integral.vp_time(beta_min, beta_max)

    def stages(s: Any, t: Any) -> list[Rows]:
        coefficient = space.rate(s) * time.rate(s) * (time.of(t) - time.of(s)) / space.mu(t)
        return [_stage(space, s, s, t, [coefficient], 1, None)]

    return single_step(1, 1, stages)


def heun() -> Solver:
    """The average of the slopes at both ends of an Euler step (Karras et al. 2022, algorithm 1).

    Order 2; 2n - 1 evaluations, since the step to sigma = 0 is Euler's.
    """
    return single_step(2, 2, heun_stages)


def rk4() -> Solver:
    """The classical Runge-Kutta method in log sigma. Order 4, 4n - 3 evaluations."""
    return runge_kutta([[1 / 2], [0, 1 / 2], [0, 0, 1]], [1 / 6, 1 / 3, 1 / 3, 1 / 6], order=4)


def runge_kutta(
    inner: Sequence[Sequence[float]], final: Sequence[float], order: int, time: str = "log_sigma"
) -> Solver:
    """Any explicit Runge-Kutta method. (k + 1) (n - 1) + 1 evaluations, with k rows in `inner`.

    One tableau makes another method in another time, of the same order but with another error. Ralston's method is
    runge_kutta([[2 / 3]], [1 / 4, 3 / 4], order=2), Heun's in sigma runge_kutta([[1]], [1 / 2, 1 / 2], 2, "sigma").

    Args:
      inner: the rows of Butcher's matrix A below the first, row i having i + 1 entries.
      final: the weights b, one more than rows of A.
      order: the order that these coefficients have, >= 1.
      time: "log_sigma" for dx/dlog sigma = x - D, "sigma" for dx/dsigma = (x - D) / sigma. In "sigma" each row of A
        must have a sum in [0, 1], so that no stage leaves the step: beyond its end sigma may be negative.

    Raises: ValueError for arguments that are not as described, and if b does not sum to 1.
    """
    rows = [_coefficients(f"inner[{i}]", row) for i, row in enumerate(_sequence("inner", inner))]
    last = _coefficients("final", final)
    if [len(row) for row in rows] != list(range(1, len(rows) + 1)) or len(last) != len(rows) + 1:
        raise ValueError(
            f"inner, final have rows of {[len(row) for row in rows]} and {len(last)} entries: must be [1, 2, ..., k] "
            "and k + 1"
        )
    if not abs(sum(last) - 1) < 1e-12:
        raise ValueError(f"final = {final}: must sum to 1")
    for i, row in enumerate(rows):
        _check.finite(f"inner[{i}]", row)
    _check.whole("order", order)
    _check.one_of("time", time, tuple(_TIMES))
    nodes = [sum(row) for row in rows]
    if time == "sigma" and not all(-1e-12 < c < 1 + 1e-12 for c in nodes):
        raise ValueError(f"inner has rows of the sums {nodes}: must lie in [0, 1] with time = 'sigma'")
    return single_step(order, len(last), lambda s, t: _runge_kutta(rows, last, *_TIMES[time], s, t))


def dpm2() -> Solver:
    """The midpoint rule in sigma with the midpoint in log sigma (Karras et al. 2022, k-diffusion). 2n - 1 evaluations.

    It is DPM-Solver-2 at r = 1/2.
    """
    return dpm_solver_2(0.5)


def dpm_solver_2(r: float = 0.5) -> Solver:
    """DPM-Solver-2 (Lu et al. 2022, arXiv:2206.00927, algorithm 4): order 2 in eps, 2n - 1 evaluations."""
    return two_stages(integral.eps(), r)


def dpmpp_2s(r: float = 0.5) -> Solver:
    """DPM-Solver++(2S) (Lu et al. 2022, arXiv:2211.01095, algorithm 1): order 2 in D, 2n - 1 evaluations."""
    return two_stages(integral.x0(), r)


def dpm_solver_3(r1: float = 1 / 3, r2: float = 2 / 3) -> Solver:
    """DPM-Solver-3 (Lu et al. 2022, arXiv:2206.00927, algorithm 5): order 3 in eps, 3n - 2 evaluations.

    Of order 3 for r2 = 2/3 alone, where the last stage is Radau's rule; else of order 2.
    """
    return three_stages(integral.eps(), r1, r2)


def dpmpp_3s(r1: float = 1 / 3, r2: float = 2 / 3) -> Solver:
    """DPM-Solver++(3S) (Lu et al. 2022, arXiv:2211.01095): DPM-Solver-3 in D, of the same order and evaluations."""
    return three_stages(integral.x0(), r1, r2)


# ---- parts ----------------------------------------------------------------------------------------------------------


def heun_stages(s: Any, t: Any) -> list[Rows]:
    """Both stages of Heun's step from s to t."""
    return _runge_kutta([[1.0]], [0.5, 0.5], *_TIMES["sigma"], s, t)


_TIMES = {"log_sigma": (integral.log(), integral.log_sigma()), "sigma": (integral.eps(), integral.sigma())}
"""The space and the coordinate of each time in which mu = 1 and nu is the coordinate."""


def _runge_kutta(
    inner: Sequence[Sequence[float]], final: Sequence[float], space: Space, time: Coordinate, s: Any, t: Any
) -> list[Rows]:
    """The stages of classical Runge-Kutta for d(mu x) = g dnu, where mu = 1 and nu is the coordinate."""
    tableau = [*inner, final]
    count = len(tableau)
    levels = [0.0, *(_snapped(sum(row)) for row in inner)]
    start, h = time.of(s), time.of(t) - time.of(s)
    rows = []
    for i, row in enumerate(tableau):
        level = s if levels[i] == 0 else t if levels[i] == 1 else time.sigma(start + levels[i] * h)
        to = columns(s, 1, *[h * row[i - j] if j <= i else 0 for j in range(count)])  # the newest value first
        stay = columns(s, 1, *[0] * count)
        assert space.value is not None
        rows.append(Rows(level, to, to if i == count - 1 else stay, columns(s, *space.value(level))))
    return rows


def two_stages(space: Space, r: float, noise: Noise | None = None) -> Solver:
    """Order 2 from values at s and at s exp(-r h), with the papers' weight 1 / (2 r) for their difference.

    noise is (s, t) -> standard deviation of the noise on the way from s to t; None for the ODE.
    """
    _fraction("r", r)
    whole = integral.exact(space, integral.log_sigma())

    def stages(s: Any, t: Any) -> list[Rows]:
        m = _between(s, t, r)
        full = whole([s], s, t)[0]
        return [
            _stage(space, s, s, m, whole([s], s, m), 2, noise),
            _stage(space, m, s, t, [full / (2 * r), full * (1 - 1 / (2 * r))], 2, noise),
        ]

    return single_step(2, 2, stages, noise is not None)


def three_stages(space: Space, r1: float, r2: float, noise: Noise | None = None) -> Solver:
    """Order 3 from values at s, s exp(-r1 h) and s exp(-r2 h), each stage linear between the first and the newest.

    noise is as in `two_stages`; with it the order, in distribution, is 2, and r1 < r2.
    """
    _fraction("r1", r1)
    _fraction("r2", r2)
    line = integral.exact(space, integral.log_sigma())

    def stages(s: Any, t: Any) -> list[Rows]:
        m1, m2 = _between(s, t, r1), _between(s, t, r2)
        first, second = line([m1, s], s, m2), line([m2, s], s, t)
        return [
            _stage(space, s, s, m1, line([s], s, m1), 3, noise),
            _stage(space, m1, s, m2, first, 3, noise),
            _stage(space, m2, s, t, [second[0], 0, second[1]], 3, noise),
        ]

    return single_step(3 if abs(r2 - 2 / 3) < 1e-12 and noise is None else 2, 3, stages, noise is not None)


def _stage(space: Space, level: Any, s: Any, to: Any, coefficients: list[Any], count: int, noise: Noise | None) -> Rows:
    """Evaluates at `level` and goes from s to `to`; the last of `count` stages moves the state there.

    The noise between `level` and `to` waits in the state until then, undone by the ratio that takes the state to `to`:
    so all stages see one path.
    """
    ratio = space.mu(s) / space.mu(to)
    point = columns(s, ratio, *coefficients, *[0] * (count - len(coefficients)))
    last = len(coefficients) == count
    value = None if space.value is None else columns(s, *space.value(level))
    std = None if noise is None else noise(level, to)
    after = None if std is None else columns(s, std, std if last else std / ratio)
    return Rows(level, point, point if last else columns(s, 1, *[0] * count), value, None, after)


def _between(s: Any, t: Any, fraction: float) -> Any:
    """The level that fraction of the way from s to t in log sigma."""
    return s * (t / s) ** fraction


def _fraction(name: str, value: float) -> None:
    sentence = "lie strictly between 0 and 1, no nearer to them than 0.001"  # where two levels become one
    _check.real(name, value, sentence)
    if not 1e-3 <= known(name, value) <= 1 - 1e-3:
        raise ValueError(f"{name} = {value}: must {sentence}")


def _sequence(name: str, value: Any) -> list[Any]:
    if isinstance(value, str | bytes) or not np.iterable(value):
        raise ValueError(f"{name} = {value!r}: must be a sequence, as a part of Butcher's tableau is")
    return list(value)


def _coefficients(name: str, values: Any) -> list[float]:
    """The numbers of a row of a tableau."""
    return [known(f"{name}[{i}]", value) for i, value in enumerate(_sequence(name, values))]


def _snapped(node: float) -> float:
    """1 where the sum of a row misses it by rounding alone, so that the stage lies at the end of the step itself."""
    return 1.0 if abs(node - 1) < 1e-12 else node
