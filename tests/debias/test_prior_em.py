"""The EM estimator: it never rises, and its fixed point is the minimum of the convex one."""

import logging
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from test_prior import condition, generator, posterior, random_case

from unskew.debias import _solver
from unskew.debias._solver import EMStep
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
        with pytest.raises(ValueError, match="classes have no label"):
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
def test_a_plain_step_never_raises_the_objective_and_ends_at_the_minimum(strength):
    logits, labels = random_case(200, 10)
    keep = torch.rand(200, generator=generator(5)) < (1 + labels) / 10
    logits, labels = logits[keep], labels[keep]
    pi = torch.bincount(labels).double() / len(labels)
    step = EMStep(logits, pi, strength / len(labels), labels)
    log_q, objectives = torch.randn(10, generator=generator(7), dtype=torch.float64).log_softmax(0), []
    for _ in range(200):
        change, objective = step(log_q)
        objectives.append(objective)
        log_q = (log_q + change).log_softmax(0)
    assert objectives[0] - objectives[-1] > 0.01
    assert max(np.diff(objectives)) < 1e-14
    expected = estimate_log_prior(logits, labels, strength=strength)
    torch.testing.assert_close(log_q, expected.log_q, atol=1e-7, rtol=0)
    assert abs(objectives[-1] - expected.objective) < 1e-12


def test_a_step_minimises_the_bound_of_its_derivation():
    """Class by class: m/z + pi d + weight (q z - d/C), d = log z, searched numerically."""
    logits, labels = random_case(60, 4)
    labels = labels[torch.tensor([i for i in range(60) if i % 7 or labels[i] != 1])]
    logits = logits[: len(labels)]
    pi, log_q = torch.bincount(labels).double() / len(labels), torch.tensor([0.1, 0.5, 0.05, 0.35]).double().log()
    mean = (logits - log_q + pi.log()).softmax(1).mean(0)
    for weight in (0.0, 0.3, 40.0):  # at the last pi - weight/C is negative
        change, _ = EMStep(logits, pi, weight, labels)(log_q)
        for c in range(4):

            def bound(d, c=c, weight=weight):
                return mean[c] * math.exp(-d) + pi[c] * d + weight * (log_q[c].exp() * math.exp(d) - d / 4)

            found = minimize_scalar(bound, bounds=(-5, 5), method="bounded", options={"xatol": 1e-10})
            assert abs(found.x - float(change[c])) < 1e-6


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


def test_logits_of_a_large_scale_give_numbers(monkeypatch):
    monkeypatch.setattr(_solver, "EM_PASSES", 50)
    logits, labels = random_case(100, 20, 1000.0)
    estimate = estimate_log_prior(logits, labels, method="em")
    assert estimate.log_q.isfinite().all() and math.isfinite(estimate.objective)


def test_acceleration_saves_passes_and_its_end_is_told(monkeypatch, caplog):
    logits, labels = random_case(160, 10, 8.0)
    assert estimate_log_prior(logits, labels, method="em").passes < 40  # the plain iteration takes 127
    monkeypatch.setattr(logging.getLogger("unskew"), "propagate", True)
    monkeypatch.setattr(_solver, "EM_PASSES", 3)
    assert not estimate_log_prior(logits, labels, method="em").converged
    assert "did not converge" in caplog.text and "em" in caplog.text


def test_a_jump_that_raises_the_objective_is_taken_back(monkeypatch):
    plain, objectives = EMStep.__call__, []

    def recorded(self, log_q):
        change, objective = plain(self, log_q)
        objectives.append(objective)
        return change, objective

    monkeypatch.setattr(EMStep, "__call__", recorded)
    logits, labels = random_case(40, 4, 30.0)
    estimate = estimate_log_prior(logits, labels, method="em", strength=0.0)
    rises = [i for i in range(1, len(objectives)) if objectives[i] > objectives[i - 1] + 1e-13]
    assert rises and all(objectives[i + 1] <= objectives[i - 1] + 1e-13 for i in rises)
    assert estimate.objective == objectives[-1]
    torch.testing.assert_close(
        estimate.log_q, estimate_log_prior(logits, labels, strength=0.0).log_q, atol=1e-5, rtol=0
    )


def test_it_finds_a_known_prior_without_labels():
    log_q = torch.randn(20, generator=generator(3), dtype=torch.float64).log_softmax(0)
    logits = posterior(torch.arange(20000) % 20, 20, log_q)
    assert (estimate_log_prior(logits, method="em", strength=0.0).log_q - log_q).abs().max() < 0.15
