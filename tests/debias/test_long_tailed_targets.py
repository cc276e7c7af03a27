"""Accuracies on LADE's long-tailed test sets against test sets that are really drawn."""

import math

import numpy as np
import pytest
import torch

from unskew.debias import targets
from unskew.utils import blocks

COUNTS = torch.tensor([3, 200, 3, 40, 7])
ORDER = [1, 3, 4, 0, 2]  # from the most to the least frequent; ties by label


def scores(images=(60, 60, 60, 60, 60), seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(images)).repeat_interleave(torch.tensor(images))
    return torch.nn.functional.one_hot(labels, len(images)) + torch.randn(
        len(labels), len(images), generator=generator
    ), labels


def test_targets_are_exponential_in_the_order_of_the_training_counts():
    found = targets.long_tailed_targets(COUNTS)
    assert list(found) == [f"forward_{r}" for r in (50, 25, 10, 5, 2)] + [f"backward_{r}" for r in (2, 5, 10, 25, 50)]
    for name, log_target in found.items():
        direction, imbalance = name.split("_")
        order = ORDER if direction == "forward" else ORDER[::-1]
        by_hand = [float(imbalance) ** (-place / 4) for place in range(5)]
        assert log_target.exp()[order].tolist() == pytest.approx([value / sum(by_hand) for value in by_hand])


def test_accuracy_is_the_mean_over_drawn_test_sets():
    """A slow loop draws test sets of whole numbers of images, and classifies each image by Bayes' rule."""
    logits, labels = scores()
    sizes, log_prior = [40, 10, 4, 20, 2], (COUNTS / COUNTS.sum()).double().log()
    log_target = torch.tensor([math.log(size / sum(sizes)) for size in sizes], dtype=torch.double)
    found = targets.target_accuracies(logits, labels, {"drawn": log_target}, log_prior)["drawn"]
    rng, accuracies = np.random.default_rng(0), []
    for _ in range(400):
        rows = np.concatenate([rng.choice(np.flatnonzero(labels == c), size, False) for c, size in enumerate(sizes)])
        hits = 0
        for row in rows:
            likelihood = logits[row].double().softmax(0).numpy() / (COUNTS / COUNTS.sum()).double().numpy()
            hits += int(np.argmax(likelihood * np.array(sizes)) == labels[row])
        accuracies.append(100 * hits / len(rows))
    error = np.std(accuracies) / len(accuracies) ** 0.5
    assert found == pytest.approx(np.mean(accuracies), abs=4 * error) and error < 0.4
    uniform = targets.target_accuracies(logits, labels, {"drawn": log_target}, torch.zeros(5))["drawn"]
    assert abs(uniform - found) > 8 * error  # the test can tell the priors apart


def test_classes_without_images_do_not_count(monkeypatch):
    logits, labels = scores((5, 0, 9, 4, 3))
    log_target = torch.tensor([0.1, 0.6, 0.1, 0.1, 0.1]).double().log()
    whole = targets.target_accuracies(logits, labels, {"x": log_target}, torch.zeros(5))
    predicted = (logits + log_target).argmax(1)
    accuracies = [(predicted[labels == c] == c).double().mean().item() for c in (0, 2, 3, 4)]
    assert whole["x"] == pytest.approx(100 * np.mean(accuracies))
    monkeypatch.setattr(blocks, "MOST_NUMBERS", 10)
    assert targets.target_accuracies(logits, labels, {"x": log_target}, torch.zeros(5)) == whole
