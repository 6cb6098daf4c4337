"""Several real processes on this machine, through jax.distributed: one run, whatever their number."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from experiments import cluster

HASHES = ("sha256_params", "sha256_ema")
STEPS = {"train.steps": 12, "train.checkpoint_every": 3, "train.log_every": 3, "train.sample_every": 12}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(workdir, options, processes, devices):
    """The same line in every process; devices in each."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-m", "experiments.train", f"--workdir={workdir}", *options]
    if processes > 1:
        command += [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={processes}", "--heartbeat=10"]
    return [
        subprocess.Popen(
            command + ([f"--process={i}"] if processes > 1 else []),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(processes)
    ]


def finish(*arguments):
    started = start(*arguments)
    try:
        outputs = [process.communicate(timeout=300)[0] for process in started]
    except subprocess.TimeoutExpired:  # say why, and leave none of them behind
        for process in started:
            process.kill()
        outputs = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), outputs
    return outputs


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def newest(workdir):
    folder = workdir / "checkpoints"
    return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0) if folder.exists() else 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory, data_dir):
    """One process with two devices."""
    from tests.experiments.conftest import arguments

    workdir = tmp_path_factory.mktemp("runs") / "alone"
    finish(workdir, arguments(data_dir, **STEPS), 1, 2)
    return summary(workdir)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices", "mesh"), [(2, 1, {}), (4, 1, {"mesh.fsdp": 2})])
def test_processes_train_the_same_parameters_as_one(alone, flags, tmp_path, processes, devices, mesh):
    outputs = finish(tmp_path, flags(**STEPS, **mesh), processes, devices)
    assert summary(tmp_path)["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    if not mesh:  # the same sums in the same order
        assert [summary(tmp_path)[h] for h in HASHES] == [alone[h] for h in HASHES]
    # one of them speaks, writes the log and the pictures
    assert f"{processes * devices} cpu device(s) in {processes} processes" in outputs[0]
    assert all("sha256" not in output for output in outputs[1:])
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [3, 6, 9, 12]
    assert len(list((tmp_path / "samples").glob("step_*.png"))) == 1 and len(list(tmp_path.glob("events*"))) == 1


@pytest.mark.slow
def test_when_one_is_killed_the_others_end_and_all_go_on_from_there_in_any_number(alone, flags, tmp_path):
    options = flags(**STEPS | {"train.steps": 100_000})
    started = start(tmp_path, options, 2, 1)
    while all(p.poll() is None for p in started) and newest(tmp_path) < 3:
        time.sleep(0.05)
    started[1].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    output = started[0].communicate(timeout=120)[0]
    assert started[0].returncode not in (0, None), output
    assert time.monotonic() - begin < 60  # --heartbeat=10, and some to notice
    started[1].communicate()
    reached = newest(tmp_path)
    assert reached >= 3
    # the rest of the run by one process: the data go on where they were
    steps = {"train.steps": reached + 4}
    finish(tmp_path, flags(**STEPS | steps), 1, 2)
    assert summary(tmp_path)["resumed_from_step"] == reached
    finish(tmp_path / "unbroken", flags(**STEPS | steps), 1, 2)
    for name in HASHES:
        assert summary(tmp_path)[name] == summary(tmp_path / "unbroken")[name]


@pytest.mark.slow
def test_a_signal_to_one_process_saves_on_all(flags, tmp_path):
    started = start(tmp_path, flags(**STEPS | {"train.steps": 100_000, "train.checkpoint_every": 50_000}), 2, 1)
    while all(p.poll() is None for p in started) and not (tmp_path / "metrics.jsonl").exists():
        time.sleep(0.05)
    time.sleep(1)
    started[1].terminate()
    outputs = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    saved = int(re.search(r"asked to end, saved at step (\d+)", outputs[0])[1])
    assert newest(tmp_path) == saved > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--coordinator=127.0.0.1:1"], "--processes and --process missing"),
        (["--coordinator=127.0.0.1:1", "--processes=2", "--process=2"], "--process = 2: must lie in [0, 1]"),
        (["--coordinator=127.0.0.1:1", "--processes=0", "--process=0"], "--processes = 0"),
        (["--coordinator=here", "--processes=2", "--process=0"], "--coordinator = here: must be host:port"),
        (["--heartbeat=0"], "--heartbeat = 0"),
        (["--profile=5:2"], "--profile = 5:2: must be START:STOP"),
    ],
)
def test_flags_that_do_not_fit_are_named(flags, tmp_path, options, words):
    command = [sys.executable, "-m", "experiments.train", f"--workdir={tmp_path / 'w'}", *flags(), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and words in done.stderr and not (tmp_path / "w").exists()


def test_launchers_are_recognised(monkeypatch):
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    assert not cluster._launched_as_several()
    for name, one, several in (
        ("SLURM_NTASKS", "1", "16"),
        ("OMPI_COMM_WORLD_SIZE", "1", "2"),
        ("TPU_WORKER_HOSTNAMES", "host0", "host0,host1"),
    ):
        monkeypatch.setenv(name, one)
        assert not cluster._launched_as_several()
        monkeypatch.setenv(name, several)
        assert cluster._launched_as_several()
        monkeypatch.delenv(name)
