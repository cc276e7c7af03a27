"""Combinations of several models' logits against loops, fitted weights against a search."""

import math

import numpy as np
import pytest
import torch

from unskew.debias.mixture import COMBINE, combine_members, fit_member_weights


def draw(models=3, images=60, classes=5, seed=0, skill=(2.0, 1.0, 0.3)):
    """Logits [M, N, C] of models that know the labels [N] more or less."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    logits = torch.randn(models, images, classes, generator=generator, dtype=torch.float64)
    for model in range(models):
        logits[model, torch.arange(images), labels] += skill[model]
    return logits, labels


def softmax(row):
    exponentials = [math.exp(x - max(row)) for x in row]
    return [e / sum(exponentials) for e in exponentials]


@pytest.mark.parametrize("weights", [[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]])
def test_combinations_equal_loops_in_float64(weights):
    logits, _ = draw()
    product, mixture = (combine_members(logits.float(), torch.tensor(weights), how) for how in COMBINE)
    for i in range(logits.shape[1]):
        rows = logits[:, i].tolist()
        expected = [sum(w * row[c] for w, row in zip(weights, rows, strict=True)) for c in range(5)]
        torch.testing.assert_close(product[i], torch.tensor(expected))
        probs = [softmax(row) for row in rows]
        expected = [math.log(sum(w * p[c] for w, p in zip(weights, probs, strict=True))) for c in range(5)]
        torch.testing.assert_close(mixture[i], torch.tensor(expected))


def test_logits_are_a_product_of_experts_and_a_flat_mixture_is_one_too():
    logits, _ = draw()
    uniform = torch.full((3,), 1 / 3)
    product = logits.softmax(-1).prod(0) ** (1 / 3)
    torch.testing.assert_close(combine_members(logits, uniform).softmax(1), product / product.sum(1, keepdim=True))
    flat, mean = combine_members(logits / 1e4, uniform, "probs"), combine_members(logits / 1e4, uniform)
    torch.testing.assert_close(1e4 * (flat - flat.mean(1, keepdim=True)), logits.mean(0) - logits.mean((0, 2))[:, None],
                               atol=1e-3, rtol=1e-3)  # fmt: skip
    assert torch.equal(flat.argmax(1), mean.argmax(1))


def balanced_cross_entropy(logits, labels):
    own = logits.log_softmax(1)[torch.arange(len(labels)), labels]
    return -float(torch.stack([own[labels == c].mean() for c in labels.unique()]).mean())


@pytest.mark.parametrize("seed", range(3))
def test_weights_of_the_mixture_are_its_best_on_the_simplex(seed):
    logits, labels = draw(2, seed=seed, skill=(1.5, 1.0))
    grid = np.linspace(0, 1, 2001)
    losses = [balanced_cross_entropy(combine_members(logits, torch.tensor([w, 1 - w]), "probs"), labels) for w in grid]
    weights = fit_member_weights(logits, labels, "probs")
    assert weights.sum().item() == pytest.approx(1)
    assert weights[0].item() == pytest.approx(grid[int(np.argmin(losses))], abs=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_weights_of_the_product_are_its_best_at_its_best_scale(seed):
    logits, labels = draw(2, seed=seed, skill=(1.5, 1.0))
    weights = fit_member_weights(logits, labels, "logits")
    assert weights.sum().item() == pytest.approx(1)

    def best_over_scales(w):
        mean = combine_members(logits, torch.tensor([w, 1 - w]))
        return min(balanced_cross_entropy(scale * mean, labels) for scale in np.linspace(0.2, 4, 191))

    found = best_over_scales(weights[0].item())
    assert found <= min(best_over_scales(w) for w in np.linspace(0, 1, 21)) + 1e-4
    torch.testing.assert_close(fit_member_weights(3 * logits, labels, "logits"), weights, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("combine", ["logits", "probs"])
def test_weights_know_the_better_model_and_count_classes_alike(combine):
    logits, labels = draw()
    weights = fit_member_weights(logits, labels, combine)
    assert weights[0] > weights[1] > weights[2] >= 0
    torch.testing.assert_close(fit_member_weights(logits, labels, combine), weights, rtol=0, atol=0)
    often = torch.cat([torch.arange(60), *[torch.arange(60)[labels == 2]] * 5])
    torch.testing.assert_close(
        fit_member_weights(logits[:, often], labels[often], combine), weights, atol=1e-3, rtol=1e-3
    )
    alike = fit_member_weights(logits[:1].expand(3, -1, -1), labels, combine)
    torch.testing.assert_close(alike, torch.full((3,), 1 / 3), atol=1e-3, rtol=1e-3)


def test_hopeless_models_get_equal_weights():
    logits, labels = draw(2, skill=(-3.0, -3.0))
    torch.testing.assert_close(fit_member_weights(logits, labels, "logits"), torch.tensor([0.5, 0.5]))


def test_what_makes_no_sense_is_refused():
    logits, labels = draw()
    with pytest.raises(ValueError, match="sum"):
        fit_member_weights(logits, labels, "sum")
    with pytest.raises(ValueError, match="labels"):
        fit_member_weights(logits, labels[:-1])
    with pytest.raises(ValueError, match="NaN"):
        fit_member_weights(logits * float("nan"), labels)
