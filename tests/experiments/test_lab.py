"""The laboratory: its arithmetic, and each experiment once, on one network too small to say anything about noise."""

import contextlib
import json
import types

import numpy as np
import pytest

from experiments import workdir as workdirs
from experiments.lab import align_your_steps, consistency, edm, levels, noise_schedule, protocol, results
from experiments.recipe import recipe
from tests.experiments.conftest import SMALL


@pytest.fixture
def flags_of(monkeypatch, tmp_path, data_dir):
    """Flags of the laboratory, for runs in tmp_path of two seeds."""
    fields = SMALL | {"data.dir": data_dir, "train.steps": 4}
    fields |= {"train.checkpoint_every": 1, "train.keep_every": 1}
    shared = {"OUT": str(tmp_path), "SEEDS": 2}
    given = {protocol: {"DATA": "digits", "SET": [f"{f}={v}" for f, v in fields.items()]}, results: shared}
    for module, flags in given.items():
        for name, value in flags.items():
            monkeypatch.setattr(module, name, types.SimpleNamespace(value=value))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_dir):
    """The directory of a run of four steps, of which every checkpoint is kept."""
    from experiments import train
    from experiments.configs import digits

    config = digits.get_config()
    fields = {"data.dir": data_dir, "train.steps": 4}
    config.update_from_flattened_dict(SMALL | fields | {"train.checkpoint_every": 1, "train.keep_every": 1})
    workdir = tmp_path_factory.mktemp("lab")
    train.train(config, workdir)
    return workdir


@pytest.fixture
def tiny(monkeypatch, tmp_path, trained, flags_of):
    """tiny(experiment) -> what it wrote, every one of its runs being the one that was trained."""
    for name, value in {"SAMPLES": 12, "STEPS": 2, "SIDE": 32, "SOLVER": "euler"}.items():
        monkeypatch.setattr(protocol, name, value)

    def runs(experiment, variants, wanted=None):
        for fields in variants.values():
            protocol.config_of(fields)
        return [protocol.Run(trained, name, 0) for name in variants]

    monkeypatch.setattr(protocol, "runs", runs)

    def run(module):
        module.main()
        name = module.__name__.rpartition(".")[2]
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
        return json.loads((tmp_path / f"{name}.json").read_text())

    return run


# ---- the protocol ---------------------------------------------------------------------------------------------------


def test_means_have_standard_errors():
    values = [3.0, 1.0, 8.0]
    found = results.mean(values)
    assert found["mean"] == pytest.approx(np.mean(values)) and found["seeds"] == values
    assert found["standard_error"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(3))
    assert results.mean([2.0]) == {"mean": 2.0, "standard_error": None, "seeds": [2.0]}
    both = results.over_seeds([{"fd": 1.0, "kid": 0.0}, {"fd": 2.0, "kid": 4.0}])
    assert both["fd"]["mean"] == 1.5 and both["kid"]["standard_error"] == 2.0
    assert results.spell(both["kid"]) == "2 ± 2" and results.spell(results.mean([12.345])) == "12.35"


def test_each_variant_and_seed_is_trained_once(monkeypatch, flags_of, tmp_path):
    trained = []

    def train(config, workdir):
        trained.append((config, workdir))
        workdir.mkdir(parents=True)
        summary = {"step": config.train.steps if len(trained) != 2 else 1}
        (workdir / "summary.json").write_text(json.dumps(summary))
        return summary

    monkeypatch.setattr(protocol.train, "train", train)
    variants = {"a, b": {"schedule": "cosine()"}, "c": {"train.steps": 2, "sample.grid": "karras(rho={seed})"}}
    found = protocol.runs("one", variants)
    assert [(run.variant, run.seed) for run in found] == [("a, b", 0), ("a, b", 1), ("c", 0), ("c", 1)]
    assert [workdir for _, workdir in trained] == [found[i].workdir for i in (0, 2, 1, 3)]  # first seeds come first
    assert found[1].workdir == tmp_path / "one" / "a-b" / "1" == protocol.folder("one", "a, b", 1)
    configs = [config for config, _ in trained]
    assert [config.seed for config in configs] == [0, 0, 1, 1] and configs[0].schedule == "cosine()"
    assert [config.train.steps for config in configs] == [4, 2, 4, 2]  # of a variant, before --set
    assert configs[3].sample.grid == "karras(rho=1)" and configs[0].model.channels == 8
    again = len(trained)
    monkeypatch.setattr(protocol.train, "train", lambda config, workdir: trained.append((config, workdir)) or {})
    with pytest.raises(SystemExit) as ended:  # by a signal, for its summary is empty
        protocol.runs("one", variants)
    assert ended.value.code == 0
    assert [workdir for _, workdir in trained[again:]] == [found[2].workdir]  # the one that had not come to its end


def test_processes_divide_the_runs(monkeypatch, flags_of, tmp_path):
    """Another process is at work on one run: the others are done meanwhile, and that one once it is let go of."""
    done = []
    monkeypatch.setattr(protocol.train, "train", lambda config, workdir: done.append(workdir) or {"step": 4})
    monkeypatch.setattr(protocol, "scored", lambda run, **how: done.append((run.workdir, how)))
    other = contextlib.ExitStack()
    folders = {name: protocol.folder("two", name, 0) for name in "ab"}
    folders["a"].parent.mkdir(parents=True)
    assert other.enter_context(workdirs.lock(folders["a"].with_suffix(".lock")))
    before = []

    def sleep(seconds):
        before.extend(done)
        other.close()

    monkeypatch.setattr(workdirs.time, "sleep", sleep)
    monkeypatch.setattr(results, "SEEDS", types.SimpleNamespace(value=1))
    wanted = {"all": {2: {name: protocol.Scoring(name, {"steps": ord(name)}) for name in "ab"}}}
    protocol.runs("two", {"a": {}, "b": {}}, wanted)
    assert before == [folders["b"], (folders["b"], {"steps": 98})]
    assert done == [*before, folders["a"], (folders["a"], {"steps": 97})]


def test_bad_flags_are_named(monkeypatch, flags_of):
    monkeypatch.setattr(protocol, "SET", types.SimpleNamespace(value=["train.steps"]))
    with pytest.raises(ValueError, match=r"--set = train\.steps: must be FIELD=VALUE"):
        protocol.config_of()
    for given, words in (("sample.count=8", "config has no field 'count'"), ("train.steps=few", "few")):
        monkeypatch.setattr(protocol, "SET", types.SimpleNamespace(value=[given]))
        with pytest.raises(ValueError, match=f"--set = {given}: .*{words}"):
            protocol.config_of()
    monkeypatch.setattr(results, "SEEDS", types.SimpleNamespace(value=0))
    with pytest.raises(ValueError, match="--seeds = 0: must be at least 1"):
        results.seeds()


def test_scores_are_kept_and_better_for_real_images(monkeypatch, tiny, trained, data_dir):
    run = protocol.Run(trained, "network", 0)
    (trained / "scores.json").unlink(missing_ok=True)
    first = protocol.scored(run)
    monkeypatch.setattr(protocol, "generate", None)  # is not made again
    assert protocol.scored(run) == first
    with pytest.raises(TypeError):
        protocol.scored(run, 2)
    judge = protocol.judges("digits", data_dir)
    held_out = protocol.floor(judge)
    assert held_out["images"] == 297 and held_out["precision"] >= first["precision"] and held_out["kid"] < first["kid"]
    assert 0 <= first["accuracy"] < 0.6


# ---- experiments ----------------------------------------------------------------------------------------------------


def test_edm_goes_through(tiny, monkeypatch):
    for name, value in {
        "NFE": (3,),
        "MANY": (4,),
        "CHURN": (0.0, 0.1),
        "CHURNED": (3,),
    }.items():
        monkeypatch.setattr(edm, name, value)
    monkeypatch.setattr(levels, "LEVELS", np.arange(-2.0, 2.0))
    found = tiny(edm)
    assert set(found["rows"]) == {"A", "A'", "B", "D", "E", "E'", "F"} and found["rows"]["A"].keys() == {"3", "4"}
    assert all(row["3"]["fd"]["mean"] > 0 for row in found["rows"].values())
    ratio = found["rows"]["D"]["3"]["fd"]["mean"] / found["euler_1000"]["D"]["fd"]["mean"]
    assert found["of_euler_1000"]["D"]["3"]["mean"] == pytest.approx(ratio)
    gradients = [level["mean"] for level in found["pitfalls"]["E"]["gradient before"]]
    assert len(gradients) == 4 and min(gradients) > 0


def test_noise_schedules_go_through(tiny, monkeypatch):
    monkeypatch.setattr(noise_schedule, "GUIDANCE", (1.0, 2.0))
    monkeypatch.setattr(levels, "LEVELS", np.array([-2.0, 1.0]))
    found = tiny(noise_schedule)
    assert len(found["curves"]["1.0"]) == 7 * 3 + 4 + 3 + 1 and found["steps"] == 4
    plain, guided = found["curves"]["1.0"], found["curves"]["3.0"]
    assert plain["cosine, v"]["0.25"]["fd"] != plain["cosine, v"]["1.0"]["fd"] and len(guided) == 7
    assert len(found["guidance"]) == 7 * 3 and found["guidance"]["flow, eps"].keys() == {"1.0", "2.0"}
    assert len(found["sooner"]["3.0"]) == 7 and len(found["sooner"]["1.0"]) == 7 * 3 + 4 + 3 + 1
    targets = {name: noise_schedule.target_of(name) for name in ("flow, x0", "flow, eps", "flow, v", "Laplace 2 at 2")}
    assert list(targets.values()) == ["x0", "eps", "v", "v"]
    assert found["levels"]["logsnr"] == [-1.5, 1.5]
    assert [level["mean"] for level in found["levels"]["curriculum"]] == [1.0, 1.0]  # the same network here


@pytest.mark.parametrize(
    ("values", "end", "share"),
    [
        ([8, 4, 2, 1], 4, 0.5),
        ([8, 4, 2, 1], np.sqrt(8), 0.625),  # halfway from 4 to 2, on a logarithmic axis
        ([8, 4, 2, 1], 9, 0.25),
        ([8, 4, 2, 1], 0.9, None),
        ([8, 4, 5, 1], 4.5, 0.25 + 0.25 * np.log(8 / 4.5) / np.log(2)),
    ],
)
def test_where_a_curve_comes_down_to_another_ones_end(values, end, share):
    found = noise_schedule.first_below([float(v) for v in values], float(end))
    assert found == (None if share is None else pytest.approx(share))


def test_a_run_that_comes_sooner_is_told_by_its_share():
    curve = lambda *seeds: {
        part: {"fd": {"seeds": [values[i] for values in seeds]}} for i, part in enumerate(noise_schedule.PARTS)
    }
    found = noise_schedule.sooner(curve([8, 4, 2, 1], [8, 4, 2, 1]), curve([9, 8, 6, 4], [9, 8, 6, 2]))
    assert found["seeds"] == [0.5, 0.75] and found["mean"] == 0.625
    assert "mean" not in noise_schedule.sooner(curve([8, 4, 2, 1]), curve([9, 8, 6, 0.5]))


def test_grids_go_through(tiny, monkeypatch):
    small = {"PILOTS": 4, "CLEAN": 4, "JUDGED": 6, "REFERENCE": 8, "ROUNDS": 1, "ITERATIONS": 2, "STEPS": (3,)}
    for name, value in (small | {"SOLVERS": ("default",)}).items():
        monkeypatch.setattr(align_your_steps, name, value)
    found = tiny(align_your_steps)
    assert set(found["grids"]["network"]) == {"Karras", "logSNR", "time", "AYS", "fit"}
    for grids in found["grids"].values():
        assert all(np.all(np.diff(by_steps["default"]["3"]) < 0) for by_steps in grids.values())
    assert found["distance"]["network"]["default, fit, 3"]["mean"] > 0
    assert found["fd"]["ancestral, AYS, 3"] != found["fd"]["default, AYS, 3"] and "ancestral, fit, 3" not in found["fd"]
    monkeypatch.setattr(align_your_steps.dx.grids, "fit", None)  # they are kept
    monkeypatch.setattr(align_your_steps.dx.grids, "align_your_steps", None)
    assert tiny(align_your_steps)["grids"] == found["grids"]


def test_consistency_models_go_through(tiny):
    found = tiny(consistency)
    assert len(found["variants"]) == 2 * 4 + 2 and found["images"] == 4 * 16
    assert all(scores["2"]["fd"]["mean"] > 0 for scores in found["variants"].values())


def test_no_teacher_is_trained_on_for_runs_that_cannot_follow(monkeypatch, flags_of):
    """The objectives name the number of steps, so that one can be a teacher for longer, but not its pupils' teacher."""
    monkeypatch.setattr(protocol.train, "train", lambda config, workdir: pytest.fail("was trained"))
    for run, config in protocol.plan("consistency", consistency.variants(4)):
        run.workdir.mkdir(parents=True)
        workdirs.write_config(run.workdir, config)
    fields = [field for field in protocol.SET.value if not field.startswith("train.steps")]
    monkeypatch.setattr(protocol, "SET", types.SimpleNamespace(value=[*fields, "train.steps=8"]))
    with pytest.raises(ValueError, match=r"holds a run of another config \(config.objective is .*over=4"):
        consistency.main()


def test_a_consistency_model_is_scored_in_one_step_and_in_two(monkeypatch, flags_of):
    """By the protocol's own solver and grid, which other tests replace."""
    for name, value in {"SAMPLES": 12, "SIDE": 32}.items():
        monkeypatch.setattr(protocol, name, value)
    monkeypatch.setattr(results, "SEEDS", types.SimpleNamespace(value=1))
    protocol.judges.cache_clear()  # of other numbers of samples
    fields = consistency.variants(4)["log-normal, constant"]
    wanted = {steps: protocol.Scoring("one", {"steps": steps}) for steps in consistency.EVALUATIONS}
    trained = protocol.runs("consistency", {"one": fields}, wanted)
    found = protocol.over_seeds(trained, wanted)
    assert 0 < found[1]["fd"]["mean"] != found[2]["fd"]["mean"]


def test_consistency_variants_differ_only_in_what_is_compared_and_all_can_be_built(flags_of, data_dir):
    configs = {name: protocol.config_of(fields) for name, fields in consistency.variants(4).items()}
    plain = {name: workdirs.flatten(workdirs.plain(config)) for name, config in configs.items()}
    base = plain["log-normal, doubling"]
    for name, config in plain.items():
        halved = {"train.steps"} if name in ("teacher", "distillation") else set()
        assert {f for f in config if config[f] != base[f]} <= {"schedule", "objective"} | halved
        assert config["train.steps"] == (2 if halved else 4)
    assert len({(c["schedule"], c["objective"]) for c in plain.values()}) == len(configs) == 2 * 4 + 1 + 2
    dataset = workdirs.load_dataset(configs["teacher"], "train")
    assert [recipe(config, dataset).objective.denoises for config in configs.values()].count(True) == 1
    with pytest.raises(ValueError, match=r"config.train.steps = 3: must be even"):
        consistency.variants(3)
