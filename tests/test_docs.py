"""The pages in docs/ are so: their Python runs, and gives what they say."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx

DOCS = Path(__file__).parent.parent / "docs"


def run(page):
    """What the Python of a page leaves behind."""
    scope: dict = {}
    for code in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL):
        exec(compile(code, page, "exec"), scope)
    return scope


@pytest.fixture(scope="module")
def solvers():
    return run("solvers.md")


def test_what_is_drawn_is_drawn_from_the_two_points(solvers):
    x, sigmas = solvers["x"], solvers["sigmas"]
    ways = {
        "ralston": dx.sample(solvers["denoise"], x, sigmas, solver=solvers["ralston"]),
        "restart": solvers["restarted"](x, jax.random.key(1)),
        "clipped": dx.sample(solvers["denoise"], x, sigmas, solver=solvers["clipped"]),
        "noise": dx.sample(
            solvers["denoise"], x, sigmas, solver=solvers["solver"], noise=lambda i, s: jnp.asarray(solvers["z"])[i]
        ),
    }
    for name, samples in ways.items():
        samples = np.asarray(samples)
        apart = np.abs(samples[:, 0])
        assert abs(apart.mean() - 1) < 0.05 and 0.4 < (samples[:, 0] > 0).mean() < 0.6, name
        assert 0.05 < np.hypot(apart - 1, samples[:, 1]).std() < 0.2, name


def test_evaluations_are_those_that_are_told(solvers):
    calls = []

    def counted(x, sigma):
        jax.debug.callback(lambda s: calls.append(float(s)), sigma)
        return solvers["denoise"](x, sigma)

    dx.sample(counted, solvers["x"], solvers["sigmas"], solver=solvers["ralston"]).block_until_ready()
    jax.effects_barrier()
    assert len(calls) == solvers["ralston"].nfe(20) == 39
    levels = solvers["sigmas"][0] + 2 / 3 * (solvers["sigmas"][1] - solvers["sigmas"][0])
    assert calls[1] == pytest.approx(levels)  # two thirds of the way in sigma


def test_the_loss_is_that_of_the_numbers_given(solvers):
    n, u = np.float64(solvers["n"]), np.float64(solvers["u"])
    logsnr = np.float64(dx.schedules.edm()(u))
    sigma = np.exp(-logsnr / 2)[:, None]
    scale = np.sqrt(sigma**2 + 0.25)
    denoised = 0.25 / scale**2 * sigma * n + sigma * 0.5 / scale * (0.5 * sigma * n / scale)  # EDM's D for F = x / 2
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    np.testing.assert_allclose(solvers["aux"].loss, (weight * denoised**2).mean(1), rtol=1e-4)


def test_files_named_exist():
    for page in DOCS.glob("*.md"):
        text = page.read_text()
        named = [DOCS.parent / name for name in re.findall(r"`((?:diffax|experiments|tests)/[\w/.]*)`", text)]
        named += [page.parent / name for name in re.findall(r"!\[.*?\]\((.*?)\)", text)]
        assert named and not [name for name in named if not name.exists()]
