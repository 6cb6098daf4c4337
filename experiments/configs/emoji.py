"""Class-conditional diffusion on 3,786 emoji of 64x64 in colour, from npm's emoji-datasource-google.

    npm pack emoji-datasource-google && tar xzf emoji-datasource-google-*.tgz && export DIFFAX_EMOJI=package
    python -m experiments.train --config experiments/configs/emoji.py --workdir runs/emoji

For a GPU, in bfloat16.
"""

import ml_collections

from experiments.configs import fashion_mnist


def get_config() -> ml_collections.ConfigDict:
    config = fashion_mnist.get_config()
    config.data.name = "emoji"
    config.model.multipliers = (1, 2, 2, 4)  # 64, 32, 16 and 8 pixels
    config.model.attention = (16, 8)
    return config
