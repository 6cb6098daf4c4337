"""What the README says is so: its Python runs, its commands take the flags shown, the files it names are there."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.interop.peers import peer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.strip().splitlines()[0])
def test_python_blocks_run_and_sample_their_data(code):
    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    samples = np.asarray(scope["samples"])
    # both examples draw from two points, (-1, 0) and (1, 0)
    np.testing.assert_allclose(np.abs(samples[:, 0]).mean(), 1, atol=0.15)
    assert 0.3 < (samples[:, 0] > 0).mean() < 0.7
    assert np.abs(samples[:, 1]).mean() < 0.2


def test_the_example_of_foreign_weights_runs_on_a_folder_as_diffusers_saves_it(tmp_path, monkeypatch):
    diffusers = peer("diffusers")
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    model = diffusers.UNet2DModel(32, block_out_channels=(32, 32), layers_per_block=1, **kinds)
    diffusers.DDPMPipeline(model, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "ddpm-cifar10-32")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```py\n(.*?)```", README, re.DOTALL)
    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    images = np.asarray(scope["images"])
    assert images.shape == (8, 32, 32, 3) and np.isfinite(images).all()


@pytest.mark.parametrize("line", [line for line in SHELL if "experiments." in line])
def test_commands_take_the_flags_shown(line):
    _, _, module, *arguments = line.split()
    shown = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True).stdout
    for flag in (a.split("=")[0] for a in arguments if a.startswith("--")):
        assert re.search(rf"{flag}\b", shown), f"{module} has no {flag}"


def test_make_targets_exist():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = [line.split()[1] for line in SHELL if line.startswith("make")] + re.findall(r"`make (\w+)`", README)
    assert {"demo", "test", "lint"} <= set(named) <= set(targets)


def test_files_named_exist():
    names = re.findall(r"`((?:diffax|experiments|tests)/[\w/.]*)`", README) + re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert len(names) > 8
    assert [n for n in names if not (ROOT / n).exists()] == []
