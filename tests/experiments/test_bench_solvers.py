"""The benchmark of solvers: exact targets, honest counting, the errors of dx.sample, a whole report."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax as dx
from experiments.bench import common, libraries, ours, peers, report, speed, targets

TURNED = targets.load("gaussians")
COMMON = targets.load("curve")
WEIGHTED = targets.Target(
    "w", "w", (3,), 4, targets.Mixture(np.arange(6.0).reshape(2, 3), np.log([1.0, 3.0]), np.float64(0.3))
)


def brute_force(mixture, x, sigma):
    """E[x0 | x] one sample and one component at a time, with full covariance matrices."""
    means, log_weights, variances, axes = mixture
    d = means.shape[1]
    out = []
    for y, s in zip(x, np.broadcast_to(sigma, len(x)), strict=True):
        logs, posterior = [], []
        for k, mean in enumerate(means):
            own = np.eye(d) * variances if axes is None else axes[k] @ np.diag(variances[k]) @ axes[k].T
            total = own + s**2 * np.eye(d)
            gap = np.linalg.solve(total, y - mean)
            logs.append(log_weights[k] - 0.5 * (y - mean) @ gap - 0.5 * np.linalg.slogdet(total)[1])
            posterior.append(mean + own @ gap)
        r = np.exp(np.array(logs) - max(logs))
        out.append(r @ np.array(posterior) / r.sum())
    return np.array(out)


@pytest.mark.parametrize("target", [TURNED, COMMON, WEIGHTED], ids=lambda t: t.name)
@pytest.mark.parametrize("sigma", [80.0, 0.5, 0.03, np.array([3.0, 0.3, 0.01, 40.0])], ids=str)
def test_denoisers_are_the_posterior_mean(target, sigma):
    x = target.exact_samples(4, seed=3) + np.reshape(sigma, (-1, 1)) * np.random.default_rng(0).standard_normal((4, 1))
    x = x.astype(np.float32)
    expected = brute_force(target.mixture, x.astype(np.float64), sigma)
    np.testing.assert_allclose(target.numpy_denoiser()(x, sigma), expected, rtol=1e-9, atol=1e-9)
    narrow = target.denoiser()(jnp.asarray(x), sigma)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, expected, rtol=1e-4, atol=2e-4)
    with jax.enable_x64(True):
        wide = jax.jit(target.denoiser())(jnp.asarray(x), sigma)
        assert wide.dtype == jnp.float32
        np.testing.assert_allclose(wide, expected, rtol=2e-7, atol=2e-7)


def test_torch_denoiser_is_the_same():
    torch = pytest.importorskip("torch")
    x = TURNED.start()[:8]
    found = TURNED.torch_denoiser()(torch.as_tensor(x), 1.5)
    np.testing.assert_allclose(found, TURNED.numpy_denoiser()(x, 1.5), rtol=1e-6)


@pytest.mark.parametrize("target", [TURNED, COMMON, WEIGHTED], ids=lambda t: t.name)
def test_exact_samples_have_the_moments_of_the_mixture(target):
    means, log_weights, variances, axes = target.mixture
    w = np.exp(log_weights) / np.exp(log_weights).sum()
    own = variances if axes is None else np.einsum("kij,kj->ki", axes**2, variances)
    samples = target.exact_samples(40_000, seed=0)
    mean = w @ means
    np.testing.assert_allclose(samples.mean(0), mean, atol=0.05)
    np.testing.assert_allclose(samples.var(0), (w[:, None] * (own + (means - mean) ** 2)).sum(0), rtol=0.05)


def test_the_reference_has_converged_and_solves_the_ode():
    single = targets.Mixture(np.array([[1.0, -2.0]]), np.zeros(1), np.float64(0.25))
    target = targets.Target("one", "one", (2,), 8, single)
    denoise, x = target.numpy_denoiser(), target.start()
    end = targets.integrate(denoise, x, 1024)
    # For one Gaussian (x - m) / sqrt(v + sigma^2) is constant.
    low, high = targets.SIGMA_MIN, targets.SIGMA_MAX
    state = single.means + (x - single.means) * np.sqrt((0.25 + low**2) / (0.25 + high**2))
    np.testing.assert_allclose(end, denoise(state, low), atol=1e-9)


def test_a_network_is_a_target(small, monkeypatch):
    from experiments import workdir
    from experiments.bench import networks
    from experiments.recipe import recipe
    from experiments.workdir import load_dataset

    config = small()
    rec = recipe(config, load_dataset(config, "train"))
    params = jax.jit(rec.network.init)(jax.random.key(0))
    monkeypatch.setattr(workdir, "read_config", lambda path: config)
    monkeypatch.setattr(workdir, "load_ema", lambda *_: (rec, params, 30))
    target = networks.from_workdir(Path("runs/digits"))
    assert target.name == "digits@30" and target.shape == (8, 8, 1)  # digits is an exact target
    x = target.start()[:3] / 40
    narrow, wide = jax.jit(target.denoiser())(x, 2.0), target.numpy_denoiser()(x, 2.0)
    assert narrow.dtype == np.float32
    assert wide.dtype == np.float64
    np.testing.assert_allclose(narrow, wide, atol=1e-4)


def test_starts_are_fixed_and_the_first_of_more():
    np.testing.assert_array_equal(TURNED.start()[:5], TURNED._replace(seeds=5).start())
    assert not np.array_equal(TURNED.pilot(5), TURNED.start()[:5])


def test_problems_come_back_from_a_file(tmp_path):
    for target in (TURNED, WEIGHTED):
        end = np.ones((target.seeds, *target.shape))
        targets.save(tmp_path / "p.npz", target, end)
        again, end_again = targets.read(tmp_path / "p.npz")
        np.testing.assert_array_equal(end_again, end)
        assert again.shape == target.shape
        assert again.seeds == target.seeds
        assert again.fingerprint() == target.fingerprint()


@pytest.mark.parametrize("name", ours.GRIDS)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_grids_start_at_the_top_and_end_at_zero(name, n):
    grid = ours.GRIDS[name](n)
    assert grid.shape == (n + 1,)
    assert grid[0] == pytest.approx(80, rel=1e-12)
    assert grid[-1] == 0
    assert (np.diff(grid) < 0).all()


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("cosine", dx.schedules.truncate(dx.schedules.cosine(), -2 * np.log(80), -2 * np.log(0.002))),
        ("karras", dx.schedules.karras()),
        ("exp", dx.schedules.geometric(sigma_min=0.002, sigma_max=80)),
        ("vp", dx.schedules.truncate(dx.schedules.linear_beta(), -2 * np.log(80), -2 * np.log(0.002))),
    ],
)
def test_grids_are_diffax_schedules(name, schedule):
    np.testing.assert_allclose(ours.GRIDS[name](12), dx.schedules.sigmas(schedule, 12), rtol=2e-4)


@pytest.mark.parametrize("name", ours.SOLVERS)
def test_evaluations_are_counted_right(name):
    solver, count = ours.SOLVERS[name], 0

    def counted(x, sigma):
        nonlocal count
        count += 1
        return 0.5 * x

    n = ours.steps(solver, 12)
    rows = solver.rows(common.karras(n), True)
    assert len(rows.sigma) == solver.nfe(n) <= 12 < solver.nfe(n + 1)
    with jax.disable_jit():
        dx.sample(counted, jnp.ones((1, 2)), common.karras(3), solver=solver)
    assert count == solver.nfe(3)


@pytest.mark.parametrize("name", ["heun", "unipc(3)", "exponential_ab(3, eps)", "adams_bashforth(3, v)"])
def test_the_shared_loop_gives_what_sample_gives(name):
    solver, x, sigmas = ours.SOLVERS[name], jnp.asarray(TURNED.start()[:4]), common.karras(7)
    denoise = TURNED.denoiser()
    expected = dx.sample(denoise, x, sigmas, solver=solver)
    np.testing.assert_allclose(ours.sampler(denoise)(solver, sigmas, x), expected, rtol=1e-5, atol=1e-5)


def test_errors_are_means_and_medians_over_seeds():
    end = np.zeros((3, 4))
    found = np.array([[1.0] * 4, [2.0] * 4, [6.0] * 4])
    assert common.errors(found, end) == {"mean": 3.0, "median": 2.0}
    with pytest.raises(ValueError, match="not finite"):
        common.errors(found * np.nan, end)


class Tensor(np.ndarray):
    """What `measure` asks of a torch tensor."""

    def double(self):
        return self.astype(np.float64)

    def numpy(self):
        return np.asarray(self)


def test_peers_are_counted_and_take_the_grid():
    seen = []

    def two_calls_a_step(denoise, x, sigmas):
        for sigma in sigmas[:-1]:
            seen.append(sigma)
            x = denoise(x, sigma) + denoise(x, sigma)
        return x

    x, grid = np.ones((1, 2)).view(Tensor), common.karras
    honest = libraries.Peer("x/honest", two_calls_a_step, lambda nfe: nfe // 2, True)
    np.testing.assert_array_equal(peers.measure(honest, lambda x, s: x, x, grid, 4), 4 * np.ones((1, 2)))
    assert seen == grid(2)[:-1].tolist()
    denoised = honest._replace(steps=lambda nfe: (nfe + 1) // 2, to_zero=False)
    np.testing.assert_array_equal(peers.measure(denoised, lambda x, s: x, x, grid, 3), 2 * np.ones((1, 2)))
    with pytest.raises(RuntimeError, match="8 evaluations"):
        peers.measure(honest._replace(steps=libraries.one), lambda x, s: x, x, grid, 4)


def test_timing_compares_with_the_bare_loop():
    found = speed.compare(lambda: sum(range(20_000)), lambda: sum(range(2_000)), 20)
    assert found["over_bare"] > 3
    assert found["seconds_a_step"] > found["seconds_a_step_bare"] > 0


ERRORS = {
    "diffax": {"t": {"5": {"a/k": {"mean": 1.0, "median": 4.0}, "b/k": {"mean": 2.0, "median": 1.0}}}},
    "peers": {"t": {"5": {"x/y/k": {"mean": 2.0, "median": 0.5}}}},
}


def test_winners_and_fixed_choices():
    (mean,), (median,) = report.cells(ERRORS, "mean"), report.cells(ERRORS, "median")
    assert (mean.ours, mean.theirs, mean.ratio) == (("a/k", 1.0), ("x/y/k", 2.0), 0.5)
    assert (median.ours[0], median.ratio) == ("b/k", 2.0)
    assert report.fixed_choices(ERRORS, "diffax") == [("a/k", 0.5), ("b/k", 1.0)]
    assert report.fixed_choices({"diffax": ERRORS["diffax"]}, "diffax")[0] == ("a/k", 1.0)
    assert "wins 1, ties 0 and loses 0 of 1 cells" in report.summary(ERRORS)[0]
    assert "wins 0, ties 0 and loses 1 of 1 cells" in report.summary(ERRORS)[1]


def run(*arguments):
    command = [sys.executable, "-m", "experiments.bench_solvers", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_command_writes_json_picture_and_page(tmp_path):
    theirs = {
        "seeds": {"gaussians": 4},
        "errors": {"gaussians": {"3": {"<lib>/s/karras": {"mean": 1.0, "median": 1.0}}}},
    }
    (tmp_path / "peers.json").write_text(json.dumps(theirs))
    small = ("--targets=gaussians", "--nfe=3", "--seeds=4", "--samples=64")
    done = run(*small, f"--out={tmp_path}", f"--peers={tmp_path / 'peers.json'}")
    assert done.returncode == 0, done.stderr
    assert "of 1 cells" in done.stdout
    result = json.loads((tmp_path / "solvers.json").read_text())
    row = result["errors"]["diffax"]["gaussians"]["3"]
    assert "default/plain" in row and len(row) <= 25
    everything = json.loads(next((tmp_path / "cells").glob("gaussians-4-3-*.json")).read_text())
    assert {"euler/karras", "unipc(3)/vpown"} <= everything.keys() and result["summary"][0] in done.stdout
    best = min(everything.values(), key=lambda e: e["median"])
    assert min(e["median"] for e in row.values()) == pytest.approx(best["median"], rel=1e-3)
    assert all(np.isfinite(e["mean"]) for e in row.values())
    assert result["wasserstein"]["gaussians"]["3"]["heun/karras"] > 0
    assert result["environment"]["versions"]["jax"]
    assert (tmp_path / "solvers.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "solvers.html").read_text()
    assert "&lt;lib&gt;/s/karras" in page
    assert "data:image/png;base64," in page
    assert "http" not in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nfe=0"], "--nfe = 0: must be integers from 1 to 1000"),
        (["--targets=digits,nope"], "--targets = nope: must be some of gaussians, digits, mnist, curve, spiral"),
        (["--seeds=0"], "--seeds = 0: must be at least 1"),
        (["--peers=nowhere.json"], "nowhere.json"),
        (["--workdir=nowhere"], "holds no config.json"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, words, tmp_path):
    done = run(f"--out={tmp_path / 'b'}", *arguments)
    assert done.returncode not in (0, None)
    assert len(done.stderr.strip().splitlines()) == 1
    assert words in done.stderr
    assert not (tmp_path / "b").exists()


def test_peers_of_other_seeds_are_refused(tmp_path):
    (tmp_path / "peers.json").write_text(json.dumps({"seeds": {"gaussians": 256}, "errors": {}}))
    done = run("--targets=gaussians", "--seeds=4", f"--peers={tmp_path / 'peers.json'}", f"--out={tmp_path}")
    assert "holds 256 starts of gaussians, not 4" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("azula") is None, reason="the peers live in an environment of their own")
def test_peers_run():
    torch = pytest.importorskip("torch")
    denoise, x = TURNED.torch_denoiser(), torch.as_tensor(TURNED.start()[:4])
    for peer in libraries.peers():
        assert np.isfinite(peers.measure(peer, denoise, x, common.karras, 8)).all(), peer.name
