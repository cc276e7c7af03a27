"""An evaluation that is finished is only read; one that was interrupted, or of another run or config, is repeated."""

import json
import os
import shutil
from dataclasses import replace

import pytest
from evaluating import SHORT

import unskew
from unskew.cli.main import main
from unskew.runs import tables
from unskew.runs.evaluate import evaluate, finished_evaluation, with_settings_of
from unskew.runs.model import load_trainer
from unskew.runs.report import gather
from unskew.runs.run import Run, execute


@pytest.fixture(scope="module")
def once(data_root, tmp_path_factory):
    run = Run("digits", "CoOp", shots=1, seed=1, root=data_root, opts=SHORT, output=str(tmp_path_factory.mktemp("out")))
    execute(run, console=False)
    return run


@pytest.fixture
def run(once, tmp_path):
    """A copy of a trained run."""
    shutil.copytree(once.path, tmp_path / "output" / "run")
    return Run("digits", "CoOp", folder=str(tmp_path / "output" / "run"))


def target(run, data_root, *opts):
    return with_settings_of(str(run.path), Run("digits", "", root=data_root, opts=("TEST.SPLIT", "val", *opts)))


def test_the_second_time_it_is_read(run, data_root, capsys, monkeypatch):
    argv = [
        "train",
        "--eval-only",
        "--model-dir",
        str(run.path),
        "-d",
        "digits",
        "--root",
        data_root,
        "TEST.SPLIT",
        "val",
    ]
    assert main(argv) == 0
    first = capsys.readouterr().out.splitlines()[-1]
    monkeypatch.setattr("unskew.data.loaders.build_dataset", None)
    assert main(argv) == 0
    accuracy, _, rest = capsys.readouterr().out.strip().partition(",")
    assert first.startswith(accuracy) and rest.endswith(f"in {run.path / 'eval' / 'digits-val'}") and "earlier" in rest
    with pytest.raises(TypeError):  # another epoch is another evaluation, which builds the dataset
        main([*argv, "--load-epoch", "1"])


def test_only_a_whole_evaluation_of_this_run_and_config_counts(run, data_root):
    described = target(run, data_root)
    assert finished_evaluation(described, str(run.path)) is None
    metrics, folder = evaluate(described, str(run.path), console=False)
    assert finished_evaluation(described, str(run.path)) == metrics
    for other in (("TRAINER.PREC", "amp"), ("DATASET.SUBSAMPLE_CLASSES", "base"), ("TEST.CROPS", 5)):
        assert finished_evaluation(target(run, data_root, *other), str(run.path)) is None
    assert finished_evaluation(described, str(run.path), epoch=1) is None
    done = (folder / "done").read_bytes()
    for damage in (
        (folder / "done").unlink,
        (folder / "metrics.json").unlink,
        (folder / "predictions.safetensors").unlink,
    ):
        damage()
        assert finished_evaluation(described, str(run.path)) is None
        assert evaluate(described, str(run.path), console=False)[0] == metrics
    assert (folder / "done").read_bytes() == done


@pytest.mark.parametrize("name", ["prompt_learner/model.pth.tar-1", "done"])
def test_a_run_that_was_trained_again_is_evaluated_again(name, run, data_root):
    described = target(run, data_root)
    evaluate(described, str(run.path), console=False)
    file = run.path / name
    if name == "done":
        file.write_text("0" * 16 + file.read_text()[16:])
    else:
        os.utime(file, ns=(1, 1))
    assert finished_evaluation(described, str(run.path)) is None


@pytest.mark.parametrize("chosen", [False, True])
def test_no_table_has_the_evaluation_of_an_earlier_training(chosen, run, data_root, tmp_path, caplog):
    place = str(tmp_path / "eval" / "place") if chosen else ""
    _, folder = evaluate(replace(target(run, data_root), folder=place), str(run.path), console=False)
    (tmp_path / "output" / "copy").mkdir()
    shutil.copytree(folder, tmp_path / "output" / "copy" / "run")  # elsewhere, and of the same training
    assert len(tables.evaluations(tmp_path)) == 2
    metrics = json.loads((run.path / "metrics.json").read_text())
    (run.path / "metrics.json").write_text(json.dumps({**metrics, "accuracy": 1.5}))
    assert tables.evaluations(tmp_path) == []
    assert str(folder) in caplog.text
    assert finished_evaluation(replace(target(run, data_root), folder=place), str(run.path)) is None


def test_val_and_an_epoch_have_folders_of_their_own(run, data_root):
    test = with_settings_of(str(run.path), Run("digits", "", root=data_root))
    places = {
        evaluate(described, str(run.path), epoch, console=False)[1].name: finished_evaluation(test, str(run.path))
        for described, epoch in ((test, None), (target(run, data_root), None), (test, 1))
    }
    assert [*places] == ["digits", "digits-val", "digits-epoch1"] and None not in places.values()
    rows = tables.evaluations(run.path)
    assert [(row.get("split"), row.get("epoch")) for row in rows] == [(None, None), (None, 1), ("val", None)]


def test_a_kill_before_the_end_leaves_no_finished_evaluation(run, data_root, monkeypatch):
    described = target(run, data_root)
    with monkeypatch.context() as patch:
        patch.setattr("unskew.runs.evaluate.RunDir.finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate(described, str(run.path), console=False)
    assert finished_evaluation(described, str(run.path)) is None and tables.evaluations(run.path) == []
    assert evaluate(described, str(run.path), console=False)[0]["accuracy"] > 0
    assert len(tables.evaluations(run.path)) == 1


def test_halves_have_folders_of_their_own_and_no_evaluation_counts_as_a_run(run, data_root, tmp_path, capsys):
    for half in ("all", "base", "new"):
        evaluate(target(run, data_root, "DATASET.SUBSAMPLE_CLASSES", half), str(run.path), console=False)
    evaluations = tables.evaluations(tmp_path / "output")
    places = [run.path / "eval" / name for name in ("digits-base-val", "digits-new-val", "digits-val")]
    assert [row["folder"] for row in evaluations] == list(map(str, places))
    assert [row["subsample"] for row in evaluations] == ["base", "new", "all"]
    assert [row.get("transfer") for row in evaluations] == ["by class name", "by class name", None]
    assert {row["source"] for row in evaluations} == {"digits"}
    (row,) = tables.collect(tmp_path / "output")
    assert row["folder"] == str(run.path) and "evaluated_from" not in row
    assert len(unskew.results(tmp_path / "output")) == 1
    assert main(["table", str(tmp_path / "output")]) == 0
    assert len(gather.collect([tmp_path / "output", *places]).runs) == 1
    assert json.loads((run.path / "metrics.json").read_text())["accuracy"] == row["accuracy"]
    with pytest.raises(ValueError, match="evaluation") as refused:
        load_trainer(places[0])
    assert str(run.path) in str(refused.value)
    with pytest.raises(ValueError, match="--model-dir") as refused:
        with_settings_of(str(places[0]), Run("digits", "", root=data_root))
    assert str(run.path) in str(refused.value)


def test_an_evaluation_may_replace_another_one_but_never_a_run(run, once, data_root, tmp_path):
    described = target(run, data_root)
    _, folder = evaluate(replace(described, folder=str(tmp_path / "place")), str(run.path), console=False)
    other = replace(target(run, data_root, "DATASET.SUBSAMPLE_CLASSES", "base"), folder=str(folder))
    assert evaluate(other, str(run.path), console=False)[0]["subsample"] == "base"
    with pytest.raises(ValueError, match="--output-dir"):
        evaluate(replace(described, folder=str(once.path)), str(run.path), console=False)
