"""A run is evaluated on other images: its numbers carry over by class name, and class weights too."""

import shutil
from pathlib import Path

import pytest
import torch
from evaluating import NAMES, OVER_COOP, SHORT, copy_images, evaluated, train

from unskew import config
from unskew.engine.trainer import TRAINER_REGISTRY
from unskew.runs.evaluate import evaluate
from unskew.runs.run import Run


@pytest.fixture(scope="module")
def copies(data_root, tmp_path_factory):
    """A folder with some classes of the digits, and the rows of its test images among those of the digits."""
    root = tmp_path_factory.mktemp("copies") / "digits"
    return root, copy_images(data_root, root)


@pytest.mark.parametrize("name", config.names("trainers"))
def test_class_names_decide(name, copies, data_root, tmp_path, monkeypatch):
    """On a part of the run's classes in another order, all terms of all trainers stay with their classes.

    On classes that are not the run's, a trainer works unless its weights belong to single classes.
    """
    run, (root, rows) = train(name, data_root, tmp_path / "run"), copies
    if not run.metrics.get("transductive"):
        metrics, found = evaluated(run, "folder", root, "DATASET.TEMPLATE", "a photo of the digit {}.")
        columns = [run.metrics["classnames"].index(label) for label in metrics["classnames"]]
        assert sorted(metrics["classnames"]) == NAMES and columns == sorted(columns)
        expected = run.predictions["logits"][rows][:, columns]
        names = [run.metrics["classnames"][label] for label in run.predictions["labels"][rows]]
        order = sorted(range(len(rows)), key=lambda row: NAMES.index(names[row]))
        torch.testing.assert_close(found["logits"], expected[order], rtol=1e-4, atol=1e-4)
        assert [metrics["classnames"][label] for label in found["labels"]] == [names[row] for row in order]
        origin = {"evaluated_from": str(run.path), "source": "digits", "transfer": "by class name", "subsample": "all"}
        assert origin.items() <= metrics.items() and metrics["dataset"] == "folder-digits"
        assert "subsample" in run.metrics and "transfer" not in run.metrics
    check_other_classes(run, data_root, monkeypatch)


def test_val_images_are_classified_among_the_same_classes_as_test_images(copies, data_root, tmp_path):
    run = train("ZeroshotCLIP", data_root, tmp_path / "run")
    shutil.copytree(copies[0] / "test", tmp_path / "digits" / "test")
    shutil.copytree(copies[0] / "test", tmp_path / "digits" / "val")
    shutil.copytree(copies[0] / "test", tmp_path / "digits" / "train")
    (test, of_test), (val, of_val) = (
        evaluated(run, "folder", tmp_path / "digits", "DATASET.NUM_SHOTS", -1, "TEST.SPLIT", split)
        for split in ("test", "val")
    )
    assert of_val["logits"].shape[1] == len(val["classnames"]) == len(val["per_class_accuracy"]) == len(NAMES)
    assert torch.equal(of_val["logits"], of_test["logits"]) and torch.equal(of_val["labels"], of_test["labels"])
    assert val["accuracy"] == test["accuracy"]


def check_other_classes(run, data_root, monkeypatch):
    bound = TRAINER_REGISTRY.get(config.class_name(run.trainer)).is_class_bound(run.config)
    opts = ("DATASET.SUBSAMPLE_CLASSES", "new")
    if bound:
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=run.trainer) as refused:
            patch.setattr("unskew.clip.features.extract", None)  # nothing is encoded
            patch.setattr("unskew.engine.clip_trainer.zeroshot_classifier", None)
            evaluated(run, "digits", data_root, *opts)
        assert str(run.path) in str(refused.value) and "\n" not in str(refused.value)
        assert not (run.path / "eval" / "digits-new" / "metrics.json").exists()
        return
    metrics, found = evaluated(run, "digits", data_root, *opts)
    assert metrics["classnames"] == ["five", "six", "seven", "eight", "nine"]
    assert found["logits"].isfinite().all() and metrics["subsample"] == "new"


@pytest.mark.parametrize("name", ["CoOp", "GLA"])
def test_a_context_for_each_class_is_bound_to_the_classes(name, data_root, tmp_path, monkeypatch):
    run = train(name, data_root, tmp_path / "run", *OVER_COOP, "TRAINER.COOP.CSC", True)
    check_other_classes(run, data_root, monkeypatch)
    base_dir = () if name == "CoOp" else ("TRAINER.GLA.BASE_DIR", str(tmp_path / "base"))
    if base_dir:  # the base's own config decides
        train("CoOp", data_root, tmp_path / "base", "TRAINER.COOP.CSC", True)
        over = train("GLA", data_root, tmp_path / "over", *OVER_COOP, *base_dir)
        with pytest.raises(ValueError, match="GLA"):
            evaluated(over, "digits", data_root, "DATASET.SUBSAMPLE_CLASSES", "new")


@pytest.mark.parametrize("name", ["LinearProbe", "GLA"])
def test_runs_of_older_versions_have_their_classes_in_metrics(name, copies, data_root, tmp_path):
    run = train(name, data_root, tmp_path / "run")
    before, _ = evaluated(run, "folder", copies[0])
    for path in (run.path / "model.json", run.path / "eval"):
        path.unlink() if path.is_file() else shutil.rmtree(path)
    after, _ = evaluated(run, "folder", copies[0])
    assert {**after, "source_state": before["source_state"]} == before and after["transfer"] == "by class name"


@pytest.mark.parametrize(
    ("name", "opts", "old"),
    [
        *(("ProGrad", (), old) for old in (False, True)),
        ("ResidualPrompt", (), True),
        ("CoOp", ("TRAINER.COOP.CTX_INIT", "an old photo of a"), False),
        ("GLA", (), False),
        ("ProGrad", ("TRAINER.PROGRAD.CLASS_TOKEN_POSITION", "middle"), False),
        ("Backdoor", ("TRAINER.BACKDOOR.BASE", "ProGrad", "TRAINER.BACKDOOR.DEBIAS", False), False),
    ],
)
def test_a_context_keeps_the_words_and_the_length_of_the_run(name, opts, old, copies, data_root, tmp_path):
    """The prompts of the target have other numbers of tokens; the zero-shot half uses them."""
    run = train(name, data_root, tmp_path / "run", *opts)
    if old:
        (run.path / "model.json").unlink()
    logits = []
    for template in ("{} once more.", "a very small and rather pale picture of the number {} on plain paper."):
        logits.append(evaluated(run, "folder", copies[0], "DATASET.TEMPLATE", template)[1])
        shutil.rmtree(run.path / "eval")
    half = "ft" if name == "GLA" else "logits"
    torch.testing.assert_close(logits[0][half], logits[1][half], rtol=1e-5, atol=1e-5)
    if name == "GLA":
        assert (logits[0]["zs"] - logits[1]["zs"]).abs().max() > 0.1
    if name == "ProGrad":
        evaluated(
            run, "digits", data_root, "DATASET.SUBSAMPLE_CLASSES", "new", "DATASET.TEMPLATE", "this is {}, I say."
        )


def test_a_template_of_an_evaluation_of_the_run_itself_moves_the_zeroshot_half_only(data_root, tmp_path):
    run = train("GLA", data_root, tmp_path / "run", "TRAINER.GLA.BASE", "ProGrad")
    other = ("DATASET.SUBSAMPLE_CLASSES", "base", "DATASET.TEMPLATE", "this is the digit {}, I am quite sure.")
    metrics, found = evaluated(run, "digits", data_root, *other)
    torch.testing.assert_close(found["ft"], run.predictions["ft"], rtol=1e-5, atol=1e-5)
    assert (found["zs"] - run.predictions["zs"]).abs().max() > 0.1 and "transfer" not in metrics


def test_a_base_in_base_dir_keeps_the_words_of_its_own_run(copies, data_root, tmp_path):
    words = ("DATASET.TEMPLATE", "one more picture that shows the number {}.")
    base = train("ProGrad", data_root, tmp_path / "base", *words)
    over = ("TRAINER.GLA.BASE", "ProGrad", "TRAINER.GLA.BASE_DIR", str(base.path))
    run = train("GLA", data_root, tmp_path / "run", *over)
    (_, alone), (_, found) = (evaluated(trained, "folder", copies[0]) for trained in (base, run))
    ratio = alone["logits"] / found["ft"]  # a temperature
    torch.testing.assert_close(ratio, ratio.median().expand_as(ratio), rtol=1e-3, atol=0)


def test_folders_that_tell_no_classes_give_a_line_or_work(copies, data_root, tmp_path):
    """A folder of CoOp has checkpoints alone: its weights load if they fit."""
    run = train("CoOp", data_root, tmp_path / "run")
    shutil.copytree(Path(run.path) / "prompt_learner", tmp_path / "coop" / "prompt_learner")
    context = ("TRAINER.COOP.N_CTX", run.config.TRAINER.COOP.N_CTX, *SHORT)
    target = Run("folder", "CoOp", "micro", root=str(copies[0]), opts=context)
    metrics, _ = evaluate(target, str(tmp_path / "coop"), console=False)
    assert len(metrics["classnames"]) == len(NAMES) and not {"transfer", "source"} & metrics.keys()
