"""GLA's combination: rho and the weights against grids, SciPy without gradients, and data of known answers."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax

from unskew.debias.combination import SUM, Combination, adjust, combine, fit_combination, fit_weights, remaining_bias


def shifted(share, samples=4000, classes=8, seed=0, skewed=False):
    """Exact log posteriors under the labels' own frequencies, plus share * log_q."""
    generator = torch.Generator().manual_seed(seed)
    frequencies = torch.linspace(1, 8 if skewed else 1, classes, dtype=torch.float64)
    labels = torch.multinomial(frequencies, samples, True, generator=generator)
    means = torch.randn(classes, 6, generator=generator, dtype=torch.float64)
    x = means[labels] + torch.randn(samples, 6, generator=generator, dtype=torch.float64)
    log_q = torch.randn(classes, generator=generator, dtype=torch.float64).log_softmax(0)
    return x @ means.T - 0.5 * (means**2).sum(1) + share * log_q, labels, log_q


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("skewed", [False, True])
def test_the_share_of_the_bias_is_recovered(share, skewed):
    logits, labels, log_q = shifted(share, skewed=skewed)
    assert abs(remaining_bias(logits, labels, log_q) - share) < 0.08


def test_the_share_minimises_the_cross_entropy_and_stays_within_its_range():
    logits, labels, log_q = shifted(0.4, samples=60)
    pi = torch.bincount(labels, minlength=8).double() / 60
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)
    losses = [torch.nn.functional.cross_entropy(logits - rho * log_q + pi.log(), labels) for rho in grid]
    assert abs(remaining_bias(logits, labels, log_q) - grid[torch.stack(losses).argmin()]) < 1e-3
    assert remaining_bias(logits - 2 * log_q, labels, log_q) == 0.0
    assert remaining_bias(logits + 2 * log_q, labels, log_q) == 1.0
    assert remaining_bias(logits, labels, torch.full((8,), 1 / 8).log()) == 0.0
    with pytest.raises(ValueError, match="log_q must be"):
        remaining_bias(logits, labels, log_q[:5])


# --- the weights --------------------------------------------------------------------------------------


def halves(samples=300, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=samples)
    ft, zs = (rng.normal(size=(samples, classes)) + s * np.eye(classes)[labels] for s in (2, 1))
    return torch.from_numpy(ft), torch.from_numpy(zs), torch.from_numpy(labels)


@pytest.mark.parametrize("pull", [0.0, 1.0, 50.0])
def test_weights_minimise_the_penalised_cross_entropy(pull):
    ft, zs, labels = halves()
    pi = np.bincount(labels, minlength=5) / 300

    def objective(w):
        scores = w[0] * ft.numpy() + w[1] * zs.numpy() + np.log(pi)
        return -log_softmax(scores, 1)[np.arange(300), labels].sum() + pull * ((w - 0.5) ** 2).sum()

    expected = minimize(objective, [1.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}).x
    np.testing.assert_allclose(fit_weights(zs, ft, labels, pull), expected, atol=1e-4)


@pytest.mark.parametrize("few", [40, 4000])
@pytest.mark.parametrize("scale", [0.1, 10.0, 1e3])
def test_weights_are_exact(few, scale):
    """By automatic differentiation: no slope left, but where a weight is at its bound."""
    ft, zs, labels = (tensor[:few] for tensor in halves(4000))
    ft, zs = scale * ft.float(), scale * zs
    weights = torch.tensor(fit_weights(zs, ft, labels), dtype=torch.float64, requires_grad=True)
    log_pi = (torch.bincount(labels, minlength=5).double() / few).log()
    loss = torch.nn.functional.cross_entropy(weights[0] * ft.double() + weights[1] * zs + log_pi, labels)
    (loss + 2 / few * (weights - 0.5).square().sum()).backward()
    slope = torch.where(weights > 1e-4, weights.grad, weights.grad.clamp(max=0))
    assert slope.abs().max() < 1e-9 * scale


def test_halves_that_are_the_same_share_alike():
    ft, _, labels = halves()
    a, b = fit_weights(ft, ft, labels)
    assert a == pytest.approx(b, abs=1e-6)
    assert all(np.isfinite(fit_weights(ft, ft, labels, pull=0.0)))


def test_independent_halves_weigh_as_they_should():
    """Each half is the exact log posterior of a view of its own: the weights are 1 and 1 (GLA's theorem)."""
    rng = np.random.default_rng(0)
    labels = rng.integers(6, size=20000)
    logits = []
    for width, noise in ((5, 1.0), (3, 2.0)):
        means = rng.normal(size=(6, width)) * 2
        x = means[labels] + noise * rng.normal(size=(20000, width))
        logits.append(torch.from_numpy((x @ means.T - 0.5 * (means**2).sum(1)) / noise**2))
    np.testing.assert_allclose(fit_weights(*logits[::-1], torch.from_numpy(labels)), [1, 1], atol=0.1)


def test_a_half_that_says_nothing_is_silenced_and_few_images_silence_none():
    ft, zs, labels = halves(5000)
    noise = torch.from_numpy(np.random.default_rng(5).normal(size=ft.shape))
    a, b = fit_weights(zs, noise, labels)
    assert a < 0.05 < b
    a, b = fit_weights(zs[:5], noise[:5], labels[:5])
    assert abs(a - b) < 0.5
    certain = 100 * torch.eye(5, dtype=torch.float64)[labels[:5]]  # separable: without a pull the weights have no bound
    assert max(fit_weights(certain, certain, labels[:5])) < 1
    a, b = fit_weights(-zs, -ft, labels)  # both contradict val
    assert a > 0
    assert b > 0


def test_classes_that_val_lacks_do_no_harm():
    ft, zs, labels = halves()
    kept = labels < 3
    ft, zs, labels = ft[kept], zs[kept], labels[kept]
    assert fit_weights(zs, ft, labels) == pytest.approx(fit_weights(zs[:, :3], ft[:, :3], labels), abs=1e-6)


# --- both ---------------------------------------------------------------------------------------------


def test_the_sum_is_the_papers_and_the_fit_is_its_parts():
    ft, zs, labels = halves()
    log_q, log_p, target = (torch.randn(5, dtype=torch.float64).log_softmax(0) for _ in range(3))
    torch.testing.assert_close(combine(zs, ft, log_q, SUM, log_p, target), adjust(zs, ft, log_q, log_p, target))
    torch.testing.assert_close(combine(zs, ft, log_q), ft + zs - log_q)
    fitted = fit_combination(zs, ft, labels, log_q, log_p)
    assert fitted.rho == pytest.approx(remaining_bias(ft - log_p, labels, log_q), rel=1e-12)
    a, b = fit_weights(zs - log_q, ft - log_p - fitted.rho * log_q, labels)
    assert fitted[1:3] == pytest.approx((a, b), rel=1e-9) and fitted.offset == 0
    expected = a * (ft - log_p - fitted.rho * log_q) + b * (zs - log_q) + target
    torch.testing.assert_close(combine(zs, ft, log_q, fitted, log_p, target), expected)
    assert combine(zs.float(), ft.float(), log_q, Combination(0.5, 2.0, 1.0)).dtype == torch.float64


def test_shapes_that_do_not_fit():
    ft, zs, labels = halves()
    with pytest.raises(ValueError, match="both be"):
        fit_weights(zs[:, :4], ft, labels.clamp(max=3))


# --- map ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("few", [5, 40, 300])
def test_map_minimises_the_penalised_cross_entropy(few):
    """Against SciPy, from the definition: normal priors on both weights and on the offset of each class."""
    ft, zs, labels = (tensor[:few] for tensor in halves())
    log_q = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1], dtype=torch.float64).log()
    fitted = fit_combination(zs, ft, labels, log_q, method="map")
    present, counts = np.unique(labels, return_counts=True)
    f, z = ((half - share * log_q).numpy()[:, present] for half, share in ((ft, fitted.rho), (zs, 1.0)))
    targets, log_pi = np.searchsorted(present, labels), np.log(counts / few)

    def objective(x):
        log_p = log_softmax(x[0] * f + x[1] * z - x[2:] + log_pi, axis=1)
        penalty = 2 * ((x[0] - 0.3) ** 2 + (x[1] - 0.7) ** 2) + 8 * (x[2:] ** 2).sum()
        return penalty - log_p[np.arange(few), targets].sum()

    bounds = [(0, None)] * 2 + [(None, None)] * len(present)
    start = np.r_[0.3, 0.7, np.zeros(len(present))]
    expected = minimize(objective, start, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-15, "gtol": 1e-9}).x
    assert fitted.rho == remaining_bias(ft, labels, log_q)
    np.testing.assert_allclose([fitted.ft_weight, fitted.zs_weight], expected[:2], atol=1e-5)
    np.testing.assert_allclose(fitted.offset[present], expected[2:], atol=1e-5)
    absent = np.setdiff1d(np.arange(5), present)
    assert not fitted.offset[absent].any()
    logits = combine(zs, ft, log_q, fitted)
    assert torch.equal(logits, combine(zs, ft, log_q, fitted._replace(offset=0.0)) - fitted.offset)


def test_map_on_one_class_keeps_the_prior():
    ft, zs, _ = halves()
    fitted = fit_combination(zs[:4], ft[:4], [2] * 4, np.log(np.full(5, 0.2)).tolist(), method="map")
    assert fitted[1:] == (0.3, 0.7, 0.0)
