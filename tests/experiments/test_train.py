"""Training from config to summary: resuming loses no bit, killing loses no more than was not saved."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from diffax.training import checkpoint, sharding
from diffax.training.summary import fingerprint
from experiments import workdir as workdirs
from experiments.train import train

HASHES = ("sha256_params", "sha256_ema")


def files(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_dir):
    from experiments.configs import digits
    from tests.experiments.conftest import SMALL

    config = digits.get_config()
    config.update_from_flattened_dict(SMALL | {"data.dir": data_dir})
    workdir = tmp_path_factory.mktemp("runs") / "unbroken"
    return workdir, config, train(config, workdir)


def test_the_summary_says_what_was_done(finished):
    workdir, config, summary = finished
    assert summary == json.loads((workdir / "summary.json").read_text())
    assert (summary["step"], summary["images"]) == (8, 8 * 16)
    assert summary["wall_seconds"] > 0 and np.isfinite(summary["losses"]["loss"])
    assert any(name.startswith("levels/") for name in summary["losses"])
    # the hashes are those of the arrays in the checkpoint
    _, ema, step = workdirs.load_ema(workdir, config, sharding.data_mesh(1))
    assert step == 8 and fingerprint(ema) == summary["sha256_ema"] != summary["sha256_params"]


def test_the_run_leaves_config_samples_events_and_parameters(finished):
    workdir, config, _ = finished
    assert workdirs.read_config(workdir).to_json() == config.to_json()
    assert (workdir / "samples" / "step_00000008.png").stat().st_size > 500
    assert list(workdir.glob("events*")) and "conv_in" in (workdir / "parameters.txt").read_text()
    assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir()) == [3, 6, 8]


def test_running_again_does_nothing(finished, capsys):
    workdir, config, summary = finished
    before = files(workdir)
    assert train(config, workdir) == summary
    assert files(workdir) == before
    assert "complete" in capsys.readouterr().out


@pytest.mark.parametrize("stop", [3, 5])
def test_a_resumed_run_ends_in_the_same_bits(finished, small, tmp_path, stop):
    _, config, unbroken = finished
    first = train(small(**{"train.steps": stop}), tmp_path)
    assert first["step"] == stop and first["sha256_params"] != unbroken["sha256_params"]
    second = train(config, tmp_path)
    assert second["resumed_from_step"] == stop
    assert [second[h] for h in HASHES] == [unbroken[h] for h in HASHES]


def test_logging_and_sampling_do_not_touch_the_parameters(finished, small, tmp_path):
    _, _, unbroken = finished
    other = train(small(**{"train.log_every": 5, "train.sample_every": 4, "train.checkpoint_every": 7}), tmp_path)
    assert [other[h] for h in HASHES] == [unbroken[h] for h in HASHES]


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint(flags, tmp_path):
    """SIGKILL at arbitrary moments; the run that was killed ends in the bits of the one that was not."""
    options = flags(**{"train.steps": 60, "train.checkpoint_every": 5, "train.sample_every": 1000})

    def start(workdir):
        command = [sys.executable, "-m", "experiments.train", f"--workdir={workdir}", *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    rng, resumed = np.random.default_rng(time.time_ns()), []
    for _ in range(3):
        process = start(killed)
        had = steps(killed)
        while process.poll() is None and steps(killed) <= had:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        resumed.append(steps(killed))
    for workdir in (killed, whole):
        output = start(workdir).communicate(timeout=300)[0]
        assert (workdir / "summary.json").exists(), output
    ends = [json.loads((w / "summary.json").read_text()) for w in (killed, whole)]
    assert ends[0]["resumed_from_step"] == resumed[-1] and ends[1]["resumed_from_step"] == 0
    assert [ends[0][h] for h in HASHES] == [ends[1][h] for h in HASHES], (resumed, ends)


def steps(workdir):
    """The newest complete checkpoint, or 0."""
    folder = workdir / "checkpoints"
    return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0) if folder.exists() else 0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"train.learning_rate": 0.5}, "config.train.learning_rate is 0.001 there and 0.5 here"),
        ({"schedule": "cosine()"}, "config.schedule is"),
        ({"train.steps": 7}, "config.train.steps = 7"),
    ],
)
def test_a_workdir_of_another_config_is_refused_and_kept(finished, small, overrides, words):
    workdir, _, _ = finished
    before = files(workdir)
    with pytest.raises(ValueError) as error:
        train(small(**overrides), workdir)
    assert words in str(error.value)
    assert files(workdir) == before or overrides == {"train.steps": 7}
    assert {p: b for p, b in files(workdir).items() if "checkpoints" in str(p)} == {
        p: b for p, b in before.items() if "checkpoints" in str(p)
    }


def test_a_damaged_newest_checkpoint_is_set_aside_and_the_end_is_the_same(finished, small, tmp_path, capsys):
    _, config, unbroken = finished
    train(small(**{"train.steps": 4}), tmp_path)
    for file in (tmp_path / "checkpoints" / "4" / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: os.path.getsize(file) // 2])
    summary = train(config, tmp_path)
    assert summary["resumed_from_step"] == 3
    assert [summary[h] for h in HASHES] == [unbroken[h] for h in HASHES]
    assert "checkpoints/4 is damaged" in capsys.readouterr().err
    assert (tmp_path / "checkpoints-damaged" / "4").is_dir()
    # what was logged after step 3 was taken back, and logged again
    logged = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logged == sorted(set(logged)) and logged[-1] == 8


def test_if_every_checkpoint_is_damaged_the_run_stops_and_touches_none(small, tmp_path):
    train(small(**{"train.steps": 4}), tmp_path)
    for meta in (tmp_path / "checkpoints").glob("*/meta/metadata"):
        meta.write_text("{")
    before = {p: b for p, b in files(tmp_path).items() if "checkpoints" in str(p)}
    with pytest.raises(checkpoint.CheckpointError, match="checkpoints/4 cannot be read"):
        train(small(), tmp_path)
    assert {p: b for p, b in files(tmp_path).items() if "checkpoints" in str(p)} == before


def test_checkpoints_of_another_config_are_refused(small, tmp_path):
    train(small(**{"train.steps": 3}), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["seed"] = 5
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="made with another config"):
        train(small(seed=5), tmp_path)


def test_a_diverging_run_stops_before_saving(small, tmp_path):
    broken = {"train.learning_rate": 1e30, "train.clip_norm": 1e30, "train.checkpoint_every": 8}
    with pytest.raises(ValueError, match=r"the loss is .*Loss per bin of logSNR: .*no checkpoint was written yet"):
        train(small(**broken, **{"train.max_skipped": 3}), tmp_path / "a")
    # fewer than max_skipped, but not one that counted
    with pytest.raises(ValueError, match=r"at step 8 the loss is .* that of the parameters after it inf"):
        train(small(**broken), tmp_path / "b")
    for folder in ("a", "b"):
        assert steps(tmp_path / folder) == 0


def test_averages_and_checkpoints_are_kept_as_asked(small, tmp_path):
    fields = {"train.ema_powers": (0.05, 0.2), "train.snapshot_every": 3, "train.keep": 1, "train.keep_every": 4}
    train(small(**fields, **{"train.checkpoint_every": 2}), tmp_path)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [4, 8]
    assert sorted(int(p.name) for p in (tmp_path / "snapshots").iterdir()) == [3, 6, 8]


def test_devices_parts_and_recomputing_change_nothing_but_rounding(finished, small, tmp_path):
    _, _, unbroken = finished
    train(small(**{"train.steps": 3}), tmp_path)
    other = {"mesh.fsdp": 4, "train.accumulate": 2, "model.remat": True}  # of a run under way, too
    summary = train(small(**other), tmp_path)
    assert summary["resumed_from_step"] == 3
    assert summary["losses"] == pytest.approx(unbroken["losses"], rel=1e-4)


def test_what_is_logged_says_where_the_time_went(finished):
    workdir, _, _ = finished
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 8]
    for line in lines:
        assert sum(line[f"time/{part}"] for part in ("input", "compute", "save")) == pytest.approx(1)
        assert line["images_per_second"] > 0 and line["memory_bytes"] > 1e6 and line["flop_per_second"] > 0
        assert np.isfinite(line["train/loss"]) and line["skipped"] == 0
    assert (workdir / "samples" / "levels_00000008.png").stat().st_size > 500


@pytest.mark.slow
def test_sigterm_saves_and_ends_in_order(finished, flags, tmp_path):
    options = flags(**{"train.steps": 100_000, "train.checkpoint_every": 50_000, "train.log_every": 50_000})
    command = [sys.executable, "-m", "experiments.train", f"--workdir={tmp_path}", *options, "--profile=2:3"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    trace = tmp_path / "profile"
    while process.poll() is None and not list(trace.rglob("*.xplane.pb")):  # step 3 is done
        time.sleep(0.05)
    process.terminate()
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert f"asked to end, saved at step {steps(tmp_path)} of 100000" in output
    assert steps(tmp_path) >= 3 and not (tmp_path / "summary.json").exists()


@pytest.mark.slow
def test_a_disk_that_is_full_ends_the_run_in_one_sentence(flags, tmp_path):
    """No file may grow beyond a limit that the first checkpoint respects and a later one does not."""
    options = flags(**{"train.steps": 6, "train.checkpoint_every": 3, "train.sample_every": 1000})
    train_it = [sys.executable, "-m", "experiments.train", f"--workdir={tmp_path}"]
    first = subprocess.run([*train_it, *flags(**{"train.steps": 3})], capture_output=True, text=True)
    assert first.returncode == 0 and steps(tmp_path) == 3, first.stderr
    before = files(tmp_path / "checkpoints")

    limited = ["bash", "-c", 'ulimit -f 20 && exec "$@"', "-", *train_it, *options]  # in KiB
    full = subprocess.run(limited, capture_output=True, text=True)
    assert full.returncode == 1, full.stderr
    said = [line for line in full.stderr.splitlines() if line.startswith("error:")]
    assert len(said) == 1 and "step 3 is untouched" in said[0] and "Traceback" not in full.stderr, full.stderr
    assert {p: b for p, b in files(tmp_path / "checkpoints").items() if p in before} == before
    again = subprocess.run([*train_it, *options], capture_output=True, text=True)
    assert again.returncode == 0 and "resumed_from_step    3" in again.stdout, again.stderr


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"train.batch_size": 20}, "config.train.batch_size = 20: must be a positive multiple of the 8 devices"),
        ({"mesh.data": 3}, "config.mesh.data = 3, fsdp = 1, tensor = 1: must multiply to the 8 device(s)"),
        ({"train.accumulate": 3}, "times accumulate = 3"),
        ({"train.max_skipped": 0}, "config.train.max_skipped = 0"),
        ({"train.keep_every": -1}, "config.train.keep_every = -1"),
        ({"train.spike": 0.5}, "config.train.spike = 0.5"),
        ({"train.stall_seconds": 0.0}, "config.train.stall_seconds = 0.0"),
        ({"train.steps": 0}, "config.train.steps = 0"),
        ({"train.learning_rate": -1.0}, "config.train.learning_rate = -1.0"),
        ({"model.multipliers": (1, 1, 1, 1, 1)}, "height 8 and width 8 must be multiples of 16"),
        ({"model.dtype": "float16"}, "config.model.dtype = 'float16'"),
        ({"model.label_dropout": 1.5}, "config.model.label_dropout = 1.5"),
        ({"schedule": "laplce()"}, "did you mean 'laplace'"),
        ({"schedule": "laplace(scale=-1)"}, "scale = -1: must be positive"),
        ({"weighting": "min_snr(gama=5)"}, "did you mean 'gamma'"),
        ({"sample.solver": "huen"}, "config.sample.solver = 'huen'"),
        ({"sample.steps": 0}, "config.sample.steps = 0"),
        ({"sample.grid": "karras(sigma_min=3, sigma_max=2)"}, "sigma_min = 3: must be less than sigma_max = 2"),
        ({"data.name": "digitz"}, "did you mean 'digits'"),
    ],
)
def test_bad_fields_are_named_before_anything_is_written(small, tmp_path, overrides, words):
    with pytest.raises(ValueError) as error:
        train(small(**overrides), tmp_path / "run")
    assert words in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_lost_or_damaged_summary_is_made_again(finished, capsys):
    workdir, config, summary = finished
    for damage in ("{", "[]", '{"step": 8}', None):
        (workdir / "summary.json").unlink() if damage is None else (workdir / "summary.json").write_text(damage)
        again = train(config, workdir)
        assert again["losses"] == summary["losses"] and [again[h] for h in HASHES] == [summary[h] for h in HASHES]


def test_two_trainers_do_not_share_a_workdir(finished, small):
    workdir, config, _ = finished
    with (
        workdirs.claim(workdir, config),
        pytest.raises(ValueError, match="another process is training there"),
        workdirs.claim(workdir, config),
    ):
        pass


def test_damaged_configs_are_named(tmp_path):
    for text, words in (("[]", "holds list"), ("{}", "lacks seed"), ("{", "is no JSON")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            workdirs.read_config(tmp_path)


def test_unlabelled_data_trains_an_unconditional_model(small, tmp_path, monkeypatch):
    labelled = workdirs.load_dataset(small(), "train")
    plain = labelled._replace(num_classes=None, read=lambda i: {"image": labelled.read(i)["image"]})
    monkeypatch.setattr(workdirs, "load_dataset", lambda config, split: plain)
    assert train(small(**{"train.steps": 2, "train.sample_every": 2}), tmp_path)["step"] == 2
    assert list((tmp_path / "samples").iterdir())
