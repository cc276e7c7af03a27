"""The strength that cross-validation chooses, against the same loop written out over whole solves."""

import numpy as np
import pytest
import torch
from test_prior import generator, posterior, random_case

from unskew.debias._solver import STRENGTHS
from unskew.debias.prior import estimate_log_prior


def held_out_losses(logits, labels):
    """The mean held-out cross entropy at each strength: every fold and strength solved from scratch."""
    counts = np.bincount(labels.numpy(), minlength=logits.shape[1])
    seen, folds = {}, min(5, counts.max())
    fold = np.zeros(len(labels), dtype=int)
    for i, label in enumerate(labels.tolist()):
        fold[i] = seen.get(label, 0) % folds
        seen[label] = seen.get(label, 0) + 1
    losses = np.zeros(len(STRENGTHS))
    for k in range(folds):
        train, held = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        for i, strength in enumerate(STRENGTHS):
            q = estimate_log_prior(logits[train], labels[train], strength=strength).log_q.exp().numpy()
            odds = np.exp(logits[held].numpy()) * (counts / len(labels)) / q
            losses[i] -= np.log(odds[np.arange(len(held)), labels[held]] / odds.sum(1)).sum()
    return losses / len(labels)


def cases():
    labels = torch.arange(200) % 10
    skewed = torch.multinomial(torch.logspace(0, -2, 12, dtype=torch.float64), 150, True, generator=generator(2))
    log_q = 1.5 * torch.randn(12, generator=generator(3), dtype=torch.float64)
    return {
        "strong bias": (posterior(labels, 10, 2 * log_q[:10]), labels),
        "no bias": (posterior(labels, 10, torch.zeros(10, dtype=torch.float64)), labels),
        "two shots": random_case(20, 10),
        "long tail, absent classes": (posterior(skewed, 14, torch.cat([log_q, log_q[:2]])), skewed),
    }


@pytest.mark.parametrize("case", cases())
def test_it_is_the_strength_with_the_least_held_out_loss(case):
    logits, labels = cases()[case]
    losses = held_out_losses(logits, labels)
    chosen = estimate_log_prior(logits, labels, strength="cv")
    near = [s for s, loss in zip(STRENGTHS, losses, strict=True) if loss <= losses.min() + 1e-4]
    assert chosen.strength == near[0] == max(near)
    same = estimate_log_prior(logits, labels, strength=chosen.strength)
    assert torch.equal(chosen.log_q, same.log_q) and chosen.passes == same.passes and chosen.converged
    assert estimate_log_prior(logits, labels, method="em", strength="cv").strength == chosen.strength


def test_a_strong_bias_needs_less_strength_than_none():
    strengths = {
        case: estimate_log_prior(*cases()[case], strength="cv").strength for case in ("strong bias", "no bias")
    }
    assert strengths["strong bias"] < 10 < 100 < strengths["no bias"]


def test_a_tie_takes_the_largest():
    logits = torch.zeros(8, 1)
    assert estimate_log_prior(logits, torch.zeros(8, dtype=torch.long), strength="cv").strength == max(STRENGTHS)


def test_the_order_of_the_classes_does_not_matter():
    logits, labels = cases()["long tail, absent classes"]
    order = torch.randperm(14, generator=generator())
    one = estimate_log_prior(logits, labels, strength="cv")
    other = estimate_log_prior(logits[:, order], order.argsort()[labels], strength="cv")
    assert one.strength == other.strength
    torch.testing.assert_close(other.log_q, one.log_q[order], atol=1e-8, rtol=0)


def test_one_sample_of_each_class_is_refused():
    logits, labels = random_case(10, 10)
    with pytest.raises(ValueError, match="cv"):
        estimate_log_prior(logits, labels, strength="cv")
    assert estimate_log_prior(torch.cat([logits, logits[:1]]), torch.cat([labels, labels[:1]]), strength="cv").converged
