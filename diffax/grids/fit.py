"""Grids and coefficients found by gradient: the error of the end point, differentiated through the compiled solver.

A few pilots are solved once on a fine grid. Then the grid (its steps in log sigma), and if asked the coefficients of
the solver too, are moved by Adam to bring the pilots' coarse end points to the fine ones:

    minimise over steps and coefficients   mean_pilots  sqrt(mean_dims (x_coarse(0) - x_fine(0))^2),

an error that a pilot which went to another mode cannot dominate, as it would in a mean square. What is found holds for
other noise: n numbers are fitted to (pilots x dims) ones. This is the aim of bespoke solvers (Shaul et al. 2023,
arXiv:2310.19075), AMED (Zhou et al. 2023, arXiv:2312.00094) and S4S (Frankel et al. 2025, arXiv:2502.17423), which
differ in what is free; here it is any `dx.solvers` method's grid, or all that a linear multistep method has.

Cost in evaluations of the denoiser: pilots x reference + 4 n x batch x iterations, a backward pass counted as two, and
one for the forward pass that is taken again there to save memory. The batch is all pilots, or fewer: the mean over new
noise is carried by the few starts that lie near where two modes part, so for a costly model many pilots, a few in each
iteration, are better than few pilots in all.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from diffax import _check
from diffax.denoiser import Denoiser
from diffax.grids.arguments import fixed, level, samples, whole
from diffax.grids.plain import plain
from diffax.sample import sample
from diffax.solvers import Solver, adams_bashforth, default
from diffax.solvers.learned import learned, table_of
from diffax.solvers.linear import Rows, known

__all__ = ["Fitted", "auto", "fit", "fit_solver"]

Report = Callable[[int, float], None]


class Fitted(NamedTuple):
    """A grid and the solver that was fitted with it: dx.sample(denoise, x, sigmas, solver=solver)."""

    sigmas: np.ndarray
    solver: Solver


def fit(
    denoise: Denoiser,
    x: ArrayLike,
    n: int,
    *,
    solver: Solver | None = None,
    start: ArrayLike | None = None,
    sigma_max: float = 80.0,
    batch: int | None = None,
    iterations: int = 200,
    rate: float = 0.05,
    reference: int = 256,
    report: Report | None = None,
) -> np.ndarray:
    """The n-step grid on which a solver comes nearest to the exact end points.

    Args:
      denoise: the model, denoise(x, sigma) -> x0 of the shape of x; it is differentiated.
      x: pilots [pilots, ...], noise at sigma_max: sigma_max * normal. 64 do; more hold better on other noise.
      n: number of steps, 1 to 1,000, the last one to sigma = 0.
      solver: a deterministic solver that knows its `nfe(n)`, a table or not; None for the default one of `dx.sample`.
        The steps of the default one depend on what the denoiser gives, so its error is more rugged than a table's.
      start: the grid to begin from [n + 1], by default the best of a few `grids.plain`, an octave of sigma_data apart.
      sigma_max: the first sigma.
      batch: pilots in an iteration, drawn anew in each pass over them; None for all. A denoiser that holds labels of
        its own for each pilot wants all.
      iterations: steps of Adam.
      rate: its largest step, in the logarithm of a step in log sigma; it falls to 0 as a cosine.
      reference: steps of the fine solution, up to 100,000.
      report: called with (iteration, lowest loss) after each, as for a progress bar.

    Returns: sigmas [n + 1], descending to 0, those of the lowest loss over a pass through the pilots; without batches,
      never worse than the start.

    Raises: ValueError for arguments that are not as described.
    """
    solver = default() if solver is None else _solver(solver, n)
    problem = _problem(denoise, x, n, solver, start, sigma_max, batch, iterations, reference, rate, report)
    return _best_grid(problem, denoise, iterations, rate, report)


def auto(
    denoise: Denoiser, x: ArrayLike, n: int, *, solver: Solver | None = None, sigma_max: float = 80.0
) -> np.ndarray:
    """A good n-step grid from at most 64 pilots, with nothing to choose: `fit` at a small budget.

    Args: as `fit`; of x [pilots, ...] the first 64 are used, so labels held by the denoiser must be as many. Cost:
      pilots x (128 + 164 n) evaluations, which are what 10,496 + 8,192 / n samples of n steps cost: to be paid once a
      model and n, and kept.

    Returns: sigmas [n + 1].
    """
    return fit(
        denoise, samples("x", x)[:64], n, solver=solver, sigma_max=sigma_max, iterations=40, rate=0.1, reference=128
    )


def fit_solver(
    denoise: Denoiser,
    x: ArrayLike,
    n: int,
    *,
    solver: Solver | None = None,
    start: ArrayLike | None = None,
    sigma_max: float = 80.0,
    batch: int | None = None,
    iterations: int = 400,
    rate: float = 0.05,
    reference: int = 256,
    report: Report | None = None,
) -> Fitted:
    """The n-step grid together with the coefficients of a linear multistep solver.

    The grid is fitted first, in half of the iterations; then jointly, for each step, its length, the level at which the
    denoiser is asked (apart from that of the grid), how much of the state is kept and the weight of each remembered
    value, at a tenth of the rate. It begins as `solver`, a table of coefficients of one evaluation a step: by default
    Adams-Bashforth's method of order 4 in the time of a flow at the scale of the pilots' ends,
    adams_bashforth(4, "flow", bootstrap=False, sigma_data=scale).

    Args, errors: as `fit`.

    Returns: `Fitted(sigmas, solver)`; `dx.solvers.save_learned` writes it to JSON.
    """
    if solver is not None:  # before work is spent
        _one_each(_solver(solver, n), plain(n))
    problem = _problem(denoise, x, n, solver, start, sigma_max, batch, iterations, reference, rate, report)
    base = problem.solver
    table = _one_each(base, problem.start)

    def build(params: Any) -> tuple[Array, Solver]:
        sigmas = _grid(problem, params["gaps"])
        rows: Rows = base.rows(sigmas, True)
        rows = jax.tree.map(lambda c: jnp.asarray(c, sigmas.dtype), rows._replace(ends=None))

        def free(field: Array, change: Array, used: Any) -> Array:
            """In proportion to the weight of the newest value; what is not used, from before the start, stays so."""
            return field + jnp.where(used != 0, jnp.abs(field[:, 1:2]) * change, 0)

        point = free(rows.point, params["point"], table.point)
        state = point if table.state is table.point else free(rows.state, params["state"], table.state)
        return sigmas, learned(
            sigmas, rows._replace(sigma=rows.sigma * jnp.exp(params["level"]), point=point, state=state)
        )

    first = iterations // 2 if n > 1 else 0
    sigmas = _best_grid(problem, denoise, first, rate, report)
    zeros = {name: jnp.zeros(np.shape(getattr(table, name))) for name in ("point", "state")}
    params = {"gaps": _gaps(sigmas), "level": jnp.zeros(n), **zeros}

    def late(i: int, loss: float) -> None:
        if report is not None:
            report(first + i, loss)

    params = _minimise(problem, denoise, build, params, iterations - first, rate / 10, late)
    found, changed = build(params)
    rows = jax.tree.map(lambda c: np.array(c, np.float64), changed.rows(found, True))
    sigmas = np.array(found, np.float64)
    return Fitted(sigmas, learned(sigmas, rows))


# ---- parts ----------------------------------------------------------------------------------------------------------


class _Problem(NamedTuple):
    """Pilots, where they should end, the solver and the grid to begin from, and the pilots of an iteration."""

    x: Array
    end: Array
    solver: Solver
    start: np.ndarray
    batch: int


def _problem(
    denoise: Denoiser,
    x: ArrayLike,
    n: int,
    solver: Solver | None,
    start: ArrayLike | None,
    sigma_max: float,
    batch: int | None,
    iterations: int,
    reference: int,
    rate: float,
    report: Report | None,
) -> _Problem:
    """What is fitted to what. The solver was checked; None is the table that `fit_solver` begins from."""
    _check.callable_("denoise", denoise, "denoise(x, sigma) -> x0")
    x, sigma_max = samples("x", x), level("sigma_max", sigma_max)
    _check.between("rate", rate, 0, 1e6)
    known("rate", rate)
    whole(n=n, most=1000)
    whole(batch=1 if batch is None else batch, iterations=iterations, most=10**6)
    whole(reference=reference)
    if report is not None:
        _check.callable_("report", report, "report(iteration, loss)")
    if start is not None:
        fixed("start", start)
        _check.finite("start", start)
        start = np.array(start, np.float64)
        if start.shape != (n + 1,) or not (np.diff(start) < 0).all() or start[-1] != 0:
            raise ValueError(
                f"start = {_check.shown(start)}: must be [n + 1 = {n + 1}] sigmas, strictly descending to 0"
            )
        if not np.isclose(start[0], sigma_max):
            raise ValueError(f"start[0] = {start[0]}: must be sigma_max = {sigma_max}")
    end = jax.jit(lambda x: sample(denoise, x, plain(reference, sigma_max), solver=default()))(x)
    if not np.isfinite(np.asarray(end)).all():
        raise ValueError(
            "denoise gives NaN or infinity on the pilots: must be finite; dx.sample(..., check=True) tells where"
        )
    scale = float(np.clip(np.std(end), 1e-5 * sigma_max, sigma_max))
    if solver is None:
        solver = adams_bashforth(4, "flow", bootstrap=False, sigma_data=scale)
    if start is None:  # where modes part is known to a few octaves
        plains = [plain(n, sigma_max, min(scale * 2.0**octave, sigma_max)) for octave in (-1, 0, 1, 2)]
        miss = jax.jit(lambda sigmas: _miss(sample(denoise, x, sigmas, solver=solver, to_zero=True), end))
        start = min(plains, key=lambda sigmas: float(miss(jnp.asarray(sigmas, x.dtype))))
    return _Problem(x, end, solver, start, min(batch or len(x), len(x)))


def _solver(solver: Solver, n: int) -> Solver:
    """The solver, if its end point can be fitted."""
    solver = _check.instance("solver", solver, Solver, "dx.solvers.heun()")
    if solver.stochastic:
        raise ValueError("solver draws noise: must be deterministic, for its end point to be fitted")
    whole(n=n, most=1000)
    if solver.nfe(n) is None:
        raise ValueError("solver chooses its own steps: must be one of fixed steps, for these to be fitted")
    return solver


def _one_each(solver: Solver, sigmas: np.ndarray) -> Rows:
    """The table of a solver that makes one evaluation a step."""
    rows, n = table_of(solver, sigmas), len(sigmas) - 1
    if len(rows.sigma) != n or rows.before is not None:
        raise ValueError(f"solver makes {len(rows.sigma)} evaluations in {n} steps: must be one that makes one in each")
    return rows


def _miss(end: Array, exact: Array) -> Array:
    """The mean over pilots of the root mean square error; its gradient is finite also where there is none."""
    return jnp.mean(jnp.sqrt(jnp.mean((end - exact) ** 2, axis=tuple(range(1, end.ndim))) + 1e-14))


def _best_grid(problem: _Problem, denoise: Denoiser, iterations: int, rate: float, report: Report | None) -> np.ndarray:
    if len(problem.start) == 2 or not iterations:
        return problem.start

    def build(params: Any) -> tuple[Array, Solver]:
        return _grid(problem, params["gaps"]), problem.solver

    params = _minimise(problem, denoise, build, {"gaps": _gaps(problem.start)}, iterations, rate, report)
    return np.array(build(params)[0], np.float64)


def _grid(problem: _Problem, gaps: Array) -> Array:
    """[n + 1] sigmas from the logarithms of the steps in log sigma, [n - 1]."""
    sigma_max = float(problem.start[0])
    log = math.log(sigma_max) - jnp.cumsum(jnp.exp(gaps))
    return jnp.concatenate([jnp.full(1, sigma_max, log.dtype), jnp.exp(log), jnp.zeros(1, log.dtype)])


def _gaps(sigmas: np.ndarray) -> Array:
    return jnp.log(jnp.asarray(-np.diff(np.log(sigmas[:-1]))))


def _minimise(
    problem: _Problem,
    denoise: Denoiser,
    build: Callable[[Any], tuple[Array, Solver]],
    params: Any,
    iterations: int,
    rate: float,
    report: Report | None,
) -> Any:
    """Adam on unit gradients, of which only the best parameters count: the loss is rugged where pilots change their
    mode. The best are those before the last move of the pass whose mean loss was the lowest."""
    light = jax.checkpoint(denoise)  # type: ignore[arg-type]
    count, dtype = len(problem.x), problem.x.dtype
    moves = min(count // problem.batch, iterations)  # of a pass; the last pass is whole, the first perhaps not

    def loss(params: Any, x: Array, exact: Array) -> Array:
        sigmas, solver = build(params)
        return _miss(sample(light, x, sigmas, solver=solver, to_zero=True), exact)

    @jax.jit
    def step(i: Array, last: Array, index: Array | None, state: Any) -> Any:
        params, mean, var, total, best, lowest = state
        chosen = (a if index is None else a[index] for a in (problem.x, problem.end))
        value, grad = jax.value_and_grad(loss)(params, *chosen)
        total = total + value / moves
        better = last & (total < lowest)
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), params, best)
        lowest, total = jnp.where(better, total, lowest), jnp.where(last, 0, total)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grad)))
        grad = jax.tree.map(lambda g: jnp.where(jnp.isfinite(norm), g / jnp.maximum(norm, 1e-30), 0), grad)
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, grad)
        var = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g**2, var, grad)
        size = rate * (1 + jnp.cos(jnp.pi * i / iterations)) / 2

        def move(p: Array, m: Array, v: Array) -> Array:
            return p - size * (m / (1 - 0.9 ** (i + 1))) / (jnp.sqrt(v / (1 - 0.99 ** (i + 1))) + 1e-8)

        return jax.tree.map(move, params, mean, var), mean, var, total, best, lowest

    # Arrays of the dtype that they keep, so that the step is compiled once.
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    total = jnp.asarray(jnp.inf if iterations % moves else 0, dtype)
    state = params, zeros, zeros, total, params, jnp.asarray(jnp.inf, dtype)
    draw, order, index = np.random.default_rng(0), np.arange(count), None
    for i in range(iterations):
        at = (i - iterations) % moves
        if problem.batch < count:
            order = order if i and at else draw.permutation(count)
            index = order[at * problem.batch :][: problem.batch]
        state = step(jnp.asarray(i, dtype), jnp.asarray(at == moves - 1), index, state)
        if report is not None:
            report(i + 1, float(state[-1]))
    return state[-2]
