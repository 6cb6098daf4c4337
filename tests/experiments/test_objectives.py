"""Runs of consistency models, from config to samples, and what their configs refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffax as dx
from diffax import data
from diffax.losses import Part
from diffax.models import Network
from diffax.training import sharding
from experiments import held_out, objectives
from experiments import workdir as workdirs
from experiments.recipe import loss, recipe, sampler
from experiments.train import init, train

KEY = jax.random.key(0)
TRAINING = {
    "objective": "consistency_training(levels=doubling(over=8, s0=10, s1=40), jitter=1, pool=50)",
    "schedule": "polynomial(power=4)",
    "sample.guidance": 1.0,
    "train.steps": 4,
}
DISTILLATION = {"sample.guidance": 1.0, "train.steps": 4}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, data_dir):
    """A denoising run."""
    from experiments.configs import digits
    from tests.experiments.conftest import SMALL

    config = digits.get_config()
    config.update_from_flattened_dict(SMALL | {"train.steps": 4, "data.dir": data_dir})
    workdir = tmp_path_factory.mktemp("runs") / "teacher"
    train(config, workdir)
    return workdir, config


def test_consistency_training_from_config_to_a_grid_of_samples_and_a_held_out_loss(small, tmp_path):
    config = small(**TRAINING)
    summary = train(config, tmp_path)
    assert np.isfinite(summary["losses"]["loss"]) and (tmp_path / "samples" / "step_00000004.png").exists()
    rec, params, step = workdirs.load_ema(tmp_path, config, sharding.data_mesh())
    test = {name: values[:64] for name, values in held_out.everything(workdirs.load_dataset(config, "test")).items()}
    found = held_out.held_out_loss(rec, test, KEY, step)(params)
    assert found["loss"] > 0 and any(name.startswith("levels/") for name in found)


def test_samples_are_those_of_the_function_at_the_first_levels_of_a_grid_with_one_step_more(small):
    config = small(**TRAINING)
    rec = recipe(config, workdirs.load_dataset(config, "train"))
    apply = lambda params, x, c_noise, cond: params * x + (c_noise + cond)[:, None, None, None]
    rec, labels = rec._replace(network=Network(rec.network.init, apply)), jnp.arange(8)
    one, two = (
        np.asarray(sampler(rec, grid="plain", solver="default", steps=n, guidance=1.0)(0.3, KEY, labels, labels)[0])
        for n in (1, 2)
    )
    f = dx.consistency.function(apply, 0.3, labels)
    start, again = jax.random.split(KEY)
    x = f(80 * dx.noise.normal(start, labels, rec.shape), 80.0)
    z, t = dx.noise.normal(jax.random.fold_in(again, 1), labels, rec.shape), dx.grids.plain(3)[1]
    for found, wanted in ((one, x), (two, f(x + (t**2 - 0.002**2) ** 0.5 * z, t))):
        off = np.abs(np.int32(found) - np.int32(data.from_unit(wanted, rec.levels)))
        assert off.max() <= 1 and (off > 0).mean() < 0.01  # where rounding decides
    assert (one != two).mean() > 0.1


def test_the_curriculum_moves_and_one_dropout_serves_both_levels(small):
    config = small(**TRAINING)
    dataset = data.load("digits", "train", config.data.dir)
    rec, batch, keys = recipe(config, dataset), dataset.read(np.arange(256)), []

    def apply(params, x, c_noise, cond=None, *, key):
        keys.append(key)
        return 0 * x

    rec = rec._replace(network=Network(rec.network.init, apply))
    measure = loss(rec, train=True)
    pool = np.asarray(dx.consistency.levels(50, 50))
    for step, most in ((0, 11), (3, 21), (8, 41)):
        logsnr = measure(None, batch, KEY, step)[1].logsnr
        sigmas = np.unique(np.round(np.exp(-np.float64(logsnr) / 2), 5))
        assert most / 2 < len(sigmas) < most
        assert (np.abs(sigmas[:, None] / pool - 1).min(1) < 2e-3).all()
    assert len(keys) == 6 and all(a is b for a, b in zip(keys[::2], keys[1::2], strict=True))


def test_parts_of_a_batch_are_the_batch(small):
    config = small(**TRAINING)
    dataset = data.load("digits", "train", config.data.dir)
    rec = recipe(config, dataset)
    batch, step = dataset.read(np.arange(16)), jnp.int32(3)
    apply = lambda params, x, c_noise, cond, key: params * x + (c_noise + cond)[:, None, None, None]
    measure = loss(rec._replace(network=Network(rec.network.init, apply)), train=True)
    whole = jax.jit(lambda batch: measure(0.3, batch, KEY, step)[0])(batch)
    of = jax.jit(lambda batch, rows: measure(0.3, batch, KEY, step, None, Part(rows, 16))[0])
    parts = [of({name: values[i::2] for name, values in batch.items()}, jnp.arange(i, 16, 2)) for i in (0, 1)]
    assert float(sum(parts)) / 2 == pytest.approx(float(whole), rel=1e-3)


def test_distillation_begins_with_its_teacher_and_learns(small, teacher, tmp_path):
    workdir, teachers = teacher
    text = f"consistency_distillation(teacher={str(workdir)!r}, levels=constant(18), guidance=1.5)"
    config = small(objective=text, **DISTILLATION)
    rec = recipe(config, workdirs.load_dataset(config, "train"))
    _, params, _ = workdirs.load_ema(workdir, teachers, sharding.data_mesh())
    state = init(config, rec, optax.identity(), sharding.data_mesh())(KEY)
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    assert rec.objective.passes == 3 + 1 + 2 * 2
    assert np.isfinite(train(config, tmp_path / "student")["losses"]["loss"])
    # a run that has been distilled is sampled also where its teacher is gone
    config.objective = text.replace(str(workdir), str(tmp_path / "gone"))
    rec = recipe(config, workdirs.load_dataset(config, "train"))
    sampler(rec, **config.sample)
    with pytest.raises(ValueError, match=r"config.objective: teacher = .*gone.*holds no config.json"):
        train(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_teacher_must_fit(small, teacher, tmp_path):
    config = small(
        objective=f"consistency_distillation(teacher={str(teacher[0])!r}, levels=constant(18))",
        **DISTILLATION,
        **{"model.channels": 16},
    )
    with pytest.raises(ValueError, match=r"has another network than config.model"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"objective": "doubling(over=8)"}, "must be denoising or one of consistency"),
        ({"objective": "consistency_training(levels=8)"}, "levels = 8: must be constant(...), doubling(...)"),
        ({"objective": "consistency_training(levels=constant(1))"}, "levels = 1: must be an integer of at least 2"),
        ({"objective": "consistency_training(levels=doubling(over=0))"}, "over = 0: must be an integer >= 1"),
        ({"objective": "consistency_training(levels=constant(8), pool=7)"}, "pool = 7: must be an integer from 8"),
        ({"objective": "consistency_training(levels=constant(8), sigma_data=0)"}, "sigma_data = 0: must be positive"),
        ({"objective": "consistency_training()"}, "missing a required argument: 'levels'"),
        ({"objective": "consistency_distillation('x', constant(8), solver='sa_solver')"}, "must be a deterministic"),
        ({"objective": "consistency_training(levels=constant(8), jitter=-1)"}, "jitter = -1"),
        ({"objective": "consistency_training(levels=constant(8), huber=0)"}, "huber = 0"),
        ({"adaptive.bins": 8}, "config.adaptive.bins = 8: must be 0 unless the objective is denoising"),
        ({"sample.guidance": 2.0}, "config.sample.guidance = 2.0: must be 1 for a consistency model"),
        ({"sample.solver": "heun"}, "config.sample.solver = 'heun': a consistency model is sampled without one"),
        ({"sample.grid": "karras(sigma_max=100)"}, "config.sample.grid = 'karras(sigma_max=100)': must lie between"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(small, tmp_path, overrides, words):
    with pytest.raises(ValueError) as error:
        train(small(**TRAINING | overrides), tmp_path / "run")
    assert words in str(error.value)
    assert not (tmp_path / "run").exists()


def test_every_curriculum_has_its_size():
    for levels in (
        objectives.doubling(100),
        objectives.sinusoidal(100),
        objectives.square_root(100),
        objectives.constant(7),
    ):
        numbers = [int(levels.number(jnp.int32(k))) for k in range(0, 121, 4)]
        assert min(numbers) >= 2 and max(numbers) <= levels.most <= max(numbers) + 1
