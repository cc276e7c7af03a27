"""The joint estimate of temperature and class bias: independent solvers, worlds with a known bias, edge cases."""

import numpy as np
import pytest
import torch
from exact_world import ExactWorld
from scipy.optimize import minimize
from scipy.special import log_softmax

from unskew.debias import estimate_log_prior, fit_temperature
from unskew.debias.joint import DEVIATION, fit_joint


def fit(logits, labels, **options):
    return fit_joint(torch.as_tensor(logits), None if labels is None else torch.as_tensor(labels), **options)


def objective(parameters, logits, labels, deviation, scale_strength=1.0, scale=1.0):
    """Evaluate the objective in float64, from its definition, with its gradient; log s is the first parameter."""
    s, bias = np.exp(parameters[0]), parameters[1:]
    counts = np.bincount(labels, minlength=logits.shape[1])
    variances = deviation**2 - 1 / counts
    log_p = log_softmax(s * logits - bias + np.log(counts / counts.sum()), axis=1)
    ratio = s / scale
    value = -log_p[np.arange(len(labels)), labels].sum() + scale_strength * (ratio - 1 - np.log(ratio))
    residual = np.exp(log_p) - np.eye(logits.shape[1])[labels]
    slope = (residual * logits).sum() + scale_strength * (1 / scale - 1 / s)
    return value + 0.5 * (bias**2 / variances).sum(), np.r_[s * slope, -residual.sum(0) + bias / variances]


def solve(logits, labels, deviation=DEVIATION, **options):
    """Minimise `objective` by SciPy; return s and the bias."""
    start = np.zeros(1 + logits.shape[1])
    arguments = (logits, labels, deviation, *options.values())
    limits = {"maxiter": 5000, "ftol": 1e-16, "gtol": 1e-10}
    found = minimize(objective, start, arguments, "L-BFGS-B", jac=True, options=limits).x
    counts = np.bincount(labels)
    return np.exp(found[0]), found[1:] * deviation**2 / (deviation**2 - 1 / counts)


@pytest.mark.parametrize(
    ("counts", "separation"),
    [([1] * 10, 1.0), ([4] * 10, 0.5), ([64, 64], 1.0), ([40, 20, 8, 4, 2, 1], 1.0), ([3] * 60, 2.0)],
)
def test_the_fit_is_that_of_an_independent_solver(counts, separation):
    logits, labels = ExactWorld(len(counts), 50, 0, separation=separation).sample(counts)
    fitted = fit(logits, labels, no_bias=0.0, shared=(0.0,))
    s, bias = solve(logits, labels)
    assert fitted.converged
    assert 1 / fitted.temperature == pytest.approx(s, abs=1e-6)
    np.testing.assert_allclose(fitted.bias, bias, atol=1e-5)


def test_the_objective_is_jointly_convex():
    logits, labels = ExactWorld(6, 10, 1).sample([3] * 6)
    rng = np.random.default_rng(0)
    for _ in range(200):  # in s itself, not in its logarithm
        ends = np.concatenate([rng.uniform(0.05, 4, (2, 1)), 2 * rng.normal(size=(2, 6))], axis=1)
        at = [objective(np.r_[np.log(p[0]), p[1:]], logits, labels, 1.5)[0] for p in (*ends, ends.mean(0))]
        assert at[2] <= (at[0] + at[1]) / 2 + 1e-9


def test_without_priors_it_is_bias_corrected_temperature_scaling():
    """Compare with the package ``abstention`` (0.1.3.1, TempScaling with all biases) by the authors of BCTS."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(5, 4))
    log_q = -np.linspace(0, np.log(20), 5)
    labels = np.repeat(np.arange(5), 4000)
    images = means[labels] + rng.normal(size=(20000, 4))
    logits = 2.5 * (images @ means.T - 0.5 * (means**2).sum(1) + log_q - np.log(np.exp(log_q).sum()))
    fitted = fit(logits, labels, deviation=1e3, no_bias=0.0, scale_strength=1e-6)
    assert fitted.temperature == pytest.approx(2.51776, abs=1e-3)
    expected = -np.array([-1.49468395, -0.739085594, -7.48405209e-4, 0.745620454, 1.4888975])
    np.testing.assert_allclose(fitted.bias, expected - expected.mean(), atol=1e-3)


# --- worlds with a known bias ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "imbalance", "separation"),
    [(2, 10, 1.0), (10, 10, 1.0), (10, 100, 1.0), (10, 1000, 1.0), (100, 100, 2.0), (300, 1000, 3.0)],
)
def test_the_slope_of_the_bias_is_one(classes, imbalance, separation):
    slopes, temperatures = [], []
    for seed in range(max(2, 60 // classes)):
        world = ExactWorld(classes, imbalance, seed, separation=separation)
        fitted = fit(*world.sample([64] * classes))
        truth = world.log_q - world.log_q.mean()
        slopes.append(fitted.bias.numpy() @ truth / (truth @ truth))
        temperatures.append(fitted.temperature)
    assert np.mean(slopes) == pytest.approx(1, abs=0.05)
    assert np.mean(temperatures) == pytest.approx(1, abs=0.07)


@pytest.mark.world
def test_a_thousand_classes_are_debiased_as_bayes_would():
    world = ExactWorld(1000, 100, 0, separation=3.0)
    logits, labels = world.sample([64] * 1000)
    fitted = fit(logits.astype(np.float32), labels)
    truth = world.log_q - world.log_q.mean()
    assert fitted.bias.numpy() @ truth / (truth @ truth) == pytest.approx(1, abs=0.05)
    test, labels = world.sample([20] * 1000)
    bayes = ((test - world.log_q).argmax(1) == labels).mean()
    assert 100 * (bayes - ((test / fitted.temperature - fitted.bias.numpy()).argmax(1) == labels).mean()) < 0.3


@pytest.mark.parametrize(("classes", "imbalance"), [(2, 10), (10, 1), (10, 100), (10, 1000), (100, 100)])
def test_the_accuracy_is_near_that_of_bayes(classes, imbalance):
    losses = []
    for seed in range(20 if classes < 100 else 5):
        world = ExactWorld(classes, imbalance, seed, separation=1.0 if classes < 100 else 2.0)
        fitted = fit(*world.sample([64] * classes))
        test, labels = world.sample([20000 // classes] * classes)
        bayes = ((test - world.log_q).argmax(1) == labels).mean()
        losses.append(100 * (bayes - ((test / fitted.temperature - fitted.bias.numpy()).argmax(1) == labels).mean()))
    assert np.mean(losses) < 0.3


@pytest.mark.parametrize("images", [2, 8, 32])
def test_the_variance_is_that_of_chosen_counts(images):
    """Without shrinkage the estimates of many samples scatter by the stated variance, not by the inverse Hessian."""
    world, classes, repeats = ExactWorld(10, 10, 3, separation=0.7), 10, 300
    fits = [
        fit(*world.sample([images] * classes), no_bias=0.0, deviation=30.0, scale_strength=1e4) for _ in range(repeats)
    ]
    measured = np.var([fitted.bias.numpy() for fitted in fits], axis=0).sum()
    stated = np.mean([fitted.deviation.square().sum() for fitted in fits])
    assert stated == pytest.approx(measured, rel=0.25)
    inverse_hessian = stated + classes / images  # roughly: the count term of all classes
    assert abs(stated - measured) < abs(inverse_hessian - measured)


@pytest.mark.parametrize("images", [8, 32])
def test_intervals_cover_the_truth(images):
    inside = []
    for seed in range(40):
        world = ExactWorld(10, 100, seed)
        fitted = fit(*world.sample([images] * 10))
        inside.append((fitted.log_q.numpy() - world.log_q) / fitted.log_q_deviation.numpy())
    assert 0.90 < (np.abs(inside) < 1.96).mean() < 0.99


def test_a_model_without_bias_is_left_alone():
    evidence, losses = [], []
    for seed in range(10):
        world = ExactWorld(10, 1, seed)
        fitted = fit(*world.sample([8] * 10))
        test, labels = world.sample([2000] * 10)
        evidence.append(fitted.log_evidence)
        corrected = test / fitted.temperature - fitted.bias.numpy()
        losses.append(100 * ((test.argmax(1) == labels).mean() - (corrected.argmax(1) == labels).mean()))
    assert np.mean(evidence) < 0 and np.mean(losses) < 0.3
    biased = fit(*ExactWorld(10, 100, 0).sample([8] * 10))
    assert biased.log_evidence > 5 and biased.no_bias < 1e-3


# --- edge cases --------------------------------------------------------------------------------------


def test_one_class_has_no_bias():
    fitted = fit(np.random.default_rng(0).normal(size=(5, 4)), [2] * 5, scale=2.0)
    assert not fitted.bias.any() and fitted.temperature == 0.5
    assert (fitted.deviation == DEVIATION).all()


def test_an_absent_class_has_the_prior():
    world = ExactWorld(5, 20, 0)
    logits, labels = world.sample([6, 6, 0, 6, 6])
    fitted = fit(logits, labels)
    assert fitted.bias[2] == 0 and fitted.deviation[2] == DEVIATION
    kept = [0, 1, 3, 4]
    others = fit(logits[:, kept], np.searchsorted(kept, labels))
    torch.testing.assert_close(fitted.bias[kept], others.bias)


def test_a_long_tailed_sample_needs_no_correction():
    world = ExactWorld(8, 30, 5)
    counts = [400, 200, 100, 50, 25, 12, 200, 100]
    fits = [fit(*world.sample(counts), no_bias=0.0) for _ in range(100)]
    estimates = np.array([fitted.bias.numpy() for fitted in fits])
    np.testing.assert_allclose(estimates.mean(0), world.log_q - world.log_q.mean(), atol=0.06)
    np.testing.assert_allclose(np.mean([f.deviation.numpy() for f in fits], axis=0), estimates.std(0), rtol=0.35)


def test_without_labels_the_classes_count_as_balanced():
    world = ExactWorld(6, 30, 2)
    logits, _ = world.sample([300] * 6)
    fitted = fit(logits, None)
    truth = torch.as_tensor(world.log_q - world.log_q.mean())
    assert fitted.temperature == 1 and fitted.no_bias == 0
    assert ((fitted.bias - truth).abs() < 4 * fitted.deviation).all()
    few = fit(logits[::600], None)  # fewer images than classes
    assert few.converged and few.bias.isfinite().all()


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_the_scale_of_the_logits_does_not_matter(factor):
    logits, labels = ExactWorld(6, 30, 3).sample([8] * 6)
    one, other = (
        estimate_log_prior(values, labels, method="map", logit_scale="unknown") for values in (logits, factor * logits)
    )
    np.testing.assert_allclose(other.log_q, one.log_q, atol=1e-5)
    assert other.temperature == pytest.approx(factor * one.temperature, rel=1e-5)


def test_separable_labels_give_a_finite_fit():
    labels = np.arange(12) % 4
    fitted = fit(50 * np.eye(4)[labels], labels)
    assert fitted.converged and 0 < fitted.temperature < 100 and fitted.bias.abs().max() < 1e-6


def test_an_absurd_column_ends_with_a_warning(warned):
    logits, labels = ExactWorld(4, 10, 0).sample([20] * 4)
    estimate_log_prior(logits, labels, method="map")
    assert not warned()
    logits[:, 0] *= 1e7
    estimate = estimate_log_prior(logits, labels, method="map")
    assert np.isfinite(estimate.log_q).all() and np.isfinite(estimate.temperature)
    assert "temperature" in warned()[-1]


def test_a_prior_narrower_than_the_design_is_refused():
    logits, labels = ExactWorld(3, 10, 0).sample([1] * 3)
    with pytest.raises(ValueError, match="deviation"):
        fit(logits, labels, deviation=0.9)


def test_the_public_function_returns_the_posterior():
    logits, labels = ExactWorld(5, 50, 1).sample([10] * 5)
    estimate, fitted = estimate_log_prior(logits, labels, method="map"), fit(logits, labels)
    np.testing.assert_allclose(estimate.log_q, fitted.log_q)
    np.testing.assert_allclose(estimate.deviation, fitted.log_q_deviation)
    assert (estimate.temperature, estimate.no_bias) == (fitted.temperature, fitted.no_bias)
    assert np.exp(estimate.log_q).sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="strength"):
        estimate_log_prior(logits, labels, method="map", strength=1.0)
    assert estimate.temperature < fit_temperature(logits, labels)  # which absorbs a part of the bias


def test_unlabelled_intervals_cover_the_truth_where_the_counts_are_drawn():
    world = ExactWorld(6, 30, 2, separation=1.5)
    truth = torch.as_tensor(world.log_q - world.log_q.mean())
    for size, worst in ((8, 1.0), (100, 0.6)):
        errors, inside = [], []
        for _ in range(60):
            counts = np.bincount(world.rng.integers(0, 6, 6 * size), minlength=6)
            fitted = fit(world.sample(counts)[0], None)
            errors.append((fitted.bias - truth).square().mean().sqrt().item())
            inside.append(((fitted.bias - truth).abs() < 1.96 * fitted.deviation).double().mean().item())
        assert 0.88 < np.mean(inside) <= 1 and np.mean(errors) < worst


def test_few_unlabelled_images_show_little_bias():
    world = ExactWorld(10, 100, 0)
    logits, _ = world.sample([1] * 10)
    assert not fit(logits[:1], None).bias.any()
    assert fit(logits[:1], None).deviation.unique() == DEVIATION
    few, many = (fit(values, None) for values in (logits[:2], world.sample([50] * 10)[0]))
    assert 0 < few.bias.abs().max() < many.bias.abs().max() / 2
    assert (few.deviation > many.deviation).all()
