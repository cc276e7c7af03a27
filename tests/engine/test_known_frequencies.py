"""Runs on long-tailed sets report the accuracy at LADE's class frequencies."""

import numpy as np
import pytest
import torch

import unskew
from unskew.config import load
from unskew.engine.trainer import build_trainer


def test_runs_report_the_accuracy_at_known_class_frequencies(data_root, tmp_path):
    for trainer, adjusted in (("ZeroshotCLIP", True), ("TipAdapter", False)):
        run = unskew.train("digits_lt", trainer, seed=1, root=data_root, output=tmp_path)
        logits, labels = run.predictions["logits"].double(), run.predictions["labels"]
        data = build_trainer(run.config).dm.dataset
        counts = np.bincount([item.label for item in data.train_x])
        weights = np.empty(10)
        weights[np.argsort(-counts, kind="stable")] = 25.0 ** -(np.arange(10)[::-1] / 9)
        offset = torch.from_numpy(np.log(weights) - (0 if adjusted else np.log(counts)))
        correct = ((logits + offset).argmax(1) == labels).numpy()
        expected = np.average(correct, weights=weights[labels])  # all classes have as many test images
        assert run.metrics["backward_25"] == pytest.approx(100 * expected, abs=1e-6)
        assert sum(name.startswith(("forward_", "backward_")) for name in run.metrics) == 10


def test_few_shot_samples_and_val_have_no_order_of_classes(data_root, tmp_path):
    run = unskew.train("digits_lt", "ZeroshotCLIP", shots=2, seed=1, root=data_root, output=tmp_path)
    assert "forward_50" not in run.metrics
    opts = ["DATASET.ROOT", data_root, "OUTPUT_DIR", str(tmp_path / "val")]
    trainer = build_trainer(load("digits_lt", trainer="ZeroshotCLIP", opts=opts))
    trainer.test()
    assert "forward_50" in trainer.results
    trainer.test("val")
    assert "forward_50" not in trainer.results


def test_gla_knows_the_class_frequencies_that_it_predicts_for(data_root, tmp_path):
    """With TARGET train, the logits have log p; a target of the training frequencies changes nothing."""
    opts = ["DATASET.ROOT", data_root, "OUTPUT_DIR", str(tmp_path), "TRAINER.GLA.BASE", "TipAdapter"]
    trainer = build_trainer(load("digits_lt", trainer="GLA", opts=[*opts, "TRAINER.GLA.TARGET", "train"]))
    counts = torch.bincount(torch.tensor([item.label for item in trainer.dm.dataset.train_x]))
    assert torch.allclose(trainer.assumed_log_prior().exp(), (counts / counts.sum()).double())
