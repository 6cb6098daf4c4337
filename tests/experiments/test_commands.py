"""The commands as a user types them: exit status, one sentence for a mistake, pictures and scores."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from diffax import metrics
from experiments import pictures
from experiments.expressions import build
from experiments.generate import class_labels
from experiments.train import train


def run(module, *arguments):
    command = [sys.executable, "-m", f"experiments.{module}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, data_dir):
    from experiments.configs import digits
    from tests.experiments.conftest import SMALL

    config = digits.get_config()
    config.update_from_flattened_dict(SMALL | {"data.dir": data_dir, "train.steps": 3})
    folder = tmp_path_factory.mktemp("runs") / "small"
    train(config, folder)
    return folder


DIGITS = "--config=experiments/configs/digits.py"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "--config is missing"),
        (["train", DIGITS], "--workdir is missing"),
        (["train", "--config=nope.py", "--workdir=W"], "--config = nope.py: there is no such file"),
        (["train", DIGITS, "--workdir=W", "--config.train.stps=3"], 'Did you mean "steps" instead of "stps"?'),
        (["train", DIGITS, "--workdir=W", "--config.train.steps=1e3"], "--config.train.steps=1e3"),
        (["train", DIGITS, "--workdir=W", "--wrkdir=x"], "Did you mean: workdir ?"),
        (["train", DIGITS, "--workdir=W", "--config.schedule=cosin()"], "did you mean 'cosine'"),
        (["sample"], "--workdir is missing"),
        (["sample", "--workdir=W"], "holds no config.json"),
        (["evaluate", "--workdir=W"], "holds no config.json"),
        (["sample", "--workdir=SMALL", "--n=0"], "--n = 0: must be at least 1"),
        (["sample", "--workdir=SMALL", "--label=11"], "classes go from 0 to 9"),
        (["sample", "--workdir=SMALL", "--solver=nope"], "solver = 'nope'"),
        (["sample", "--workdir=SMALL", "--out=x.jpg"], "must end in .png or .npz"),
        (["sample", "--workdir=SMALL", "--grid=cosine()"], "grid = 'cosine()'"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_failure(arguments, words, workdir, tmp_path):
    places = {"--workdir=W": f"--workdir={tmp_path / 'w'}", "--workdir=SMALL": f"--workdir={workdir}"}
    done = run(*(places.get(a, a) for a in arguments))
    assert done.returncode not in (0, None)
    assert words in done.stderr and "Traceback" not in done.stderr + done.stdout
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "w").exists()


def test_traceback_can_be_asked_for(tmp_path):
    done = run("sample", f"--workdir={tmp_path}", "--traceback")
    assert done.returncode and "Traceback" in done.stderr


def test_samples_are_drawn_by_number_not_by_batch(workdir, tmp_path):
    noisy = ["--solver=ancestral", "--grid=plain", "--steps=4"]
    for name, arguments in {"a": ["--n=12"], "b": ["--n=5", "--batch_size=2"], "c": ["--n=5", "--seed=1"]}.items():
        done = run("sample", f"--workdir={workdir}", f"--out={tmp_path / name}.npz", *noisy, *arguments)
        assert done.returncode == 0, done.stderr
    a, b, c = (np.load(tmp_path / f"{name}.npz") for name in "abc")
    assert a["images"].shape == (12, 8, 8, 1) and a["labels"].tolist() == [*range(10), 0, 1]
    assert np.abs(a["images"][:5].astype(int) - b["images"]).max() <= 1  # rounding to grey levels may tip
    assert np.abs(a["images"][:5].astype(int) - c["images"]).max() > 3


def test_a_picture_is_written(workdir, tmp_path):
    out = tmp_path / "deep" / "grid.png"
    done = run("sample", f"--workdir={workdir}", f"--out={out}", "--n=20", "--label=3,8", "--solver=euler", "--steps=3")
    assert done.returncode == 0 and str(out) in done.stdout, done.stderr
    with Image.open(out) as picture:
        assert picture.size[0] > 100 and np.unique(np.asarray(picture)).size > 5


def test_evaluate_scores_and_remembers(workdir):
    first = run("evaluate", f"--workdir={workdir}", "--n=40")
    assert first.returncode == 0, first.stderr
    scores = json.loads((workdir / "metrics.json").read_text())
    assert (
        0 <= scores["accuracy"] < 0.9 and scores["held_out_accuracy"] > 0.95
    )  # three steps of training are not enough
    assert len(scores["accuracy_per_class"]) == 10 and scores["step"] == 3
    assert scores["held_out"]["loss"] > 0 and scores["nearest_samples"] > scores["nearest_held_out"]
    assert 0 < scores["sliced_wasserstein"] < 16 and "sliced_wasserstein " in first.stdout
    if metrics.enlite0_weights():
        assert scores["fd_enlite0"] > 0 and scores["kid_enlite0"] > 0  # three steps make no digits
        assert 0 <= scores["precision"] <= 1 and 0 <= scores["recall"] <= 1
        assert "fd_enlite0 " in first.stdout
    assert (workdir / "grid.png").exists()
    second = run("evaluate", f"--workdir={workdir}", "--n=40")
    assert second.stdout == first.stdout and "sampling" in first.stderr and "sampling" not in second.stderr
    third = run("evaluate", f"--workdir={workdir}", "--n=40", f"--inception={workdir / 'none.pth'}")  # asks for more
    assert (
        third.returncode == 1 and "none.pth: there is no such file" in third.stderr and "sampling" not in third.stderr
    )


def test_a_grid_lays_images_out_row_by_row():
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    picture = pictures.grid(images, 3, levels=6, min_side=4, gap=1)
    assert picture.shape == (2 * 5 + 1, 3 * 5 + 1, 3)
    assert [picture[3, 2 + 5 * i, 0] for i in range(3)] == [0, 51, 102]
    assert [picture[8, 2 + 5 * i, 0] for i in range(3)] == [153, 204, 255]


def test_labels_go_round():
    assert class_labels(5, 3).tolist() == [0, 1, 2, 0, 1]
    assert class_labels(4, 10, [7, 2]).tolist() == [7, 2, 7, 2]
    with pytest.raises(ValueError, match="has no classes"):
        class_labels(4, None, [1])


def test_expressions_build_and_never_execute():
    import diffax as dx

    text = "truncate(shift(laplace(scale=0.5), by=-1.4), logsnr_min=-12, logsnr_max=12)"
    by_hand = dx.schedules.truncate(dx.schedules.shift(dx.schedules.laplace(scale=0.5), by=-1.4), -12, 12)
    assert build("f", text, dx.schedules)(0.3) == by_hand(0.3)
    assert build("f", "heun", dx.solvers).order == build("f", " heun() ", dx.solvers).order == 2
    for text in (
        "__import__('os').getcwd()",
        "(lambda: 1)()",
        "laplace(scale=open('x'))",
        "1 + 1",
        "",
        "sigmas(flow(), 3)",
    ):
        with pytest.raises(ValueError, match="f = "):
            build("f", text, dx.schedules)
