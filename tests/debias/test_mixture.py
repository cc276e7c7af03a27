"""Combinations of several models' logits against loops, fitted weights against a search."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from scipy.special import log_softmax, softmax

from unskew.debias.mixture import COMBINE, combine_members, fit_member_weights
from unskew.debias.temperature import fit_temperature


def draw(models=3, images=60, classes=5, seed=0, skill=(2.0, 1.0, 0.3)):
    """Logits [M, N, C] of models that know the labels [N] more or less."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    logits = torch.randn(models, images, classes, generator=generator, dtype=torch.float64)
    for model in range(models):
        logits[model, torch.arange(images), labels] += skill[model]
    return logits, labels


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


def objective(v, logits, labels, how, start, pseudo_samples, size):
    """Eq. of `fit_member_weights` in NumPy: balanced cross entropy times ``size``, and gamma priors at ``start``."""
    f, y = logits.numpy(), labels.numpy()
    scores = np.tensordot(v, f, 1) if how == "logits" else v.sum() * np.log(np.tensordot(v / v.sum(), softmax(f, 2), 1))
    own = log_softmax(scores, 1)[np.arange(len(y)), y]
    loss = -np.mean([own[y == c].mean() for c in np.unique(y)])
    return size * loss + pseudo_samples * (v / start - 1 - np.log(v / start)).sum()


@pytest.mark.parametrize("how", COMBINE)
@pytest.mark.parametrize("seed", range(3))
def test_weights_are_those_of_an_independent_search(how, seed):
    logits, labels = draw(3, seed=seed)
    start = 1 / fit_temperature(combine_members(logits, torch.full((3,), 1 / 3), how), labels, method="nll") / 3

    def at(log_v):
        return objective(np.exp(log_v), logits, labels, how, start, 2.0, 60)

    options = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 10_000, "maxfev": 10_000}
    v = np.exp(scipy.optimize.minimize(at, np.full(3, np.log(start)), method="Nelder-Mead", options=options).x)
    weights = fit_member_weights(logits, labels, how, pseudo_samples=2)
    assert weights.sum().item() == pytest.approx(1)
    np.testing.assert_allclose(weights, v / v.sum(), atol=1e-4)


def test_rare_classes_count_alike_and_the_effective_size_is_kishs():
    """Classes of 12, 6 and 2 images: C times their harmonic mean, 3 * 4 = 12."""
    logits, labels = draw(2, images=36, classes=3, skill=(1.5, 1.0))
    keep = torch.cat([(labels == c).nonzero().flatten()[:n] for c, n in enumerate((12, 6, 2))])
    logits, labels = logits[:, keep], labels[keep]
    start = 1 / fit_temperature(logits.mean(0), labels, method="nll") / 2

    def at(log_v):
        return objective(np.exp(log_v), logits, labels, "logits", start, 3.0, 12)

    v = np.exp(scipy.optimize.minimize(at, np.full(2, np.log(start)), method="Nelder-Mead", options={"xatol": 1e-9}).x)
    np.testing.assert_allclose(fit_member_weights(logits, labels), v / v.sum(), atol=1e-4)


@pytest.mark.parametrize("how", COMBINE)
def test_pseudo_samples_shrink_the_weights_to_uniform_and_vanish_with_many_images(how):
    few, many = draw(2, images=20, skill=(3.0, 0.0)), draw(2, images=4000, skill=(3.0, 0.0))
    found = [fit_member_weights(*few, how, pseudo_samples=k)[0].item() for k in (0.1, 3, 100, 1e5)]
    assert found == sorted(found, reverse=True) and found[-1] == pytest.approx(0.5, abs=1e-3)
    assert found[1] < 0.8 and fit_member_weights(*many, how)[0] > 0.95


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_separable_images_keep_every_model(scale):
    """Two models are right on all images and one is wrong: no weight is 0 or 1 at any scale of the logits."""
    logits, labels = draw(3, skill=(9.0, 9.0, 0.0))
    weights = fit_member_weights(scale * logits, labels)
    torch.testing.assert_close(weights, fit_member_weights(logits, labels), atol=1e-4, rtol=1e-4)
    assert 0.02 < weights[2] < weights[:2].min() and weights[:2].max() < 0.6


@pytest.mark.parametrize("combine", ["logits", "probs"])
def test_weights_know_the_better_model_and_count_classes_alike(combine):
    logits, labels = draw()
    weights = fit_member_weights(logits, labels, combine)
    assert weights[0] > weights[1] > weights[2] >= 0
    torch.testing.assert_close(fit_member_weights(logits, labels, combine), weights, rtol=0, atol=0)
    often = torch.cat([torch.arange(60), *[torch.arange(60)[labels == 2]] * 5])
    torch.testing.assert_close(fit_member_weights(logits[:, often], labels[often], combine), weights, atol=0.01, rtol=0)
    alike = fit_member_weights(logits[:1].expand(3, -1, -1), labels, combine)
    torch.testing.assert_close(alike, torch.full((3,), 1 / 3), atol=1e-3, rtol=1e-3)


def test_hopeless_models_get_equal_weights():
    logits, labels = draw(2, skill=(-3.0, -3.0))
    torch.testing.assert_close(
        fit_member_weights(logits, labels, "logits"), torch.tensor([0.5, 0.5]), atol=0.02, rtol=0
    )


def test_what_makes_no_sense_is_refused():
    logits, labels = draw()
    with pytest.raises(ValueError, match="sum"):
        fit_member_weights(logits, labels, "sum")
    with pytest.raises(ValueError, match="labels"):
        fit_member_weights(logits, labels[:-1])
    with pytest.raises(ValueError, match="NaN"):
        fit_member_weights(logits * float("nan"), labels)
    with pytest.raises(ValueError, match="pseudo_samples"):
        fit_member_weights(logits, labels, pseudo_samples=0)
