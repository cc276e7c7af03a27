"""The recipe of GLA's release: against a replica by autograd, and how far it stays from the optimum."""

import pytest
import torch
import torch.nn.functional as F
from test_prior import generator, posterior, random_case

from unskew.debias.prior import estimate_log_prior


def replica(logits, labels):
    """Lagrangian, autograd, both multipliers; float64; not normalised."""
    samples, classes = logits.shape
    rate = 1e-5 * (samples / classes) / 50
    q = torch.full((classes,), 1 / classes, dtype=torch.float64, requires_grad=True)
    positive = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    total = torch.zeros((), dtype=torch.float64, requires_grad=True)
    primal, dual = torch.optim.SGD([q], lr=rate), torch.optim.SGD([positive, total], lr=rate, maximize=True)
    for _ in range(1000):
        primal.zero_grad()
        dual.zero_grad()
        (F.cross_entropy(logits - q.log(), labels) - positive @ q + total * (1 - q.sum())).backward()
        primal.step()
        dual.step()
        positive.data.clamp_(min=0)
    return q.detach()


def sample(classes, shots, seed=0):
    labels = torch.arange(classes * shots) % classes
    log_q = torch.randn(classes, generator=generator(seed + 3), dtype=torch.float64)
    return posterior(labels, classes, log_q, seed=seed), labels


@pytest.mark.parametrize("case", [sample(10, 50), sample(10, 500), sample(60, 50), random_case(150, 7)])
def test_equals_the_replica(case):
    logits, labels = case
    q = replica(logits, labels)
    estimate = estimate_log_prior(logits, labels, method="released")
    torch.testing.assert_close(estimate.log_q.exp(), q / q.sum(), atol=1e-12, rtol=1e-10)
    assert abs(float(q.sum()) - 1) > 1e-5  # what the release would have subtracted is not a prior
    assert not estimate.converged and estimate.strength == 0 and estimate.passes == 1001
    expected = F.cross_entropy(logits - q.log(), labels)
    assert abs(estimate.objective - float(expected)) < 1e-12


def test_it_equals_the_replica_with_absent_and_uneven_classes():
    logits, labels = random_case(200, 10)
    keep = (torch.rand(200, generator=generator(5)) < (1 + labels) / 10) & (labels != 4)
    logits, labels = logits[keep], labels[keep]
    q = replica(logits, labels)
    estimate = estimate_log_prior(logits, labels, method="released", strength=0.0)
    torch.testing.assert_close(estimate.log_q.exp(), q / q.sum(), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(("classes", "reached", "optimum"), [(10, 1.1, 30), (100, 2.5, 50)])
def test_it_stays_near_uniform_below_a_thousand_classes(classes, reached, optimum):
    """The largest q over the smallest, of a true 55: 1.05 where the optimum has 35, 2.4 where it has 60."""
    labels = torch.arange(16 * classes) % classes
    log_q = torch.linspace(-2, 2, classes, dtype=torch.float64)[torch.randperm(classes, generator=generator(1))]
    logits = posterior(labels, classes, log_q, sharpness=4.0)
    ratio = {}
    for method in ("released", "convex"):
        found = estimate_log_prior(logits, labels, method=method, strength=0.0).log_q
        ratio[method] = float((found.max() - found.min()).exp())
    assert 1 < ratio["released"] < reached
    assert ratio["convex"] > optimum


def test_strength_is_without_meaning():
    logits, labels = sample(10, 5)
    one = estimate_log_prior(logits, labels, method="released")
    for strength in (0.0, 100.0, "cv"):
        assert torch.equal(estimate_log_prior(logits, labels, method="released", strength=strength).log_q, one.log_q)


def test_it_converges_where_uniform_is_the_answer():
    logits = 3 * torch.eye(4, dtype=torch.float64).repeat(5, 1)
    assert estimate_log_prior(logits, torch.arange(20) % 4, method="released").converged


def test_a_step_that_leaves_the_simplex_is_told():
    """With a hundred thousand samples of few classes the step size, proportional to N/C, is too long."""
    labels = (torch.arange(400_000) % 40 == 0).long()
    logits = torch.zeros(400_000, 2)
    logits[:, 1] = 20.0
    with pytest.raises(ValueError, match=r"step \d+ of 1000"):
        estimate_log_prior(logits.repeat_interleave(5, 1), labels, method="released")
