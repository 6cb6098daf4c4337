"""The networks that NVlabs published with EDM and EDM2, from their state dicts.

Their snapshots are pickles that hold source code, which diffax does not run. Where they are trusted, in NVlabs' own
environment, this writes what can be read here:

    with dnnlib.util.open_url(snapshot) as f: net = pickle.load(f)["ema"]
    safetensors.torch.save_file(net.state_dict(), "edm.safetensors")

    loaded = diffax.interop.from_edm("edm.safetensors")     # or from_edm2
    denoise = dx.denoiser(loaded.network.apply, loaded.params, loaded.preconditioning, labels)

The architecture is read off the names and shapes of the tensors: "SongUNet" (DDPM++ and NCSN++) or "DhariwalUNet" (ADM)
for EDM.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path as File
from typing import Any

import numpy as np

from diffax import models, preconditioning
from diffax.interop.carry import Loaded, Path, carry
from diffax.interop.files import Tensors, tensors
from diffax.models.edm2 import fourier as edm2_fourier
from diffax.models.layers import fourier
from diffax.models.unet import ADM, DDPMPP, Style
from diffax.preconditioning import Preconditioning

__all__ = ["from_edm", "from_edm2"]


def from_edm(
    source: str | File | Mapping[str, Any], *, precondition: Preconditioning | None = None, **options: Any
) -> Loaded:
    """A network of EDM (Karras et al. 2022).

    Args:
      source: the state dict of the preconditioned network ("model.enc..."), as a file or as arrays.
      precondition: `preconditioning.edm()` by default, which all but the networks retrained for VP and VE have.
      options: passed to `models.unet`: dropout, dtype, remat.

    Raises: ValueError for tensors that are not those of such a network.
    """
    found = _under("model.", tensors(source))
    sides, blocks, attention = _skeleton(found, ".norm2.weight")
    adm = "out_norm.weight" in found
    emb = _need(found, "map_layer0.weight", ndim=2)
    channels = emb.shape[0] // 4
    style = ADM if adm else _song(found, sides)
    style = style._replace(noise_width=emb.shape[1] // channels)
    widths = [_need(found, f"enc.{side}x{side}_block0.conv0.weight", ndim=4).shape[0] for side in sides]
    conv_in = _need(found, f"enc.{sides[0]}x{sides[0]}_conv.weight", ndim=4)
    conv_out = "out_conv" if adm else f"dec.{sides[0]}x{sides[0]}_aux_conv"
    network = models.unet(
        (sides[0], sides[0], conv_in.shape[1]),
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        blocks=blocks,
        attention=attention,
        head_channels=64,
        heads=None if adm else 1,
        num_classes=found["map_label.weight"].shape[1] if "map_label.weight" in found else None,
        augment=found["map_augment.weight"].shape[1] if "map_augment.weight" in found else None,
        out_channels=_need(found, f"{conv_out}.weight", ndim=4).shape[0],
        style=style,
        **options,
    )
    outer = {
        "conv_out": conv_out,
        "norm_out": "out_norm" if adm else f"dec.{sides[0]}x{sides[0]}_aux_norm",
        "dense0": "map_layer0",
        "dense1": "map_layer1",
        "label": "map_label",
        "augment": "map_augment",
    }
    inner = {"modulation": "affine", "widen": "skip", "norm": "norm2", "project": "proj"}

    def name(path: Path) -> str:
        *layers, leaf = path
        leaf = "bias" if leaf == "bias" else "weight"
        layers = layers[1:] if layers[0] == "embedding" else layers
        if layers[0] in outer:
            return f"{outer[layers[0]]}.{leaf}"
        return ".".join([_block(layers[0], sides), *(inner.get(layer, layer) for layer in layers[1:]), leaf])

    def change(path: Path, tensor: np.ndarray) -> np.ndarray:
        if path[-2] == "qkv":
            heads = 1 if not adm else tensor.shape[-1] // 3 // 64
            return _qkv(tensor, heads)
        if path[-2] == "label" and path[-1] == "kernel" and not adm:
            return tensor * np.sqrt(len(tensor))  # there the rows with a 1 are multiplied
        return tensor

    params = carry(network.init, found, name, change=change, ignore=_buffer)
    return Loaded(network, params, precondition or preconditioning.edm())


def from_edm2(
    source: str | File | Mapping[str, Any], *, precondition: Preconditioning | None = None, **options: Any
) -> Loaded:
    """A network of EDM2 (Karras et al. 2024), but for the head that weighs its training ("logvar...").

    Arguments and errors as `from_edm`; options are those of `models.edm2`.
    """
    found = _under("unet.", {name: t for name, t in tensors(source).items() if not name.startswith("logvar_")})
    sides, blocks, attention = _skeleton(found, ".attn_qkv.weight")
    widths = [_need(found, f"enc.{side}x{side}_block0.conv_res0.weight", ndim=4).shape[0] for side in sides]
    rates, phases = (_need(found, f"emb_fourier.{name}") for name in ("freqs", "phases"))
    network = models.edm2(
        (sides[0], sides[0], _need(found, "out_conv.weight", ndim=4).shape[0]),
        channels=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks=blocks,
        attention=attention,
        num_classes=found["emb_label.weight"].shape[1] if "emb_label.weight" in found else None,
        noise=functools.partial(edm2_fourier, rates=rates, phases=phases),
        **options,
    )
    outer = {"noise": "emb_noise.weight", "label": "emb_label.weight"}
    outer |= {"conv_out": "out_conv.weight", "gain_out": "out_gain"}
    inner = {"conv0": "conv_res0", "conv1": "conv_res1", "modulation": "emb_linear", "widen": "conv_skip"}
    inner |= {"qkv": "attn_qkv", "project": "attn_proj", "gain": "emb_gain"}

    def name(path: Path) -> str:
        if path[0] in outer:
            return outer[path[0]]
        return ".".join([_block(path[0], sides), *(inner.get(layer, layer) for layer in path[1:])])

    def change(path: Path, tensor: np.ndarray) -> np.ndarray:
        return _qkv(tensor, tensor.shape[-1] // 3 // 64) if "qkv" in path else tensor

    params = carry(network.init, found, name, change=change, ignore=_buffer)
    return Loaded(network, params, precondition or preconditioning.edm())


def _song(found: Tensors, sides: list[int]) -> Style:
    """DDPM++, NCSN++ or what lies between: their noise, filter and image skips may be combined."""
    image_skips = any("aux_residual" in name for name in found)
    if image_skips:
        _need(found, f"enc.{sides[1]}x{sides[1]}_aux_residual.resample_filter")
    filters = [tensor.shape[-1] for name, tensor in found.items() if name.endswith("resample_filter")]
    style = DDPMPP._replace(image_skips=image_skips, blur=4 in filters)
    if image_skips or "map_noise.freqs" in found:
        style = style._replace(noise=functools.partial(fourier, rates=_need(found, "map_noise.freqs")))
    return style


# ---- parts ----------------------------------------------------------------------------------------------------------


def _skeleton(found: Tensors, attends: str) -> tuple[list[int], int, tuple[int, ...]]:
    """Sides of the levels, blocks a level, and the sides with attention, from the names of the tensors."""
    sides = sorted({int(m[1]) for name in found if (m := re.match(r"enc\.(\d+)x\1_", name))}, reverse=True)
    if not sides:
        raise ValueError(
            "weights are not those of a U-Net of EDM, for from_edm, or of EDM2, for from_edm2: no tensor is called "
            "enc.32x32_... or alike"
        )
    blocks = len({name.split(".")[1] for name in found if name.startswith(f"enc.{sides[0]}x{sides[0]}_block")})
    attention = tuple(side for side in sides if f"enc.{side}x{side}_block0{attends}" in found)
    return sides, blocks, attention


def _block(name: str, sides: list[int]) -> str:
    """Our name of a block -> theirs."""
    if name == "conv_in":
        return f"enc.{sides[0]}x{sides[0]}_conv"
    if name.startswith("middle"):
        return f"dec.{sides[-1]}x{sides[-1]}_in{1 if name == 'middle_block1' else 0}"
    match = re.fullmatch(r"(down|up)(\d+)_(resample|image|block|attention)(\d*)", name)
    assert match
    way, level, what, index = match[1], int(match[2]), match[3], match[4]
    side = sides[level - 1 if (way, what) == ("up", "resample") else level]
    what = {"resample": way, "image": "aux_residual"}.get(what, f"block{index}")
    return f"{'enc' if way == 'down' else 'dec'}.{side}x{side}_{what}"


def _qkv(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Outputs counted by head, channel and q, k, v -> by q, k, v, head and channel."""
    split = tensor.reshape(*tensor.shape[:-1], heads, -1, 3)
    return np.moveaxis(split, -1, -3).reshape(tensor.shape)


def _under(prefix: str, found: Tensors) -> Tensors:
    """Without the prefix that the preconditioned network adds, if it is there."""
    cut = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return cut if any(name.startswith(prefix) for name in found) else found


def _buffer(name: str) -> bool:
    """What is stored beside the parameters, and is part of the architecture here."""
    return name.endswith("resample_filter") or name.startswith(("map_noise.", "emb_fourier."))


def _need(found: Tensors, name: str, ndim: int | None = None) -> np.ndarray:
    if name not in found:
        raise ValueError(f"weights do not fit the network; 1 missing: {name}")
    if ndim is not None and found[name].ndim != ndim:
        raise ValueError(f"weights do not fit the network; {name} is {list(found[name].shape)}, for {ndim} axes")
    return found[name]
