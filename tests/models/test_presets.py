"""Published networks have their published numbers of parameters."""

import jax
import pytest

from diffax import models
from diffax.models import PRESETS, parameters, preset
from diffax.models.layers import sinusoid
from diffax.models.unet import Style


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, found in PRESETS.items() if found.published is not None])
def test_parameters_are_as_many_as_published(name):
    assert parameters(preset(name)) + PRESETS[name].beside == PRESETS[name].published


@pytest.mark.parametrize(
    ("name", "changes", "count"),
    [
        ("ddpmpp_cifar10", dict(augment=None), 55_732_739),
        ("ddpmpp_cifar10", dict(num_classes=10), 55_735_299),
        ("ncsnpp_cifar10", dict(augment=None), 56_395_523),
        ("ncsnpp_cifar10", dict(num_classes=10), 56_400_643),
    ],
)
def test_networks_of_edm_with_and_without_classes_and_augmentation(name, changes, count):
    assert parameters(preset(name, **changes)) == count


@pytest.mark.slow
def test_stable_diffusion_has_as_many_too():
    """Rombach et al. 2022, version 1: the U-Net over latents, and the autoencoder."""
    style = Style(sinusoid, modulation="shift", strided=(1, 1))
    size = dict(channels=320, multipliers=(1, 2, 4, 4), blocks=2, attention=(64, 32, 16), heads=8, tokens=768)
    assert parameters(models.unet((64, 64, 4), **size, style=style)) == 859_520_964
    assert parameters(models.autoencoder((512, 512, 3))) == 83_653_863


def test_any_argument_may_be_changed_and_the_shape():
    network = preset("digits", shape=(16, 8, 2), channels=8, num_classes=3, out_channels=5, attention=())
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert shapes["conv_in"]["kernel"].shape == (3, 3, 2, 8)
    assert shapes["conv_out"]["kernel"].shape == (3, 3, 8, 5)
    assert shapes["embedding"]["label"]["kernel"].shape == (3, 32)
    again = jax.eval_shape(preset("digits").init, jax.random.key(0))
    assert again["conv_in"]["kernel"].shape == (3, 3, 1, 32)  # the preset itself is as it was


@pytest.mark.parametrize("name", [name for name, found in PRESETS.items() if found.published is None])
def test_networks_for_a_laptop_are_small(name):
    assert parameters(preset(name)) < 25e6


def test_an_unknown_name_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError) as error:
        preset("ddpm_cifar")
    assert "preset 'ddpm_cifar'" in str(error.value)
    assert all(name in str(error.value) for name in PRESETS)
