"""The correctness of runs is read from their predictions, and only runs on the same images are compared."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from building import SHORT
from safetensors.torch import save_file

import unskew
from unskew.runs import tables
from unskew.runs.tables import outcomes
from unskew.runs.tables.comparison import correctness

LOGITS = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.5, 0.25]])
LABELS = torch.tensor([0, 1, 1, 0])
RIGHT = [True, True, False, True]


def make(folder, logits=LOGITS, labels=LABELS, **metrics):
    """Write the files of a run that count here, and return its row."""
    folder.mkdir()
    save_file({"logits": logits, "labels": labels}, folder / "predictions.safetensors")
    right = float(100 * (logits.argmax(1) == labels).double().mean())
    return {"seed": 1, "accuracy": right, "classnames": ["a", "b"], "folder": str(folder)} | metrics


def test_a_real_run_has_the_accuracies_of_its_metrics(data_root, tmp_path):
    opts = (*SHORT, "TRAINER.GLA.BASE", "TaskRes")
    run = unskew.train("digits", "GLA", shots=2, seed=3, root=data_root, output=tmp_path, opts=opts)
    found = outcomes.outcomes(tables.collect(tmp_path))
    assert found.seeds == (3,) and found.correct.shape == (1, len(run.predictions["labels"]))
    np.testing.assert_array_equal(found.correct[0], correctness(run.path))
    assert 100 * found.correct.mean() == pytest.approx(run.metrics["accuracy"])
    for part in ("zs", "ft", "ensemble"):  # the last is a sum that the file does not hold
        assert 100 * outcomes.correctness(run.path, part).mean() == pytest.approx(run.metrics[f"{part}_accuracy"])
    with pytest.raises(ValueError, match="balanced"):
        outcomes.correctness(run.path, "balanced")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_all_types_of_logits_are_read(dtype, tmp_path):
    make(tmp_path / "run", LOGITS.to(dtype))
    assert correctness(tmp_path / "run").tolist() == RIGHT


def test_blocks_do_not_change_the_result(tmp_path, monkeypatch):
    monkeypatch.setattr(outcomes, "_BLOCK", 3)
    make(tmp_path / "run")
    assert correctness(tmp_path / "run").tolist() == RIGHT


def test_runs_of_several_seeds_are_rows(tmp_path):
    rows = [make(tmp_path / str(seed), seed=seed, logits=LOGITS * (3 - 2 * seed)) for seed in (1, 2)]
    found = outcomes.outcomes(rows)
    assert found.seeds == (1, 2)
    assert found.correct.tolist() == [RIGHT, [not right for right in RIGHT]]


@pytest.mark.parametrize(
    "change",
    [
        {"labels": 1 - LABELS},
        {"labels": LABELS[:3], "logits": LOGITS[:3]},
        {"unreadable_test_names": ["x.png"]},
        {"classnames": ["b", "a"]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_test_images_are_not_paired(change, tmp_path):
    first, second = make(tmp_path / "first"), make(tmp_path / "second", **change)
    with pytest.raises(ValueError, match=r"first.*second"):
        outcomes.outcomes([first, second])
    found = {"a": outcomes.outcomes([first]), "b": outcomes.outcomes([second]), "c": outcomes.outcomes([first])}
    assert found["a"].images == found["c"].images != found["b"].images


@pytest.mark.parametrize("damage", ["missing", "cut", "no labels", "one row", "empty"])
def test_predictions_that_cannot_be_used_are_one_line(damage, tmp_path):
    make(tmp_path / "run")
    file = tmp_path / "run" / "predictions.safetensors"
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-3])
    elif damage == "no labels":
        save_file({"logits": LOGITS}, file)
    else:
        save_file({"logits": LOGITS[: damage == "one row"], "labels": LABELS[: 2 * (damage != "empty")]}, file)
    with pytest.raises(ValueError, match="run") as error:
        correctness(tmp_path / "run")
    assert "\n" not in str(error.value) and str(tmp_path / "run") in str(error.value)


def test_an_accuracy_of_another_kind_is_noticed(tmp_path):
    with pytest.raises(ValueError, match="accuracy"):
        outcomes.outcomes([make(tmp_path / "run", accuracy=99)])


def test_the_statistics_import_no_pytorch(tmp_path):
    make(tmp_path / "run")
    code = """
import json, sys
import numpy as np
from unskew.runs.tables.comparison import compare, correctness, interval
found = correctness(sys.argv[1])
interval(found[None], np.random.default_rng(0)), compare(found[None], found[None], np.random.default_rng(0))
print(json.dumps([found.tolist(), sorted({"torch", "scipy", "pandas"} & {*sys.modules})]))
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "run"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [RIGHT, []]
