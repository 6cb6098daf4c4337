"""Weights of EDM and EDM2: a network here computes what the same tensors compute in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx
from diffax import interop
from tests.interop.peers import compiled, peer, randomised

torch = peer("torch")
torch.set_num_threads(1)  # beside other tests, several would wait for each other

from tests.interop import torch_twins as twins  # noqa: E402  # needs torch

SIGMA = np.float32([0.05, 0.4, 3.0, 80.0])  # one for each sample
CLASSES, WIDTH = 3, 9  # of labels and of augmentation

SMALL = dict(side=8, multipliers=(1, 2), blocks=1, attention=(4,), labels=CLASSES)

# name -> (a network of theirs, whether it is told the augmentation)
CASES = {
    "DDPM++": (lambda: twins.edm(kind="ddpm++", channels=16, **SMALL | dict(blocks=2), augment=WIDTH), True),
    "NCSN++": (lambda: twins.edm(kind="ncsn++", channels=16, **SMALL | dict(multipliers=(1, 1, 2))), False),
    "ADM": (lambda: twins.edm(kind="adm", channels=64, **SMALL | dict(attention=(8, 4)), augment=WIDTH), True),
    "EDM2": (lambda: twins.edm2(channels=64, **SMALL), False),
}


def read(name):
    return interop.from_edm2 if name.startswith("EDM2") else interop.from_edm


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def theirs(twin, x, sigma, label=None, augment=None):
    """The twin's output for images [batch, height, width, channels] and classes as numbers."""
    rows = None if label is None else torch.tensor(np.eye(CLASSES + 1, CLASSES, dtype=np.float32)[label])
    with torch.no_grad():
        conditions = (rows,) if augment is None else (rows, torch.tensor(augment))
        out = twin(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(sigma), *conditions)
    return out.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("name", CASES)
def test_the_denoiser_is_that_of_the_same_weights_in_pytorch(name):
    make, augments = CASES[name]
    x = drawn(4, 8, 8, 3) * (0.5 + SIGMA[:, None, None, None])
    label, augment = np.array([0, 2, 1, CLASSES]), drawn(4, WIDTH, seed=1) if augments else None  # the last: no label
    cond = {"label": label, "augment": augment} if augments else jnp.asarray(label)
    twin = randomised(make())
    loaded = read(name)(twin.state_dict())

    @compiled
    def denoised(params, x, sigma, cond):
        return dx.denoiser(loaded.network.apply, params, loaded.preconditioning, cond)(x, sigma)

    expected = theirs(twin, x, SIGMA, label, augment)
    np.testing.assert_allclose(denoised(loaded.params, x, SIGMA, cond), expected, atol=1e-4)
    small = randomised(make(), 1e-3)
    params = read(name)(small.state_dict()).params
    np.testing.assert_allclose(denoised(params, x, SIGMA, cond), theirs(small, x, SIGMA, label, augment), atol=1e-4)
    # and these numbers say something of the conditions
    other = theirs(twin, x, SIGMA, (label + 1) % (CLASSES + 1), augment)
    assert (np.abs(other - expected).max((1, 2, 3)) > 1e-3).all()
    if augments:
        other = theirs(twin, x, SIGMA, label, 0 * augment)
        assert (np.abs(other - expected).max((1, 2, 3)) > 1e-3).all()


def smallest(**sizes):
    return randomised(
        twins.edm(**dict(kind="ddpm++", side=4, channels=8, multipliers=(1,), blocks=1, attention=()) | sizes)
    )


def test_a_network_without_conditions():
    twin = smallest()
    loaded, x = interop.from_edm(twin.state_dict()), drawn(4, 4, 4, 3)
    denoise = dx.denoiser(compiled(loaded.network.apply), loaded.params, loaded.preconditioning)
    np.testing.assert_allclose(denoise(x, SIGMA), theirs(twin, x, SIGMA), atol=1e-4)


def test_what_a_network_is_not_told_is_a_row_of_zeros():
    twin = smallest(labels=CLASSES, augment=WIDTH)
    loaded, x = interop.from_edm(twin.state_dict()), drawn(4, 4, 4, 3)
    denoise = dx.denoiser(compiled(loaded.network.apply), loaded.params, loaded.preconditioning)
    expected = theirs(twin, x, SIGMA, np.full(4, CLASSES), np.zeros((4, WIDTH), np.float32))
    np.testing.assert_allclose(denoise(x, SIGMA), expected, atol=1e-4)


# ---- reading --------------------------------------------------------------------------------------------------------


def same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_file_a_mapping_and_names_without_prefix_are_the_same(tmp_path):
    weights = smallest().state_dict()
    loaded = interop.from_edm(weights)
    torch.save({"state_dict": weights}, tmp_path / "edm.pt")
    peer("safetensors.torch").save_file(weights, tmp_path / "edm.safetensors")
    bare = {name.removeprefix("model."): np.asarray(tensor) for name, tensor in weights.items()}
    for source in (tmp_path / "edm.pt", str(tmp_path / "edm.safetensors"), bare):
        same(interop.from_edm(source).params, loaded.params)


def test_parameters_are_float32_whatever_was_stored():
    weights = smallest().half().state_dict()
    params = interop.from_edm(weights).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    stored = weights["model.map_layer0.weight"].float().numpy().T
    np.testing.assert_array_equal(params["embedding"]["dense0"]["kernel"], stored)


def test_options_and_preconditioning_are_passed_on():
    weights, other = smallest().state_dict(), dx.preconditioning.v()
    loaded = interop.from_edm(weights, precondition=other, dropout=0.5)
    assert loaded.preconditioning is other
    x, level = jnp.asarray(drawn(2, 4, 4, 3)), jnp.zeros(2)
    apply = compiled(loaded.network.apply)
    plain, dropped = (apply(loaded.params, x, level, key=key) for key in (None, jax.random.key(0)))
    assert np.abs(plain - dropped).max() > 1e-3


@pytest.mark.parametrize("name", ["ADM", "EDM2"])
def test_all_that_does_not_fit_is_said_at_once(name):
    weights = {key: np.asarray(value) for key, value in CASES[name][0]().state_dict().items()}
    middle = [key for key in weights if "in0" in key and key.endswith("weight") and weights[key].ndim == 4]
    gone, bent = middle[:2]
    del weights[gone]
    weights[bent] = weights[bent][:, 1:]
    weights[f"{gone}.more"] = np.zeros(3)
    with pytest.raises(ValueError) as error:
        read(name)(weights)
    text = str(error.value)
    short = [key.partition(".")[2] for key in (gone, f"{gone}.more", bent)]  # without "model."
    assert text.index("1 missing") < text.index(short[0])
    assert text.index("1 not known") < text.index(short[1])
    assert text.index("1 of another shape") < text.index(short[2])
    assert str(list(weights[bent].shape)) in text


def test_weights_of_another_network_are_refused():
    edm = {name.removeprefix("model."): np.asarray(t) for name, t in smallest().state_dict().items()}
    edm2 = {name.removeprefix("unet."): np.asarray(t) for name, t in CASES["EDM2"][0]().state_dict().items()}
    for read, weights, words in [
        (interop.from_edm, {}, "not those of a U-Net of EDM"),
        (interop.from_edm, {"layer.weight": np.zeros((2, 2))}, "not those of a U-Net of EDM"),
        (interop.from_edm2, edm, "1 missing: enc.4x4_block0.conv_res0.weight"),
        (interop.from_edm, edm2, "1 missing: map_layer0.weight"),
    ]:
        with pytest.raises(ValueError, match=words):
            read(weights)


@pytest.mark.parametrize("name", ["model.map_layer0.weight", "model.enc.4x4_conv.weight"])
def test_a_tensor_of_too_few_axes_is_refused(name):
    """The sizes of the network are read off these."""
    weights = {key: np.asarray(value) for key, value in smallest().state_dict().items()}
    with pytest.raises(ValueError, match=name.removeprefix("model.")):
        interop.from_edm(weights | {name: weights[name].reshape(-1)[:8]})


@pytest.mark.parametrize("buffer", ["map_noise.freqs", "resample_filter"])
def test_a_network_without_the_constants_that_make_it_is_refused(buffer):
    """They are no parameters, and a state dict of those alone would be taken for another network."""
    weights = CASES["NCSN++"][0]().state_dict()
    with pytest.raises(ValueError, match=buffer):
        interop.from_edm({name: np.asarray(tensor) for name, tensor in weights.items() if buffer not in name})
