"""diffax's solvers on the benchmark's targets: every solver on every grid, at equal numbers of evaluations.

A solver is a table of coefficients, found in float64 outside of the compiled loop; the loop takes the table as an
argument, so it is compiled once per target and size of table and not once per solver and grid. The state is float32,
as the other libraries have it, the denoiser exact to float64.
"""

import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import diffax as dx
from diffax import models
from diffax.metrics.sliced import sliced_wasserstein
from diffax.solvers import Solver
from experiments.bench import common, speed
from experiments.bench.targets import SIGMA_MAX, SIGMA_MIN, Target

__all__ = [
    "FITTED",
    "GRIDS",
    "LISTED",
    "SDE_SOLVERS",
    "SOLVERS",
    "errors",
    "fitted",
    "sampler",
    "steps",
    "timings",
    "wasserstein",
]

s = dx.solvers
SOLVERS: dict[str, Solver] = {
    "default": s.default(),
    "default(sigma_data=4)": s.default(4.0),
    "euler": s.euler(),
    "heun": s.heun(),
    "dpm2": s.dpm2(),
    "rk4": s.rk4(),
    "dpm_solver_3": s.dpm_solver_3(),
    "dpmpp_2s": s.dpmpp_2s(),
    "dpmpp_3s": s.dpmpp_3s(),
    "dpmpp_2m": s.dpmpp_2m(),
    "dpmpp_3m": s.dpmpp_3m(),
    "dpmpp_3m(corrected)": s.dpmpp_3m(corrected=True),
    "unipc(2)": s.unipc(2),
    "unipc(3)": s.unipc(3),
    "unipc(3, bootstrap)": s.unipc(3, bootstrap=True),
    "unipc(4)": s.unipc(4),
    **{
        f"unipc({order}, {label}lower end)": s.unipc(order, space=space, lower_order_final=True)
        for label, space in (("", "x0"), ("eps, ", "eps"))
        for order in (2, 3, 4)
    },
    **{f"unipc({order}, eps)": s.unipc(order, space="eps") for order in (2, 3)},
    "deis(3)": s.deis(3),
    "ipndm(4)": s.ipndm(4),
    "lms(4)": s.lms(4),
    **{
        f"{kind}({order}, {space}{'' if bootstrap else ', plain'})": make(order, space, bootstrap=bootstrap)
        for kind, make, spaces in (
            ("exponential_ab", s.exponential_ab, ("x0", "eps")),
            ("adams_bashforth", s.adams_bashforth, ("v", "flow")),
        )
        for space in spaces
        for order in (2, 3, 4)
        for bootstrap in ((True, False) if order > 2 else (True,))
    },
}
"""Solvers of the ODE."""

SDE_SOLVERS: dict[str, Solver] = {
    "ancestral": s.ancestral(),
    "edm_stochastic": s.edm_stochastic(),
    "dpmpp_1_sde": s.dpmpp_1_sde(),
    "dpmpp_2s_sde": s.dpmpp_2s_sde(),
    "dpmpp_2m_sde": s.dpmpp_2m_sde(),
    "dpmpp_3m_sde": s.dpmpp_3m_sde(),
    "dpmpp_3s_sde": s.dpmpp_3s_sde(),
    "er_sde": s.er_sde(),
    "sa_solver": s.sa_solver(),
    "predictor_corrector": s.predictor_corrector(),
}
"""Solvers that draw noise: judged by the distribution that they give."""


TIMED = ("default", "euler", "heun", "dpmpp_2m", "dpmpp_3m", "unipc(3)", "exponential_ab(3, eps)")
"""Solvers whose loop is timed."""


def _grid(schedule: dx.schedules.Schedule) -> Callable[[int], np.ndarray]:
    """`dx.schedules.sigmas` of a schedule between the sigmas of the benchmark, compiled once for all n up to 1000."""
    ends = {"logsnr_min": -2 * np.log(SIGMA_MAX), "logsnr_max": -2 * np.log(SIGMA_MIN)}
    at = jax.jit(lambda u: dx.schedules.sigma_from_logsnr(dx.schedules.truncate(schedule, **ends).quantile(1 - u, u)))

    @functools.cache
    def sigmas(n: int) -> np.ndarray:
        with jax.enable_x64(True):
            grid = np.array(at(np.minimum(np.arange(1001) / max(n - 1, 1), 1))[: n + 1])
        grid[[0, n]] = SIGMA_MAX, 0
        return grid

    return sigmas


GRIDS: dict[str, Callable[[int], np.ndarray]] = {
    "karras": common.karras,
    "exp": common.exponential,
    "vp": common.vp,
    "vpown": common.vp_to_zero,
    "cosine": _grid(dx.schedules.cosine()),
    "flow": _grid(dx.schedules.flow()),
    "edm": _grid(dx.schedules.edm()),
    "laplace": _grid(dx.schedules.laplace()),
    "align_your_steps": _grid(dx.schedules.align_your_steps("stable_video_diffusion")),
    "exp to 0.01": lambda n: common.exponential(n, 0.01),
    "exp to 0.03": lambda n: common.exponential(n, 0.03),
    "plain": dx.grids.plain,
    "plain(sigma_data=0.5)": lambda n: dx.grids.plain(n, sigma_data=0.5),
    "plain(sigma_data=4)": lambda n: dx.grids.plain(n, sigma_data=4.0),
}
"""n -> [n + 1] sigmas that end at 0: the four that all libraries are given, some of `dx.schedules`, and plain ones."""


LISTED = f"{zlib.crc32(repr([*SOLVERS, *GRIDS]).encode()):08x}"
"""Tells one list of solvers and grids from another."""


def _fitted_grid(denoise: Callable, pilots: Array, n: int) -> tuple[Any, Solver]:
    """For order 4 in the time of a flow at the scale of the data, as the pilots end."""
    ends = dx.sample(denoise, pilots[:64], dx.grids.plain(100))
    solver = s.adams_bashforth(4, "flow", bootstrap=False, sigma_data=float(jnp.std(ends)))
    return dx.grids.fit(denoise, pilots, n, solver=solver, batch=_batch(pilots)), solver


def _fitted_solver(denoise: Callable, pilots: Array, n: int) -> tuple[Any, Solver]:
    """With more iterations where they cost little."""
    batch = _batch(pilots)
    return dx.grids.fit_solver(denoise, pilots, n, batch=batch, iterations=1000 if batch is None else 400)


def _batch(pilots: Array) -> int | None:
    """Pilots in an iteration: all where they are small."""
    return None if pilots.size < 10_000 else 64


Choice = Callable[[Callable, Array, int], tuple[Any, Solver]]
FITTED: dict[str, tuple[int, Choice]] = {
    "default/auto": (64, lambda denoise, x, n: (dx.grids.auto(denoise, x, n), s.default())),
    "fitted grid": (256, _fitted_grid),
    "fitted solver": (1024, _fitted_solver),
}
"""name -> (pilots, (denoise, pilots [count, ...] at SIGMA_MAX, NFE) -> (sigmas, solver)): found for a model and an NFE,
on other noise than that of the errors."""


def steps(solver: Solver, nfe: int) -> int | None:
    """The most steps that nfe evaluations allow; None if they do not suffice for one."""
    fitting = [n for n in range(1, nfe + 1) if (cost := solver.nfe(n)) is not None and cost <= nfe]
    return max(fitting, default=None)


def sampler(denoise: Callable) -> Callable[..., np.ndarray]:
    """run(solver, sigmas, x, seed) -> the samples, compiled once per size of the solver's table."""

    @functools.partial(jax.jit, static_argnums=(0, 1, 2))
    def compiled(init: Callable, step: Callable, stochastic: bool, table: Any, sigmas: Array, x: Array, key: Array):
        solver = Solver(0, lambda n: None, lambda *_: table, init, step, stochastic)
        return dx.sample(denoise, x, sigmas, solver=solver, key=key, to_zero=True)  # as the table was made

    def run(solver: Solver, sigmas: Any, x: Any, seed: int = 0) -> np.ndarray:
        sigmas = np.asarray(sigmas, np.float64)
        table = solver.rows(sigmas, bool(sigmas[-1] == 0))._replace(ends=None)
        end = compiled(solver.init, solver.step, solver.stochastic, table, sigmas, jnp.asarray(x), jax.random.key(seed))
        return np.asarray(end)

    return run


def errors(target: Target, end: np.ndarray, nfe: int) -> dict[str, dict[str, float]]:
    """{"solver/grid": {"mean", "median"}} of all solvers on all grids."""
    row: dict[str, dict[str, float]] = {}
    with jax.enable_x64(True):
        x = target.start()
        run = sampler(target.denoiser())
        for name, solver in SOLVERS.items():
            if (n := steps(solver, nfe)) is not None:
                for grid, sigmas in GRIDS.items():
                    _note(row, f"{name}/{grid}", run(solver, sigmas(n), x), end)
    return row


def fitted(target: Target, end: np.ndarray, nfe: int, name: str) -> dict[str, dict[str, float]]:
    """The same of one that is FITTED, in float32 on a network, in float64 on an exact target."""
    row: dict[str, dict[str, float]] = {}
    pilots, find = FITTED[name]
    with jax.enable_x64(target.mixture is not None):
        denoise = target.denoiser()
        sigmas, solver = find(denoise, jnp.asarray(target.pilot(min(pilots, target.pilots))), nfe)
        _note(row, name, sampler(denoise)(solver, sigmas, target.start()), end)
    return row


def _note(row: dict, name: str, found: np.ndarray, end: np.ndarray) -> None:
    if np.isfinite(found).all():
        row[name] = common.errors(found, end)


def wasserstein(target: Target, samples: int, nfe: int) -> dict[str, float]:
    """{"solver/grid": distance} of stochastic solvers, of Heun and UniPC beside them, and of exact samples."""
    exact = target.exact_samples(samples, seed=1)
    row = {"exact samples": sliced_wasserstein(target.exact_samples(samples, seed=2), exact)}
    x = target._replace(seeds=samples).start()
    beside = {name: SOLVERS[name] for name in ("heun", "unipc(3)")}
    with jax.enable_x64(True):
        run = sampler(target.denoiser())
        for name, solver in (SDE_SOLVERS | beside).items():
            for grid in ("karras", "exp"):
                if (n := steps(solver, nfe)) is not None:
                    found = run(solver, GRIDS[grid](n), x)
                    if np.isfinite(found).all():
                        row[f"{name}/{grid}"] = sliced_wasserstein(found, exact)
    return row


def timings(rounds: int, progress: Callable = iter) -> dict[str, dict[str, dict[str, float]]]:
    """{denoiser: {solver: what `speed.compare` says}}: the compiled loop beside a scan of the bare denoiser."""
    layers = [jnp.asarray(layer) for layer in speed.layers()]

    def network(x: Array, sigma: Any) -> Array:
        y = x / jnp.sqrt(1 + sigma**2)
        for layer in layers[:-1]:
            y = jax.nn.silu(y @ layer)
        return x / (1 + sigma**2) + y @ layers[-1]

    x = jnp.asarray(speed.start())
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind, denoise in (("x / 2", lambda x, sigma: 0.5 * x), ("small network", network)):
        bare = functools.partial(_bare, denoise, common.karras(speed.STEPS)[:-1].astype(np.float32))
        for name in progress(TIMED):
            levels = common.karras(steps(SOLVERS[name], speed.STEPS) or 1)
            run = functools.partial(dx.sample, denoise, sigmas=levels, solver=SOLVERS[name])
            found.setdefault(kind, {})[name] = speed.compare(_timed(run, x), _timed(bare, x), rounds)
    found["U-Net, 28 x 28"] = {"default": _unet(rounds)}
    return found


def _unet(rounds: int, n: int = 10) -> dict[str, float]:
    """A whole sampler, compiled as one, beside as many calls of the compiled denoiser from Python."""
    network = models.unet((28, 28, 1), channels=32, multipliers=(1, 2), blocks=1)
    denoise = dx.denoiser(network.apply, network.init(jax.random.key(0)), dx.preconditioning.edm())
    x, levels = SIGMA_MAX * jax.random.normal(jax.random.key(1), (16, 28, 28, 1)), dx.grids.plain(n)
    alone = jax.jit(denoise)

    def calls() -> None:
        y = x
        for sigma in levels[:-1].astype(np.float32):
            y = alone(y, sigma)
        y.block_until_ready()

    return speed.compare(_timed(lambda x: dx.sample(denoise, x, levels), x), calls, max(5, rounds // 5), n)


def _bare(denoise: Callable, levels: np.ndarray, x: Array) -> Array:
    return jax.lax.scan(lambda y, sigma: (denoise(y, sigma), None), x, levels)[0]


def _timed(function: Callable, x: Array) -> Callable[[], Any]:
    compiled = jax.jit(function)
    return lambda: compiled(x).block_until_ready()
