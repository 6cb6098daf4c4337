"""The command that breaks runs on purpose: a small dose of it."""

import json
import subprocess
import sys

import pytest


def chaos(out, **flags):
    options = [f"--{name}={value}" for name, value in flags.items()]
    command = [sys.executable, "-m", "experiments.chaos", f"--out={out}", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_a_small_dose_loses_nothing(tmp_path):
    done = chaos(tmp_path / "c", kills=2, stops=0, disks=0, damages=12, steps=8, every=2)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "c" / "chaos.json").read_text())
    assert len(found["kills"]) >= 2 and len(found["damages"]) == 12
    assert all(trial["ok"] for kind in ("kills", "damages") for trial in found[kind])
    assert any(trial.get("finished") for trial in found["kills"])  # to the end, compared with the undisturbed run
    assert {trial["used"] for trial in found["damages"]} <= {6, 8}
    assert len({trial["what"] for trial in found["damages"]}) >= 3


def test_flags_out_of_range_are_named(tmp_path):
    for flags, words in (({"kills": -1}, "--kills = -1"), ({"steps": 3, "every": 2}, "--every = 2")):
        done = chaos(tmp_path, **flags)
        assert done.returncode == 1 and words in done.stderr
