"""Class-conditional diffusion on scikit-learn's handwritten digits (1,797 of 8x8 pixels): the demo.

    python -m experiments.train --config experiments/configs/digits.py --workdir runs/digits

EDM's recipe (Karras et al. 2022) with a small U-Net.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0

    config.data = ml_collections.ConfigDict()
    config.data.name = "digits"  # digits, mnist5k, fashion_mnist, or any image data set of TensorFlow Datasets
    config.data.dir = ""  # where data sets are prepared; empty: ~/.cache/diffax or $DIFFAX_DATA_DIR

    config.objective = "denoising()"  # or one of consistency models, see experiments/objectives.py
    # As text, so that any composition can be given on the command line:
    #   --config.schedule='shift(laplace(scale=0.5), by=-1)'
    config.schedule = "edm(p_mean=-1.2, p_std=1.2)"
    #   --config.schedule='anneal(edm(), shift(edm(), by=-2), over=2000)'
    config.preconditioning = "edm(sigma_data=0.5)"
    config.weighting = "edm(sigma_data=0.5)"

    config.adaptive = ml_collections.ConfigDict()
    config.adaptive.bins = 0  # of the sampler that learns at which levels the loss varies most; 0: none
    config.adaptive.floor = 0.2  # the share of draws that stay with the schedule

    config.model = ml_collections.ConfigDict()
    config.model.architecture = "unet"  # or dit, uvit, edm2, or a preset of diffax.models; the fields are its arguments
    config.model.channels = 32
    config.model.multipliers = (1, 2)  # width of each level; every further level halves the image
    config.model.blocks = 1
    config.model.attention = (4,)  # image heights that get self-attention
    config.model.head_channels = 32
    config.model.dropout = 0.0
    config.model.remat = False  # compute blocks again in the backward pass, to save memory
    config.model.label_dropout = 0.1  # share of labels hidden in training, for classifier-free guidance
    config.model.augment = 0.0  # probability of each geometric augmentation, of which the network is told; unet only
    config.model.dtype = "float32"  # of the computation; parameters are float32

    config.mesh = ml_collections.ConfigDict()  # how many devices; -1: those that the other two leave
    config.mesh.data = -1  # copies of the model, each with a part of the batch
    config.mesh.fsdp = 1  # parts of the batch, too, that share one copy of the state in slices
    config.mesh.tensor = 1  # devices that share each layer of a transformer

    config.train = ml_collections.ConfigDict()
    config.train.steps = 1600
    config.train.batch_size = 64
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 100
    config.train.clip_norm = 1.0  # 0: none
    config.train.accumulate = 1  # parts of a batch that follow one another, to save memory
    config.train.ema_halflife = 10_000.0  # in images
    config.train.ema_powers = ()  # relative widths of averages by power functions (EDM2), as (0.05, 0.1)
    config.train.snapshot_every = 400  # steps at which those are kept, for experiments.posthoc
    config.train.max_skipped = 10  # updates in a row that are not finite, before the run stops
    config.train.spike = 0.0  # leave out updates of a loss so many times its running mean; 0: none
    config.train.stall_seconds = 60.0  # without a batch, until a line says so
    config.train.log_every = 100
    config.train.checkpoint_every = 400
    config.train.sample_every = 800
    config.train.keep = 3  # the newest checkpoints
    config.train.keep_every = 0  # and those of multiples of so many steps; 0: none for that
    config.train.keep_best = 0  # and so many of the lowest loss

    config.sample = ml_collections.ConfigDict()
    config.sample.grid = "plain"  # or a schedule, as "karras(sigma_min=0.01, sigma_max=40, rho=7)"
    config.sample.solver = "default"  # as "unipc(order=3)", "heun"
    config.sample.steps = 12
    config.sample.guidance = 1.5  # 1: none
    return config
