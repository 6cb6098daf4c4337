"""A run small enough to train in seconds."""

import pytest

from experiments.configs import digits

SMALL = {
    "model.channels": 8,
    "model.multipliers": (1,),
    "model.attention": (),
    "train.steps": 8,
    "train.batch_size": 16,
    "train.warmup_steps": 2,
    "train.log_every": 2,
    "train.checkpoint_every": 3,
    "train.sample_every": 8,
    "sample.steps": 2,
}


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture
def small(data_dir):
    """small(**{"train.steps": 4}) -> a config."""

    def make(**overrides):
        config = digits.get_config()
        config.update_from_flattened_dict({"data.dir": data_dir} | SMALL | overrides)
        return config

    return make


@pytest.fixture
def flags(data_dir):
    """flags(**{"train.steps": 4}) -> the same config as command-line arguments."""

    return lambda **overrides: arguments(data_dir, **overrides)


def arguments(data_dir, **overrides):
    fields = {"data.dir": data_dir} | SMALL | overrides
    return ["--config=experiments/configs/digits.py", *(f"--config.{k}={v}" for k, v in fields.items())]
