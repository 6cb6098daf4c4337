"""What a run asks of its network, and how samples are drawn from what it learns: config.objective, as text.

    denoising()                                                            one evaluation a step of a solver
    consistency_training(levels=doubling(over=4000))                       one or two evaluations in all
    consistency_distillation(teacher="runs/digits", levels=constant(18))   the same, learned from a denoising run

A consistency run draws its pairs of levels where config.schedule says (`diffax.consistency`) and samples at the first
levels of config.sample.grid; it has no use for config.preconditioning, config.weighting, config.adaptive and
config.sample.solver.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import diffax as dx
from diffax import _check
from diffax.losses import Aux, Part
from experiments.expressions import build

if TYPE_CHECKING:
    from experiments.recipe import Recipe

__all__ = [
    "Levels",
    "Objective",
    "consistency_distillation",
    "consistency_training",
    "constant",
    "denoising",
    "doubling",
    "sinusoidal",
    "square_root",
]

Loss = Callable[..., tuple[Array, Aux]]


class Objective(NamedTuple):
    """Functions of the recipe of a run, which may read files when they are called:

    init: recipe -> (key -> parameters before training).
    loss: recipe -> (apply, params, key, x0, label, step, sampler, part) -> (scalar, Aux).
    draw: (recipe, grid, solver, steps, guidance) -> sigma, and (params, x, key, index, label) -> x0 from noise x at it.
    denoises: whether the network is that of a denoiser, which has a likelihood and can be a teacher.
    passes: what a step of training costs, in forward passes.
    """

    init: Callable[["Recipe"], Callable[[Array], Any]]
    loss: Callable[["Recipe"], Loss]
    draw: Callable[..., tuple[Any, Callable[..., Array]]]
    denoises: bool
    passes: int


def denoising() -> Objective:
    """E[x_0 | x], with the schedule, preconditioning and weighting of the config; sampled by its solver on its grid."""
    return Objective(lambda recipe: recipe.network.init, _denoising_loss, _denoising_draw, True, 3)


def _denoising_loss(recipe: "Recipe") -> Loss:
    def loss(
        apply: Any, params: Any, key: Array, x0: Array, label: Any, step: Array, sampler: Any, part: Part | None
    ) -> tuple[Array, Aux]:
        wanted = recipe.schedule_at(step)
        drawn = wanted if sampler is None else dx.adaptive.schedule(sampler, wanted, recipe.floor)
        value, aux = dx.losses.denoising(
            apply,
            params,
            key,
            x0,
            label,
            schedule=drawn,
            preconditioning=recipe.preconditioning,
            weighting=recipe.weighting,
            part=part,
        )
        if sampler is not None:  # where to look is learned, what is asked for stays
            value = jnp.mean(aux.loss * wanted.density(aux.logsnr) / drawn.density(aux.logsnr))
        return value, aux

    return loss


def _denoising_draw(recipe: "Recipe", grid: str, solver: str, steps: int, guidance: float) -> tuple[Any, Any]:
    sigmas, method = _grid(grid, steps), build("solver", solver, dx.solvers)

    def draw(params: Any, x: Array, key: Array, index: Array, label: Array) -> Array:
        denoise = _denoiser(recipe, params, None if recipe.num_classes is None else label, guidance)
        return dx.sample(denoise, x, sigmas, solver=method, key=key, index=index)

    return sigmas[0], draw


# ---- consistency models ---------------------------------------------------------------------------------------------


class Levels(NamedTuple):
    """How many levels the noise is cut into: step -> number, and the most that there will be."""

    number: Callable[[Array], Array]
    most: int


def constant(levels: int) -> Levels:
    """As many from beginning to end."""
    if not isinstance(levels, int) or levels < 2:
        raise ValueError(f"levels = {levels}: must be an integer of at least 2")
    return Levels(lambda step: jnp.full_like(step, levels), levels)


def doubling(over: int, s0: int = 10, s1: int = 1280) -> Levels:
    """iCT's: `dx.curricula.doubling` over so many steps; then the last number stays. (`over` is not config.train.steps,
    so that a run can be prolonged.)"""
    return _curriculum(dx.curricula.doubling, over, s0, s1)


def sinusoidal(over: int, s0: int = 20, s1: int = 250) -> Levels:
    """`dx.curricula.sinusoidal`, of Gokmen et al."""
    return _curriculum(dx.curricula.sinusoidal, over, s0, s1)


def square_root(over: int, s0: int = 2, s1: int = 150) -> Levels:
    """`dx.curricula.square_root`, of the first consistency models."""
    return _curriculum(dx.curricula.square_root, over, s0, s1)


def _curriculum(function: Callable[..., Array], over: int, s0: int, s1: int) -> Levels:
    try:
        function(0, over, s0, s1)
    except ValueError as error:
        raise ValueError(str(error).replace("total = ", "over = ")) from error
    return Levels(lambda step: function(step, over, s0, s1), s1 + 1)


def consistency_training(
    levels: Levels,
    pool: int = 0,
    jitter: float = 0.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    sigma_data: float = 0.5,
    huber: float = 0.00054,
) -> Objective:
    """`dx.consistency.training` on Karras's grid of so many levels, out of a pool of fixed ones unless that is 0.

    jitter, sigma_data and huber are explained there. Raises ValueError naming the argument at fault.
    """
    init, loss = lambda recipe: recipe.network.init, lambda recipe: dx.consistency.training
    return _consistency(init, loss, 4, levels, pool, jitter, sigma_min, sigma_max, rho, sigma_data, huber)


def consistency_distillation(
    teacher: str,
    levels: Levels,
    guidance: float = 1.0,
    solver: str = "heun",
    warm: bool = True,
    pool: int = 0,
    jitter: float = 0.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    sigma_data: float = 0.5,
    huber: float = 0.00054,
) -> Objective:
    """`dx.consistency.distillation` from the averaged parameters of the newest checkpoint of a denoising run.

    Args:
      teacher: the directory of that run, of the same data. Its parameters are constants of the compiled step.
      guidance: of the teacher, and so of what is learned; label dropout is its matter, not this run's.
      solver: of the step between neighbours.
      warm: begin with the parameters of the teacher; the network must then be the same.
      the others: as for `consistency_training`.

    Raises ValueError naming the argument at fault, here or, of the teacher, when training begins.
    """
    method = build("solver", solver, dx.solvers)
    if not math.isfinite(guidance):
        raise ValueError(f"guidance = {guidance}: must be finite")
    if method.stochastic or method.nfe(1) is None:
        raise ValueError(f"solver = {solver!r}: must be a deterministic one of fixed steps, such as heun")

    @functools.cache
    def load() -> tuple["Recipe", Any]:
        return _teacher(teacher)

    def init(recipe: "Recipe") -> Callable[[Array], Any]:
        if not warm:
            return recipe.network.init
        params = load()[1]
        shapes = [jax.tree.map(np.shape, p) for p in (params, jax.eval_shape(recipe.network.init, jax.random.key(0)))]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"config.objective: teacher = {teacher!r}: has another network than config.model, which can therefore "
                "not begin with its parameters; give the same, or warm=False"
            )
        return lambda key: jax.tree.map(jnp.asarray, params)

    def loss(recipe: "Recipe") -> Loss:
        learned, params = load()
        for name in ("shape", "num_classes"):
            if (theirs := getattr(learned, name)) != (ours := getattr(recipe, name)):
                raise ValueError(
                    f"config.objective: teacher = {teacher!r}: has {name} {theirs}, this run's data {ours}"
                )

        def distil(apply: Any, student: Any, key: Array, x0: Array, label: Any, **options: Any) -> tuple[Array, Aux]:
            how = dict(teacher=_denoiser(learned, params, label, guidance), solver=method)
            return dx.consistency.distillation(apply, student, key, x0, label, **how, **options)

        return distil

    passes = 4 + (method.nfe(2) - method.nfe(1)) * (1 if guidance == 1 else 2)  # of a step that does not end at 0
    return _consistency(init, loss, passes, levels, pool, jitter, sigma_min, sigma_max, rho, sigma_data, huber)


def _consistency(
    init: Any,
    pairs: Callable[["Recipe"], Loss],
    passes: int,
    levels: Levels,
    pool: int,
    jitter: float,
    sigma_min: float,
    sigma_max: float,
    rho: float,
    sigma_data: float,
    huber: float,
) -> Objective:
    """pairs: recipe -> a loss as `dx.consistency.training` is one."""
    if not isinstance(levels, Levels):
        raise ValueError(
            f"levels = {levels}: must be constant(...), doubling(...), sinusoidal(...) or square_root(...)"
        )
    if not 0 <= jitter < math.inf:
        raise ValueError(f"jitter = {jitter}: must be at least 0, and finite")
    for name, value in (("sigma_data", sigma_data), ("huber", huber)):
        _check.positive(name, value)
    schedule = dx.schedules.karras(sigma_min, sigma_max, rho)
    grid = functools.partial(dx.consistency.levels, most=levels.most, schedule=schedule, pool=pool or None)
    grid(2)  # checks

    def loss(recipe: "Recipe") -> Loss:
        function = pairs(recipe)

        def at(
            apply: Any, params: Any, key: Array, x0: Array, label: Any, step: Array, sampler: Any, part: Part | None
        ) -> tuple[Array, Aux]:
            where = dict(
                sigmas=grid(levels.number(jnp.asarray(step))), schedule=recipe.schedule_at(step), jitter=jitter
            )
            return function(apply, params, key, x0, label, **where, sigma_data=sigma_data, huber=huber, part=part)

        return at

    return Objective(init, loss, _consistency_draw(sigma_min, sigma_max, sigma_data), False, passes)


def _consistency_draw(sigma_min: float, sigma_max: float, sigma_data: float) -> Callable[..., tuple[Any, Any]]:
    def make(recipe: "Recipe", grid: str, solver: str, steps: int, guidance: float) -> tuple[Any, Any]:
        if solver != "default":
            raise ValueError(f"solver = {solver!r}: a consistency model is sampled without one; leave it 'default'")
        if guidance != 1:
            raise ValueError(
                f"guidance = {guidance}: must be 1 for a consistency model; consistency_distillation can have a guided "
                "teacher"
            )
        # Where a grid of one step more would go on to the data, the function is there already.
        sigmas = np.asarray(_grid(grid, steps + 1))[:steps]
        if not (sigmas[-1] > sigma_min and sigmas[0] <= sigma_max * (1 + 1e-5)):
            raise ValueError(
                f"grid = {grid!r}: must lie between sigma_min = {sigma_min} and sigma_max = {sigma_max}, the levels of "
                "training"
            )

        def draw(params: Any, x: Array, key: Array, index: Array, label: Array) -> Array:
            cond = None if recipe.num_classes is None else label
            f = dx.consistency.function(recipe.network.apply, params, cond, sigma_min=sigma_min, sigma_data=sigma_data)
            return dx.consistency.sample(f, x, sigmas, key=key, index=index, sigma_min=sigma_min)

        return sigmas[0], draw

    return make


# ---- shared ---------------------------------------------------------------------------------------------------------


def _grid(text: str, steps: int) -> Array:
    """[steps + 1] sigmas, the last one 0: of a schedule, or "plain"."""
    if text.strip() == "plain":
        return jnp.asarray(dx.grids.plain(steps), jnp.float32)
    schedule = build("grid", text, dx.schedules)
    try:
        return jnp.asarray(dx.schedules.sigmas(schedule, steps))
    except ValueError as error:
        raise ValueError(f"grid = {text!r}: {error}") from error


def _denoiser(recipe: "Recipe", params: Any, label: Array | None, guidance: float) -> dx.Denoiser:
    """Of the labels asked for [batch]; None for data without classes."""
    denoise = dx.denoiser(recipe.network.apply, params, recipe.preconditioning, label)
    if label is None or recipe.num_classes is None or guidance == 1:
        return denoise
    unlabelled = jnp.full_like(label, recipe.num_classes)
    return dx.guidance.classifier_free(
        denoise, dx.denoiser(recipe.network.apply, params, recipe.preconditioning, unlabelled), guidance
    )


def _teacher(folder: str) -> tuple["Recipe", Any]:
    """The recipe of a denoising run and its averaged parameters, on the host."""
    from diffax.training import sharding
    from experiments import workdir as workdirs  # which imports the recipe, which imports this

    try:
        config = workdirs.read_config(Path(folder))
        recipe, params, _ = workdirs.load_ema(Path(folder), config, workdirs.mesh_of(config))
    except ValueError as error:
        raise ValueError(f"config.objective: teacher = {folder!r}: {error}") from error
    if not recipe.objective.denoises:
        raise ValueError(f"config.objective: teacher = {folder!r}: must be a denoising run, not one of consistency")
    return recipe, sharding.to_host(params)
