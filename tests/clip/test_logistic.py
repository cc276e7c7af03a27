"""The logistic regression on frozen features against scikit-learn's Newton solver."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from unskew.clip import _logistic_solver, logistic
from unskew.clip.logistic import logistic_path

STRENGTHS = [10.0**power for power in range(-2, 5)]
WORLDS = {  # images of each class, width, noise
    "two classes": ([20, 20], 16, 1.0),
    "two separable classes": ([5, 7], 64, 0.5),
    "three classes": ([16] * 3, 8, 2.0),
    "a class without images": ([30, 0, 10, 20], 8, 2.0),
    "two of four classes": ([0, 9, 0, 6], 8, 2.0),
    "a long tail": ([120, 60, 30, 10, 5, 2, 1], 16, 1.5),
    "more dimensions than images": ([2] * 10, 128, 1.0),
    "overlapping classes": ([25] * 12, 6, 3.0),
    "100 classes": ([5] * 100, 48, 1.5),
}


def draw(counts, width, noise, seed=1):
    """Return normalised features [N, D] with a common mean, in random order, and labels [N]."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=draws)]
    means = torch.randn(len(counts), width, generator=draws) + 2 * torch.randn(width, generator=draws)
    return F.normalize(means[labels] + noise * torch.randn(len(labels), width, generator=draws), dim=1), labels


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def accuracy(model, features, labels):
    weight, bias = model
    return float(((features @ weight.T + bias).argmax(1) == labels).double().mean())


@pytest.mark.parametrize("world", WORLDS)
def test_weights_and_probabilities_equal_scikit_learns(world):
    counts, width, noise = WORLDS[world]
    features, labels = draw(counts, width, noise)
    features, present = features.double(), sorted(set(labels.tolist()))
    for strength, (weight, bias) in zip(
        STRENGTHS, logistic_path(features, labels, len(counts), STRENGTHS), strict=True
    ):
        model = LogisticRegression(C=strength, tol=1e-12, max_iter=10**6, solver="newton-cg")
        model.fit(features.numpy(), labels.numpy())
        rows = model.coef_ if len(present) > 2 else np.concatenate([-model.coef_, model.coef_]) / 2
        assert relative(weight[present], torch.from_numpy(rows)) < 1e-5
        found = (features @ weight.T + bias)[:, present].softmax(1)
        expected = torch.from_numpy(model.predict_proba(features.numpy()))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("double", [True, False])
def test_around_a_centre_the_gradient_is_zero(world, double, monkeypatch):
    """The objective is 1-strongly convex, so the distance from the solution is at most the norm of the gradient."""
    counts, width, noise = WORLDS[world]
    features, labels = draw(counts, width, noise)
    features, classes = features.double(), len(counts)
    centre = 30 * F.normalize(torch.randn(classes, width, generator=torch.Generator().manual_seed(2)), dim=1).double()
    if not double:
        monkeypatch.setattr(logistic, "DOUBLE", 0)
    strengths = [0.01, 1.0, 100.0]
    for strength, model in zip(strengths, logistic_path(features, labels, classes, strengths, centre), strict=True):
        weight, bias = (value.requires_grad_() for value in model)
        loss = strength * F.cross_entropy(features @ weight.T + bias, labels, reduction="sum")
        change = (weight - centre).square().sum() + bias.square().sum()
        slopes = torch.autograd.grad(loss + change / 2, model)
        error = sum(slope.square().sum() for slope in slopes) / change
        assert float(error.detach()) ** 0.5 < (1e-4 if double else 0.1)


def test_classes_without_images_are_not_predicted():
    features, labels = draw([5, 0, 9, 4, 0], 8, 1.0)
    weight, bias = next(logistic_path(features, labels, 5, [1.0]))
    absent = torch.tensor([1, 4])
    assert not weight[absent].any()
    assert bias[absent].tolist() == pytest.approx([float(bias[[0, 2, 3]].min()) - 10] * 2)
    assert bias[[0, 2, 3]].sum().item() == pytest.approx(0, abs=1e-5)


def test_a_solution_does_not_depend_on_the_path():
    features, labels = draw([8] * 20, 32, 1.5)
    path = dict(zip(STRENGTHS, logistic_path(features, labels, 20, STRENGTHS), strict=True))
    again = dict(zip(STRENGTHS, logistic_path(features, labels, 20, STRENGTHS), strict=True))
    for strength in (1.0, 1e4):
        (alone,) = logistic_path(features, labels, 20, [strength])
        assert relative(alone[0], path[strength][0]) < 1e-5
        assert torch.equal(path[strength][0], again[strength][0])  # to the bit
        assert torch.equal(path[strength][1], again[strength][1])


def test_the_error_bounds_the_distance_from_the_solution(monkeypatch):
    features, labels = draw([16] * 30, 64, 2.0)
    exact = list(logistic_path(features, labels, 30, STRENGTHS))
    for tolerance in (0.3, 1e-2):
        monkeypatch.setitem(_logistic_solver.TOLERANCE, torch.float64, tolerance)
        for found, expected in zip(logistic_path(features, labels, 30, STRENGTHS), exact, strict=True):
            assert relative(found[0], expected[0]) < tolerance


def test_large_problems_in_float32_predict_like_the_solution(monkeypatch):
    features, labels = draw([8] * 150, 64, 1.5)
    held_out, targets = draw([40] * 150, 64, 1.5)
    exact = list(logistic_path(features, labels, 150, STRENGTHS))
    monkeypatch.setattr(logistic, "DOUBLE", 0)
    products = []
    evaluate = _logistic_solver.Solver.evaluate
    monkeypatch.setattr(
        _logistic_solver.Solver, "evaluate", lambda self, penalty: (products.append(self), evaluate(self, penalty))[1]
    )
    for found, expected in zip(logistic_path(features, labels, 150, STRENGTHS), exact, strict=True):
        assert found[0].dtype == torch.float32
        assert relative(found[0], expected[0]) < 1e-2
        assert accuracy(found, held_out, targets) == pytest.approx(accuracy(expected, held_out, targets), abs=2e-3)
    assert products[0].products < 90  # scikit-learn's default would take hundreds


def test_rounding_does_not_stop_float32_where_many_steps_are_needed(monkeypatch, warned):
    features, labels = draw([16] * 40, 16, 4.0)  # the classes overlap, so that a large C needs hundreds of steps
    exact = list(logistic_path(features.double(), labels, 40, STRENGTHS))
    monkeypatch.setattr(logistic, "DOUBLE", 0)
    for found, expected in zip(logistic_path(features, labels, 40, STRENGTHS), exact, strict=True):
        assert relative(found[0], expected[0]) < 1e-2
    assert not warned()


def test_each_strength_has_a_solution_of_its_own_with_many_classes():
    """scikit-learn's tolerance depends on the number of classes: from C = 10 on, it returns one model."""
    features, labels = draw([4] * 200, 32, 0.8)
    norms = [float(weight.norm()) for weight, _ in logistic_path(features, labels, 200, STRENGTHS)]
    assert all(larger > 1.05 * smaller for smaller, larger in itertools.pairwise(norms))


def test_a_solver_that_does_not_converge_gives_one_warning(monkeypatch, warned):
    features, labels = draw([16] * 3, 8, 2.0)
    monkeypatch.setattr(_logistic_solver, "STEPS", 1)
    list(logistic_path(features, labels, 3, [1.0, 1e4]))
    (warning,) = warned()
    assert "10000" in warning and "C = 1," in warning


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (torch.ones(6, 4), torch.tensor([0, 0, 0, 0, 1, 2])),  # equal images: only the biases can be fitted
        (torch.eye(4), torch.ones(4, dtype=torch.long)),  # one class
    ],
)
def test_degenerate_images_give_a_finite_model(features, labels, warned):
    for weight, bias in logistic_path(features, labels, 3, STRENGTHS):
        assert not weight.abs().gt(1e-6).any()
        p = bias.softmax(0)[labels.unique()]
        torch.testing.assert_close(p, labels.bincount()[labels.unique()] / len(labels), rtol=0, atol=1e-3)
    assert not warned()
