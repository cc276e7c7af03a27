"""LinearProbe against scikit-learn, and its choice of C on val."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from building import build, some_paths
from sklearn.linear_model import LogisticRegression

from unskew.trainers import linearprobe


def features_of(trainer, items):
    paths, labels = trainer.labelled(items)
    return F.normalize(trainer.encode(paths), dim=-1).double().numpy(), labels.numpy()


@pytest.mark.parametrize("strength", [0.1, 10.0, 1e4])
def test_linear_probe_equals_scikit_learns_logistic_regression(strength, data_root, tmp_path):
    trainer = build("LinearProbe", data_root, tmp_path, "TRAINER.LINEARPROBE.C", strength, shots=4)
    trainer.train()
    model = LogisticRegression(C=strength, tol=1e-12, max_iter=10**6, solver="newton-cg")
    model.fit(*features_of(trainer, trainer.dataset.train_x))
    expected = torch.from_numpy(model.predict_proba(features_of(trainer, trainer.dataset.test[:40])[0]))
    found = trainer.predict(some_paths(trainer)).double().softmax(1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_linear_probe_handles_two_classes(data_root, tmp_path):
    trainer = build("LinearProbe", data_root, tmp_path, "DATASET.SUBSAMPLE_CLASSES", "base")
    keep = [item for item in trainer.dataset.train_x if item.label < 2]  # three classes have no image
    trainer.dataset.train_x[:], trainer.dataset.val[:] = keep, []
    trainer.train()
    predicted = trainer.predict([item.impath for item in keep]).argmax(1)
    assert torch.equal(predicted, torch.tensor([item.label for item in keep]))


def test_the_strength_with_the_best_accuracy_on_val_wins_and_then_the_smaller(data_root, tmp_path, monkeypatch):
    trainer = build("LinearProbe", data_root, tmp_path, shots=4)
    accuracies, (inputs, labels) = [], features_of(trainer, trainer.dataset.val)
    for strength in linearprobe.CANDIDATES:
        model = LogisticRegression(C=strength, tol=1e-12, max_iter=10**6, solver="newton-cg")
        model.fit(*features_of(trainer, trainer.dataset.train_x))
        accuracies.append((model.score(inputs, labels), model.coef_))
    scores = [score for score, _ in accuracies]
    best = scores.index(max(scores))
    assert min(scores) < max(scores)
    monkeypatch.setattr("unskew.utils.blocks.MOST_NUMBERS", 70)
    trainer.train()
    np.testing.assert_allclose(trainer.head.weight, accuracies[best][1], rtol=1e-4, atol=1e-4)


def test_one_image_a_class_gives_no_warning(data_root, tmp_path):
    trainer = build("LinearProbe", data_root, tmp_path, shots=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train()
