"""Temperatures: against the definition, a plain grid, SciPy's minimiser and data of known temperature."""

import logging

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from unskew.debias.temperature import fit_temperature


def case(samples=500, classes=7, scale=4.0, signal=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=samples)
    logits = rng.normal(size=(samples, classes)) * scale
    logits[np.arange(samples), labels] += signal * scale
    return torch.from_numpy(logits), torch.from_numpy(labels)


@pytest.fixture
def warned(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("unskew"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("scale", [0.5, 4.0, 50.0])
def test_confidence_is_the_accuracy(scale, warned):
    logits, labels = case(scale=scale)
    temperature = fit_temperature(logits, labels)
    accuracy = float((logits.argmax(1) == labels).double().mean())
    assert abs(softmax(logits.numpy() / temperature, 1).max(1).mean() - accuracy) < 1e-9
    assert not warned()


@pytest.mark.parametrize("scale", [0.5, 4.0, 50.0])
def test_nll_is_least(scale, warned):
    logits, labels = case(scale=scale, signal=2.0)

    def nll(log_t):
        return -log_softmax(logits.numpy() / np.exp(log_t), 1)[np.arange(len(labels)), labels.numpy()].mean()

    found = minimize_scalar(nll, bounds=np.log([0.01, 100]), method="bounded", options={"xatol": 1e-9})
    assert abs(np.log(fit_temperature(logits, labels, method="nll")) - found.x) < 1e-6
    assert not warned()


def negative_log_posterior(log_t, logits, labels, expected):
    cross_entropy = -log_softmax(np.exp(-log_t) * logits, 1)[np.arange(len(labels)), labels].sum()
    return cross_entropy + (log_t - np.log(expected)) ** 2 / 2


@pytest.mark.parametrize("samples", [1, 10, 500])
@pytest.mark.parametrize("expected", [0.1, 1.0, 10.0])
def test_map_is_the_greatest_posterior(samples, expected, warned):
    logits, labels = case(samples)
    arguments = (logits.numpy(), labels.numpy(), expected)
    grid = np.linspace(-8, 8, 1601)
    start = grid[np.argmin([negative_log_posterior(log_t, *arguments) for log_t in grid])]
    limits = (start - 0.01, start + 0.01)
    found = minimize_scalar(negative_log_posterior, args=arguments, bounds=limits, options={"xatol": 1e-9})
    temperature = fit_temperature(logits, labels, method="map", expected=expected)
    assert np.log(temperature) == pytest.approx(found.x, abs=1e-6)
    assert not warned()


def test_map_stays_finite_and_near_the_expected_temperature_if_all_images_are_right(warned):
    logits, _ = case(10, scale=1.0)
    labels = logits.argmax(1)
    near, far = (fit_temperature(logits, labels, method="map", expected=expected) for expected in (1.0, 5.0))
    assert 0.1 < near < far < 5  # where nll has no minimum
    assert 0.9 < fit_temperature(1e-6 * logits, labels, method="map") < 1.1  # they say nothing
    assert not warned()


def test_the_expected_temperature_matters_on_few_images_alone():
    gaps = []
    for samples in (10, 100000):
        logits, labels = case(samples)
        nll, *held = (
            np.log(fit_temperature(logits, labels, **options))
            for options in ({"method": "nll"}, *({"method": "map", "expected": expected} for expected in (0.1, 100.0)))
        )
        assert held[0] < nll < held[1]
        gaps.append(held[1] - held[0])
    assert gaps[0] > 0.1 and gaps[1] < 1e-3


@pytest.mark.parametrize("method", ["confidence", "nll"])
def test_a_known_temperature_is_found_and_scales(method):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(20000, 5)) * 2
    labels = torch.from_numpy((softmax(logits, 1).cumsum(1) < rng.random((20000, 1))).sum(1).clip(max=4))
    logits = torch.from_numpy(logits)
    temperature = fit_temperature(logits, labels, method=method)
    assert abs(temperature - 1) < 0.05  # sampling error: about 0.015
    assert fit_temperature(3 * logits + 7, labels, method=method) == pytest.approx(3 * temperature, rel=1e-6)


@pytest.mark.parametrize("right", [True, False])
def test_clipped_accuracy(right):
    """Ten samples, all right or all wrong: the confidence is 1 - 1/20, or 1/4 + 1/20."""
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(10, 4)))
    labels = logits.argmax(1) if right else logits.argmin(1)
    temperature = fit_temperature(logits, labels)
    confidence = softmax(logits.numpy() / temperature, 1).max(1).mean()
    assert abs(confidence - (0.95 if right else 0.30)) < 1e-9


@pytest.mark.parametrize("scale", [1e-6, 0.03, 1.0, 200.0])
@pytest.mark.parametrize("right", [True, False])
def test_nll_of_a_perfect_or_hopeless_score_changes_half_a_sample(right, scale, warned):
    """SciPy's least nll of soft labels: 1/(2N) for the runner-up, or 1/(2N) for the prediction and the rest uniform."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(20, 4))
    order = logits.argsort(1)
    soft = np.full((20, 4), 0.0 if right else 0.975 / 4)
    soft[np.arange(20), order[:, -1]] += 0.975 if right else 0.025
    soft[np.arange(20), order[:, -2]] += 0.025 if right else 0.0

    def nll(log_t):
        return -(soft * log_softmax(logits / np.exp(log_t), 1)).sum(1).mean()

    found = minimize_scalar(nll, bounds=np.log([0.01, 100]), method="bounded", options={"xatol": 1e-10})
    labels = torch.from_numpy(order[:, -1 if right else 0].copy())
    temperature = fit_temperature(torch.from_numpy(scale * logits), labels, method="nll")
    assert np.log(temperature / scale) == pytest.approx(found.x, abs=1e-5)
    assert (temperature / scale < 0.5) if right else (temperature / scale > 5)
    assert not warned()


def test_a_perfect_score_with_wide_or_no_margins():
    """Margins of a thousand spreads do not underflow, and a few ties do not send T to the end of its range."""
    labels = torch.arange(40) % 5
    logits = 1e4 * torch.eye(5, dtype=torch.float64)[labels]
    temperature = fit_temperature(logits, labels, method="nll")
    assert softmax(logits.numpy() / temperature, 1).max(1).mean() == pytest.approx(1 - 1 / 80)
    logits[:3] = 0
    labels[:3] = 0
    assert 0.1 < fit_temperature(logits, labels, method="nll") / temperature < 10


@pytest.mark.parametrize("margin", [1.0, 10.0])
def test_nll_of_one_wrong_sample_is_unchanged(margin):
    logits, _ = case(scale=1.0)
    labels = logits.argmax(1)
    labels[0] = (labels[0] + 1) % 7
    logits[0, labels[0]] = logits[0].max() - margin

    def nll(log_t):
        return -log_softmax(logits.numpy() / np.exp(log_t), 1)[np.arange(len(labels)), labels.numpy()].mean()

    found = minimize_scalar(nll, bounds=np.log([0.01, 10]), method="bounded", options={"xatol": 1e-10})
    assert np.log(fit_temperature(logits, labels, method="nll")) == pytest.approx(found.x, abs=1e-4)


def test_nll_is_continuous_where_a_wrong_sample_becomes_right():
    def temperature(margin):
        logits, _ = case(scale=1.0)
        labels = logits.argmax(1)
        first = (labels[0] + 1) % 7
        logits[0, first], labels[0] = logits[0].max() - margin, first
        return fit_temperature(logits, labels, method="nll")

    found = [temperature(margin) for margin in (2.0, 0.4, 1e-3, 0.0, -1e-3)]
    assert found[0] > found[1] >= found[2]
    assert found[2] == pytest.approx(found[3], rel=0.01) == found[4]


def test_no_root_is_the_nearer_end_and_one_warning(warned):
    """Two equal highest logits: no T is more confident than one half, and a label at the top has no least nll."""
    logits = torch.tensor([[1.0, 1.0, 0.0]]).double().expand(20, -1)
    spread = float(logits.var(1, correction=0).mean().sqrt())
    for method in ("confidence", "nll"):
        temperature = fit_temperature(logits, torch.zeros(20, dtype=torch.long), method=method)
        assert temperature == pytest.approx(0.01 * spread)
    assert [method in message for method, message in zip(("confidence", "nll"), warned(), strict=True)] == [True, True]


@pytest.mark.parametrize("method", ["confidence", "nll"])
@pytest.mark.parametrize("factor", [1e-6, 0.01, 100.0, 1e6])
def test_the_scale_of_the_logits_scales_the_temperature(method, factor):
    logits, labels = case(scale=1.0)
    expected = factor * fit_temperature(logits, labels, method=method)
    assert fit_temperature(factor * logits, labels, method=method) == pytest.approx(expected, rel=1e-9)


def test_half_precision_is_fitted_in_float64():
    logits, labels = case()
    half = logits.half()
    assert fit_temperature(half, labels) == fit_temperature(half.double(), labels)


def test_one_class():
    assert fit_temperature(torch.zeros(4, 1), torch.zeros(4, dtype=torch.long)) == 1.0


def test_refusals():
    logits, labels = case(20)
    with pytest.raises(ValueError, match=r"'brier'.*confidence, map, nll"):
        fit_temperature(logits, labels, method="brier")
    with pytest.raises(ValueError, match=r"expected.*-1"):
        fit_temperature(logits, labels, method="map", expected=-1)
    with pytest.raises(ValueError, match="must be 20 integers"):
        fit_temperature(logits, labels[:5])
    logits[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        fit_temperature(logits, labels)


def test_map_on_many_images_does_not_depend_on_their_order():
    labels = torch.arange(20000) % 10
    logits = torch.randn(20000, 10, generator=torch.Generator().manual_seed(0)) + 2 * torch.eye(10)[labels]
    logits[labels == 0] = -logits[labels == 0]  # every tenth image is wrong
    nll = fit_temperature(logits, labels, method="nll")
    assert fit_temperature(logits, labels, method="map") == pytest.approx(nll, rel=1e-3)
