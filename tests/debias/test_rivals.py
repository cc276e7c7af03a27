"""The methods that GLA is compared with, against independent solvers."""

import numpy as np
import pytest
import torch
from exact_world import ExactWorld
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from unskew.debias.rivals import fit_bcts, fit_stacking


@pytest.mark.parametrize("deviation", [0.3, 1.0, 3.0])
def test_bcts_is_that_of_an_independent_solver(deviation):
    logits, labels = ExactWorld(5, 20, 0).sample([9, 3, 4, 5, 7])
    counts = np.bincount(labels)

    def objective(x):
        log_p = log_softmax(x[0] * logits - x[1:] + np.log(counts / len(labels)), axis=1)
        loss = -log_p[np.arange(len(labels)), labels].sum()
        return loss + x[0] - 1 - np.log(x[0]) + (x[1:] ** 2).sum() / (2 * deviation**2)

    bounds, options = [(1e-3, None)] + 5 * [(None, None)], {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 10_000}
    x = minimize(objective, np.r_[1, np.zeros(5)], method="L-BFGS-B", bounds=bounds, options=options).x
    temperature, bias = fit_bcts(logits, labels, deviation=deviation)
    assert temperature == pytest.approx(1 / x[0], rel=1e-5)
    np.testing.assert_allclose(bias, x[1:], atol=1e-5)


def test_bcts_without_a_prior_is_a_logistic_regression_on_the_bias():
    """With balanced labels and logits whose temperature is 1: the intercepts of scikit-learn's fit, T held at 1."""
    logits, labels = ExactWorld(3, 20, 1).sample([3000] * 3)
    temperature, bias = fit_bcts(logits, labels, deviation=1e4)
    reference = LogisticRegression(C=1e6, tol=1e-10, max_iter=2000).fit(logits, labels)
    calibrated = logits / temperature - bias
    agreement = (calibrated.argmax(1) == reference.predict(logits)).mean()
    assert temperature == pytest.approx(1, abs=0.05) and agreement > 0.99


@pytest.mark.parametrize("deviation", [0.1, 0.25, 2.0])
def test_stacking_is_that_of_an_independent_solver(deviation):
    """Unbalanced labels, and a class without any."""
    rng = np.random.default_rng(0)
    zs, labels = ExactWorld(5, 5, 2).sample([5, 2, 0, 3, 4])
    ft = rng.normal(size=zs.shape) + 2 * np.eye(5)[labels]
    present = [0, 1, 3, 4]
    log_pi = np.log(np.bincount(labels, minlength=5)[present] / len(labels))

    def objective(x):
        logits = x[0] * ft + x[1] * zs
        log_p = log_softmax(logits[:, present] - x[2:] + log_pi, axis=1)
        loss = -log_p[np.arange(len(labels)), np.searchsorted(present, labels)].sum()
        prior = ((x[0] - 0.3) ** 2 + (x[1] - 0.7) ** 2) / (2 * 0.5**2)
        return loss + prior + (x[2:] ** 2).sum() / (2 * deviation**2)

    start, bounds = np.r_[0.3, 0.7, np.zeros(4)], 2 * [(0, None)] + 4 * [(None, None)]
    options = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 10_000}
    x = minimize(objective, start, method="L-BFGS-B", bounds=bounds, options=options).x
    fit = fit_stacking(zs, ft, labels, deviation=deviation)
    assert (fit.ft_weight, fit.zs_weight) == pytest.approx(x[:2], abs=1e-5)
    np.testing.assert_allclose(fit.bias[present], x[2:], atol=1e-5)
    assert fit.bias[2] == 0
    none = fit_stacking(zs, ft, labels, deviation=0)
    tight = fit_stacking(zs, ft, labels, deviation=1e-4)
    assert not none.bias.any() and none[:2] == pytest.approx(tight[:2], abs=1e-4)


def test_a_half_that_contradicts_the_labels_has_weight_zero():
    zs, labels = ExactWorld(4, 5, 2).sample([50] * 4)
    wrong = np.random.default_rng(0).normal(size=zs.shape) - 2 * np.eye(4)[labels]
    fit = fit_stacking(zs, wrong, labels)
    assert fit.ft_weight == 0 < fit.zs_weight
    assert fit_stacking(-zs, -zs, labels)[:2] == (0, 0)


def test_both_kinds_of_arrays():
    logits, labels = ExactWorld(4, 5, 2).sample([5] * 4)
    by_numpy, by_torch = fit_bcts(logits, labels), fit_bcts(torch.from_numpy(logits), torch.from_numpy(labels))
    assert isinstance(by_numpy.bias, np.ndarray) and isinstance(by_torch.bias, torch.Tensor)
    np.testing.assert_array_equal(by_numpy.bias, by_torch.bias)
    assert isinstance(fit_stacking(logits, logits, labels).bias, np.ndarray)
    with pytest.raises(ValueError, match="same kind"):
        fit_stacking(logits, torch.from_numpy(logits), labels)
