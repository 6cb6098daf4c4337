"""Multistep solvers: one evaluation a step, and a polynomial through the values of the last few.

All are one engine, `multistep`: a space (what is remembered), a rule (how much of each remembered value a step takes)
and, for predictor-correctors, a second rule that takes the step again when its end has been evaluated. The rules come
from `integral`, or from the paper where that differs. The history is short at the start: step i uses i + 1 values. So
started, a method of order p >= 3 is held to order 2 by its first step, which is Euler's; `bootstrap` lifts that: the
first step is taken in p - 1 parts, of lengths such that the error of each is of order h^p.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from diffax import _check
from diffax.solvers import integral
from diffax.solvers.integral import Coordinate, Rule, Space
from diffax.solvers.linear import Rows, Solver, columns, end_at_zero, linear, magnitude, numpy_for

__all__ = [
    "adams_bashforth",
    "deis",
    "dpmpp_2m",
    "dpmpp_3m",
    "exponential_ab",
    "ipndm",
    "lms",
    "multistep",
    "unipc",
]


def exponential_ab(order: int = 3, space: str = "x0", bootstrap: bool = True) -> Solver:
    """Exponential Adams-Bashforth: D (space "x0") or eps (space "eps") a polynomial in logSNR. Orders 1 to 4.

    In x0-space order 2 is the exact form of DPM-Solver++(2M), in eps-space it is DEIS with its polynomial in logSNR;
    order 1 is DDIM. n + max(0, order - 2) evaluations, or n without the bootstrap (and then order <= 2).
    """
    chosen = _space(space, x0=integral.x0(), eps=integral.eps())
    return _adams(order, chosen, integral.log_sigma(), bootstrap)


def adams_bashforth(order: int = 3, space: str = "v", bootstrap: bool = True, sigma_data: float = 1.0) -> Solver:
    """Variable-step Adams-Bashforth in the time natural to a space. Orders 1 to 4.

    space: "v" (d x / sqrt(c^2 + sigma^2) = v datan(sigma / c)), "flow" (time sigma / (c + sigma)), "eps" (time sigma,
    which is LMS), "log" (dx = (x - D) dlog sigma). sigma_data is c, the scale of the data. Evaluations as
    `exponential_ab`. Order 1 is DDIM in eps- and flow-space.
    """
    c = magnitude("sigma_data", sigma_data)
    chosen = _space(space, v=integral.v(c), flow=integral.flow(c), eps=integral.eps(), log=integral.log())
    times = {
        "v": integral.angle(c),
        "flow": integral.flow_time(c),
        "eps": integral.sigma(),
        "log": integral.log_sigma(),
    }
    return _adams(order, chosen, times[space], bootstrap)


def lms(order: int = 4, bootstrap: bool = False) -> Solver:
    """Linear multistep in sigma: eps a polynomial in sigma, as in k-diffusion; also DEIS's rhoAB. Orders 1 to 4."""
    return _adams(order, integral.eps(), integral.sigma(), bootstrap)


def deis(order: int = 3, bootstrap: bool = False, beta_min: float = 0.1, beta_max: float = 20.0) -> Solver:
    """DEIS tAB: eps a polynomial in the time t of the variance-preserving SDE (Zhang & Chen 2022, arXiv:2204.13902)."""
    _check.positive("beta_min", beta_min)
    _check.less("beta_min", beta_min, "beta_max", beta_max)
    return _adams(order, integral.eps(), integral.vp_time(beta_min, beta_max), bootstrap)


def ipndm(order: int = 4) -> Solver:
    """iPNDM: Euler's step with the eps of Adams-Bashforth's constant coefficients (Zhang & Chen 2022).

    The coefficients are those of equal steps; on other grids it converges with order 2 at most. n evaluations.
    """
    _check.whole("order", order, 1, 4)
    table: dict[int, list[float]] = {
        1: [1],
        2: [3 / 2, -1 / 2],
        3: [23 / 12, -16 / 12, 5 / 12],
        4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    }

    def rule(nodes: Any, s: Any, t: Any) -> list[Any]:
        return [c * (t - s) for c in table[len(nodes)]]

    return multistep(order, integral.eps(), rule, declared=min(order, 2))


def dpmpp_2m() -> Solver:
    """DPM-Solver++(2M), as published (Lu et al. 2022, arXiv:2211.01095, algorithm 2). Order 2, n evaluations."""
    return multistep(2, integral.x0(), published_x0())


def dpmpp_3m(corrected: bool = False, bootstrap: bool = False) -> Solver:
    """DPM-Solver++(3M). n evaluations.

    As published its second difference lacks a factor 2 and it is of order 2 whatever its start; `corrected` puts that
    right (it is then `exponential_ab(3)` but for its second step), and with a bootstrap is of order 3.
    """
    _check.flags(corrected=corrected, bootstrap=bootstrap)
    declared = 3 if corrected and bootstrap else 2
    return multistep(3, integral.x0(), published_x0(corrected=corrected), bootstrap=bootstrap, declared=declared)


def unipc(
    order: int = 3,
    variant: str = "bh2",
    corrector: bool = True,
    bootstrap: bool = False,
    space: str = "x0",
    lower_order_final: bool = False,
) -> Solver:
    """UniPC (Zhao et al. 2023, arXiv:2302.04867) in data ("x0") or noise ("eps") space, orders 1 to 4, n evaluations.

    From three values on its coefficients are those of exponential Adams-Bashforth (predictor) and Adams-Moulton
    (corrector), whatever the variant; with two they are the paper's, B(h) / 2 with B = h ("bh1") or exp(h) - 1 ("bh2"),
    h being -h in data space. The corrector raises the order by one and costs nothing: it reuses the evaluation at the
    predicted point. The first step holds it to 3 at most, with a bootstrap (one more evaluation from order 3 on) to 4.
    lower_order_final: the order falls to 1 over the last steps to sigma > 0, as the authors' code does below 15 steps.
    """
    _check.whole("order", order, 1, 4)
    _check.one_of("variant", variant, ("bh1", "bh2"))
    _check.flags(corrector=corrector, bootstrap=bootstrap, lower_order_final=lower_order_final)
    chosen = _space(space, x0=integral.x0(), eps=integral.eps())
    exact = integral.exact(chosen, integral.log_sigma())

    def two(s: Any, t: Any, h: Any) -> tuple[Any, Any]:
        """The weight of a constant g, and B / 2 in units of x: what (g_1 - g_0) / r_1 is multiplied by."""
        whole = exact([s], s, t)[0]
        return whole, (whole if variant == "bh2" else h if space == "x0" else -t * h) / 2

    def predict(nodes: Any, s: Any, t: Any) -> list[Any]:
        if len(nodes) != 2:
            return exact(nodes, s, t)
        xp = numpy_for((nodes, s, t))
        h = xp.log(s / t)
        whole, half = two(s, t, h)
        slope = half * h / xp.log(nodes[1] / s)
        return [whole + slope, -slope]

    def again(nodes: Any, s: Any, t: Any) -> list[Any]:
        if len(nodes) != 2:
            return exact(nodes, s, t)
        whole, half = two(s, t, numpy_for((s, t)).log(s / t))
        return [half, whole - half]

    reached = min(order + 1, 4 if bootstrap else 3) if corrector else order if bootstrap else min(order, 2)
    return multistep(
        order,
        chosen,
        predict,
        (order + 1, again) if corrector else None,
        bootstrap=bootstrap,
        lower_order_final=lower_order_final,
        declared=min(reached, 2) if lower_order_final else reached,
    )


# ---- the engine -----------------------------------------------------------------------------------------------------


def multistep(
    order: int,
    space: Space,
    rule: Rule,
    corrector: tuple[int, Rule] | None = None,
    *,
    bootstrap: bool = False,
    lower_order_final: bool = False,
    finite: bool = False,
    declared: int | None = None,
    noise: Callable[[Any, Any], Any] | None = None,
) -> Solver:
    """The solver that extrapolates through `order` values, n evaluations and a few more for the bootstrap.

    Args:
      rule: (nodes, s, t) -> coefficients, for nodes = [s], [s, the level before], ...
      corrector: the number of values of a second rule, whose nodes begin with t, and that rule. When D is known at the
        predicted point, the step that led there is taken again by it.
      lower_order_final: whether the last steps to t > 0 take fewer values again: 2 the last but one, 1 the last.
      finite: whether the rule holds for t = 0; if not, the step to 0 is x = D. If so, it is the rule's, of lower order
        where the step is so long that the order would amplify errors.
      declared: the order that it has, `order` by default.
      noise: (s, t) -> standard deviation of the noise of a step; None for the ODE.
    """
    width = order if corrector is None else max(order, corrector[0])
    # A corrected first step is of order 3 locally, and the bootstrap that lifts this beyond 4 needs parts too short
    # for float32, since the values that are remembered are those of the predictor.
    reached, start = (order, 2) if corrector is None else (min(order + 1, 4), 3)
    parts = max(0, reached - start) if bootstrap else 0

    def rows(sigmas: Any, to_zero: bool) -> Rows:
        xp = numpy_for(sigmas)
        sigmas = _graded(sigmas, parts, reached)
        n = len(sigmas) - 1
        s, t = sigmas[:-1], sigmas[1:]
        cut = to_zero and not finite
        if cut:
            t = xp.concatenate([t[:-1], s[-1:] / 2])  # stands in for 0
        ratio = space.mu(s) / space.mu(t)
        falling = n - cut if lower_order_final else None
        taken = _coefficients(rule, order, sigmas, t, 0, width, falling)
        if to_zero and finite:
            taken = xp.concatenate([taken[:-1], _to_zero(rule, order, s, width)])
        point = xp.concatenate([ratio[:, None], taken], axis=1)
        state = point
        if corrector is not None and n > 1:
            # Row i first takes the step from i - 1 to i again, then predicts; row 0 has none to take again.
            again = _coefficients(corrector[1], corrector[0], sigmas, t, 1, width, falling)
            again = xp.concatenate([ratio[:-1, None], again], axis=1)
            state = xp.concatenate([columns(s[:1], 1, *[0] * width), again], axis=0)
            point = xp.concatenate([0 * ratio[:, None], point[:, 1:]], axis=1) + ratio[:, None] * state
        after = None
        if noise is not None:
            std = noise(s, t)
            # The step that a corrector takes again has the same noise: it waits in the state, undone by the ratio.
            after = columns(s, std, std if corrector is None else std / ratio)
        value = None if space.value is None else columns(s, *space.value(s))
        table = Rows(s, point, state, value, None, after, np.arange(parts, n))
        return end_at_zero(table, n) if cut else table

    return linear(order if declared is None else declared, lambda n: n + parts, rows, stochastic=noise is not None)


def _coefficients(rule: Rule, most: int, sigmas: Any, t: Any, ahead: int, width: int, falling: int | None) -> Any:
    """[steps, width, ...]: the coefficients of step i, through min(most, i + 1 + ahead) values, then zeros.

    ahead = 1 for a corrector, whose first value is that at the end of the step; its last step is not taken again.
    falling: through fewer in the last of so many steps too.
    """
    xp = numpy_for((sigmas, t))
    step = np.arange(len(t) - ahead)
    counts = np.minimum(most, step + 1 + ahead)
    if falling is not None:
        counts = np.minimum(counts, np.maximum(falling - step, 1) + ahead)
    groups, order = [], []
    for count in np.unique(counts):
        steps = np.flatnonzero(counts == count)
        found = rule([sigmas[steps + ahead - j] for j in range(count)], sigmas[steps], t[steps])
        groups.append(columns(sigmas[steps], *found, *[0] * (width - count)))
        order.append(steps)
    return xp.concatenate(groups, axis=0)[np.argsort(np.concatenate(order))]


def _to_zero(rule: Rule, most: int, s: Any, width: int) -> Any:
    """[1, width, ...]: the coefficients of the step to 0, through as many values as do not amplify their errors.

    That step may be much longer than those before it (40 times on a Karras grid of 512), and a polynomial of degree d
    multiplies errors by the d-th power of that. Adams-Bashforth of equal steps amplifies up to 7 times; 10 is allowed.
    """
    xp, last = numpy_for(s), s[-1:]

    def through(count: int) -> Any:
        nodes = [s[len(s) - 1 - j :][:1] for j in range(count)]
        return columns(last, *rule(nodes, last, 0 * last), *[0] * (width - count))

    chosen = through(1)
    for count in range(2, min(most, len(s)) + 1):
        more = through(count)
        calm = abs(more).sum(1, keepdims=True) <= 10 * abs(more.sum(1, keepdims=True))
        chosen = xp.where(calm, more, chosen)
    return chosen


def _graded(sigmas: Any, parts: int, order: int) -> Any:
    """The grid with its first step divided in log sigma, at fractions n^-(order / (k + 1) - 1), k = 1, ..., parts.

    Part k is of order k, so it leaves an error (h fraction_k)^(k + 1), which is h^order for each.
    """
    if not parts:
        return sigmas
    xp = numpy_for(sigmas)
    n = max(len(sigmas) - 1, 2)
    start, end = xp.log(sigmas[0]), xp.log(xp.where(sigmas[1] > 0, sigmas[1], sigmas[0] / 2))
    fractions = [n ** -(order / (k + 1) - 1) for k in range(1, parts + 1)]
    return xp.concatenate([sigmas[:1], xp.exp(xp.stack([start + f * (end - start) for f in fractions])), sigmas[1:]])


# ---- rules of the papers --------------------------------------------------------------------------------------------


def published_x0(eta: float = 0.0, corrected: bool = False) -> Rule:
    """DPM-Solver++'s coefficients for 1, 2 and 3 values, and those of its SDEs (eta > 0).

    With h = log(s / t), k = 1 + eta and r_j how far back a node lies in units of h: two values give D_0 the weight
    b = 1 - exp(-k h) and (D_0 - D_1) / r_1 the weight b / 2; three give the quadratic through them, whose second
    derivative was published at half its size.
    """
    k = 1 + eta

    def rule(nodes: Any, s: Any, t: Any) -> list[Any]:
        xp = numpy_for((nodes, s, t))
        h = xp.log(s / t)
        b = -xp.expm1(-k * h)
        if len(nodes) == 1:
            return [b]
        r = [xp.log(node / s) / h for node in nodes]
        if len(nodes) == 2:
            slope = b / (2 * r[1])
            return [b + slope, -slope]
        p2 = 1 - b / (k * h)
        p3 = p2 / (k * h) - 1 / 2
        # d_0 = (D_0 - D_1) / r_1 and d_1 = (D_1 - D_2) / (r_2 - r_1), D' = d_0 + (d_0 - d_1) r_1 / r_2
        gap = r[2] - r[1]
        bend = p2 * r[1] / r[2] - (2.0 if corrected else 1.0) * p3 / r[2]
        a0, a1 = (p2 + bend) / r[1], -bend / gap
        return [b + a0, a1 - a0, -a1]

    return rule


def power_space(k: float) -> Space:
    """Data space with mu = sigma^-k."""
    return integral.x0(lambda s: s**k, lambda s: k * s ** (k - 1))


def _adams(order: int, space: Space, coordinate: Coordinate, bootstrap: bool) -> Solver:
    _check.whole("order", order, 1, 4)
    _check.flags(bootstrap=bootstrap)
    return multistep(
        order,
        space,
        integral.exact(space, coordinate),
        bootstrap=bootstrap,
        finite=space.finite and coordinate.finite,
        declared=order if bootstrap else min(order, 2),
    )


def _space(name: str, **known: Space) -> Space:
    _check.one_of("space", name, tuple(known))
    return known[name]
