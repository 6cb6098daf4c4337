"""The benchmark of networks: its listing, a small run, its PyTorch twin, its messages."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax import models
from diffax.models.unet import ADM, DDPM, DDPMPP, DIFFAX, IDDPM, NCSNPP
from tests.interop.peers import peer


def command(*arguments):
    line = [sys.executable, "-m", "experiments.bench_models", *arguments]
    return subprocess.run(line, capture_output=True, text=True)


@pytest.mark.slow
def test_the_listing_agrees_with_what_was_published():
    ran = command("--list")  # not imported: commands have flags of one name
    assert ran.returncode == 0, ran.stderr
    lines = [line.split() for line in ran.stdout.splitlines()[1:]]
    assert [line[0] for line in lines] == list(models.PRESETS)
    counted = {line[0]: line[1:3] for line in lines}
    assert counted["ddpmpp_cifar10"] == ["55,733,891", "55,733,891"]
    assert all(ours == theirs for ours, theirs in counted.values() if theirs != "diffax")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_network_is_measured(tmp_path, dtype):
    out = tmp_path / "models.json"
    flags = ["--models=digits", "--batch=8", "--rounds=1", "--nfe=2", "--torch=false", f"--dtype={dtype}"]
    ran = command(*flags, f"--out={out}")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(out.read_text())
    assert found["environment"]["command"].startswith("python -m experiments.bench_models --models=digits")
    digits = found["models"]["digits"]
    assert digits["parameters"] == models.parameters(models.preset("digits"))
    for task in ("forward", "train step", "sampler"):
        assert digits[task]["images_per_second"]["diffax"] > 0
    assert 0 < digits["train step"]["share_of_matrix_rate"] < 1
    # convolutions of the residual blocks alone: 2 x 9 x 32 x 32 operations at 64 pixels, at least eight times
    assert 8 * 64 * 2 * 9 * 32 * 32 < digits["flop_per_image_forward"] < 1e9


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--models=nosuch"], "--models = nosuch: must be some of digits"),
        (["--batch=0"], "--batch = 0: must be at least 1"),
        (["--rounds=0"], "--rounds = 0"),
    ],
)
def test_bad_flags_are_named(flags, words):
    ran = command(*flags)
    assert ran.returncode != 0 and words in ran.stderr and "Traceback" not in ran.stderr


STYLES = {"diffax": DIFFAX, "ddpm": DDPM, "iddpm": IDDPM, "ddpmpp": DDPMPP, "adm": ADM}


@pytest.mark.parametrize("name", STYLES)
def test_the_pytorch_twin_computes_the_same(name):
    torch = peer("torch")
    from experiments.bench import torch_unet

    options = dict(channels=16, multipliers=(1, 2), blocks=1, attention=(4,), num_classes=4, style=STYLES[name])
    network = models.unet((8, 8, 3), **options)
    shapes, rng = jax.eval_shape(network.init, jax.random.key(0)), np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(0.2 * rng.normal(size=s.shape), jnp.float32), shapes)
    twin = torch_unet.Twin((8, 8, 3), **options).eval()
    torch_unet.load(twin, params)
    x, level, label = rng.normal(size=(3, 8, 8, 3)).astype(np.float32), jnp.float32([-0.5, 0, 0.7]), np.array([0, 2, 4])
    embedded = torch.tensor(np.asarray(STYLES[name].noise(level, 16)))
    rows = torch.nn.functional.one_hot(torch.tensor(label), 5)[:, :4].float()
    with torch.no_grad():
        found = twin(torch.tensor(x).permute(0, 3, 1, 2), embedded, rows).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(network.apply(params, x, level, label), found, atol=1e-4 * np.abs(found).max())


def test_the_twin_refuses_what_it_does_not_have():
    peer("torch")
    from experiments.bench import torch_unet

    with pytest.raises(ValueError, match="no image skips"):
        torch_unet.Twin((8, 8, 3), style=NCSNPP)
