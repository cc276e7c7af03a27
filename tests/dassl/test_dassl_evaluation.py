"""Dassl's evaluators, as subclasses in scripts use them, and its metrics."""

import logging

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.metrics import f1_score

from unskew.dassl.config import get_cfg_default
from unskew.dassl.evaluation import EVALUATOR_REGISTRY, Classification, EvaluatorBase, build_evaluator
from unskew.dassl.metrics import compute_accuracy, compute_distance_matrix, cosine_distance, euclidean_squared_distance

NAMES = {0: "cat", 1: "dog", 2: "emu"}


def batches(seed=0, count=3, size=10):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, size, 3, generator=generator)
    return list(zip(logits, torch.randint(3, (count, size), generator=generator), strict=True))


def evaluated(judge, data):
    judge.reset()
    for logits, labels in data:
        judge.process(logits, labels)
    return judge.evaluate()


def truth(data):
    labels = torch.cat([labels for _, labels in data])
    predicted = torch.cat([logits.argmax(1) for logits, _ in data])
    return labels.tolist(), predicted.tolist()


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    monkeypatch.setattr(EVALUATOR_REGISTRY, "_table", dict(EVALUATOR_REGISTRY._table))
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg


@pytest.fixture
def lines(caplog, monkeypatch):
    """Return a function that returns the log lines so far."""
    monkeypatch.setattr(logging.getLogger("unskew"), "propagate", True)
    caplog.set_level("INFO", "unskew")
    return lambda: [record.getMessage() for record in caplog.records]


def test_classification_keeps_dassls_attributes(cfg, lines):
    cfg.TEST.PER_CLASS_RESULT = True
    judge, data = build_evaluator(cfg, lab2cname=NAMES), batches()
    for _ in range(2):
        results = evaluated(judge, data)
    labels, predicted = truth(data)
    right = [int(a == b) for a, b in zip(labels, predicted, strict=True)]
    assert (judge._y_true, judge._y_pred, judge._lab2cname) == (labels, predicted, NAMES)
    assert (judge._correct, judge._total) == (sum(right), 30)
    assert judge._per_class_res == {c: [r for r, x in zip(right, labels, strict=True) if x == c] for c in set(labels)}
    assert list(results)[:3] == ["accuracy", "error_rate", "macro_f1"]
    assert results["accuracy"] == pytest.approx(100 * sum(right) / 30)
    assert results["macro_f1"] == pytest.approx(100 * f1_score(labels, predicted, average="macro"))
    means = [np.mean(judge._per_class_res[c]) for c in range(3)]
    assert results["perclass_accuracy"] == pytest.approx(100 * np.mean(means))
    assert "Loading evaluator: Classification" in lines()
    assert f"* accuracy: {results['accuracy']:.1f}%" in lines()


def test_an_evaluator_that_replaces_everything(cfg):
    """CLIP_Calibration's evaluator has new attributes, other arguments, and a reset() that the constructor calls."""

    @EVALUATOR_REGISTRY.register()
    class VLClassification(Classification):
        def __init__(self, cfg, lab2cname=None, **kwargs):
            super().__init__(cfg)
            self._lab2cname = lab2cname
            self._correct = 0
            self._y_true, self._y_score = [], []

        def reset(self):
            self._correct = 0
            self._y_true, self._y_score = [], []
            if self._per_class_res is not None:
                raise AssertionError

        def process(self, mo, gt, image_features, text_features):
            self._y_score.extend(mo.tolist())
            self._y_true.extend(gt.tolist())

        def evaluate(self, probs, labels):
            return {"accuracy": 100.0 * np.mean(probs.argmax(1) == labels)}

    cfg.TEST.EVALUATOR = "VLClassification"
    judge, data = build_evaluator(cfg, lab2cname=NAMES), batches()
    judge.reset()
    for logits, labels in data:
        judge.process(logits, labels, None, None)
    labels, predicted = truth(data)
    result = judge.evaluate(np.array(judge._y_score), np.array(judge._y_true))
    assert result["accuracy"] == pytest.approx(100 * np.mean(np.array(labels) == predicted))


def test_a_subclass_whose_process_sets_the_attributes(cfg, lines):
    class ByNearest(Classification):
        def process(self, mo, gt):
            predicted = mo.argmin(1)
            self._correct += int((predicted == gt).sum())
            self._total += len(gt)
            self._y_true.extend(gt.tolist())
            self._y_pred.extend(predicted.tolist())

    data = batches()
    results = evaluated(ByNearest(cfg, NAMES), data)
    labels, predicted = truth([(-logits, labels) for logits, labels in data])
    assert results["accuracy"] == pytest.approx(100 * np.mean(np.array(labels) == predicted))
    assert results["accuracy"] + results["error_rate"] == pytest.approx(100)
    assert results["macro_f1"] == pytest.approx(100 * f1_score(labels, predicted, average="macro"))
    assert lines()[-6:-3] == ["=> result", "* total: 30", f"* correct: {round(results['accuracy'] * 0.3)}"]


def test_a_subclass_whose_reset_uses_only_dassls_attributes(cfg):
    class Mine(Classification):
        def reset(self):
            self._correct = self._total = 0
            self._y_true, self._y_pred = [], []

    judge = Mine(cfg)
    evaluated(judge, batches(seed=1))
    assert evaluated(judge, batches()) == evaluated(Classification(cfg), batches())


def test_nothing_to_evaluate(cfg):
    with pytest.raises(ValueError, match="evaluate"):
        Classification(cfg).evaluate()
    base = EvaluatorBase(cfg)
    for method in (base.reset, base.evaluate, lambda: base.process(None, None)):
        with pytest.raises(NotImplementedError):
            method()


def test_an_unknown_evaluator_is_an_error_with_suggestions(cfg):
    cfg.TEST.EVALUATOR = "Classificaton"
    with pytest.raises(ValueError, match="Classification"):
        build_evaluator(cfg)


# --- metrics -----------------------------------------------------------------------------------------


def test_accuracy_of_the_first_of_several_outputs():
    logits, labels = torch.tensor([[3.0, 2, 1], [1, 2, 3]]), torch.tensor([0, 1])
    assert [value.tolist() for value in compute_accuracy((logits, None), labels, topk=(1, 2))] == [[50.0], [100.0]]


def test_top_five_of_fewer_classes_is_all_of_them():
    logits, labels = torch.tensor([[3.0, 2], [1, 2]]), torch.tensor([0, 0])
    assert [value.tolist() for value in compute_accuracy(logits, labels, topk=(1, 5))] == [[50.0], [100.0]]


def test_distances_equal_scipys():
    x, y = torch.randn(2, 5, 7, dtype=torch.float64).unbind()
    y = y[:3]
    assert np.allclose(euclidean_squared_distance(x, y), cdist(x, y, "sqeuclidean"))
    assert np.allclose(cosine_distance(x, y), cdist(x, y, "cosine"))
    assert torch.equal(compute_distance_matrix(x, y), euclidean_squared_distance(x, y))
    assert torch.equal(compute_distance_matrix(x, y, "cosine"), cosine_distance(x, y))


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ((torch.ones(2, 3), torch.ones(2, 4)), r"got \[2, 3\] and \[2, 4\]"),
        ((torch.ones(3), torch.ones(2, 3)), r"got \[3\] and \[2, 3\]"),
        ((torch.ones(2, 3), None), "NoneType"),
        ((torch.ones(2, 3), torch.ones(2, 3), "cosin"), "cosin"),
    ],
)
def test_bad_arguments_of_distances_are_errors(arguments, fact):
    with pytest.raises(ValueError, match=fact):
        compute_distance_matrix(*arguments)
