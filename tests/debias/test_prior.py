"""The convex label prior: first-order conditions, independent solvers, known priors, hard and bad inputs."""

import logging
import math
import re

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from unskew.debias import _solver
from unskew.debias._validation import check_logits
from unskew.debias.combination import adjust
from unskew.debias.prior import estimate_log_prior


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def frequencies(labels, classes):
    return torch.bincount(labels, minlength=classes).double() / len(labels)


def posterior(labels, classes, log_q, sharpness=8.0, seed=0):
    """Logits that are the exact Bayes posterior of Gaussian classes under the prior q, for images of the labels."""
    rng = generator(seed)
    means = torch.randn(classes, 16, generator=generator(99), dtype=torch.float64) / 4
    noise = torch.randn(len(labels), 16, generator=rng, dtype=torch.float64) / math.sqrt(sharpness)
    images = means[labels] + noise
    return sharpness * (images @ means.T - 0.5 * (means**2).sum(1)) + log_q


def condition(logits, labels, log_q):
    """The largest deviation of mean softmax(logits - log q + log pi) from pi."""
    pi = frequencies(labels, logits.shape[1])
    return float(((logits - log_q + pi.log()).softmax(1).mean(0) - pi).abs().max())


def random_case(samples, classes, scale=3.0, seed=0):
    labels = torch.arange(samples) % classes
    logits = torch.randn(samples, classes, generator=generator(seed), dtype=torch.float64) * scale
    logits[torch.arange(samples), labels] += scale
    return logits + torch.randn(classes, generator=generator(seed + 1), dtype=torch.float64), labels


# --- the optimum -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "classes", "scale"), [(50, 2, 1), (300, 10, 3), (700, 100, 5), (211, 13, 2)])
def test_first_order_condition(samples, classes, scale):
    logits, labels = random_case(samples, classes, scale)
    estimate = estimate_log_prior(logits, labels, strength=0.0)
    assert estimate.converged and estimate.passes <= 30
    assert condition(logits, labels, estimate.log_q) < 1e-9
    assert abs(float(estimate.log_q.exp().sum()) - 1) < 1e-12


def reference(logits, labels, strength):
    """The full objective over all C classes, in NumPy, absent classes and all, by SciPy."""
    logits, labels = logits.numpy(), labels.numpy()
    samples, classes = logits.shape
    pi = np.bincount(labels, minlength=classes) / samples
    seen = pi > 0
    rank = np.cumsum(seen) - 1

    def objective(b):
        scores = logits[:, seen] - b[seen] + np.log(pi[seen])
        p, log_q = softmax(scores, 1), log_softmax(b)
        ce = -log_softmax(scores, 1)[np.arange(samples), rank[labels]].mean()
        gradient = strength / samples * (np.exp(log_q) - 1 / classes)
        gradient[seen] += pi[seen] - p.mean(0)
        return ce + strength / samples * (-np.log(classes) - log_q.mean()), gradient

    found = minimize(objective, np.zeros(classes), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 5000})
    return log_softmax(found.x), found.fun


@pytest.mark.parametrize("strength", [0.5, 1.0, 30.0])
@pytest.mark.parametrize("absent", [(), (0,), (2, 3, 7)])
def test_equals_a_direct_minimisation_with_absent_classes(strength, absent):
    logits, labels = random_case(120, 8, 2.0)
    kept = torch.tensor([int(label) not in absent for label in labels])
    logits, labels = logits[kept], labels[kept]
    estimate = estimate_log_prior(logits, labels, strength=strength)
    log_q, objective = reference(logits, labels, strength)
    np.testing.assert_allclose(estimate.log_q.numpy(), log_q, atol=1e-5)
    assert abs(estimate.objective - objective) < 1e-9
    for label in absent:
        assert abs(float(estimate.log_q[label].exp()) - 1 / 8) < 1e-12


def test_equals_a_bias_only_logistic_regression():
    """Newton on the biases a of softmax(logits + a), a_0 = 0, with the whole Hessian: log q = log pi - a."""
    logits, labels = random_case(400, 6, 2.0)
    keep = torch.rand(400, generator=generator(5)) < (1 + labels) / 6  # uneven frequencies
    logits, labels = logits[keep], labels[keep]
    a, target = np.zeros(6), np.eye(6)[labels.numpy()].mean(0)
    for _ in range(50):
        p = softmax(logits.numpy() + a, 1)
        hessian = np.diag(p.mean(0)) - p.T @ p / len(p)
        a[1:] -= np.linalg.solve(hessian[1:, 1:], (p.mean(0) - target)[1:])
    expected = log_softmax(np.log(target) - a)
    estimate = estimate_log_prior(logits, labels, strength=0.0)
    np.testing.assert_allclose(estimate.log_q.numpy(), expected, atol=1e-8)


# --- what it does not see ----------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_invariance(strength):
    logits, labels = random_case(200, 10)
    log_q = estimate_log_prior(logits, labels, strength=strength).log_q
    shuffled = labels[torch.randperm(200, generator=generator())]
    rows = torch.randn(200, 1, generator=generator(), dtype=torch.float64) * 50
    order = torch.randperm(10, generator=generator())
    same = (
        estimate_log_prior(logits + 123.0, labels, strength=strength),
        estimate_log_prior(logits + rows, labels, strength=strength),
        estimate_log_prior(logits, shuffled, strength=strength),
    )
    for estimate in same:
        torch.testing.assert_close(estimate.log_q, log_q, atol=1e-8, rtol=0)
    permuted = estimate_log_prior(logits[:, order], order.argsort()[labels], strength=strength).log_q
    torch.testing.assert_close(permuted, log_q[order], atol=1e-8, rtol=0)


def test_class_offsets_move_log_q_by_themselves():
    logits, labels = random_case(200, 10)
    offsets = torch.linspace(-40, 40, 10, dtype=torch.float64)
    log_q = estimate_log_prior(logits, labels, strength=0.0).log_q
    moved = estimate_log_prior(logits + offsets, labels, strength=0.0).log_q
    torch.testing.assert_close(moved, (log_q + offsets).log_softmax(0), atol=1e-7, rtol=0)


def test_a_long_tailed_sample_gives_the_same_q_and_the_true_one():
    classes, samples = 20, 20000
    log_q = torch.randn(classes, generator=generator(3), dtype=torch.float64).log_softmax(0)
    balanced = torch.arange(samples) % classes
    tail = torch.logspace(0, -math.log10(50), classes)[torch.randperm(classes, generator=generator(4))]
    skewed = torch.multinomial(tail, samples, True, generator=generator(5))
    estimates = [
        estimate_log_prior(posterior(labels, classes, log_q, seed=seed), labels, strength=0.0).log_q
        for seed, labels in enumerate((balanced, skewed))
    ]
    assert (estimates[0] - log_q).abs().max() < 0.15  # the sampling error is about 0.05
    assert (estimates[1] - log_q).abs().max() < 0.3  # the rarest class has a hundred samples
    without_pi = (log_q - frequencies(skewed, classes).log()).log_softmax(0)
    assert (estimates[1] - without_pi).abs().max() > 1


def test_strength_pulls_towards_uniform():
    logits, labels = random_case(200, 10)
    spread = [float(estimate_log_prior(logits, labels, strength=k).log_q.std()) for k in (0, 10, 1e3, 1e6)]
    assert spread == sorted(spread, reverse=True) and spread[-1] < 1e-3


# --- hard inputs -------------------------------------------------------------------------------------


def test_one_class():
    estimate = estimate_log_prior(
        torch.randn(5, 1, generator=generator()), torch.zeros(5, dtype=torch.long), strength=0
    )
    assert estimate.log_q.tolist() == [0.0] and estimate.converged and estimate.objective == 0


def test_only_one_class_has_labels():
    logits, _ = random_case(5, 3)
    estimate = estimate_log_prior(logits, torch.ones(5, dtype=torch.long))
    torch.testing.assert_close(estimate.log_q.exp(), torch.full((3,), 1 / 3, dtype=torch.float64))


def test_fewer_samples_than_classes():
    logits, labels = random_case(30, 100)
    estimate = estimate_log_prior(logits, labels)
    q = estimate.log_q.exp()
    assert estimate.converged
    torch.testing.assert_close(q[30:], torch.full((70,), 0.01, dtype=torch.float64))
    p = (logits[:, :30] - estimate.log_q[:30]).softmax(1).mean(0)  # each present class has pi = 1/30
    assert float((1 / 30 - p + (q[:30] - 0.01) / 30).abs().max()) < 1e-9


@pytest.mark.parametrize("scale", [100, 1000])
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_logits_of_a_large_scale(scale, strength):
    samples, classes = 500, 50
    labels = torch.arange(samples) % classes
    logits = torch.randn(samples, classes, generator=generator(), dtype=torch.float64) * scale
    logits += scale * torch.randn(classes, generator=generator(1), dtype=torch.float64)
    estimate = estimate_log_prior(logits, labels, strength=strength)
    assert estimate.converged
    gradient = 1 / classes - (logits - estimate.log_q).softmax(1).mean(0)
    gradient += strength / samples * (estimate.log_q.exp() - 1 / classes)
    assert float(gradient.abs().max()) < 1e-9


def test_a_class_that_always_wins():
    logits = torch.zeros(40, 4, dtype=torch.float64)
    logits[:, 0] = 1000
    labels = torch.arange(40) % 4
    estimate = estimate_log_prior(logits, labels, strength=0.0)
    expected = torch.tensor([1000.0, 0, 0, 0], dtype=torch.float64).log_softmax(0)
    torch.testing.assert_close(estimate.log_q, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision_of_the_result(dtype):
    logits, labels = random_case(200, 10)
    given = logits.to(dtype)
    before = given.clone()
    estimate = estimate_log_prior(given, labels.to(torch.int32))
    assert estimate.log_q.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = estimate_log_prior(given.double(), labels).log_q
    torch.testing.assert_close(estimate.log_q.double(), expected, atol=1e-6, rtol=0)
    assert torch.equal(given, before)


def test_a_fit_that_does_not_converge_warns(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("unskew"), "propagate", True)
    monkeypatch.setattr(_solver, "NEWTON_PASSES", 2)
    assert not estimate_log_prior(*random_case(200, 10)).converged
    assert re.search(r"did not converge in \d passes \(largest gradient", caplog.text)


@pytest.mark.slow
@pytest.mark.parametrize(("imbalance", "sharpness"), [(1, 40), (50, 20)])  # nine and six answers in ten are right
def test_imagenet_size(imbalance, sharpness):
    labels = torch.arange(20000) % 1000
    if imbalance > 1:
        tail = torch.logspace(0, -math.log10(imbalance), 1000)
        labels = torch.cat([torch.arange(1000), torch.multinomial(tail, 19000, True, generator=generator(7))])
    log_q = torch.randn(1000, generator=generator(3), dtype=torch.float64).log_softmax(0)
    logits = posterior(labels, 1000, log_q, sharpness=sharpness).float()
    estimate = estimate_log_prior(logits, labels, strength=0.0)
    assert estimate.converged and estimate.passes <= 30
    assert condition(logits.double(), labels, estimate.log_q.double()) < 1e-7


# --- bad inputs --------------------------------------------------------------------------------------


def test_logits_that_are_not_finite():
    logits, labels = random_case(20, 5)
    logits[3, 1], logits[7, 4] = float("nan"), float("inf")
    with pytest.raises(ValueError, match=r"2 of 100 .*row 3, column 1"):
        estimate_log_prior(logits, labels)


LOGITS, LABELS = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"method": "convx"}, "did you mean convex"),
        ({"labels": None}, "needs labels"),
        ({"labels": None, "method": "released"}, "needs labels"),
        ({"strength": -1.0}, "strength"),
        ({"strength": "loo"}, "strength must be .*loo"),
        ({"strength": "cv", "labels": torch.tensor([0, 1, 2, 0]), "method": "eigen"}, "'cv'.*eigen"),
        ({"strength": "cv", "labels": None, "method": "em"}, "'cv'"),
        ({"strength": float("nan")}, "strength"),
        ({"labels": torch.tensor([0, 1, 1, 0]), "strength": 0.0}, "1 of 3 classes.*first: 2"),
        ({"labels": torch.tensor([0, 1, 3, 0])}, r"0\.\.2.*0\.\.3"),
        ({"labels": torch.tensor([0, -1, 2, 0])}, r"-1\.\.2"),
        ({"labels": torch.tensor([0, 1, 2])}, "4 integers"),
        ({"labels": torch.tensor([0.0, 1, 2, 0])}, "4 integers"),
        ({"logits": torch.zeros(4)}, r"\[N, C\]"),
        ({"logits": torch.zeros(0, 3)}, r"\[N, C\]"),
    ],
)
def test_refusals(arguments, says):
    with pytest.raises(ValueError, match=says):
        estimate_log_prior(**{"logits": LOGITS, "labels": LABELS, **arguments})


def test_check_logits_takes_lists_and_arrays():
    logits, labels = check_logits(np.zeros((2, 3), dtype=np.float32), [0, 2])
    assert logits.dtype == torch.float64 and labels.tolist() == [0, 2]


# --- adjust ------------------------------------------------------------------------------------------


def test_adjust_recovers_the_posterior_under_another_prior():
    """Two models that saw independent evidence e1, e2 under priors p, q; the target prior is t."""
    rng = np.random.default_rng(0)
    e1, e2 = rng.normal(size=(2, 7, 4))
    log_p, log_q, log_t = log_softmax(rng.normal(size=(3, 4)), 1)
    ft, zs = log_softmax(e1 + log_p, 1), log_softmax(e2 + log_q, 1)
    args = [torch.from_numpy(array) for array in (zs, ft, log_q, log_p, log_t)]
    np.testing.assert_allclose(adjust(*args).softmax(1), softmax(e1 + e2 + log_t, 1), atol=1e-12)
    np.testing.assert_allclose(adjust(*args[:4]).softmax(1), softmax(e1 + e2, 1), atol=1e-12)
    np.testing.assert_allclose(adjust(*args[:3]).softmax(1), softmax(e1 + e2 + log_p, 1), atol=1e-12)


def test_adjust_keeps_precision_and_checks_shapes():
    ft = zs = torch.zeros(5, 3)
    assert adjust(zs, ft, torch.zeros(3, dtype=torch.float64)).dtype == torch.float32
    with pytest.raises(ValueError, match=r"log_q .*C = 3"):
        adjust(zs, ft, torch.zeros(4))
    with pytest.raises(ValueError, match="log_p"):
        adjust(zs, ft, torch.zeros(3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"\[1, 3\] and \[5, 3\]"):
        adjust(zs[:1], ft, torch.zeros(3))
