"""The report reads predictions without PyTorch and computes the numbers of the library."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from report_folders import CLASSES, make_run
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from unskew.debias import classification_metrics, prior_groups
from unskew.debias.metrics import class_accuracies
from unskew.engine import prediction_file
from unskew.runs.report import arrays, write_report
from unskew.runs.report.arrays import Predictions, calibration_error, reliability
from unskew.runs.report.bias_figures import thirds
from unskew.runs.report.calibration import confused_pairs


@pytest.fixture
def file(tmp_path):
    return make_run(tmp_path, images=300) / "predictions.safetensors"


@pytest.mark.parametrize("part", ["logits", "gla", "zs", "ft", "ensemble", "debiased"])
def test_each_part_is_that_of_the_library(file, part, monkeypatch):
    monkeypatch.setattr(arrays, "_BLOCK", 7 * len(CLASSES))  # many blocks, of which the last is smaller
    ours, theirs = Predictions(file), prediction_file.read(file)
    logits, labels = theirs[part], theirs["labels"]
    assert ours.has(part)
    assert np.array_equal(ours.predicted(part), logits.argmax(1).numpy())
    assert np.allclose(ours.confidence(part), logits.softmax(1).amax(1).numpy(), atol=1e-6)
    expected = classification_metrics(logits, labels)
    assert 100 * ours.correct(part).mean() == pytest.approx(expected["accuracy"])
    assert calibration_error(ours.confidence(part), ours.correct(part)) == pytest.approx(expected["ece"], abs=1e-4)
    by_class = 100 * class_accuracies(logits.argmax(1) == labels, labels, len(CLASSES))
    assert np.allclose(ours.class_accuracy(part), by_class.numpy())


def test_a_part_that_the_file_lacks_is_not_there(file):
    held = load_file(file)
    save_file({name: held[name] for name in ("logits", "labels")}, file)
    found = Predictions(file)
    assert found.has("logits") and not found.has("zs") and not found.has("ensemble")
    assert found.log_q() is None


def test_float16_and_log_q_are_read(file):
    held = load_file(file)
    expected = Predictions(file)
    save_file({**held, "zs": held["zs"].astype(np.float16)}, file, {"debiased": "zs + debiased.term"})
    found = Predictions(file)
    assert (found.predicted("zs") == expected.predicted("zs")).mean() > 0.99
    assert np.allclose(found.log_q(), -held["debiased.term"])


@pytest.mark.parametrize("labels", [np.arange(7), np.full(300, 6), np.full(300, -1), np.zeros((300, 1), np.int64)])
def test_labels_that_do_not_fit_are_an_error(file, labels):
    save_file({**load_file(file), "labels": labels}, file)
    with pytest.raises(ValueError, match=r"predictions\.safetensors"):
        Predictions(file)


def test_a_confidence_of_one_has_a_bin_of_its_own():
    confidence, correct = np.array([1.0, 0.99, 0.5, 0.5]), np.array([True, True, True, False])
    images, accuracy, mean = reliability(confidence, correct)
    assert images.sum() == 4 and images[-1] == 1 and images[14] == 1
    assert accuracy[7] == 0.5 and mean[7] == 0.5
    assert calibration_error(confidence, correct) == pytest.approx(0.25)  # 1% of a quarter of the images


@pytest.mark.parametrize("classes", [1, 2, 3, 7, 10, 11])
def test_thirds_are_those_of_the_library(classes):
    log_q = np.random.default_rng(classes).normal(size=classes)
    expected = prior_groups(log_q)
    assert [list(group) for group in thirds(log_q)] == [list(group) for group in expected.values()]


def test_confused_pairs_are_the_largest_cells_of_the_matrix():
    labels, predicted = np.random.default_rng(0).integers(0, 6, (2, 2000))
    matrix = torch.bincount(torch.tensor(labels * 6 + predicted), minlength=36).view(6, 6).fill_diagonal_(0)
    found = confused_pairs(labels, predicted, 6, 5)
    assert [count for *_, count in found] == matrix.flatten().sort(descending=True).values[:5].tolist()
    assert all(matrix[true, wrong] == count for true, wrong, count in found)


def test_the_command_imports_no_pytorch(tmp_path):
    make_run(tmp_path / "output")
    make_run(tmp_path / "output", "CoOp")
    code = (
        "import sys\nfrom unskew.cli.main import main\n"
        "code = main(['report'])\nheavy = {'torch', 'torchvision', 'pandas', 'sklearn', 'matplotlib.pyplot'}\n"
        "sys.exit(code or sorted(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("part", ["zs", "ft"])
@pytest.mark.parametrize(
    "change",
    [
        lambda logits: logits[:50],
        lambda logits: logits[:, :3],
        lambda logits: np.concatenate([logits, logits], axis=1),
        lambda logits: logits[:, 0],
        lambda logits: logits[0],
        lambda logits: logits.astype(np.int32),
    ],
)
def test_a_part_that_does_not_fit_the_labels_is_not_there(part, change, file, tmp_path):
    with safe_open(file, framework="np") as held:
        formulas = held.metadata()
    tensors = load_file(file)
    save_file({**tensors, part: np.ascontiguousarray(change(tensors[part]))}, file, formulas)
    found = Predictions(file)
    assert not found.has(part) and found.has("logits")
    write_report([tmp_path], tmp_path / "report.html")


def test_labels_and_logits_of_other_types_are_an_error(file):
    tensors = load_file(file)
    for change in ({"labels": tensors["labels"] + 0.5}, {"labels": tensors["labels"] * np.nan}):
        save_file({**tensors, **change}, file)
        with pytest.raises(TypeError, match="float64"):
            Predictions(file)
    save_torch({"labels": torch.tensor(tensors["labels"]), "logits": torch.tensor(tensors["logits"]).bfloat16()}, file)
    with pytest.raises(ValueError, match=r"predictions\.safetensors"):
        Predictions(file)
