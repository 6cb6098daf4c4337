"""The networks and the budgets of the laboratory: a size for each data set.

    python -m experiments.train --config experiments/configs/lab.py:digits --workdir runs/one

digits and mnist5k are for CPUs (a minute, and ten, on two cores), fashion_mnist and emoji for a GPU. What an experiment
of `experiments/lab/` varies are fields of this config.
"""

import importlib

import ml_collections


def get_config(name: str = "digits") -> ml_collections.ConfigDict:
    config = importlib.import_module(f"experiments.configs.{name}").get_config()
    if name in ("digits", "mnist5k"):
        config.model.channels = 16
        config.train.steps = 2000
        config.train.ema_halflife = 5_000.0
        config.train.log_every = 250
    config.train.checkpoint_every = config.train.steps // 4
    config.train.keep_every = config.train.steps // 4
    config.train.keep = 1
    config.train.sample_every = config.train.steps
    return config
