"""Public functions take NumPy arrays or tensors and return the same kind, with the same bits."""

import numpy as np
import pytest
import torch

from unskew import debias

RNG = np.random.default_rng(0)
ZS, FT = RNG.normal(size=(2, 40, 4))
Y = RNG.permutation(np.arange(40) % 4)
LOG_Q, LOG_P, TARGET = np.log(RNG.dirichlet(np.ones(4), 3))
MEMBERS, WEIGHTS = np.stack([ZS, FT]), np.array([0.3, 0.7])

CALLS = {
    "adjust": (debias.adjust, (ZS, FT, LOG_Q, LOG_P, TARGET), {}),
    "combine": (debias.combine, (ZS, FT, LOG_Q, debias.Combination(0.5, 0.4, 0.8), LOG_P, TARGET), {}),
    "combine_members": (debias.combine_members, (MEMBERS, WEIGHTS), {"combine": "probs"}),
    "fit_member_weights": (debias.fit_member_weights, (MEMBERS, Y), {}),
    "prior_groups": (debias.prior_groups, (LOG_Q,), {}),
    "estimate_log_prior": (lambda zs, y: debias.estimate_log_prior(zs, y).log_q, (ZS, Y), {}),
    # Numbers, of any kind of array:
    "fit_temperature": (debias.fit_temperature, (ZS, Y), {}),
    "fit_combination": (debias.fit_combination, (ZS, FT, Y, LOG_Q, LOG_P), {}),
    "classification_metrics": (debias.classification_metrics, (ZS, Y), {}),
}


def to_torch(value):
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def arrays(result, kind):
    """Every array of a result, each of one kind, as NumPy arrays; numbers as they are."""
    values = (
        list(result.values()) if isinstance(result, dict) else list(result) if isinstance(result, tuple) else [result]
    )
    assert all(isinstance(value, (kind, float)) for value in values)
    return [np.asarray(value) for value in values]


@pytest.mark.parametrize("name", CALLS)
def test_both_kinds(name):
    function, arguments, options = CALLS[name]
    by_numpy = arrays(function(*arguments, **options), np.ndarray)
    by_torch = arrays(function(*map(to_torch, arguments), **options), torch.Tensor)
    for left, right in zip(by_numpy, by_torch, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", [name for name in CALLS if name != "prior_groups"])
def test_mixed_kinds_are_refused(name):
    function, arguments, options = CALLS[name]
    with pytest.raises(ValueError, match="same kind"):
        function(to_torch(arguments[0]), *arguments[1:], **options)


def test_labels_may_be_lists():
    assert debias.fit_temperature(ZS, Y.tolist()) == debias.fit_temperature(ZS, Y)
    assert debias.classification_metrics(torch.from_numpy(ZS), Y.tolist()) == debias.classification_metrics(ZS, Y)


def test_every_public_name_is_covered_or_not_a_function_of_arrays():
    others = {"GLA", "PriorEstimate", "Combination", "SUM", "read_prior"}  # GLA: tests/debias/test_gla_estimator.py
    assert set(debias.__all__) == CALLS.keys() | others


def test_values_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="numbers"):
        debias.fit_temperature(np.array([["a", "b"]]), [0])
