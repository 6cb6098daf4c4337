"""What a page of runs tells, and that nothing that a killed or damaged run left stops it."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from experiments import charts, comparison, pictures, runs
from experiments.charts import Line
from experiments.configs import digits


@pytest.fixture
def make(tmp_path):
    """make("a", loss=[...], accuracy=0.9, **{"train.steps": 4}) -> the folder of a run that was written by hand."""

    def run(name, loss=(), *, done=True, metrics=None, **overrides):
        config = digits.get_config()
        config.update_from_flattened_dict({"train.steps": len(loss)} | overrides)
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(config.to_json())
        rows = [{"step": k, "time": 1.7e9 + k, "train/loss": value} for k, value in enumerate(loss, start=1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if done:
            about = {"devices": "1 x TPU v9", "versions": {"jax": "9.9"}, "date": "2026-01-01"}
            summary = {"step": len(loss), "losses": {"loss": loss[-1]}, "environment": about}
            (folder / "summary.json").write_text(json.dumps(summary))
        if metrics is not None:
            (folder / "metrics.json").write_text(json.dumps({"step": len(loss)} | metrics))
        return folder

    return run


def page(folder):
    comparison.write([folder], folder / "report.html")
    return (folder / "report.html").read_text()


def rows_of(html, heading):
    """The table after a heading, as {first cell: cells as they are in HTML}."""
    table = html.split(f"<h2>{heading}</h2>")[1].split("</table>")[0]
    rows = [re.findall(r"<t[dh]([^>]*)>(.*?)</t[dh]>", row) for row in table.split("<tr>")[1:]]
    return {row[0][1]: row for row in rows}


def test_runs_are_found_at_any_depth_with_their_status_and_scores(make, tmp_path):
    make("a", [3.0, 2.0], metrics={"accuracy": 0.5, "held_out": {"loss": 2.5}})
    make("deep/b", [3.0, 1.0], metrics={"accuracy": 0.75, "held_out": {"loss": 1.5}})
    make("deep/er/c", [3.0], done=False, **{"train.steps": 7})
    scores = rows_of(page(tmp_path / "runs"), "Scores")
    heads = [title for _, title in scores.pop("run")]
    assert list(scores) == ["a", "deep/b", "deep/er/c"]
    assert [row[1][1] for row in scores.values()] == ["finished, 2 steps", "finished, 2 steps", "step 1 of 7"]
    for title, values, best in (
        ("accuracy", ["0.5000", "0.7500", ""], 1),
        ("held-out loss", ["2.500", "1.500", ""], 1),
        ("training loss", ["2.000", "1.000", "3.000"], 1),
    ):
        column = [row[heads.index(title)] for row in scores.values()]
        assert [value for _, value in column] == values
        assert ["best" in attributes for attributes, _ in column] == [i == best for i in range(3)]


def test_losses_of_different_objectives_are_not_ranked(make, tmp_path):
    make("a", [2.0], metrics={"accuracy": 0.5})
    make("b", [1.0], metrics={"accuracy": 0.6}, schedule="cosine()")
    html = page(tmp_path / "runs")
    scores = rows_of(html, "Scores")
    marked = {h: "best" in cell for (_, h), (cell, _) in zip(scores["run"], scores["b"], strict=True)}
    assert marked["accuracy"] and not marked["training loss"] and "differ in schedule" in html


def test_only_fields_that_differ_are_shown(make, tmp_path):
    make("a", [1.0], **{"train.learning_rate": 0.5})
    make("b", [1.0], **{"train.learning_rate": 0.25, "model.multipliers": (1, 3)})
    fields = rows_of(page(tmp_path / "runs"), "Configs: what differs")
    assert set(fields) == {"field", "train.learning_rate", "model.multipliers"}
    assert [value for _, value in fields["train.learning_rate"]] == ["train.learning_rate", "0.5", "0.25"]
    assert fields["model.multipliers"][2][1] == "[1, 3]"


def test_the_page_needs_no_other_file_and_holds_pictures_and_environment(make, tmp_path):
    folder = make("a", [2.0, 1.0], metrics={})
    noise = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    for name in ("samples/step_00000001.png", "samples/step_00000002.png", "grid.png"):
        pictures.save_png(folder / name, pictures.grid(noise, 2))
    html = page(tmp_path / "runs")
    assert html.count("data:image/png;base64,") == 2 and "in training, step 2" in html and "step 1<" not in html
    assert "1 x TPU v9" in html and "jax 9.9" in html
    assert "<script" not in html and not re.search(r'(src|href)="(?!data:)|url\(|@import|http', html)


def test_damage_is_named_and_the_rest_is_shown(make, tmp_path):
    good, bad = make("good", [2.0, 1.5]), make("bad", [2.0, 1.0, 0.5])
    text = (bad / "metrics.jsonl").read_text().splitlines()
    (bad / "metrics.jsonl").write_text("\n".join([text[0], "{torn", text[1], '{"step": 3, "trai']))
    (bad / "summary.json").write_text("{")
    (bad / "grid.png").write_bytes(b"\x89PNG\r\n")
    (good / "metrics.json").write_text("[]")
    other = tmp_path / "runs" / "pipeline"
    other.mkdir()
    (other / "config.json").write_text('{"_class_name": "UNet"}')
    html = page(tmp_path / "runs")
    for words in (
        "bad/summary.json is damaged",
        "bad/metrics.jsonl is damaged: 1 of its lines",
        "bad/grid.png is damaged",
        "good/metrics.json is damaged",
        "pipeline/config.json is damaged: it lacks seed",
    ):
        assert words in html, words
    assert rows_of(html, "Scores")["bad"][1][1] == "step 2 of 3"


def test_a_step_logged_again_after_a_resume_counts_once(make):
    folder = make("a", [3.0, 2.0, 1.0])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "train/loss": 5.0, "time/input": NaN}\n{"step": 3, "train/loss": 4.0}\n')
    assert runs.read(folder).curve("train/loss") == [(1, 3.0), (2, 5.0), (3, 4.0)]
    assert runs.read(folder).curve("time/input") == []


def test_scores_of_older_parameters_are_told(make):
    folder = make("a", [3.0, 2.0], metrics={"step": 1, "accuracy": 0.5})
    assert runs.read(folder).problems == ["a was evaluated at step 1, and trained to step 2 since"]


def test_no_runs_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="no training run is below"):
        comparison.write([tmp_path], tmp_path / "report.html")
    with pytest.raises(ValueError, match="nowhere: there is no such folder"):
        comparison.write([tmp_path / "nowhere"], tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_a_table_over_seeds_comes_from_a_sweep(make, tmp_path):
    make("a", [1.0])
    score = {"loss": {"mean": 1.25, "standard_error": 0.125}}
    group = {"overrides": {"schedule": "edm()"}, "runs": ["a", "b"], "status": "1 of 2 finished", "scores": score}
    failed = {"name": "b", "status": "failed", "error": "train: the loss is nan"}
    (tmp_path / "runs" / "sweep.json").write_text(json.dumps({"runs": [failed], "groups": [group]}))
    html = page(tmp_path / "runs")
    assert rows_of(html, "Sweep")["edm()"][2][1] == "1.250 ± 0.12" and "b failed: train: the loss is nan" in html


def test_a_chart_draws_each_line_inside_it_and_tells_its_values():
    rng = np.random.default_rng(0)
    noisy = [(k, 5 + rng.normal()) for k in range(400)]
    svg = charts.chart("t", [Line("one & only", 0, noisy), Line("two", 3, [(0, 4.0), (399, 6.0)]), Line("none", 1, [])])
    assert svg.count("<g class=") == 2 and "one &amp; only" in svg and 'class="r3"' in svg and "none" not in svg
    assert "two: step 399: 6" in svg and len(svg) < 30_000
    drawn = [tuple(map(float, p.split())) for d in re.findall(r' d="M([\d. L-]+)"', svg) for p in d.split("L")]
    assert len(drawn) > 100 and all(0 <= x <= 480 and 0 <= y <= 270 for x, y in drawn)
    assert charts.chart("t", [Line("none", 0, [])]) == ""


def test_an_axis_is_logarithmic_where_values_span_factors():
    wide, narrow, negative = ([(1, 0.01), (2, 10.0)], [(1, 1.0), (2, 2.0)], [(1, -1.0), (2, 10.0)])
    logs = ["log axis" in charts.chart("t", [Line("a", 0, points)]) for points in (wide, narrow, negative)]
    assert logs == [True, False, False]
    assert charts.log_ticks(0.01, 10) == [0.01, 0.1, 1, 10] and charts.ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]


def test_smoothing_keeps_few_points_and_a_line_and_lessens_noise():
    few = [(k, float(k % 2)) for k in range(15)]
    assert charts.smooth(few) == few
    noise = [(k, v) for k, v in enumerate(np.random.default_rng(0).normal(size=1000))]
    assert np.std([v for _, v in charts.smooth(noise)]) < 0.25
    straight = np.array(charts.smooth([(k, 2.0 * k) for k in range(1000)]))
    np.testing.assert_allclose(straight[100:900, 1], 2 * np.arange(100, 900))


def test_large_pictures_are_made_smaller(tmp_path):
    for side, kept in ((600, 600), (3000, 1200)):
        pictures.save_png(tmp_path / "a.png", np.zeros((side, side // 2, 3), np.uint8))
        with Image.open(io.BytesIO(pictures.read_png(tmp_path / "a.png"))) as image:
            assert image.size == (kept // 2, kept)
