"""The experiment of high noise scheduling, with networks and budgets too small to find anything."""

import json

import numpy as np
import pytest

from experiments import workdir as workdirs
from experiments.lab import consistency as lab
from experiments.recipe import recipe


@pytest.fixture
def fields(data_dir):
    return {
        "data.name": "digits",
        "data.dir": data_dir,
        "model.channels": 8,
        "model.multipliers": (1,),
        "model.attention": (),
        "train.steps": 4,
        "train.batch_size": 16,
    }


def test_variants_differ_only_in_what_is_compared_and_all_can_be_built(fields, tmp_path):
    configs = lab.variants(tmp_path, fields, [0, 1])
    assert len(configs) == 2 * (2 * 4 + 1 + 2)
    plain = {run: workdirs.flatten(workdirs.plain(config)) for run, config in configs.items()}
    base = plain["log-normal, doubling", 0]
    for (name, seed), config in plain.items():
        assert config["seed"] == seed
        halved = {"train.steps"} if name in ("teacher", "distillation") else set()
        assert {f for f in config if config[f] != base[f]} <= {"seed", "schedule", "objective"} | halved
        assert config["train.steps"] == (2 if halved else 4)
    assert len({(c["schedule"], c["objective"]) for c in plain.values()}) == 2 * 4 + 1 + 1 + 2  # a teacher a seed
    dataset = workdirs.load_dataset(configs["teacher", 0], "train")
    assert [recipe(c, dataset).objective.denoises for (_, seed), c in configs.items() if not seed].count(True) == 1


def test_it_trains_scores_and_tells(fields, tmp_path, capsys):
    found = lab.experiment(tmp_path, fields, [0], ["distillation"], samples=20)
    assert list(found["variants"]) == ["distillation"] and found["images"] == 4 * 16
    scores = found["variants"]["distillation"]
    assert all(np.isfinite(scores[n][s]["mean"]) for n in (1, 2) for s in ("accuracy", "nearest"))
    kept = json.loads((tmp_path / "consistency.json").read_text())
    assert kept["variants"]["distillation"]["1"] == scores[1]
    assert (tmp_path / "consistency.png").stat().st_size > 5000
    assert "accuracy, 2 steps" in capsys.readouterr().out


def test_a_budget_that_cannot_be_halved_is_refused(fields, tmp_path):
    with pytest.raises(ValueError, match=r"config.train.steps = 3: must be even"):
        lab.variants(tmp_path, fields | {"train.steps": 3}, [0])
