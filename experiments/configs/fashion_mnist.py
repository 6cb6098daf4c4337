"""Class-conditional diffusion on Fashion-MNIST (60,000 articles of clothing, 28x28), from Debian's package.

    apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb fashion
    export DIFFAX_FASHION_MNIST=fashion/usr/share/datasets/fashion-mnist
    python -m experiments.train --config experiments/configs/fashion_mnist.py --workdir runs/fashion_mnist

For a GPU: wider than mnist5k, in bfloat16.
"""

import ml_collections

from experiments.configs import mnist5k


def get_config() -> ml_collections.ConfigDict:
    config = mnist5k.get_config()
    config.data.name = "fashion_mnist"
    config.model.channels = 64
    config.model.blocks = 2
    config.model.attention = (14, 7)
    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"
    config.train.steps = 40_000
    config.train.batch_size = 256
    config.train.warmup_steps = 1000
    config.train.ema_halflife = 250_000.0
    config.train.checkpoint_every = 2000
    config.train.sample_every = 4000
    return config
