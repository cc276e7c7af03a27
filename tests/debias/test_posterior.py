"""The posterior of a bias that similar classes share: against regression in NumPy, and in worlds with a known bias."""

import numpy as np
import pytest
import torch
from exact_world import ExactWorld
from scipy.special import softmax
from scipy.stats import multivariate_normal

from unskew.debias import _posterior
from unskew.debias._joint import LogitSums, ScalePenalty, minimise
from unskew.debias._posterior import Curvature
from unskew.debias.joint import DEVIATION, SHARED, fit_joint

ROWS, COLUMNS = 8, 6


def grid_world(images, seed, shared=True):
    """Return logits, labels and the bias minus its mean, for classes that are pairs of a row and a column of a grid.

    Each image shows its row and its column independently, and the bias of a class is the sum of that of its row and of
    its column. Without ``shared`` the same biases belong to random classes.
    """
    space = {"dim": 64, "separation": 0.35}  # many dimensions: rows and columns are hardly correlated
    row, column = ExactWorld(ROWS, 50, seed, **space), ExactWorld(COLUMNS, 50, seed + 1000, **space)
    rows = row.sample([COLUMNS * images] * ROWS)[0].reshape(ROWS, COLUMNS, images, ROWS, 1)
    columns = column.sample([ROWS * images] * COLUMNS)[0].reshape(COLUMNS, ROWS, images, 1, COLUMNS)
    logits = (rows + columns.swapaxes(0, 1)).reshape(-1, ROWS * COLUMNS)
    bias = (row.log_q[:, None] + column.log_q).flatten()
    if not shared:
        permuted = row.rng.permutation(bias)
        logits, bias = logits - bias + permuted, permuted
    return logits, np.repeat(np.arange(len(bias)), images), bias - bias.mean()


def curvature(logits, labels=None):
    """Return the curvature at the maximum a posteriori of `fit_joint`, with its prior variances and 1/n."""
    logits = torch.as_tensor(logits)
    classes = logits.shape[1]
    if labels is None:
        counts, design = torch.full((classes,), len(logits) / classes).double(), torch.zeros(classes).double()
    else:
        labels = torch.as_tensor(labels)
        counts = labels.bincount(minlength=classes).double()
        design = 1 / counts
    data, penalty, variances = LogitSums([logits], labels, counts), ScalePenalty(1.0), DEVIATION**2 - design
    fit = minimise(data, torch.ones(1).double(), penalty, variances, fixed=labels is None)
    return Curvature(fit, data, None if labels is None else penalty), variances, design


def centre(matrix):
    centring = np.eye(len(matrix)) - 1 / len(matrix)
    return centring @ matrix @ centring


def regression(logits, labels, scale, bias, shared):
    """Compute by Gaussian-process regression in float64: weights, mean and covariance of each candidate.

    The noise is the inverse Hessian of the objective without its prior, minus the covariance of the chosen counts. In
    the evidence the scale is known.
    """
    classes, samples = logits.shape[1], len(labels)
    counts = np.bincount(labels)
    p = softmax(scale * logits - bias + np.log(counts / samples), axis=1)
    deviations = logits - (p * logits).sum(1, keepdims=True)
    crossed = -(p * deviations).sum(0)  # derivative of the gradient of the scale by the bias
    of_scale = (p * deviations**2).sum() + 1 / scale**2
    of_bias = np.diag(p.sum(0)) - p.T @ p
    fixed = 0.02 / counts.mean() * np.eye(classes) - np.diag(1 / p.sum(0))
    noise = centre(np.linalg.pinv(of_bias - np.outer(crossed, crossed) / of_scale) + fixed)
    of_known_scale = centre(np.linalg.pinv(of_bias) + fixed)
    gradient = bias / (DEVIATION**2 - 1 / counts)
    estimate = noise @ gradient + DEVIATION**2 * (gradient - gradient.mean())
    similarity = np.corrcoef((logits - logits.mean(1, keepdims=True)).T)
    basis = np.linalg.svd(np.eye(classes) - 1 / classes)[0][:, :-1]  # of the vectors without a mean
    candidates = []
    for share in shared:
        prior = DEVIATION**2 * centre((1 - share) * np.eye(classes) + share * similarity)
        gain = prior @ np.linalg.pinv(prior + noise)
        evidence = multivariate_normal(cov=basis.T @ (prior + of_known_scale) @ basis).logpdf(basis.T @ estimate)
        candidates.append((evidence, gain @ estimate, prior - gain @ prior))
    return softmax([candidate[0] for candidate in candidates]), *zip(*(c[1:] for c in candidates), strict=True)


@pytest.mark.parametrize("images", [2, 8])
@pytest.mark.parametrize("shared", [(0.0,), (0.5,), (0.75,), SHARED])
def test_the_posterior_is_gaussian_process_regression_averaged_by_evidence(images, shared):
    logits, labels, _ = grid_world(images, 0)
    at, variances, design = curvature(logits, labels)
    mean, covariance = at.posterior(variances, design, DEVIATION, shared)
    weights, means, covariances = regression(logits, labels, float(at.fit.weights), at.fit.bias.numpy(), shared)
    expected = weights @ np.array(means)
    np.testing.assert_allclose(mean, expected, atol=2e-3)
    between = np.array(means) - expected
    mixed = np.einsum("k,kij->ij", weights, covariances) + np.einsum("k,ki,kj->ij", weights, between, between)
    np.testing.assert_allclose(covariance, mixed, atol=2e-3)
    fitted = fit_joint(torch.as_tensor(logits), torch.as_tensor(labels), no_bias=0.0, shared=shared)
    np.testing.assert_allclose(fitted.bias, expected, atol=2e-3)
    np.testing.assert_allclose(fitted.deviation, np.sqrt(np.diag(mixed)), atol=2e-3)


def test_the_deviations_contain_the_variance_between_the_candidates():
    """Two candidates of known weights: the law of total variance."""
    logits, labels, _ = grid_world(1, 1)
    at, variances, design = curvature(logits, labels)
    pair = (0.0, 0.5)
    (a, a_covariance), (b, b_covariance) = (at.posterior(variances, design, DEVIATION, (share,)) for share in pair)
    mean, covariance = at.posterior(variances, design, DEVIATION, pair)
    weight = float((mean - a) @ (b - a) / (b - a).square().sum())  # of the second
    assert 0.05 < weight < 0.95
    within = (1 - weight) * a_covariance.diagonal() + weight * b_covariance.diagonal()
    between = weight * (1 - weight) * (b - a).square()
    assert between.max() > 0.05 * within.max()
    torch.testing.assert_close(covariance.diagonal(), within + between)


def error(logits, labels, truth, shared):
    fitted = fit_joint(torch.as_tensor(logits), labels if labels is None else torch.as_tensor(labels), shared=shared)
    return np.square(fitted.bias.numpy() - truth).mean()


@pytest.mark.parametrize("labelled", [True, False])
def test_bias_that_similar_classes_share_is_estimated_better(labelled):
    worlds = [grid_world(2, seed) for seed in range(10)]
    errors = {
        shared: np.sqrt(np.mean([error(x, y if labelled else None, truth, shared) for x, y, truth in worlds]))
        for shared in (SHARED, (0.0,))
    }
    assert errors[SHARED] < 0.85 * errors[0.0,]


@pytest.mark.parametrize("world", ["grid", "exact"])
def test_independent_bias_is_estimated_as_well_as_without_sharing(world):
    if world == "grid":
        worlds = [grid_world(2, seed, shared=False) for seed in range(10)]
    else:
        exact = [ExactWorld(20, 50, seed) for seed in range(20)]
        worlds = [(*world.sample([2] * 20), world.log_q - world.log_q.mean()) for world in exact]
    errors = [np.sqrt(np.mean([error(*world, shared) for world in worlds])) for shared in (SHARED, (0.0,))]
    assert errors[0] < 1.08 * errors[1]


@pytest.mark.parametrize("labelled", [True, False])
def test_many_classes_share_no_bias(labelled, monkeypatch):
    logits, labels, _ = grid_world(2, 0)
    at, variances, design = curvature(logits, labels if labelled else None)
    full = at.posterior(variances, design, DEVIATION, SHARED)
    monkeypatch.setattr(_posterior, "MOST_CLASSES", ROWS * COLUMNS - 1)
    mean, covariance = at.posterior(variances, design, DEVIATION, SHARED)
    torch.testing.assert_close(mean, at.fit.bias * DEVIATION**2 / variances)  # the maximum a posteriori
    assert not torch.allclose(mean, full[0], atol=0.1)
    assert covariance.shape == mean.shape  # the diagonal
    monkeypatch.setattr(_posterior, "MOST_CLASSES", ROWS * COLUMNS)
    independent = at.posterior(variances, design, DEVIATION, (0.0,))[1].diagonal()
    torch.testing.assert_close(at.posterior(variances, design, DEVIATION, SHARED), full)
    assert 0.5 < (covariance / independent).min() and (covariance / independent).max() < 2


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("confused", [True, False])
def test_the_variance_is_positive_semidefinite(labelled, confused):
    logits, labels, _ = grid_world(1, 0)
    if not confused:
        logits = 60 * np.eye(ROWS * COLUMNS)[labels]
    at, variances, design = curvature(logits, labels if labelled else None)
    variance = at._variance()[0]
    torch.testing.assert_close(variance, variance.T)
    assert torch.linalg.eigvalsh(variance).min() > -1e-6 * variance.diagonal().max()
    mean, covariance = at.posterior(variances, design, DEVIATION, SHARED)
    assert mean.isfinite().all() and torch.linalg.eigvalsh(covariance).min() > -1e-6
    prior = DEVIATION**2 * (1 - 1 / len(mean))
    assert (covariance.diagonal() < 1.05 * prior).all()


def test_the_correlation_of_many_images_does_not_depend_on_their_order():
    """With 10 classes in turn, every tenth image of 20,480 has the same label."""
    labels = np.arange(20480) % 10
    pairs = np.eye(10) + np.eye(10)[np.arange(10) ^ 1]  # an image of 0 looks like 1 too
    logits = np.random.default_rng(0).normal(size=(20480, 10)) + 3 * pairs[labels]
    expected = np.corrcoef((logits - logits.mean(1, keepdims=True)).T)
    sums = LogitSums([torch.from_numpy(logits)], torch.from_numpy(labels), torch.from_numpy(np.bincount(labels)))
    assert expected[0, 1] > 0.3
    np.testing.assert_allclose(sums.correlation(), expected, atol=0.1)
