"""Where the time goes, by a clock of its own; and what a run logs."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffax.training import meter as meters
from diffax.training.meter import Meter, flop_of
from diffax.training.writers import Log


def test_shares_of_the_time_and_speed():
    meter = Meter(batch_size=10, flop_per_step=lambda: 3e6)
    meter.start(5)
    with meter.input():
        time.sleep(0.1)
    time.sleep(0.2)
    with meter.save():
        time.sleep(0.3)
    read = meter.read(8)
    meter.close()
    assert [read[f"time/{part}"] for part in ("input", "compute", "save")] == pytest.approx(
        [1 / 6, 1 / 3, 1 / 2], abs=0.1
    )
    assert read["images_per_second"] == pytest.approx(3 * 10 / 0.3, rel=0.6)
    assert read["flop_per_second"] == pytest.approx(read["images_per_second"] / 10 * 3e6)
    assert "mfu" not in read  # the peak of a CPU is not published
    again = meter.read(8)  # from the reading on
    assert again["images_per_second"] == 0 and again["time/save"] == 0


def test_mfu_is_of_the_published_peak(monkeypatch):
    class Device:
        device_kind = "TPU v5 lite"

        def memory_stats(self):
            return {"peak_bytes_in_use": 123}

    for name in ("devices", "local_devices"):
        monkeypatch.setattr(jax, name, lambda: [Device()] * 4)
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    meter = Meter(batch_size=1, flop_per_step=lambda: 197e12)
    meter._since -= 2.0
    read = meter.read(2)
    meter.close()
    assert read["mfu"] == pytest.approx(2 / 2 / 4, rel=0.05) and read["memory_bytes"] == 123


def test_operations_are_counted():
    x = jax.ShapeDtypeStruct((8, 16), np.float32)
    w = jax.ShapeDtypeStruct((16, 32), np.float32)
    assert flop_of(lambda x, w: x @ w, x, w) == pytest.approx(2 * 8 * 16 * 32, rel=0.01)
    assert flop_of(lambda x: jnp.zeros(x), x) is None


def test_a_stalled_input_is_said_once_for_each_wait_of_that_length(capsys):
    meter = Meter(batch_size=1, stall_seconds=0.6)
    with meter.input():
        time.sleep(0.1)
    assert not capsys.readouterr().err
    with meter.input():
        time.sleep(1.5)
    meter.close()
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 2 and all("no batch for" in line for line in lines)


def test_the_watch_ends_with_the_meter():
    meter = Meter(batch_size=1, stall_seconds=0.05)
    meter.close()
    meter._thread.join(1)
    assert not meter._thread.is_alive()


def test_peaks_are_found_by_the_longest_name():
    assert meters.PEAK_FLOPS["TPU v5 lite"] == 197e12 != meters.PEAK_FLOPS["TPU v5"]


def test_a_log_goes_on_from_the_step_that_was_saved(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = Log(path, 0)
    for step in (2, 4, 6):
        log.write(step, {"train/loss": step / 10})
    log.close()
    with path.open("a") as file:
        file.write('{"step": 8, "train/lo')  # torn by a kill
    log = Log(path, 4)
    log.write(6, {"train/loss": 7.0})
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["train/loss"]) for line in lines] == [(2, 0.2), (4, 0.4), (6, 7.0)]
    assert all(abs(line["time"] - time.time()) < 100 for line in lines)
    before = path.read_bytes()
    Log(path, 0, write=False).write(1, {})
    assert path.read_bytes() == before
