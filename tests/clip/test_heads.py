"""The cosine head and its starts, each against a loop or scikit-learn."""

import math

import pytest
import torch
import torch.nn.functional as F

from unskew.clip import heads
from unskew.debias import losses


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_head_is_a_scaled_cosine():
    rows, features = draw(4, 5), 10 * draw(3, 5, seed=1)
    head = heads.CosineHead(rows, scale=25.0)
    torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(4))
    with torch.no_grad():
        head.weight.mul_(3.0)  # a row's length does not count
    for i, feature in enumerate(features.double()):
        for j, row in enumerate(rows.double()):
            cosine = float(feature @ row) / math.sqrt(float(feature @ feature) * float(row @ row))
            assert head(features)[i, j].item() == pytest.approx(25 * cosine, abs=1e-5)
    head(features).sum().backward()
    assert head.weight.grad.abs().sum() > 0
    assert rows.grad is None


def test_the_head_keeps_float32_under_autocast():
    head, features = heads.CosineHead(draw(4, 5)), draw(3, 5, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(features), heads.CosineHead(draw(4, 5))(features))


def test_class_means():
    features, fallback = draw(7, 3), F.normalize(draw(4, 3, seed=1), dim=1)
    labels = torch.tensor([0, 0, 1, 1, 1, 3, 0])
    means = heads.class_means(features, labels, fallback)
    for label in (0, 1, 3):
        chosen = [f / f.norm() for f, y in zip(features, labels.tolist(), strict=True) if y == label]
        torch.testing.assert_close(means[label], F.normalize(sum(chosen) / len(chosen), dim=0))
    assert torch.equal(means[2], F.normalize(fallback[2], dim=0))


def test_the_linear_probe_is_where_a_slow_descent_in_float64_ends():
    labels = torch.arange(60) ** 2 % 5 % 3  # 36, 24 and no images of three classes
    features = draw(3, 8, seed=1)[labels] + draw(60, 8)
    counts, start = torch.bincount(labels, minlength=3), draw(3, 8, seed=2)
    rows = heads.linear_probe(features, labels, start, losses.build_loss("la", counts))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))

    inputs, log_p = F.normalize(features.double(), dim=1), (counts.clamp_min(1) / counts.clamp_min(1).sum()).log()

    def objective(weight):
        return F.cross_entropy(25 * inputs @ F.normalize(weight, dim=1).T + log_p, labels)

    slow = F.normalize(start.double(), dim=1).requires_grad_()
    first = objective(slow).item()
    for _ in range(3000):
        (gradient,) = torch.autograd.grad(objective(slow), slow)
        slow = (slow - 0.05 * gradient).detach().requires_grad_()
    assert objective(rows.double()).item() == pytest.approx(objective(slow).item(), abs=1e-3)
    assert objective(slow).item() < 0.5 * first
