"""Metrics against scikit-learn and a slow loop; the lines that CoOp's scripts read."""

import logging
import re

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from unskew.config import get_cfg_default
from unskew.data.dataset import Datum
from unskew.debias import metrics
from unskew.engine import evaluator


def random_scores(n=400, c=7, seed=0, missing=None):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, c, (n,), generator=generator)
    if missing is not None:
        labels[labels == missing] = (missing + 1) % c
    logits = torch.randn(n, c, generator=generator)
    logits[torch.arange(n), labels] += 1.0
    return 2 * logits, labels


def slow_ece(logits, labels, bins=15):
    probabilities = torch.softmax(logits.double(), 1)
    total = 0.0
    for low in np.arange(bins) / bins:
        rows = [i for i, p in enumerate(probabilities) if low < p.max() <= low + 1 / bins]
        if rows:
            accuracy = np.mean([int(probabilities[i].argmax() == labels[i]) for i in rows])
            confidence = np.mean([float(probabilities[i].max()) for i in rows])
            total += len(rows) / len(labels) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("missing", [None, 3])
def test_metrics_equal_scikit_learns(missing):
    logits, labels = random_scores(missing=missing)
    found = metrics.classification_metrics(logits, labels)
    true, predicted = labels.numpy(), logits.argmax(1).numpy()
    present = np.unique(true)
    assert found["accuracy"] == pytest.approx(100 * sk.accuracy_score(true, predicted))
    assert found["error_rate"] == pytest.approx(100 - found["accuracy"])
    assert found["macro_f1"] == pytest.approx(100 * sk.f1_score(true, predicted, average="macro", labels=present))
    recall = sk.recall_score(true, predicted, average=None, labels=present)
    assert found["balanced_accuracy"] == pytest.approx(100 * recall.mean())
    assert found["ece"] == pytest.approx(100 * slow_ece(logits, labels), abs=1e-3)
    assert all(type(value) is float for value in found.values())


def test_perfect_and_one_class():
    labels = torch.tensor([0, 1, 2])
    found = metrics.classification_metrics(1000 * torch.eye(3), labels)
    assert found == {"accuracy": 100, "error_rate": 0, "macro_f1": 100, "balanced_accuracy": 100, "ece": 0}
    assert metrics.classification_metrics(torch.randn(4, 1), torch.zeros(4, dtype=torch.long))["accuracy"] == 100


@pytest.mark.parametrize(
    ("logits", "labels", "fact"),
    [
        (torch.ones(3, 2), torch.tensor([0, 1]), "logits"),
        (torch.ones(0, 2), torch.zeros(0, dtype=torch.long), "logits"),
        (torch.full((2, 2), torch.nan), torch.tensor([0, 1]), "NaN"),
        (torch.ones(2, 2), torch.tensor([0, 2]), "0..1"),
    ],
)
def test_bad_input_is_refused(logits, labels, fact):
    with pytest.raises(ValueError, match=fact):
        metrics.classification_metrics(logits, labels)


def test_compute_accuracy_equals_scikit_learns():
    logits, labels = random_scores()
    top1, top3 = metrics.compute_accuracy(logits, labels, topk=(1, 3))
    everything = list(range(logits.shape[1]))
    for k, found in ((1, top1), (3, top3)):
        expected = sk.top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k, labels=everything)
        assert found.item() == pytest.approx(100 * expected, abs=1e-4)
    assert top1.shape == (1,)
    assert metrics.compute_accuracy((logits, None), labels)[0] == top1


def test_group_accuracies_average_over_classes():
    labels = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2])
    correct = torch.tensor([1, 0, 0, 1, 1, 1, 0, 0]).bool()
    groups = {
        "many": torch.tensor([0, 1]),
        "few": torch.tensor([2]),
        "absent": torch.tensor([5]),
        "none": torch.tensor([]),
    }
    found = metrics.group_accuracies(correct, labels, groups)
    assert found == {"many": pytest.approx(100 * (1 / 3 + 1) / 2), "few": pytest.approx(50.0)}


def test_class_accuracies_are_scikit_learns_recall():
    logits, labels = random_scores(missing=3)
    correct = logits.argmax(1) == labels
    found = metrics.class_accuracies(correct, labels, 9)
    expected = sk.recall_score(labels, logits.argmax(1), average=None, labels=range(9), zero_division=np.nan)
    assert np.allclose(found, expected, equal_nan=True)
    assert found.isnan().nonzero()[:, 0].tolist() == [3, 7, 8]


def parse_as_coop_does(lines, metric, end_signal="=> result"):
    """The rule of CoOp's parse_test_res.py: a whole line equal to the signal, then a number before a percent sign."""
    pattern, ready, values = re.compile(rf"\* {metric}: ([\.\deE+-]+)%"), False, []
    for line in lines:
        ready = ready or line.strip() == end_signal
        match = pattern.search(line.strip())
        if match and ready:
            values.append(float(match.group(1)))
    return values


def evaluate(cfg, logits, labels, extra=None, batch=64, names=None, groups=None):
    judge = evaluator.build_evaluator(cfg, names)
    judge.groups = groups or {}
    for start in range(0, len(labels), batch):
        rows = slice(start, start + batch)
        judge.process(logits[rows], labels[rows], extra={k: v[rows] for k, v in (extra or {}).items()})
    return judge.evaluate()


def test_evaluator_in_batches_and_its_log(caplog):
    caplog.set_level(logging.INFO, logger="unskew")
    logits, labels = random_scores(n=1234)
    zeroshot, _ = random_scores(n=1234, seed=1)
    results = evaluate(get_cfg_default(), logits, labels, {"zs": zeroshot, "gla": logits})
    assert next(iter(results)) == "accuracy"
    whole = metrics.classification_metrics(logits, labels)
    assert {key: results[key] for key in whole} == whole
    assert results["gla_accuracy"] == results["accuracy"]
    assert results["zs_accuracy"] == pytest.approx(100 * (zeroshot.argmax(1) == labels).float().mean().item(), abs=1e-4)
    lines = caplog.messages
    assert parse_as_coop_does(lines, "accuracy") == [round(results["accuracy"], 1)]
    assert parse_as_coop_does(lines, "macro_f1") == [round(results["macro_f1"], 1)]
    assert "* total: 1,234" in lines
    assert f"* correct: {int((logits.argmax(1) == labels).sum()):,}" in lines
    assert f"* zs accuracy: {results['zs_accuracy']:.1f}%" in lines


def test_evaluator_reports_groups_after_the_rest(caplog):
    caplog.set_level(logging.INFO, logger="unskew")
    logits, labels = random_scores(missing=3)
    groups = {"p_many": torch.tensor([5, 0]), "p_few": torch.tensor([1, 3]), "gone": torch.tensor([3])}
    results = evaluate(get_cfg_default(), logits, labels, {"zs": -logits}, groups=groups)
    recall = sk.recall_score(labels, logits.argmax(1), average=None, labels=range(7), zero_division=0)
    assert results["p_many"] == pytest.approx(100 * (recall[0] + recall[5]) / 2)
    assert results["p_few"] == pytest.approx(100 * recall[1])  # class 3 has no images
    assert "gone" not in results
    assert all(type(value) is float for value in results.values())
    assert caplog.messages[-2:] == [f"* {name}: {results[name]:.1f}%" for name in ("p_many", "p_few")]


def test_per_class_accuracy_has_none_for_a_class_without_images():
    judge = evaluator.build_evaluator(get_cfg_default(), None)
    judge.process(torch.eye(4)[[0, 1, 2]], torch.tensor([0, 1, 1]))
    judge.process(torch.eye(4)[[2, 1]], torch.tensor([2, 0]))
    assert judge.per_class_accuracy() == [50.0, 50.0, 100.0, None]


def test_evaluator_starts_again_after_reset():
    judge = evaluator.build_evaluator(get_cfg_default(), None)
    with pytest.raises(ValueError, match="split is empty"):
        judge.evaluate()
    judge.process(torch.eye(2), torch.tensor([1, 0]))
    assert judge.evaluate()["accuracy"] == 0
    judge.reset()
    judge.process(torch.eye(2), torch.tensor([0, 1]))
    assert judge.evaluate()["accuracy"] == 100


def test_per_class_and_confusion(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="unskew")
    logits, labels = random_scores(missing=2)
    cfg = get_cfg_default()
    cfg.merge_from_list(["TEST.PER_CLASS_RESULT", True, "TEST.COMPUTE_CMAT", True, "OUTPUT_DIR", str(tmp_path / "run")])
    results = evaluate(cfg, logits, labels, names={label: f"class {label}" for label in range(7)})
    assert results["perclass_accuracy"] == pytest.approx(results["balanced_accuracy"])
    assert sum(line.startswith("* class: ") for line in caplog.messages) == 6
    total, right = (labels == 0).sum(), ((labels == 0) & (logits.argmax(1) == 0)).sum()
    assert f"* class: 0 (class 0)\ttotal: {total}\tcorrect: {right}\tacc: {100 * right / total:.1f}%" in caplog.messages
    matrix = torch.load(tmp_path / "run" / "cmat.pt", weights_only=True)
    with np.errstate(invalid="ignore"):
        expected = sk.confusion_matrix(labels, logits.argmax(1), labels=range(7), normalize="true")
    assert np.allclose(matrix.numpy(), np.nan_to_num(expected))


def test_labels_and_registry():
    assert evaluator.labels_of([Datum("a", 3), Datum("b", 1)]).tolist() == [3, 1]
    cfg = get_cfg_default()
    cfg.TEST.EVALUATOR = "Clasification"
    with pytest.raises(ValueError, match="Clasification"):
        evaluator.build_evaluator(cfg, None)
    cfg.TEST.EVALUATOR, cfg.TEST.PER_CLASS_RESULT = "Classification", True
    with pytest.raises(ValueError, match="PER_CLASS_RESULT"):
        evaluator.build_evaluator(cfg, None)
