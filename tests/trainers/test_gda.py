"""GDA against the formulas of the paper in NumPy, one class and one image at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from building import build, some_paths

from unskew.trainers import gda


def reference(features, labels, texts):
    """Return the weights and biases of the release's formulas, for classes with images."""
    classes, width = texts.shape
    means = [np.mean([x for x, y in zip(features, labels, strict=True) if y == c], axis=0) for c in range(classes)]
    covariance = sum(np.outer(x - means[y], x - means[y]) for x, y in zip(features, labels, strict=True))
    covariance = covariance / (len(features) - 1)
    ridge = (len(features) - 1) * covariance + np.trace(covariance) * np.eye(width)
    precision = width * np.linalg.inv(ridge)
    weights = [precision @ mean for mean in means]
    biases = [np.log(1 / classes) - mean @ precision @ mean / 2 for mean in means]
    return torch.tensor(np.array(weights)), torch.tensor(np.array(biases))


def world(counts, width=12, seed=1):
    draws = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    means = torch.randn(len(counts), width, generator=draws)
    features = F.normalize(means[labels] + torch.randn(len(labels), width, generator=draws), dim=1)
    return features, labels, F.normalize(means + torch.randn(means.shape, generator=draws), dim=1)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("counts", [[3] * 5, [40, 12, 5, 2, 1], [2, 1, 1]])
def test_the_classifier_equals_the_formulas(counts, monkeypatch):
    features, labels, texts = world(counts)
    monkeypatch.setattr("unskew.utils.blocks.MOST_NUMBERS", 70)
    found = gda.gaussian_head(features, labels, texts)
    expected = reference(features.double().numpy(), labels.tolist(), texts.double().numpy())
    assert all(relative(*pair) < 1e-5 for pair in zip(found, expected, strict=True))


def test_a_class_without_images_has_a_mean_near_its_text():
    features, labels, texts = world([50, 0, 60, 0])
    means = gda.class_means(features, labels, texts)
    for absent in (1, 3):
        order = sorted(range(110), key=lambda i: -float(features[i] @ texts[absent]))
        rows = [features[i].double() for i in order[:64]] + [texts[absent].double()] * 16
        torch.testing.assert_close(means[absent], torch.stack(rows).mean(0), rtol=0, atol=1e-7)
    torch.testing.assert_close(means[2], features[labels == 2].double().mean(0))


def test_one_image_of_each_class_gives_the_nearest_mean():
    features, labels, texts = world([1] * 4)
    weight, bias = gda.gaussian_head(features, labels, texts)
    distances = torch.cdist(texts, features)
    assert torch.equal((texts @ weight.T + bias).argmax(1), distances.argmin(1))


@pytest.mark.parametrize("views", [0, 2])
def test_the_logits_are_zero_shot_plus_alpha_times_the_gaussians(views, data_root, tmp_path):
    opts = ("INPUT.VIEWS", views, "TRAINER.GDA.ALPHA", 0.5)
    trainer = build("GDA", data_root, tmp_path, *opts, shots=4)
    trainer.train()
    paths, labels = trainer.labelled(trainer.dataset.train_x)
    rows = trainer._encode_views(paths, range(views)) if views else trainer.encode(paths)[:, None]  # [N, V, D]
    rows = rows.transpose(0, 1).flatten(0, 1).double().numpy()  # view after view
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    weight, bias = reference(rows, labels.tolist() * max(1, views), trainer.zeroshot_weights.numpy())
    inputs = F.normalize(trainer.encode(some_paths(trainer)), dim=-1).double()
    expected = trainer.zeroshot_logits(some_paths(trainer)) + 0.5 * (inputs @ weight.T + bias)
    assert relative(trainer.predict(some_paths(trainer)), expected) < 1e-5


def test_the_smallest_alpha_of_the_best_accuracy_on_val_wins(data_root, tmp_path, warned):
    trainer = build("GDA", data_root, tmp_path, shots=4)
    paths, labels = trainer.labelled(trainer.dataset.val)
    trainer.train()
    zeroshot, chosen = trainer.zeroshot_logits(paths), trainer.predict(paths)
    accuracies = []
    for power in range(-4, 3):
        other = build("GDA", data_root, tmp_path / str(power), "TRAINER.GDA.ALPHA", 10.0**power, shots=4)
        other.train()
        accuracies.append((int((other.predict(paths).argmax(1) == labels).sum()), -power, other.predict(paths)))
    assert torch.equal(chosen, max(accuracies, key=lambda row: row[:2])[2])
    assert not torch.equal(chosen, zeroshot) and not warned()
    assert trainer.uses_val and not other.uses_val and trainer.logit_adjusted


def test_a_negative_alpha_is_an_error(data_root, tmp_path):
    with pytest.raises(ValueError, match=r"GDA\.ALPHA"):
        build("GDA", data_root, tmp_path, "TRAINER.GDA.ALPHA", -1.0)


def test_long_tails_with_absent_classes_train(data_root, tmp_path):
    trainer = build("GDA", data_root, tmp_path, dataset="digits_lt", shots=-1)
    trainer.dataset.train_x[:] = [item for item in trainer.dataset.train_x if item.label not in (2, 9)]
    trainer.train()
    assert torch.isfinite(trainer.predict(some_paths(trainer))).all()
