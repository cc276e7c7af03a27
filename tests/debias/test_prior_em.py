"""The EM estimate: the fixed point of its equation, with and without labels."""

import math

import pytest
import torch
from test_prior import condition, generator, posterior, random_case

from unskew.debias.prior import estimate_log_prior


def some_absent():
    logits, labels = random_case(120, 8, 2.0)
    kept = (labels != 2) & (labels != 7)
    return logits[kept], labels[kept]


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("case", [random_case(300, 10), random_case(160, 10, 8.0), random_case(30, 100), some_absent()])
def test_it_is_the_convex_estimate(case, strength):
    logits, labels = case
    if strength == 0 and len(labels.unique()) < logits.shape[1]:
        with pytest.raises(ValueError, match="strength 0"):
            estimate_log_prior(logits, labels, method="em", strength=strength)
        return
    estimate = estimate_log_prior(logits, labels, method="em", strength=strength)
    convex = estimate_log_prior(logits, labels, strength=strength)
    assert estimate.converged and estimate.strength == strength
    torch.testing.assert_close(estimate.log_q, convex.log_q, atol=1e-6, rtol=0)
    assert abs(estimate.objective - convex.objective) < 1e-9


def test_first_order_condition():
    logits, labels = random_case(300, 10)
    keep = torch.rand(300, generator=generator(5)) < (1 + labels) / 10
    estimate = estimate_log_prior(logits[keep], labels[keep], method="em", strength=0.0)
    assert condition(logits[keep], labels[keep], estimate.log_q) < 1e-8


@pytest.mark.parametrize("strength", [0.0, 2.0, 500.0])
def test_em_steps_converge_to_the_estimate(strength):
    """Generalised iterative scaling (Darroch & Ratcliff, 1972) with the KL term's bound, 400 plain steps."""
    logits, labels = random_case(200, 10)
    keep = torch.rand(200, generator=generator(5)) < (1 + labels) / 10
    logits, labels = logits[keep], labels[keep]
    pi, weight = torch.bincount(labels).double() / len(labels), strength / len(labels)
    log_q = torch.randn(10, generator=generator(7), dtype=torch.float64).log_softmax(0)
    for _ in range(400):
        mean, q, slope = (logits - log_q + pi.log()).softmax(1).mean(0), log_q.exp(), pi - weight / 10
        root = (slope**2 + 4 * weight * q * mean).sqrt()  # weight q z^2 + (pi - weight/C) z - m = 0
        log_q = (log_q + (2 * mean / (slope + root)).log()).log_softmax(0)
    estimate = estimate_log_prior(logits, labels, method="em", strength=strength)
    torch.testing.assert_close(log_q, estimate.log_q, atol=1e-7, rtol=0)


def test_without_labels_the_sample_is_taken_as_balanced():
    logits, labels = random_case(200, 10)
    given = estimate_log_prior(logits, labels, method="em")
    missing = estimate_log_prior(logits, method="em")
    torch.testing.assert_close(missing.log_q, given.log_q, atol=1e-12, rtol=0)
    raw = torch.nn.functional.cross_entropy(logits, labels)
    assert abs(missing.objective + float(raw) - given.objective) < 1e-12
    one_row = estimate_log_prior(logits[:1], method="em")  # fewer samples than classes
    assert one_row.converged and abs(float(one_row.log_q.exp().sum()) - 1) < 1e-12


def test_a_class_that_always_wins():
    logits = torch.zeros(40, 4, dtype=torch.float64)
    logits[:, 0] = 1000
    for labels in (None, torch.arange(40) % 4):
        estimate = estimate_log_prior(logits, labels, method="em", strength=0.0)
        expected = torch.tensor([1000.0, 0, 0, 0], dtype=torch.float64).log_softmax(0)
        torch.testing.assert_close(estimate.log_q, expected, atol=1e-6, rtol=0)


def test_logits_of_a_large_scale_give_numbers():
    logits, _ = random_case(100, 20, 1000.0)
    estimate = estimate_log_prior(logits, method="em")
    assert estimate.log_q.isfinite().all() and math.isfinite(estimate.objective)


def test_it_finds_a_known_prior_without_labels():
    log_q = torch.randn(20, generator=generator(3), dtype=torch.float64).log_softmax(0)
    logits = posterior(torch.arange(20000) % 20, 20, log_q)
    assert (estimate_log_prior(logits, method="em", strength=0.0).log_q - log_q).abs().max() < 0.15
