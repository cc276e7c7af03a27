"""Losses against their formulas in NumPy, and what their gradients must be."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from unskew.losses import cross_entropy, distillation_kl, logit_adjusted

RNG = np.random.default_rng(0)
LOGITS, TEACHER = (torch.from_numpy(RNG.normal(size=(6, 4)) * 3) for _ in range(2))
LABELS = torch.tensor([0, 3, 1, 1, 2, 0])
LOG_PRIOR = torch.from_numpy(log_softmax(RNG.normal(size=4)))


def test_cross_entropy():
    expected = -log_softmax(LOGITS.numpy(), 1)[np.arange(6), LABELS.numpy()].mean()
    assert float(cross_entropy(LOGITS, LABELS)) == pytest.approx(expected, rel=1e-12)


def test_logit_adjusted():
    expected = -log_softmax(LOGITS.numpy() + LOG_PRIOR.numpy(), 1)[np.arange(6), LABELS.numpy()].mean()
    assert float(logit_adjusted(LOGITS, LABELS, LOG_PRIOR)) == pytest.approx(expected, rel=1e-12)
    uniform = torch.full((4,), 0.25).log()
    torch.testing.assert_close(logit_adjusted(LOGITS, LABELS, uniform), cross_entropy(LOGITS, LABELS))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation_kl(temperature):
    teacher, student = softmax(TEACHER.numpy() / temperature, 1), softmax(LOGITS.numpy() / temperature, 1)
    expected = temperature**2 * (teacher * np.log(teacher / student)).sum(1).mean()
    assert float(distillation_kl(LOGITS, TEACHER, temperature)) == pytest.approx(expected, rel=1e-10)
    assert float(distillation_kl(TEACHER, TEACHER + 5, temperature)) == pytest.approx(0, abs=1e-12)


def test_distillation_gradient():
    student = LOGITS.clone().requires_grad_()
    distillation_kl(student, TEACHER, 2.0).backward()
    expected = 2.0 * (softmax(LOGITS.numpy() / 2, 1) - softmax(TEACHER.numpy() / 2, 1)) / 6
    np.testing.assert_allclose(student.grad.numpy(), expected, atol=1e-12)
