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
    "transport_offset": (debias.transport_offset, (ZS, TARGET), {}),
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
    sources = {"FeatureLogits", "MappedLogits", "ShardedLogits", "open_source"}  # tests/debias/test_logit_sources.py
    others = {"GLA", "PriorEstimate", "Combination", "SUM", "read_prior", *sources}  # GLA: test_gla_estimator.py
    assert set(debias.__all__) == CALLS.keys() | others


def test_values_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="numbers"):
        debias.fit_temperature(np.array([["a", "b"]]), [0])


@pytest.mark.parametrize("name", ["adjust", "combine", "combine_members", "fit_combination", "fit_temperature"])
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_integer_logits_give_the_numbers_of_floating_point_logits(name, kind):
    function, (logits, *rest), options = CALLS[name]
    integers = (10 * logits).round()
    rest = [(10 * value).round() if value is FT else value for value in rest]
    expected = arrays(function(integers, *rest, **options), np.ndarray)

    def integer(value):
        is_logits = isinstance(value, np.ndarray) and value.ndim > 1
        return kind(value.astype(np.int64) if is_logits else value)

    given = function(*map(integer, (integers, *rest)), **options)
    for left, right in zip(arrays(given, np.ndarray if kind is np.asarray else torch.Tensor), expected, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [[True, False], np.array([1j, 2]), torch.tensor([1j, 2])])
def test_logits_that_are_not_real_numbers_are_refused(value):
    rows = torch.stack([value] * 2) if isinstance(value, torch.Tensor) else np.stack([value] * 2)
    for function in (debias.classification_metrics, debias.estimate_log_prior, debias.fit_temperature):
        with pytest.raises(ValueError, match="real numbers"):
            function(rows, [0, 1])


@pytest.mark.parametrize("position", [2, 3, 4])  # log q, log p, log target
def test_a_prior_must_hold_finite_log_probabilities(position):
    for bad, fact in (([np.nan, 0, 0, 0], "finite"), ([np.inf, 0, 0, 0], "finite"), (np.exp(LOG_Q), "logarithm")):
        arguments = [ZS, FT, LOG_Q, LOG_P, TARGET]
        arguments[position] = np.array(bad)
        with pytest.raises(ValueError, match=fact):
            debias.adjust(*arguments)


def test_a_class_may_be_absent_from_the_target():
    target = np.log(np.array([0.5, 0.5, 1, 1])) + np.array([0, 0, -np.inf, -np.inf])
    assert set(debias.adjust(ZS, FT, LOG_Q, LOG_P, target).argmax(1)) == {0, 1}


@pytest.mark.parametrize("weights", [[1.5, -0.5], [0.3, 0.3], [np.nan, 1.0]])
@pytest.mark.parametrize("combine", ["logits", "probs"])
def test_member_weights_must_be_probabilities(weights, combine):
    with pytest.raises(ValueError, match="weights"):
        debias.combine_members(MEMBERS, np.array(weights), combine)


def test_metrics_refuse_labels_and_logits_that_would_give_wrong_numbers():
    for labels in (Y.astype(float), Y > 1):
        with pytest.raises(ValueError, match=r"labels|real numbers"):
            debias.classification_metrics(ZS, labels)
    with pytest.raises(ValueError, match="infinity"):
        debias.classification_metrics(np.where(ZS > 2, np.inf, ZS), Y)
    large = debias.classification_metrics(ZS * 1e39, Y)
    assert large["ece"] == pytest.approx(100 - large["accuracy"], abs=1e-4)  # every confidence is 1
    with pytest.raises(ValueError, match="NaN"):
        debias.prior_groups(np.array([np.nan, 0.0]))


@pytest.mark.parametrize("scale", [1e10, 1e156, 1e300])
def test_fits_refuse_logits_of_an_impossible_size(scale):
    calls = (debias.estimate_log_prior, debias.fit_temperature, lambda zs, y: debias.GLA().fit(zs, zs, y))
    for function in calls:
        with pytest.raises(ValueError, match="1e\\+08"):
            function(ZS * scale, Y)


NOT_NUMBERS = {
    "complex": torch.zeros(40, 4, dtype=torch.cfloat),
    "bool": torch.zeros(40, 4, dtype=torch.bool),
    "sparse": torch.zeros(40, 4).to_sparse(),
    "meta": torch.zeros(40, 4, device="meta"),
    "float8": torch.zeros(40, 4).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("kind", NOT_NUMBERS)
@pytest.mark.parametrize(
    "function",
    [
        lambda logits: debias.adjust(logits, logits, torch.zeros(4)),
        lambda logits: debias.estimate_log_prior(logits, torch.arange(40) % 4),
        lambda logits: debias.GLA().fit(logits, logits, torch.arange(40) % 4),
        lambda logits: debias.fit_temperature(logits, torch.arange(40) % 4),
        lambda logits: debias.combine_members(torch.stack([logits, logits]), torch.ones(2) / 2),
        lambda logits: debias.classification_metrics(logits, torch.arange(40) % 4),
    ],
)
def test_tensors_without_real_numbers_are_refused(function, kind):
    with pytest.raises(ValueError, match="real numbers") as error:
        function(NOT_NUMBERS[kind])
    assert "\n" not in str(error.value)
