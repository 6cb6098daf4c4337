"""Kills, stops and damages training runs on purpose, and holds what comes of them against a run that was left alone.

    python -m experiments.chaos --out bench/chaos          # make chaos

On the digits config, with a checkpoint every few steps:
  kills     SIGKILL at random moments, half of them while a checkpoint is being written. Each restart must go on from a
            whole checkpoint, and the end must be the undisturbed run's to the bit.
  stops     SIGTERM at random moments: exit status 0, the step under way saved, the same end.
  disks     a file system that fills up, or turns read-only, while training: exit status 1, one sentence, the last
            checkpoint whole; with room again, the same end.
  damages   to the newest checkpoint: one of its files truncated, emptied, flipped in one bit, or removed; or an empty
            directory newer than it. Either what is read is what was saved, to the bit, or the one before is used, and
            nothing is deleted.
Writes chaos.json with every trial, and exits with status 1 if one of them lost something.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from diffax.training import checkpoint, sharding
from diffax.training.summary import environment, fingerprint, read_json, write_json
from experiments import cli, train
from experiments import workdir as workdirs
from experiments.configs import digits
from experiments.recipe import optimizer, recipe

OUT = flags.DEFINE_string("out", "bench/chaos", "The folder to work in and to write chaos.json to; made anew.")
KILLS = flags.DEFINE_integer("kills", 50, "Times that a run is killed.")
STOPS = flags.DEFINE_integer("stops", 5, "Times that a run is asked to end.")
DISKS = flags.DEFINE_integer("disks", 5, "Times that the disk fails.")
DAMAGES = flags.DEFINE_integer("damages", 100, "Times that a checkpoint is damaged.")
STEPS = flags.DEFINE_integer("steps", 200, "Steps of a run.")
EVERY = flags.DEFINE_integer("every", 4, "Steps between checkpoints.")
SEED = flags.DEFINE_integer("seed", 0, "Of the moments and places.")

HASHES = ("sha256_params", "sha256_ema")


def main() -> None:
    for flag in (KILLS, STOPS, DISKS, DAMAGES):
        if flag.value < 0:
            raise ValueError(f"--{flag.name} = {flag.value}: must be at least 0")
    if STEPS.value < 2 * EVERY.value or EVERY.value < 1:
        raise ValueError(f"--every = {EVERY.value}: must be at least 1 and at most half of --steps = {STEPS.value}")
    out = Path(OUT.value)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    rng = np.random.default_rng(SEED.value)

    unbroken = finish(out / "unbroken")
    kept = sorted(checkpoint.steps(out / "unbroken" / "checkpoints"))
    result: dict[str, Any] = {"unbroken": {name: unbroken[name] for name in ("step", *HASHES)}, "kept": kept}
    for name, trials in (
        ("kills", kills(out / "killed", rng)),
        ("stops", stops(out / "stopped", rng)),
        ("disks", disks(out / "disk", rng)),
        ("damages", damages(out / "unbroken", out / "damaged", rng)),
    ):
        count = getattr(flags.FLAGS, name)
        found: list[dict[str, Any]] = []
        with tqdm(total=count, desc=name, unit="trial") as bar:
            for trial in trials if count else ():
                found.append(trial)
                bar.update()
                if len(found) >= count and trial.get("ended", True):
                    break
        for trial in found:
            if "end" in trial:  # of a run: its hashes
                trial["ok"] = bool(trial["ok"] and trial.pop("end") == [unbroken[h] for h in HASHES])
        result[name] = found
        write_json(out / "chaos.json", result | {"environment": environment()})
    lines = [
        f"{name:8} {len(result[name]):4} trials, {sum(not t['ok'] for t in result[name])} lost something"
        for name in ("kills", "stops", "disks", "damages")
    ]
    print("\n".join([*lines, str(out / "chaos.json")]))
    if lost := [t for name in ("kills", "stops", "disks", "damages") for t in result[name] if not t["ok"]]:
        raise ValueError(f"{len(lost)} trials lost something, the first: {lost[0]}")


# ---- runs -----------------------------------------------------------------------------------------------------------


def log_of(workdir: Path) -> Path:
    """What a run printed, not on the disk that fails."""
    return Path(OUT.value) / f"{'-'.join(workdir.relative_to(OUT.value).parts)}.log"


def start(workdir: Path) -> subprocess.Popen:
    """The train command on the digits config."""
    fields = {
        "steps": STEPS.value,
        "checkpoint_every": EVERY.value,
        "log_every": EVERY.value,
        "sample_every": STEPS.value,
    }
    command = [sys.executable, "-m", "experiments.train", "--config=experiments/configs/digits.py"]
    command += [f"--workdir={workdir}", *(f"--config.train.{name}={value}" for name, value in fields.items())]
    with log_of(workdir).open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def finish(workdir: Path) -> dict[str, Any]:
    """Lets a run go to its end; its summary."""
    status = start(workdir).wait()
    if status:
        raise ValueError(f"{workdir} ended with status {status}: see {log_of(workdir)}")
    return read_json(workdir / "summary.json")


def first_step(process: subprocess.Popen, workdir: Path) -> None:
    """Waits until a started run has saved something new, or ended."""
    before = newest(workdir)
    while process.poll() is None and newest(workdir) == before:
        time.sleep(0.02)


def newest(workdir: Path) -> int:
    """The newest checkpoint, 0 if there is none."""
    return max(checkpoint.steps(workdir / "checkpoints"), default=0)


def kills(folder: Path, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Runs that are killed again and again until they end; a new run when one has."""
    for count in range(1, sys.maxsize):
        workdir = folder.with_name(f"{folder.name}{count}")
        while not (workdir / "summary.json").exists():
            before, during = newest(workdir), bool(rng.integers(2))
            process = start(workdir)
            if rng.random() < 0.8:  # otherwise at any moment of the start, too
                first_step(process, workdir)
                time.sleep(rng.uniform(0, 1.5))
            else:
                time.sleep(rng.uniform(0, 10))
            if during:  # wait for a checkpoint that is being written
                while process.poll() is None and not list((workdir / "checkpoints").glob("*tmp*")):
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
            if process.wait() == 0:  # it was faster
                break
            partial = len(list((workdir / "checkpoints").glob("*tmp*")))
            yield {
                "from": before,
                "killed_at": newest(workdir),
                "while_writing": partial > 0,
                "ok": newest(workdir) >= before,
                "ended": False,
            }
            if newest(workdir) >= STEPS.value:
                break
        left, ended = newest(workdir), (workdir / "summary.json").exists()
        summary = finish(workdir)
        went_on = ended or summary["resumed_from_step"] == left
        yield {"from": left, "finished": True, "ok": went_on, "end": [summary[h] for h in HASHES], "ended": True}
        shutil.rmtree(workdir)


def stops(folder: Path, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """SIGTERM, and on to the end."""
    for count in range(1, sys.maxsize):
        workdir = folder.with_name(f"{folder.name}{count}")
        process = start(workdir)
        first_step(process, workdir)
        time.sleep(rng.uniform(0, 1.0))
        process.terminate()
        status, stopped_at = process.wait(), newest(workdir)
        summary = finish(workdir)
        ok = status == 0 and (summary["resumed_from_step"] == stopped_at or stopped_at == STEPS.value)
        yield {"status": status, "stopped_at": stopped_at, "ok": ok, "end": [summary[h] for h in HASHES]}
        shutil.rmtree(workdir)


# ---- disks ----------------------------------------------------------------------------------------------------------


def disks(folder: Path, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """A file system of its own (as root, on Linux) that is full, or read-only, in the middle of a run."""
    for count in range(1, sys.maxsize):
        mount = folder.with_name(f"{folder.name}{count}")
        mount.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m", "none", mount], capture_output=True).returncode:
            yield {"left_out": "a file system can only be mounted as root", "ok": True}
            continue
        workdir, read_only = mount / "run", count % 2 == 0
        try:
            process = start(workdir)
            first_step(process, workdir)
            time.sleep(rng.uniform(0, 0.5))
            size = "ro" if read_only else f"size={max(_used(mount) + int(rng.integers(0, 12 << 20)), 1 << 20)}"
            how = f"remount,{size}"
            while (
                subprocess.run(["mount", "-o", how, mount], capture_output=True).returncode and process.poll() is None
            ):
                if read_only:  # refused while a file is open for writing
                    how = f"remount,size={max(_used(mount), 1 << 20)}"
            status = process.wait()
            log = log_of(workdir).read_text()
            before = newest(workdir)
            _remount(mount, "rw,size=512m")
            summary = finish(workdir)
            said = [line.replace(f"{Path.cwd()}/", "") for line in log.splitlines() if line.startswith("error:")]
            ok = status == 1 and "Traceback" not in log and 0 < summary["resumed_from_step"] <= before
            yield {"how": how, "status": status, "said": said[-1:], "ok": ok, "end": [summary[h] for h in HASHES]}
        finally:
            subprocess.run(["umount", "-l", mount], check=True)


def _remount(mount: Path, how: str) -> bool:
    return subprocess.run(["mount", "-o", f"remount,{how}", mount], capture_output=True).returncode == 0


def _used(mount: Path) -> int:
    stats = os.statvfs(mount)
    return (stats.f_blocks - stats.f_bfree) * stats.f_frsize


# ---- damages --------------------------------------------------------------------------------------------------------


def damages(workdir: Path, folder: Path, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Reads a run's checkpoints after the newest one came to harm."""
    directory = workdir / "checkpoints"
    good = {step: _read(directory, step) for step in checkpoint.steps(directory)[-2:]}
    last = max(good)
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(f"{folder}-damaged", ignore_errors=True)
        for step in good:
            shutil.copytree(directory / str(step), folder / str(step))
        what = str(rng.choice(["truncated", "emptied", "flipped", "removed", "empty directory"], p=[0.2] * 5))
        where = ""
        if what == "empty directory":
            (folder / str(last + 1)).mkdir()
        else:
            files = sorted(p for p in (folder / str(last)).rglob("*") if p.is_file())
            file = files[rng.integers(len(files))]
            where = str(file.relative_to(folder))
            _damage(file, what, rng)
        count = sum(p.is_file() for p in folder.rglob("*"))
        found = checkpoint.restore(folder, _like())
        assert found is not None
        same = fingerprint(found.items) == good[found.step]
        still = sum(p.is_file() for root in (folder, Path(f"{folder}-damaged")) for p in root.rglob("*"))
        yield {"what": what, "where": where, "used": found.step, "ok": bool(same and count == still)}


def _damage(file: Path, what: str, rng: np.random.Generator) -> None:
    content = bytearray(file.read_bytes())
    if what == "removed":
        file.unlink()
        return
    if what == "flipped" and content:
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    else:
        del content[int(rng.integers(len(content))) if what == "truncated" and content else 0 :]
    file.write_bytes(bytes(content))


def _like() -> dict[str, Any]:
    """What the digits config saves, on one device."""
    config, mesh = digits.get_config(), sharding.data_mesh(1)
    rec = recipe(config, workdirs.load_dataset(config, "train"))
    state = jax.eval_shape(train.init(config, rec, optimizer(config), mesh), jax.random.key(0))
    return train.items(sharding.like(state, mesh))


def _read(directory: Path, step: int) -> str:
    return fingerprint(checkpoint.read(directory, step, _like()).items)


if __name__ == "__main__":
    cli.run(main)
