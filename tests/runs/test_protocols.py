"""Plans of the field's protocols: their runs and evaluations, mistakes before the first run, states, failures."""

from pathlib import Path

import pytest

from unskew.cli.main import main
from unskew.config import names
from unskew.data import catalogue
from unskew.runs import protocols, tables
from unskew.runs.protocols import plans

SHORT = ["OPTIM.MAX_EPOCH", "1", "INPUT.VIEWS", "1", "DATALOADER.NUM_WORKERS", "0"]


@pytest.fixture
def command(data_root, tmp_path, capsys):
    """A function that runs `unskew protocol` and returns its exit code, stdout and stderr."""

    def run(*words, opts=SHORT):
        place = ["--root", data_root, "--output", str(tmp_path / "out")]
        code = main(["protocol", *words, "--shots", "1", "--seeds", "1", *place, *opts])
        return (code, *capsys.readouterr())

    return run


def test_base_to_new_trains_on_the_first_half_and_tests_the_second(command, tmp_path):
    code, out, err = command("base_to_new", "-d", "digits", "-t", "ZeroshotCLIP", "CLIPAdapter")
    assert code == 0, err
    folder = tmp_path / "out" / "base_to_new" / "digits" / "CLIPAdapter" / "micro_1shots" / "seed1"
    base = tables.read_metrics(folder / "metrics.json")
    new = tables.read_metrics(folder / "eval" / "digits-new" / "metrics.json")
    assert base["classnames"] == ["zero", "one", "two", "three", "four"]
    assert new["classnames"] == ["five", "six", "seven", "eight", "nine"]
    harmonic = 2 / (1 / base["accuracy"] + 1 / new["accuracy"])
    row = next(line for line in out.splitlines() if "CLIPAdapter" in line)
    assert [f"{value:.1f}" in row for value in (base["accuracy"], new["accuracy"], harmonic)] == [True] * 3


def test_finished_runs_and_evaluations_are_only_read(command, tmp_path):
    words = ("cross_dataset", "-d", "digits", "--targets", "digits_lt", "-t", "ZeroshotCLIP", "CLIPAdapter")
    first, _, err = command(*words)
    assert first == 0 and "finished earlier" not in err
    evaluation = tmp_path / "out/digits/CLIPAdapter/micro_1shots/seed1/eval/digits_lt"
    changed = (evaluation / "predictions.safetensors").stat().st_mtime_ns
    assert "2 of 2 runs and 2 of 2 evaluations" in command(*words, "--dry-run")[1]
    (tmp_path / "out/digits/ZeroshotCLIP/micro_1shots/seed1/eval/digits_lt/done").unlink()  # as after a kill
    assert "2 of 2 runs and 1 of 2 evaluations" in command(*words, "--dry-run")[1]
    code, _, err = command(*words)
    assert code == 0 and err.count("finished earlier") == 3
    assert (evaluation / "predictions.safetensors").stat().st_mtime_ns == changed
    (evaluation.parents[1] / "done").unlink()
    assert "1 of 2 runs and 1 of 2 evaluations" in command(*words, "--dry-run")[1]


def test_a_dry_run_writes_nothing(command, tmp_path):
    code, out, _ = command("base_to_new", "-d", "digits", "patterns", "-t", "ZeroshotCLIP", "--dry-run")
    assert code == 0 and out.count("| new ") == 4 and "digits-new" in out and "patterns-new" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["few_shot"], "--datasets"),
        (["few_shot", "-d", "digit"], "digits"),
        (["few_shot", "-d", "digits", "-t", "CoOq"], "CoOp"),
        (["few_shot", "-d", "digits", "digits"], "digits' is given twice"),
        (["few_shot", "-d", "digits", "--targets", "patterns"], "--targets"),
        (["few_shot", "-d", "shapes_shifted"], "test images"),
        (["few_shot", "-d", "digits", "folder"], "--root"),
        (["few_shot", "-d", "digits", "all"], "all"),
        (["few_shot", "-d", "dtd"], "data prepare dtd"),
        (["long_tail", "-d", "digits"], "long-tailed"),
        (["long_tail", "-d", "all"], "all"),
        (["base_to_new", "-d", "digits", "-t", "CoOp", "LinearProbe", "TipAdapter"], "LinearProbe, TipAdapter cannot"),
        (["base_to_new", "-d", "digits", "-t", "GLA", "TRAINER.GLA.BASE", "LinearProbe"], "GLA cannot"),
        (["base_to_new", "-d", "digits", "DATASET.SUBSAMPLE_CLASSES", "all"], "SUBSAMPLE_CLASSES"),
        (["cross_dataset", "-d", "shapes"], "--targets"),
        (["cross_dataset", "-d", "shapes", "digits", "--targets", "patterns"], "one source"),
        (["cross_dataset", "-d", "shapes", "--targets", "patterns", "shapes"], "'shapes' is both"),
        (["cross_dataset", "-d", "shapes", "--targets", "patterns", "patterns"], "twice"),
        (["cross_dataset", "-d", "digits", "--targets", "dtd"], "data prepare dtd"),
        (["cross_dataset", "-d", "digits", "--targets", "folder"], "--eval-only"),
        (["cross_dataset", "-d", "digits", "-t", "LinearProbe", "--targets", "patterns"], "LinearProbe cannot"),
        (["domain_generalisation", "-d", "shapes"], "--targets"),
        (["domain_generalisation"], "imagenet"),
        (["few_shot", "-d", "digits", "OPTIM.LRR", "1"], "OPTIM.LR"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line_before_the_first_run(command, tmp_path, words, facts):
    opts = words[words.index(next(w for w in words if "." in w)) :] if any("." in word for word in words) else []
    code, out, err = command(*words[: len(words) - len(opts)], opts=opts)
    assert code == 2 and not out and len(err.splitlines()) == 1 and facts in err
    assert not (tmp_path / "out").exists()


def test_class_bound_trainers_may_be_tested_on_the_same_classes(data_root, tmp_path):
    plan = protocols.plan(
        "domain_generalisation", ["digits"], ["LinearProbe"], targets=["digits_lt"], root=data_root, output=tmp_path
    )
    assert [test.label for test in plan.evaluations][2] == "LinearProbe, 16 shots, seed 3, on digits_lt"


def test_default_trainers_classify_new_classes(data_root, tmp_path):
    for words in (["base_to_new", ["digits"]], ["cross_dataset", ["digits"]]):
        targets = ["patterns"] if words[0] == "cross_dataset" else []
        plan = protocols.plan(*words, targets=targets, seeds=[1], root=data_root, output=tmp_path)
        assert [run.trainer for run in plan.runs] == list(plans.TRAINERS[words[0]])
        assert "GLA-ProGrad" in str(plan.runs[-1].path)


def test_a_failing_run_stops_neither_the_others_nor_their_evaluations(command, monkeypatch):
    words = ("base_to_new", "-d", "digits", "-t", "ZeroshotCLIP", "CLIPAdapter")
    code, out, err = command(*words, opts=[*SHORT, "TRAINER.CLIPADAPTER.REDUCTION", "0"])
    assert code == 2 and "1 of 2 runs failed" in err.splitlines()[-1] and "evaluation 1 of 1" in err
    assert "ZeroshotCLIP" in out and "CLIPAdapter" not in out


def test_keys_of_the_source_do_not_hold_for_a_target(data_root, tmp_path):
    plan = protocols.plan(
        *("cross_dataset", ["digits"], ["ZeroshotCLIP"]),
        **{"targets": ["patterns"], "root": data_root, "output": tmp_path, "seeds": [1]},
        opts={"DATASET.TEMPLATE": "the digit {}.", "TEST.CROPS": 5},
    )
    source, target = plan.runs[0].config, plan.evaluations[0].preview.config
    assert source.DATASET.TEMPLATE == "the digit {}." and target.DATASET.TEMPLATE == ""
    assert target.TEST.CROPS == source.TEST.CROPS == 5


def test_all_are_the_few_shot_datasets_that_are_ready(tmp_path):
    assert catalogue.few_shot_names(tmp_path) == ["digits", "emoji", "patterns", "shapes"]
    dataset = catalogue.dataset_class("dtd")
    for source in dataset.sources:
        for target in source.targets:
            path = Path(tmp_path) / dataset.dataset_dir / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("content")
    assert catalogue.few_shot_names(tmp_path) == ["dtd"]


def test_default_trainers_exist():
    assert {name for chosen in plans.TRAINERS.values() for name in chosen} <= set(names("trainers"))
    assert set(plans.TRAINERS) == set(protocols.NAMES)


def test_the_message_on_class_bound_trainers_does_not_suggest_them(tmp_path, data_root):
    trainers = ["ZeroshotCLIP", "GLA"]
    with pytest.raises(ValueError, match="GLA cannot be tested") as error:
        protocols.plan(
            "domain_generalisation", ["digits"], trainers, targets=["patterns"], root=data_root, output=tmp_path
        )
    suggested = str(error.value).split("such as ")[1].split(", ")
    assert "CoOp" in suggested and "GLA" not in suggested
