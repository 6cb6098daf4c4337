"""From a config to the objects it names: network, schedule, loss, sampler. Shared by all commands."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

import diffax as dx
from diffax import augment, data, models
from diffax.losses import Aux, Part
from diffax.preconditioning import Preconditioning
from diffax.schedules import Curriculum, Schedule
from diffax.training import ema
from diffax.training.optimizer import adam_with_warmup
from diffax.weightings import Weighting
from experiments import objectives
from experiments.cli import check_seed, field
from experiments.expressions import build
from experiments.objectives import Objective

__all__ = ["Recipe", "build_network", "check_counts", "loss", "optimizer", "recipe", "sampler"]


class Recipe(NamedTuple):
    """What a config and its data set say; bins are 0 without adaptive draws."""

    network: models.Network
    objective: Objective
    schedule: Schedule | Curriculum
    preconditioning: Preconditioning
    weighting: Weighting
    shape: tuple[int, int, int]
    levels: int
    num_classes: int | None
    label_dropout: float
    augment: float
    bins: int
    floor: float

    def schedule_at(self, step: Array) -> Schedule:
        """The schedule of a training step: a curriculum moves."""
        return self.schedule(step) if isinstance(self.schedule, Curriculum) else self.schedule

    def adaptive_init(self) -> dx.adaptive.Adaptive | None:
        """The state of the adaptive sampler before training."""
        return dx.adaptive.init(self.bins) if self.bins else None

    def adapt(self, state: Any, step: Array, aux: Aux) -> Any:
        """Its state after a batch."""
        return dx.adaptive.update(state, self.schedule_at(step), aux.loss, aux.logsnr) if self.bins else state


def recipe(config: ml_collections.ConfigDict, dataset: data.Dataset) -> Recipe:
    """Builds and thereby checks everything before any work is done. Raises ValueError naming the field at fault."""
    label_dropout = config.model.label_dropout
    if not 0 <= label_dropout <= 1:
        raise ValueError(f"config.model.label_dropout = {label_dropout}: must lie in [0, 1]")
    augmented = config.model.get("augment", 0.0)
    if not 0 <= augmented <= 1:
        raise ValueError(f"config.model.augment = {augmented}: must lie in [0, 1]")
    if config.adaptive.bins < 0 or config.adaptive.bins == 1:
        raise ValueError(
            f"config.adaptive.bins = {config.adaptive.bins}: must be at least 2, or 0 for no adaptive draws"
        )
    if not 0 < config.adaptive.floor <= 1:
        raise ValueError(f"config.adaptive.floor = {config.adaptive.floor}: must lie in (0, 1]")
    objective = build("config.objective", config.get("objective", "denoising()"), objectives)
    if not isinstance(objective, Objective):
        raise ValueError(f"config.objective = {config.objective!r}: must be denoising or one of consistency")
    if config.adaptive.bins and not objective.denoises:
        raise ValueError(f"config.adaptive.bins = {config.adaptive.bins}: must be 0 unless the objective is denoising")
    network = build_network(config.model, dataset.image_shape, dataset.num_classes)
    return Recipe(
        network,
        objective,
        build("config.schedule", config.schedule, dx.schedules),
        build("config.preconditioning", config.preconditioning, dx.preconditioning),
        build("config.weighting", config.weighting, dx.weightings),
        dataset.image_shape,
        dataset.levels,
        dataset.num_classes,
        label_dropout,
        augmented,
        config.adaptive.bins,
        config.adaptive.floor,
    )


def check_counts(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError unless the numbers of steps, the batch size and the seed can be."""
    often = [f"{name}_every" for name in ("log", "checkpoint", "sample", "snapshot")]
    for name in ("steps", "batch_size", *often, "keep", "max_skipped"):
        if config.train[name] < 1:
            raise ValueError(f"config.train.{name} = {config.train[name]}: must be at least 1")
    for name in ("keep_every", "keep_best"):
        if config.train[name] < 0:
            raise ValueError(f"config.train.{name} = {config.train[name]}: must be at least 0")
    for width in config.train.ema_powers:
        with field("config.train.ema_powers: "):
            ema.gamma_of(width)
    if len(set(config.train.ema_powers)) < len(config.train.ema_powers):
        raise ValueError(f"config.train.ema_powers = {config.train.ema_powers}: must differ")
    if not config.train.stall_seconds > 0:
        raise ValueError(f"config.train.stall_seconds = {config.train.stall_seconds}: must be positive")
    check_seed("config.seed", config.seed)


def optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Adam as config.train says, and what the architecture asks of its parameters after a step. Raises ValueError."""
    with field("config.train."):
        adam = adam_with_warmup(
            config.train.learning_rate,
            warmup_steps=config.train.warmup_steps,
            clip_norm=config.train.clip_norm or None,
        )
    return optax.chain(adam, models.constraint(config.model.architecture))


def build_network(
    model: Mapping[str, Any], shape: Sequence[int], num_classes: int | None, dtype: Any = None
) -> models.Network:
    """The network that config.model describes; dtype instead of the one it names. Its cond is a label, and with
    model.augment also a dict of that and of how the image was augmented. Raises ValueError."""
    others = ("architecture", "label_dropout", "augment", "dtype")
    options = {name: value for name, value in model.items() if name not in others}
    if model["dtype"] not in ("float32", "bfloat16"):
        raise ValueError(f"config.model.dtype = {model['dtype']!r}: must be 'float32' or 'bfloat16'")
    if augmented := model.get("augment", 0.0) > 0:
        options["augment"] = augment.TOLD
    with field("config.model."):
        network = models.build(
            model["architecture"], shape, num_classes=num_classes, dtype=dtype or jnp.dtype(model["dtype"]), **options
        )
    if not augmented:
        return network

    def apply(params: Any, x: Array, c_noise: Array, cond: Any = None, **options: Any) -> Array:
        cond = cond if cond is None or isinstance(cond, Mapping) else {"label": cond}
        return network.apply(params, x, c_noise, cond, **options)

    return models.Network(network.init, apply)


def loss(recipe: Recipe, *, train: bool) -> Callable[..., tuple[Array, Aux]]:
    """loss(params, batch, key, step, sampler, part) of the objective, batch as the data set reads it. train: with
    dropout of labels and units. Raises ValueError if the objective wants a teacher that is not there."""
    objective = recipe.objective.loss(recipe)

    def function(
        params: Any, batch: Any, key: Array, step: Array, sampler: Any = None, part: Part | None = None
    ) -> tuple[Array, Aux]:
        noise_key, label_key, dropout_key = jax.random.split(key, 3)
        x0 = data.to_unit(batch["image"], recipe.levels)
        label, apply = None, recipe.network.apply
        index = None if part is None else part.rows
        if recipe.num_classes is not None:
            label = batch["label"]
            if train:
                label = dx.guidance.drop_label(label_key, label, recipe.num_classes, recipe.label_dropout, index)
        if train:
            dropout_key = dropout_key if part is None else jax.random.fold_in(dropout_key, part.rows[0])
            apply = jax.tree_util.Partial(apply, key=dropout_key)
        cond = label
        if train and recipe.augment:
            x0, told = augment.geometric(jax.random.fold_in(label_key, 1), x0, recipe.augment, index)
            cond = {"augment": told} | ({} if label is None else {"label": label})
        return objective(apply, params, noise_key, x0, cond, step, sampler, part)

    return function


def sampler(
    recipe: Recipe, *, grid: str, solver: str, steps: int, guidance: float
) -> Callable[[Any, Array, Array, Array], tuple[Array, Array]]:
    """A compiled sampler(params, key, index, label) -> images [batch, height, width, channels] uint8, finite [batch].

    finite says whether all numbers of a sample are finite. A pixel of NaN is black.
    Sample number i starts from noise of fold_in(key, i): index and label are [batch] int. grid is a schedule, or
    "plain" for `dx.grids.plain`; how it and the solver are used is said by the objective. Raises ValueError naming the
    argument at fault.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps}: must be at least 1")
    if not math.isfinite(guidance):
        raise ValueError(f"guidance = {guidance}: must be finite")
    sigma, draw = recipe.objective.draw(recipe, grid, solver, steps, guidance)

    @jax.jit
    def sample(params: Any, key: Array, index: Array, label: Array) -> tuple[Array, Array]:
        start_key, draw_key = jax.random.split(key)
        x = sigma * dx.noise.normal(start_key, index, recipe.shape)
        x = draw(params, x, draw_key, index, label)
        return data.from_unit(x, recipe.levels), jnp.isfinite(x).all((1, 2, 3))

    return sample
