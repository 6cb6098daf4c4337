"""Published networks by name, with their published numbers of parameters, and small ones for a laptop.

    network = models.preset("ddpmpp_cifar10", num_classes=10)    # any argument of the constructor may be changed
    models.parameters(network)                                   # 55_734_147

Counts are those printed in the papers, or, where these round them, those of the authors' released code; the tests hold
diffax to every digit. `python -m experiments.bench_models --list` prints the table.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax

from diffax.models.dit import dit
from diffax.models.edm2 import edm2, unit_length
from diffax.models.layers import sinusoid
from diffax.models.network import Network
from diffax.models.unet import ADM, DDPM, DDPMPP, IDDPM, NCSNPP, unet
from diffax.models.uvit import uvit

__all__ = ["PRESETS", "Preset", "build", "constraint", "parameters", "preset"]


class Preset(NamedTuple):
    """A network by its numbers.

    Fields:
      make: its constructor; shape: of one sample; options: the other arguments.
      published: number of parameters, None where nobody else has this network.
      beside: parameters counted there that are not the network's here: a head for the uncertainty of EDM2, which is
        `weightings.uncertainty`.
      source: paper or code.
    """

    make: Any
    shape: tuple[int, ...]
    options: dict[str, Any]
    published: int | None = None
    beside: int = 0
    source: str = "diffax"


def build(name: str, shape: Sequence[int], **options: Any) -> Network:
    """A network by the name of its architecture, "unet", "dit", "uvit" or "edm2", or of a preset.

    Raises ValueError for another name, and for an option that this architecture does not have.
    """
    makers = {make.__name__: make for make in (unet, dit, uvit, edm2)}
    if name not in makers and name not in PRESETS:
        raise ValueError(f"architecture = {name!r}: must be {', '.join(makers)}, or a preset: {', '.join(PRESETS)}")
    make = makers.get(name) or PRESETS[name].make
    known = inspect.signature(make).parameters
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"{option} = {value}: {name} has no such option; it has {', '.join(list(known)[1:])}")
    return makers[name](shape, **options) if name in makers else preset(name, shape=shape, **options)


def constraint(name: str) -> optax.GradientTransformation:
    """What an optimizer has to end with for this architecture or preset: unit lengths for EDM2, nothing for others."""
    found = PRESETS[name].make if name in PRESETS else name
    return unit_length() if found in (edm2, "edm2") else optax.identity()


def preset(name: str, **changes: Any) -> Network:
    """The network of that name, with arguments of its constructor changed if asked, "shape" among them.

    Raises ValueError for a name that is not in PRESETS.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r}: must be one of {', '.join(PRESETS)}")
    found = PRESETS[name]
    shape = changes.pop("shape", found.shape)
    return found.make(shape, **found.options | changes)


def parameters(network: Network) -> int:
    """How many numbers it learns."""
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def _ddpm(multipliers: tuple[int, ...], **options: Any) -> dict[str, Any]:
    one_head: dict[str, Any] = dict(attention=(16,), heads=1, style=DDPM)
    return dict(channels=128, multipliers=multipliers, blocks=2) | one_head | options


def _iddpm(multipliers: tuple[int, ...], **options: Any) -> dict[str, Any]:
    four_heads: dict[str, Any] = dict(attention=(16, 8), heads=4)
    return dict(channels=128, multipliers=multipliers, blocks=3, out_channels=6, style=IDDPM) | four_heads | options


def _adm(multipliers: tuple[int, ...], **options: Any) -> dict[str, Any]:
    fixed: dict[str, Any] = dict(attention=(32, 16, 8), head_channels=64, style=ADM, out_channels=6)
    return dict(channels=256, multipliers=multipliers, blocks=2, num_classes=1000) | fixed | options


_DDPM = "Ho et al. 2020, arXiv:2006.11239"
_IDDPM = "Nichol & Dhariwal 2021, arXiv:2102.09672"
_ADM = "Dhariwal & Nichol 2021, arXiv:2105.05233"
_SONG = "Song et al. 2021, arXiv:2011.13456"
_EDM = "Karras et al. 2022, arXiv:2206.00364"
_DIT = "Peebles & Xie 2023, arXiv:2212.09748"
_EDM2 = "Karras et al. 2024, arXiv:2312.02696"

_SMALL: dict[str, Preset] = {
    "digits": Preset(unet, (8, 8, 1), dict(channels=32, multipliers=(1, 2), blocks=1, attention=(4,), num_classes=10)),
    "mnist": Preset(
        unet, (28, 28, 1), dict(channels=32, multipliers=(1, 2, 2), blocks=1, attention=(7,), num_classes=10)
    ),
    "rgb_32": Preset(unet, (32, 32, 3), dict(channels=64, multipliers=(1, 2, 2), blocks=2, attention=(16, 8))),
    "rgb_64": Preset(unet, (64, 64, 3), dict(channels=64, multipliers=(1, 2, 2, 3), blocks=2, attention=(16, 8))),
    "uvit_64": Preset(uvit, (64, 64, 3), dict(channels=64, multipliers=(1, 2), blocks=2, width=384, depth=8, heads=6)),
}
_32, _64 = (32, 32, 3), (64, 64, 3)
_UNETS: dict[str, Preset] = {
    "ddpm_cifar10": Preset(unet, _32, _ddpm((1, 2, 2, 2), dropout=0.1), 35_746_307, source=_DDPM),
    "ddpm_256": Preset(unet, (256, 256, 3), _ddpm((1, 1, 2, 2, 4, 4)), 113_673_219, source=_DDPM),
    "iddpm_cifar10": Preset(unet, _32, _iddpm((1, 2, 2, 2), dropout=0.3), 52_546_438, source=_IDDPM),
    "iddpm_imagenet_64": Preset(unet, _64, _iddpm((1, 2, 3, 4)), 121_063_942, source=_IDDPM),
    "adm_imagenet_64": Preset(
        unet, _64, _adm((1, 2, 3, 4), channels=192, blocks=3, dropout=0.1), 295_904_454, source=_ADM
    ),
    "adm_imagenet_128": Preset(unet, (128, 128, 3), _adm((1, 1, 2, 3, 4), heads=4), 421_529_606, source=_ADM),
    "adm_imagenet_256": Preset(unet, (256, 256, 3), _adm((1, 1, 2, 2, 4, 4)), 553_838_086, source=_ADM),
    "adm_imagenet_256_unconditional": Preset(
        unet, (256, 256, 3), _adm((1, 1, 2, 2, 4, 4), num_classes=None), 552_814_086, source=_ADM
    ),
    "edm_adm_imagenet_64": Preset(
        unet, _64, _adm((1, 2, 3, 4), channels=192, blocks=3, out_channels=None, dropout=0.1), 295_899_267, source=_EDM
    ),
}
for _name, _style in (("ddpmpp", DDPMPP), ("ncsnpp", NCSNPP)):
    _song = _ddpm((1, 2, 2, 2), style=_style, blocks=4, dropout=0.1)
    _edm = _song | dict(augment=9, dropout=0.13)
    _counts = {
        "ddpmpp": (55_733_891, 61_805_571, 61_804_419, 106_632_579),
        "ncsnpp": (56_397_827, 62_761_091, 62_758_787, 107_586_947),
    }[_name]
    _UNETS |= {
        f"{_name}_cifar10": Preset(unet, _32, _edm | dict(multipliers=(2, 2, 2)), _counts[0], source=_EDM),
        f"{_name}_64": Preset(unet, _64, _edm | dict(dropout=0.05), _counts[1], source=_EDM),
        f"{_name}_song": Preset(unet, _32, _song, _counts[2], source=_SONG),
        f"{_name}_song_deep": Preset(unet, _32, _song | dict(blocks=8), _counts[3], source=_SONG),
    }


def _dits() -> dict[str, Preset]:
    """Over latents of 256 x 256 images, noise and variance as output, told time steps."""
    table = {
        "s": ((384, 12, 6), (32_865_056, 32_920_448, 33_142_016)),
        "b": ((768, 12, 12), (130_315_808, 130_426_496, 130_869_248)),
        "l": ((1024, 24, 16), (457_840_672, 457_988_224, 458_578_432)),
        "xl": ((1152, 28, 16), (674_834_720, 675_000_704, 675_664_640)),
    }
    found = {}
    for size, ((width, depth, heads), counts) in table.items():
        for patch, count in zip((2, 4, 8), counts, strict=True):
            options: dict[str, Any] = dict(patch=patch, width=width, depth=depth, heads=heads, noise=sinusoid)
            options |= dict(num_classes=1000, out_channels=8)
            found[f"dit_{size}_{patch}"] = Preset(dit, (32, 32, 4), options, count, source=_DIT)
    return found


def _edm2s() -> dict[str, Preset]:
    """Over latents of 512 x 512 images."""
    table = {
        "xxs": (64, 31_309_029),
        "xs": (128, 124_713_253),
        "s": (192, 280_212_837),
        "m": (256, 497_807_781),
        "l": (320, 777_498_085),
        "xl": (384, 1_119_283_749),
        "xxl": (448, 1_523_164_773),
    }
    return {
        f"edm2_{size}": Preset(
            edm2,
            (64, 64, 4),
            dict(channels=channels, num_classes=1000, dropout=0.1 if channels > 192 else 0.0),
            count,
            128,
            _EDM2,
        )
        for size, (channels, count) in table.items()
    }


PRESETS: dict[str, Preset] = _SMALL | _UNETS | _dits() | _edm2s()
"""By name."""
