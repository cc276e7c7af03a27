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

    x = minimize(
        objective, np.r_[1, np.zeros(5)], method="L-BFGS-B", bounds=[(1e-3, None)] + 5 * [(None, None)], tol=1e-14
    ).x
    temperature, bias = fit_bcts(logits, labels, deviation=deviation)
    assert temperature == pytest.approx(1 / x[0], rel=1e-4)
    np.testing.assert_allclose(bias, x[1:], atol=1e-4)


def test_bcts_without_a_prior_is_a_logistic_regression_on_the_bias():
    """With balanced labels and logits whose temperature is 1: the intercepts of scikit-learn's fit, T held at 1."""
    logits, labels = ExactWorld(3, 20, 1).sample([3000] * 3)
    temperature, bias = fit_bcts(logits, labels, deviation=1e4)
    reference = LogisticRegression(C=1e6, tol=1e-10, max_iter=2000).fit(logits, labels)
    calibrated = logits / temperature - bias
    agreement = (calibrated.argmax(1) == reference.predict(logits)).mean()
    assert temperature == pytest.approx(1, abs=0.05) and agreement > 0.99


def test_stacking_is_that_of_a_grid():
    rng = np.random.default_rng(0)
    (zs, labels), ft = ExactWorld(4, 5, 2).sample([5] * 4), rng.normal(size=(20, 4))
    ft = ft + 2 * np.eye(4)[labels]

    def objective(a, b):
        log_p = log_softmax(a * ft + b * zs, axis=1)
        return -log_p[np.arange(20), labels].sum() + 2 * ((a - 0.3) ** 2 + (b - 0.7) ** 2)

    a, b = fit_stacking(zs, ft, labels)
    grid = np.linspace(0, 2, 101)
    values = np.array([[objective(x, y) for y in grid] for x in grid])
    i, j = np.unravel_index(values.argmin(), values.shape)
    assert abs(grid[i] - a) < 0.02 and abs(grid[j] - b) < 0.02 and objective(a, b) <= values.min() + 1e-9


def test_a_half_that_contradicts_the_labels_has_weight_zero():
    zs, labels = ExactWorld(4, 5, 2).sample([50] * 4)
    wrong = np.random.default_rng(0).normal(size=zs.shape) - 2 * np.eye(4)[labels]
    a, b = fit_stacking(zs, wrong, labels)
    assert a == 0 < b
    assert fit_stacking(-zs, -zs, labels) == (0, 0)


def test_both_kinds_of_arrays():
    logits, labels = ExactWorld(4, 5, 2).sample([5] * 4)
    by_numpy, by_torch = fit_bcts(logits, labels), fit_bcts(torch.from_numpy(logits), torch.from_numpy(labels))
    assert isinstance(by_numpy.bias, np.ndarray) and isinstance(by_torch.bias, torch.Tensor)
    np.testing.assert_array_equal(by_numpy.bias, by_torch.bias)
    with pytest.raises(ValueError, match="same kind"):
        fit_stacking(logits, torch.from_numpy(logits), labels)
