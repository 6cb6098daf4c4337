"""The networks of Hugging Face diffusers from their folders: config.json and weights in safetensors.

    loaded = diffax.interop.from_diffusers("ddpm-cifar10-32")     # a pipeline's folder, or its unet's
    denoise = dx.denoiser(loaded.network.apply, loaded.params, loaded.preconditioning)

"UNet2DModel" is a DDPM, "UNet2DConditionModel" the U-Net of Stable Diffusion 1 and 2, which takes a text's tokens as
cond [batch, 77, width], and "AutoencoderKL" its autoencoder. The networks are told time steps; which noise level one is
says scheduler_config.json. What diffax does not build is named.
"""

import contextlib
import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path as File
from typing import Any

import numpy as np

from diffax import models, preconditioning, schedules
from diffax.interop.carry import Loaded, Path, carry, join
from diffax.interop.files import Tensors, tensors
from diffax.models.autoencoder import autoencoder
from diffax.models.layers import sinusoid
from diffax.models.unet import Style
from diffax.preconditioning import Preconditioning
from diffax.schedules import Schedule

__all__ = ["autoencoder_from_diffusers", "from_diffusers", "time_steps"]


def from_diffusers(
    folder: str | File,
    *,
    precondition: Preconditioning | None = None,
    weights: str | File | Mapping[str, Any] | None = None,
    **options: Any,
) -> Loaded:
    """A "UNet2DModel" or "UNet2DConditionModel".

    Args:
      folder: of a pipeline, with unet/ and scheduler/, or of the model alone.
      precondition: what the network predicts and how it is told the level; by default as scheduler_config.json says,
        which is looked for in scheduler/ and beside the model.
      weights: file or arrays; diffusion_pytorch_model.safetensors of the folder by default, or its .bin.
      options: passed to `models.unet`: dropout, dtype, remat.

    Raises: ValueError for an architecture that is not supported, naming what is not, and for tensors that do not fit.
    """
    folder = File(folder)
    model = folder / "unet" if (folder / "unet" / "config.json").exists() else folder
    config = _json(model / "config.json")
    builders = {"UNet2DModel": _unet2d, "UNet2DConditionModel": _unet2d_condition}
    kind = config.get("_class_name", "UNet2DModel")
    if kind not in builders:
        raise ValueError(f"{model}: its class is {kind}; supported are {', '.join(builders)}, and AutoencoderKL apart")
    with _damage(model / "config.json"):
        network = builders[kind](config, options)
    found = _old_names(tensors(weights if weights is not None else _weights(model)))
    found = found if kind == "UNet2DConditionModel" else join(found, ("to_q", "to_k", "to_v"), "qkv")
    if precondition is None:
        places = [folder / "scheduler", folder, model.parent / "scheduler"]
        scheduler = next((p for p in (place / "scheduler_config.json" for place in places) if p.exists()), None)
        if scheduler is None:
            raise ValueError(f"{folder}: has no scheduler_config.json: give precondition, as from interop.time_steps")
        with _damage(scheduler):
            precondition = _scheduler(_json(scheduler))
    conditional = kind == "UNet2DConditionModel"
    name = functools.partial(_unet_name, levels=len(config["block_out_channels"]), conditional=conditional)
    known: Callable[[str], bool] = lambda name: name.startswith("time_proj.")
    if "class_embedding.weight" in found:
        found = found | {"class_embedding.weight": found["class_embedding.weight"].T}  # a row for each class
    return Loaded(network, carry(network.init, found, name, ignore=known), precondition)


def autoencoder_from_diffusers(
    folder: str | File, *, weights: str | File | Mapping[str, Any] | None = None, **options: Any
) -> tuple[models.Autoencoder, Any]:
    """(network, params) of an "AutoencoderKL": network.encode(params, images), network.decode(params, latents).

    Args and errors as of `from_diffusers`; folder may also be a pipeline's, with vae/. options: of
    `models.autoencoder`.
    """
    folder = File(folder)
    model = folder / "vae" if (folder / "vae" / "config.json").exists() else folder
    config = _json(model / "config.json")
    kind = config.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise ValueError(f"{model}: a {kind}, must be an AutoencoderKL")
    with _damage(model / "config.json"):
        network = _autoencoder(config, options)
    found = _old_names(tensors(weights if weights is not None else _weights(model)))
    found = join(found, ("to_q", "to_k", "to_v"), "qkv")
    levels = len(config["block_out_channels"])

    def name(path: Path) -> str:
        side, *rest = path
        if rest[0] == "quantise":
            prefix = "quant_conv" if side == "encoder" else "post_quant_conv"
            return ".".join([prefix, _leaf(rest[-1])])
        return f"{side}.{_unet_name(tuple(rest), levels=levels)}"

    return network, carry(network.init, found, name)


def _autoencoder(config: dict[str, Any], options: dict[str, Any]) -> models.Autoencoder:
    _only(config, {"mid_block_add_attention": True, "latents_mean": None, "latents_std": None})
    if config.get("out_channels", 3) != config.get("in_channels", 3):
        raise ValueError(f"config out_channels = {config.get('out_channels', 3)}: must be in_channels")
    levels = config["block_out_channels"]
    _types(config, "down_block_types", {"DownEncoderBlock2D"})
    _types(config, "up_block_types", {"UpDecoderBlock2D"})
    quantise = {config.get("use_quant_conv", True), config.get("use_post_quant_conv", True)}
    if len(quantise) > 1:
        raise ValueError("config use_quant_conv, use_post_quant_conv: must be alike")
    side = config.get("sample_size") or 64
    factor = 2 ** (len(levels) - 1)
    return autoencoder(
        (side + -side % factor, side + -side % factor, config.get("in_channels", 3)),
        channels=levels[0],
        multipliers=_multipliers(levels),
        blocks=config.get("layers_per_block", 1),
        latent_channels=config.get("latent_channels", 4),
        scale=config.get("scaling_factor") or 0.18215,
        shift=config.get("shift_factor") or 0.0,
        quantise=quantise.pop(),
        style=Style(sinusoid, strided=(0, 1), epsilon=1e-6, groups=config.get("norm_num_groups", 32)),
        **options,
    )


def time_steps(schedule: Schedule, steps: int = 1000, *, predicts: str = "epsilon") -> Preconditioning:
    """What a network predicts that was trained on `steps` discrete times, and is told their number.

    Args:
      schedule: of its betas, such as `schedules.linear_betas()`; between its times levels are told by fractions.
      steps: how many.
      predicts: "epsilon", "v_prediction" or "sample", as diffusers calls them.

    Raises: ValueError for another target.
    """
    targets = {"epsilon": preconditioning.eps, "v_prediction": preconditioning.v, "sample": preconditioning.x0}
    if predicts not in targets:
        raise ValueError(f"predicts = {predicts!r}: must be one of {', '.join(targets)}")
    return dataclasses.replace(targets[predicts](), c_noise=lambda logsnr: schedule.inverse(logsnr) * (steps - 1))


# ---- architectures --------------------------------------------------------------------------------------------------

_PLAIN = {  # what has to be so, where a config says it
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "mid_block_scale_factor": 1,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "attn_norm_num_groups": None,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "only_cross_attention": False,
    "mid_block_only_cross_attention": None,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "addition_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "cross_attention_norm": None,
    "reverse_transformer_layers_per_block": None,
    "num_attention_heads": None,
}


def _unet2d(config: dict[str, Any], options: dict[str, Any]) -> models.Network:
    _only(config, _PLAIN | {"mid_block_type": "UNetMidBlock2D"})
    attends = _attends(config, "DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D")
    size = config.get("attention_head_dim", 8)
    heads: dict[str, Any] = dict(heads=1) if size is None else dict(head_channels=size)
    return _build(config, attends, heads | dict(num_classes=config.get("num_class_embeds")) | options)


def _unet2d_condition(config: dict[str, Any], options: dict[str, Any]) -> models.Network:
    _only(config, _PLAIN | {"mid_block_type": "UNetMidBlock2DCrossAttn"})
    attends = _attends(config, "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D")
    widths, tokens = config["block_out_channels"], config.get("cross_attention_dim", 1280)
    if not isinstance(tokens, int):
        raise ValueError(f"config cross_attention_dim = {tokens}: must be one number")
    counts = config.get("attention_head_dim", 8)  # which is the number of heads, in this class
    counts = [counts] * len(widths) if isinstance(counts, int) else counts
    sizes = {width // count for width, count in zip(widths, counts, strict=True)}
    if len(set(counts)) > 1 and len(sizes) > 1:
        raise ValueError(f"config attention_head_dim = {counts}: neither their number nor their size is one")
    heads = dict(heads=counts[0]) if len(set(counts)) == 1 else dict(head_channels=sizes.pop())
    depth = config.get("transformer_layers_per_block", 1)
    if not all(isinstance(count, int) for count in (depth if isinstance(depth, list) else [depth])):
        raise ValueError(f"config transformer_layers_per_block = {depth}: must be a number, or one for each level")
    made: dict[str, Any] = heads | dict(tokens=tokens, depth=depth, num_classes=config.get("num_class_embeds"))
    return _build(config, attends, made | options)


def _build(config: dict[str, Any], attends: list[bool], options: dict[str, Any]) -> models.Network:
    widths, padding = config["block_out_channels"], config.get("downsample_padding", 1)
    for field, value in (("freq_shift", config.get("freq_shift", 0)), ("downsample_padding", padding)):
        if value not in (0, 1):
            raise ValueError(f"config {field} = {value!r}: must be 0 or 1")
    noise = functools.partial(
        sinusoid, endpoint=config.get("freq_shift", 0) == 1, swap=not config.get("flip_sin_to_cos", True)
    )
    blocks = config.get("layers_per_block", 2)
    if not isinstance(blocks, int):
        raise ValueError(f"config layers_per_block = {blocks}: must be one number")
    size = config.get("sample_size") or 2 ** (len(widths) + 2)
    height, width = (size, size) if isinstance(size, int) else size
    style = Style(
        noise,
        modulation="shift",
        strided=(1, 1) if padding else (0, 1),
        epsilon=config.get("norm_eps", 1e-5),
        groups=config.get("norm_num_groups", 32),
    )
    channels, out_channels = config.get("in_channels", 3), config.get("out_channels", 3)
    image = channels - out_channels if channels > out_channels else None  # as for inpainting: mask and image
    network = models.unet(
        (height, width, channels - (image or 0)),
        channels=widths[0],
        multipliers=_multipliers(widths),
        blocks=blocks,
        attention=[height >> level for level, does in enumerate(attends) if does],
        out_channels=out_channels,
        image=image,
        style=style,
        **options,
    )
    return network if out_channels <= channels else _mean_only(network, channels)


def _mean_only(network: models.Network, channels: int) -> models.Network:
    """Of a network with further outputs, such as a learned variance, those that predict the mean."""

    def apply(params: Any, x: Any, *inputs: Any, **options: Any) -> Any:
        return network.apply(params, x, *inputs, **options)[..., :channels]

    return network._replace(apply=apply)


def _attends(config: dict[str, Any], down: str, down_attends: str, up: str, up_attends: str) -> list[bool]:
    """For each level whether it has attention."""
    _types(config, "down_block_types", {down, down_attends})
    _types(config, "up_block_types", {up, up_attends})
    here = [kind == down_attends for kind in config["down_block_types"]]
    if here != [kind == up_attends for kind in reversed(config["up_block_types"])]:
        raise ValueError("config down_block_types, up_block_types: must have attention at the same levels")
    return here


def _types(config: dict[str, Any], field: str, known: set[str]) -> None:
    if unknown := set(config[field]) - known:
        raise ValueError(f"config {field}: {', '.join(sorted(unknown))} not supported, only {', '.join(sorted(known))}")


def _only(config: dict[str, Any], plain: dict[str, Any]) -> None:
    """Raises ValueError for a field that says something else than diffax builds."""
    if config.get("act_fn", "silu") not in ("silu", "swish"):  # two names of one function
        raise ValueError(f"config act_fn = {config['act_fn']!r}: not supported, only 'silu'")
    for field, value in plain.items():
        here = config.get(field, value)
        if here != value and not (isinstance(here, list) and set(here) == {value}):
            raise ValueError(f"config {field} = {here!r}: not supported, only {value!r}")


def _multipliers(widths: list[int]) -> tuple[int, ...]:
    if any(width % widths[0] for width in widths):
        raise ValueError(f"config block_out_channels = {widths}: must be multiples of the first")
    return tuple(width // widths[0] for width in widths)


def _scheduler(config: dict[str, Any]) -> Preconditioning:
    """What scheduler_config.json says of training."""
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        raise ValueError(f"scheduler {config.get('_class_name')}: has no betas: give precondition")
    steps, kind = config.get("num_train_timesteps", 1000), config.get("beta_schedule", "linear")
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    if config.get("trained_betas") is not None:
        schedule = schedules.from_betas(config["trained_betas"])
    elif kind == "linear":
        schedule = schedules.linear_betas(steps, start, end)
    elif kind == "scaled_linear":
        schedule = schedules.scaled_linear_betas(steps, start, end)
    elif kind == "squaredcos_cap_v2":
        signal = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        schedule = schedules.from_betas(np.minimum(1 - signal[1:] / signal[:-1], 0.999))
    else:
        raise ValueError(f"scheduler beta_schedule = {kind!r}: must be linear, scaled_linear or squaredcos_cap_v2")
    if config.get("rescale_betas_zero_snr"):
        raise ValueError("scheduler rescale_betas_zero_snr: not supported, as its last level is infinite noise")
    return time_steps(schedule, steps, predicts=config.get("prediction_type", "epsilon"))


# ---- names ----------------------------------------------------------------------------------------------------------

_BLOCK = {"norm0": "norm1", "conv0": "conv1", "modulation": "time_emb_proj", "norm1": "norm2", "conv1": "conv2"}
_BLOCK |= {"widen": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm", "project": "to_out.0"}
_TRANSFORMER = {"project_in": "proj_in", "project_out": "proj_out", "norm": "norm"}
_TRANSFORMER_BLOCK = {"norm0": "norm1", "norm1": "norm2", "norm2": "norm3"}
_TRANSFORMER_BLOCK |= {"widen": "ff.net.0.proj", "narrow": "ff.net.2"}
for _ours, _theirs in (("self", "attn1"), ("cross", "attn2")):
    _TRANSFORMER_BLOCK |= {f"{_ours}_{part}": f"{_theirs}.to_{part}" for part in "qkv"}
    _TRANSFORMER_BLOCK |= {f"{_ours}_project": f"{_theirs}.to_out.0"}
_OUTER = {"norm_out": "conv_norm_out", "dense0": "time_embedding.linear_1", "dense1": "time_embedding.linear_2"}
_OUTER |= {"label": "class_embedding"}


def _unet_name(path: Path, levels: int, conditional: bool = False) -> str:
    """A parameter of our U-Net -> its name in diffusers."""
    layers, leaf = list(path[:-1]), _leaf(path[-1])
    layers = layers[1:] if layers[0] == "embedding" else layers
    first, rest = layers[0], layers[1:]
    if not rest and "resample" not in first:
        return f"{_OUTER.get(first, first)}.{leaf}"
    return ".".join([_place(first, levels), *_inner(first, rest, conditional), leaf])


def _place(name: str, levels: int) -> str:
    if name.startswith("middle"):
        return {"middle_attention": "mid_block.attentions.0"}.get(name, f"mid_block.resnets.{name[-1]}")
    match = re.fullmatch(r"(down|up)(\d+)_(resample|block|attention)(\d*)", name)
    assert match
    way, level, what, index = match[1], int(match[2]), match[3], match[4]
    if what == "resample":
        level -= way == "down"  # there a level's last layer, here the next one's first
        return f"{way}_blocks.{level if way == 'down' else levels - 1 - level}.{way}samplers.0.conv"
    block = level if way == "down" else levels - 1 - level
    return f"{way}_blocks.{block}.{'resnets' if what == 'block' else 'attentions'}.{index}"


def _inner(first: str, rest: list[str], conditional: bool) -> list[str]:
    if "attention" not in first:
        return [_BLOCK[layer] for layer in rest]
    if rest[0].startswith("block"):
        return [f"transformer_blocks.{rest[0].removeprefix('block')}", _TRANSFORMER_BLOCK[rest[1]]]
    names = _TRANSFORMER if conditional else _ATTENTION
    return [names.get(layer, layer) for layer in rest]


def _leaf(name: str) -> str:
    return "bias" if name == "bias" else "weight"


def _old_names(found: Tensors) -> Tensors:
    """Attention layers were called otherwise before 2023."""
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return {
        re.sub(r"\.(query|key|value|proj_attn)\.(weight|bias)$", lambda m: f".{old[m[1]]}.{m[2]}", name): tensor
        for name, tensor in found.items()
    }


def _weights(folder: File) -> File:
    names = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"]
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise ValueError(f"{folder}: has neither {' nor '.join(names)}")


def _json(path: File) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: there is no such file") from error
    except ValueError as error:  # also of text that is not UTF-8
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must be a JSON object, not a {type(found).__name__}")
    return found


@contextlib.contextmanager
def _damage(path: File) -> Iterator[None]:
    """Turns what a config with missing fields or wrong types leads to into one sentence, which names the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged, {type(error).__name__}: {error}") from error
