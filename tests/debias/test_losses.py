"""Losses against their formulas sample by sample, what their gradients must be, and what their optima are."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax, softmax

from unskew.debias.losses import LOGIT_ADJUSTED, LOSSES, build_loss, cross_entropy, distillation_kl, logit_adjusted
from unskew.debias.losses import ldam as ldam_loss

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


# --- the losses of long-tailed training, sample by sample ----------------------------------------------

COUNTS = torch.tensor([900, 40, 7, 1])
LOG_Q = torch.from_numpy(log_softmax(RNG.normal(size=4)))


def log_probability(scores, label):
    return scores[label] - math.log(sum(math.exp(score) for score in scores))


def balanced_softmax(scores, label):
    n = COUNTS.tolist()
    return -math.log(n[label] * math.exp(scores[label]) / sum(n[j] * math.exp(scores[j]) for j in range(4)))


def focal(scores, label):
    p = math.exp(log_probability(scores, label))
    return -((1 - p) ** 2) * math.log(p)


def ldam(scores, label):
    """On cosines z: -log of exp(s (z_y - m_y)) over that and the other exp(s z_j)."""
    n, s = COUNTS.tolist(), 30
    z = [score / s for score in scores]
    margin = 0.5 * n[label] ** -0.25 / min(n) ** -0.25
    own = math.exp(s * (z[label] - margin))
    return -math.log(own / (own + sum(math.exp(s * z[j]) for j in range(4) if j != label)))


def class_balanced(scores, label):
    one_over_effective = [(1 - 0.9999) / (1 - 0.9999**n) for n in COUNTS.tolist()]
    weight = 4 * one_over_effective[label] / sum(one_over_effective)
    return -weight * log_probability(scores, label)


def gla_train(scores, label):
    n, q = COUNTS.tolist(), LOG_Q.exp().tolist()
    return -log_probability([scores[j] + math.log(n[j] / sum(n)) + math.log(q[j]) for j in range(4)], label)


SLOW = {
    "la": balanced_softmax,
    "ce": lambda scores, label: -log_probability(scores, label),
    "balanced_softmax": balanced_softmax,
    "focal": focal,
    "ldam": ldam,
    "class_balanced": class_balanced,
    "gla_train": gla_train,
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_against_its_formula(name):
    expected = np.mean([SLOW[name](row, label) for row, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True)])
    assert float(build_loss(name, COUNTS, LOG_Q)(LOGITS, LABELS)) == pytest.approx(expected, rel=1e-10)
    single = build_loss(name, COUNTS, LOG_Q)(LOGITS.float(), LABELS)
    assert single.dtype == torch.float32 and float(single) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("logits", [LOGITS.float(), 100 * F.one_hot(LABELS, 4).float(), torch.zeros(6, 4)])
def test_a_class_without_images_gives_no_infinity(name, logits):
    counts = torch.tensor([2, 2, 1, 0])
    logits = logits.clone().requires_grad_()
    loss = build_loss(name, counts, LOG_Q)(logits, LABELS)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()
    as_if_one = build_loss(name, torch.tensor([2, 2, 1, 1]), LOG_Q)(logits, LABELS)
    assert float(as_if_one.detach()) == pytest.approx(float(loss.detach()))


@pytest.mark.parametrize(
    ("name", "counts", "log_q", "says"),
    [
        ("focall", COUNTS, None, "focal"),
        ("gla_train", COUNTS, None, "gla_train.*4 classes.*none"),
        ("gla_train", COUNTS, LOG_Q[:3], "\\[3\\]"),
        ("la", torch.tensor([3, -1]), None, "counts.*-1"),
        ("la", torch.zeros(3), None, "counts"),
    ],
)
def test_build_loss_refuses(name, counts, log_q, says):
    with pytest.raises(ValueError, match=says):
        build_loss(name, counts, log_q)


# --- what a loss teaches: its optimum where each of X kinds of images is met with known counts ----------


def optimum(name, joint, log_q=None):
    """Logits [X, C] of least loss on as many images of kind x and class y as ``joint`` [X, C] says."""
    joint = torch.as_tensor(joint)
    kinds, labels = (torch.from_numpy(i) for i in np.indices(joint.shape).reshape(2, -1))
    kinds, labels = (i.repeat_interleave(joint.ravel()) for i in (kinds, labels))
    logits = torch.zeros(joint.shape, dtype=torch.float64, requires_grad=True)
    loss, solver = build_loss(name, joint.sum(0), log_q), torch.optim.LBFGS([logits], max_iter=500, tolerance_change=0)

    def closure():
        solver.zero_grad()
        value = loss(logits[kinds], labels)
        value.backward()
        return value

    solver.step(closure)
    return logits.detach()


JOINT = np.array([[400, 10, 3], [150, 40, 2], [300, 5, 9], [50, 30, 6]])


def log_posterior(joint, prior=1.0):
    return log_softmax(np.log(joint / joint.sum(0)) + np.log(prior), 1)


def test_logit_adjusted_losses_have_log_p_out_of_the_logits():
    counts, log_q = JOINT.sum(0), LOG_Q[:3]
    effective = (1 - 0.9999**counts) / (1 - 0.9999)
    expected = {
        "ce": log_posterior(JOINT, counts),
        "la": log_posterior(JOINT),
        "balanced_softmax": log_posterior(JOINT),
        "class_balanced": log_posterior(JOINT, counts / effective),
        "gla_train": log_posterior(JOINT, np.exp(-log_q.numpy())),
    }
    for name, posterior in expected.items():
        np.testing.assert_allclose(log_softmax(optimum(name, JOINT, log_q).numpy(), 1), posterior, atol=2e-4)
    assert {*expected, "focal", "ldam"} == set(LOSSES)
    assert LOGIT_ADJUSTED == set(expected) - {"ce"}
    assert np.ptp(np.log(counts / effective)) < 0.05  # what class_balanced leaves of log p, which spans 3.8
    assert (optimum("focal", JOINT).argmax(1).numpy() == log_posterior(JOINT, counts).argmax(1)).all()


def test_ldam_decides_by_the_training_frequencies_up_to_a_factor_of_two():
    counts, scale = torch.tensor([100_000, 10]), 2.0
    a, b = 0.5 * scale * (counts / 10) ** -0.25
    factor = float(b.sigmoid() / a.sigmoid())
    assert 1.3 < factor < 2
    gaps = torch.linspace(-5, 5, 1001)  # between the two logits; L-BFGS fails where the loss is nearly straight
    gaps = torch.stack([gaps, torch.zeros(1001)], 1)
    of_each = [
        torch.stack([ldam_loss(gap[None], torch.tensor([y]), counts, scale=scale) for gap in gaps]) for y in (0, 1)
    ]
    for odds in (0.2, 0.9, 1.1, 0.98 * factor, 1.02 * factor, 5.0):  # of the two classes among the training images
        best = (odds * of_each[0] + of_each[1]).argmin()
        assert bool(gaps[best, 0] > 0) == (odds > factor)
