"""The stationary prior q = P q: against power iteration and exact arithmetic, and against a known prior."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.special import softmax
from test_prior import generator, posterior, random_case

from unskew.debias.prior import estimate_log_prior


def transition_matrix(logits, classes_of, strength):
    """P, column by column."""
    p, count = softmax(logits.numpy(), 1), logits.shape[1]
    columns = []
    for k in range(count):
        own = p[np.asarray(classes_of) == k]
        pseudo = np.full(count, 1 / count) * strength / count
        columns.append((own.sum(0) + pseudo) / (len(own) + strength / count))
    return np.stack(columns, 1)


@pytest.mark.parametrize("strength", [0.0, 1.0, 50.3])
@pytest.mark.parametrize("labelled", [True, False])
def test_equals_power_iteration(strength, labelled):
    logits, labels = random_case(200, 8, 2.0)
    keep = torch.rand(200, generator=generator(5)) < (1 + labels) / 8
    logits, labels = logits[keep], labels[keep]
    matrix = transition_matrix(logits, labels if labelled else logits.argmax(1), strength)
    np.testing.assert_allclose(matrix.sum(0), 1)
    q = np.full(8, 1 / 8)
    for _ in range(3000):
        q = matrix @ q
    estimate = estimate_log_prior(logits, labels if labelled else None, method="eigen", strength=strength)
    np.testing.assert_allclose(estimate.log_q.exp().numpy(), q, rtol=0, atol=1e-12)
    assert estimate.converged and estimate.passes == 1 and estimate.objective < 1e-12 and estimate.strength == strength


def test_a_spectral_gap_that_power_iteration_cannot_cross():
    """Two classes that are hardly ever confused: q is the ratio of the two leaks, 2 to 1."""
    logits = torch.tensor([[0.0, -14.0], [-14.0 + np.log(2), 0.0]], dtype=torch.float64)
    p = logits.softmax(1)
    leak = [Fraction(float(p[0, 1])), Fraction(float(p[1, 0]))]
    expected = float(leak[1] / (leak[0] + leak[1]))
    estimate = estimate_log_prior(logits, torch.tensor([0, 1]), method="eigen", strength=0.0)
    assert abs(float(estimate.log_q[0].exp()) - expected) < 1e-8 and abs(expected - 2 / 3) < 1e-5


def test_frequencies_of_the_labels_do_not_matter():
    """Each class is averaged by itself: a class repeated five times weighs what it weighed."""
    logits, labels = random_case(100, 5)
    again = torch.cat([torch.arange(100), torch.arange(100)[labels == 3].repeat(4)])
    one = estimate_log_prior(logits, labels, method="eigen", strength=0.0).log_q
    other = estimate_log_prior(logits[again], labels[again], method="eigen", strength=0.0).log_q
    torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


def test_it_finds_a_known_prior_with_labels_and_comes_near_without():
    log_q = torch.randn(20, generator=generator(3), dtype=torch.float64).log_softmax(0)
    skewed = torch.multinomial(torch.logspace(0, -1, 20), 20000, True, generator=generator(4))
    logits = posterior(skewed, 20, log_q, sharpness=4.0)
    with_labels = estimate_log_prior(logits, skewed, method="eigen", strength=0.0).log_q
    assert (with_labels - log_q).abs().max() < 0.2
    without = estimate_log_prior(logits, method="eigen").log_q
    assert float(torch.corrcoef(torch.stack([without, log_q]))[0, 1]) > 0.8


def test_an_absent_class_answers_uniformly():
    logits, labels = random_case(60, 6)
    labels[labels == 4] = 1
    with pytest.raises(ValueError, match=r"1 of 6 classes have no label.*first: 4"):
        estimate_log_prior(logits, labels, method="eigen", strength=0.0)
    q = estimate_log_prior(logits, labels, method="eigen", strength=1.0).log_q.exp().numpy()
    matrix = transition_matrix(logits, labels, 1.0)
    np.testing.assert_allclose(matrix[:, 4], 1 / 6)
    np.testing.assert_allclose(matrix @ q, q, rtol=0, atol=1e-12)


def test_a_class_that_is_never_predicted():
    logits = torch.zeros(6, 3, dtype=torch.float64)
    logits[:3, 0] = logits[3:, 1] = 2
    with pytest.raises(ValueError, match=r"1 of 3 classes have no prediction.*first: 2"):
        estimate_log_prior(logits, method="eigen", strength=0.0)
    assert estimate_log_prior(logits, method="eigen").converged


@pytest.mark.parametrize("gap", [40.0, 1000.0])
def test_classes_that_are_never_confused_are_refused(gap):
    logits, labels = gap * torch.eye(3, dtype=torch.float64), torch.arange(3)
    with pytest.raises(ValueError, match=r"strength 0\.0"):
        estimate_log_prior(logits, labels, method="eigen", strength=0.0)
    q = estimate_log_prior(logits, labels, method="eigen", strength=1.0).log_q.exp()
    torch.testing.assert_close(q, torch.full((3,), 1 / 3, dtype=torch.float64))


def test_one_class():
    assert estimate_log_prior(torch.zeros(5, 1), method="eigen", strength=0).log_q.tolist() == [0.0]
