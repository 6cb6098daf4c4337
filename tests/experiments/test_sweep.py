"""A grid of runs: how it is written, what is refused before anything starts, and that a sweep goes on where it was."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from diffax.training.summary import write_json
from experiments import workdir as workdirs
from experiments.variations import expand, load, place, split

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # so does ml_collections read a config
DIGITS = "experiments/configs/digits.py"


@pytest.fixture
def variations(data_dir):
    """variations("train.steps=1,2", seeds=2, **fixed) -> the runs."""
    return lambda *vary, seeds=1, **fixed: expand(DIGITS, {"data.dir": data_dir} | fixed, vary, seeds)


def store(folder, config):
    """As the train command begins."""
    folder.mkdir(parents=True)
    workdirs.write_config(folder, config)
    return folder


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-3,3e-4", ["1e-3", "3e-4"]),
        (" 1 , 2 ", ["1", "2"]),
        ("edm(p_mean=-1, p_std=2),cosine()", ["edm(p_mean=-1, p_std=2)", "cosine()"]),
        ("(1, 2),(1,)", ["(1, 2)", "(1,)"]),
        ("edm();laplace(scale=0.5), x", ["edm()", "laplace(scale=0.5), x"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("a,", ["a", ""]),
        ("", [""]),
    ],
)
def test_values_are_parted_outside_of_brackets(text, values):
    assert split(text) == values


def test_all_combinations_of_all_seeds(variations):
    found = variations("train.learning_rate=1e-3,3e-4", "schedule=edm();laplace(scale=0.5)", seeds=2, seed="5")
    assert [v.name for v in found[:3]] == [
        "learning_rate=1e-3,schedule=edm,seed=5",
        "learning_rate=1e-3,schedule=edm,seed=6",
        "learning_rate=1e-3,schedule=laplace-scale-0.5,seed=5",
    ]
    made = {(v.config.train.learning_rate, v.config.schedule, v.config.seed) for v in found}
    assert made == {(r, s, k) for r in (1e-3, 3e-4) for s in ("edm()", "laplace(scale=0.5)") for k in (5, 6)}


def test_names_are_safe_and_each_is_once(variations):
    found = variations("schedule=laplace(0.5, 1);laplace(0.5 ,1.0);cosine()", "sample.steps=4", "train.steps=4,6")
    names = [v.name for v in found]
    assert len(set(names)) == len(names) == 6
    assert names[-1] == "schedule=cosine,sample.steps=4,train.steps=6"
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_=,.-") for name in names)


def test_a_run_gets_the_config_that_the_train_command_reads(variations):
    config = variations("model.multipliers=(1, 2),(1, 1, 1)", "sample.guidance=2")[1].config
    assert config.model.multipliers == (1, 1, 1) and config.sample.guidance == 2.0
    assert load(DIGITS, {"model.attention": "()", "data.dir": ""}).model.attention == ()


@pytest.mark.parametrize(
    ("vary", "words"),
    [
        (["train.lr=1"], "--vary = train.lr=1: --config has no field"),
        (["train.learning_rate=1e-3,abc"], "flag --config.train.learning_rate=abc: could not convert"),
        (["train.steps=10,1e3"], "flag --config.train.steps=1e3"),
        (["train.learning_rate="], "has an empty value"),
        (["train.learning_rate=1,,2"], "has an empty value"),
        (["train.learning_rate"], "must be a field and its values"),
        (["train.learning_rate=1e-3,0.001"], "1e-3 and 0.001 are the same"),
        (["seed=1,1"], "1 and 1 are the same"),
        (["train.learning_rate=1", "config.train.learning_rate=2"], "is given twice"),
        (["data.dir=a,b"], "data.dir is given twice"),
        (["train.learning_rate=1,-1"], "--vary = train.learning_rate=-1: config.train.learning_rate = -1.0"),
        (["train.steps=5,0"], "config.train.steps = 0: must be at least 1"),
        (["schedule=edm(),laplce()"], "did you mean 'laplace'"),
        (["sample.solver=heun,huen"], "config.sample.solver = 'huen'"),
        (["model.channels=32", "model.multipliers=(1,2),(0,1)"], "model.channels=32, model.multipliers=(0,1): config."),
        (["data.name=digits,digitz"], "did you mean 'digits'"),
        ([], "nothing varies"),
    ],
)
def test_bad_grids_are_named(variations, vary, words):
    with pytest.raises(ValueError) as error:
        variations(*vary)
    assert words in str(error.value)


def test_seeds_are_counted_or_varied(variations):
    with pytest.raises(ValueError, match="--seeds = 0"):
        variations("train.steps=1,2", seeds=0)
    with pytest.raises(ValueError, match="seed is varied already"):
        variations("seed=1,2", seeds=2)


def test_a_changed_grid_keeps_the_runs_that_still_belong(variations, tmp_path):
    for old in variations("train.learning_rate=1e-3,3e-4"):
        store(tmp_path / old.name, old.config)
    wider = variations("train.learning_rate=1e-3,1e-4", "model.multipliers=(1,2),(1,1)")
    kept, *new = [folder.name for folder in place(tmp_path, wider)]
    assert kept == "learning_rate=1e-3"  # with the config's own multipliers
    assert new == [v.name for v in wider[1:]]


def test_a_run_of_another_config_is_refused(variations, tmp_path):
    store(tmp_path / "learning_rate=1e-3", variations("train.learning_rate=1e-3")[0].config)
    longer = variations("train.learning_rate=1e-3", **{"train.steps": "9999"})
    assert place(tmp_path, longer) == [tmp_path / "learning_rate=1e-3"]  # which is to be trained on
    with pytest.raises(ValueError, match=r"--out = .*learning_rate=1e-3: holds a run of another config .*batch_size"):
        place(tmp_path, variations("train.learning_rate=1e-3", **{"train.batch_size": "7"}))


# ---- the command ----------------------------------------------------------------------------------------------------

ENVIRONMENT = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}


HEEDING = """import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"""
"""Started in the background, as tests may be, a process ignores ctrl-C, and so do its children."""


def sweep(*arguments):
    line = [sys.executable, "-c", HEEDING, "-m", "experiments.sweep", *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


@pytest.mark.slow
def test_a_sweep_is_interrupted_has_a_failure_and_goes_on(flags, tmp_path):
    short = [*flags(**{"train.steps": 2}), f"--out={tmp_path}", "--seeds=2"]
    long = [*flags(**{"train.steps": 10**6, "train.checkpoint_every": 10**6}), *short[-2:]]
    stored = lambda: json.loads((tmp_path / "sweep.json").read_text())

    process, log = sweep(*long), tmp_path / "seed=0" / "log.txt"
    while process.poll() is None and not (log.exists() and log.stat().st_size):  # until it trains
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 1 and "run the same line again" in errors and "Traceback" not in errors
    begun, new = (run["status"] for run in stored()["runs"])
    assert begun.startswith("step ") and begun.endswith(f" of {10**6}") and new == "new"
    other = load(DIGITS, {flag[9:].split("=")[0]: flag.split("=", 1)[1] for flag in short[1:-2]})
    with workdirs.claim(tmp_path / "seed=0", other):  # nobody trains there any more
        pass

    other.seed = 1
    with workdirs.claim(tmp_path / "seed=1", other):  # somebody else trains there
        process = sweep(*short)
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 1 and errors.splitlines()[-1] == "error: 1 of 2 runs failed: seed=1"
    done, failed = stored()["runs"]
    assert done["status"] == "finished" and failed["status"] == "failed"
    assert "another process is training there" in failed["error"]
    assert "seed=1 failed: train: --workdir" in (tmp_path / "report.html").read_text()

    before = (tmp_path / "seed=0" / "summary.json").read_bytes()
    losses = [json.loads(before)["losses"]["loss"], 7.0]
    write_json(tmp_path / "seed=1" / "summary.json", {"step": 2, "losses": {"loss": 7.0}})
    process = sweep(*short)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "[1/2] seed=0: finished before" in output and "[2/2] seed=1: finished before" in output
    assert (tmp_path / "seed=0" / "summary.json").read_bytes() == before
    assert "2 of 2 finished" in output and " ± " in output
    (group,) = stored()["groups"]
    assert group["scores"]["loss"]["mean"] == pytest.approx(sum(losses) / 2)
    assert group["scores"]["loss"]["standard_error"] == pytest.approx(abs(losses[0] - losses[1]) / 2)


def test_the_commands_answer_a_mistake_in_one_sentence(tmp_path):
    write_json(tmp_path / "config.json", {})
    for module, arguments, words in (
        ("sweep", ["--vary=train.lr=1", f"--config={DIGITS}", f"--out={tmp_path / 'o'}"], "has no field 'lr'"),
        ("report", [str(tmp_path)], "no training run is below"),
    ):
        line = [sys.executable, "-m", f"experiments.{module}", *arguments]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
        assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "o").exists()
