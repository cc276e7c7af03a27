"""The affine form of a fitted GLA equals its decision function."""

import numpy as np
import pytest
import torch

from unskew.debias import GLA
from unskew.debias.affine import affine_form

CLASSES = 6


def halves(samples=120, seed=0):
    """Return zero-shot and fine-tuned logits [N, C] of biased models, and labels [N]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(samples) % CLASSES
    bias = np.log(np.arange(1, CLASSES + 1) / 21)
    zs, ft = (3 * rng.normal(size=(samples, CLASSES)) + 5 * np.eye(CLASSES)[labels] for _ in range(2))
    return zs + 2 * bias, ft + bias, labels


def fitted(**options):
    counts = np.arange(CLASSES) + 2  # unbalanced training data, so that log p is not 0
    return GLA(**options).fit(*halves(), train_counts=counts)


@pytest.mark.parametrize("target", [None, [0.5, 0.1, 0.1, 0.1, 0.1, 0.1], [0.5, 0.5, 0, 0, 0, 0]])
@pytest.mark.parametrize("combine", ["map", "fitted", "sum"])
@pytest.mark.parametrize("prior", ["map", "convex"])
def test_the_affine_form_is_the_decision_function(prior, combine, target):
    gla = fitted(prior=prior, combine=combine, temperature="confidence")
    zs, ft, _ = halves(seed=1)
    with np.errstate(divide="ignore"):
        log_target = None if target is None else np.log(target)
    form = affine_form(gla, None if target is None else torch.from_numpy(log_target))
    expected = gla.decision_function(zs, ft, log_target=log_target)
    np.testing.assert_allclose(form.zs_factor * zs + form.ft_factor * ft + form.bias.numpy(), expected, atol=1e-5)


def test_each_term_of_the_formula_takes_part():
    """W = (a/T_ft) A + (b/T_zs) Z and the bias, term by term, from the fitted numbers."""
    gla = fitted()
    a, b, rho = (float(getattr(gla, name)) for name in ("ft_weight_", "zs_weight_", "rho_"))
    log_q, log_p, offset = (getattr(gla, name).double() for name in ("log_q_", "log_p_", "offset_"))
    assert all(term.std() > 1e-3 for term in (log_q, log_p, offset)) and min(a, b) > 0.01 and rho > 0
    form = affine_form(gla)
    assert form.ft_factor == pytest.approx(a / float(gla.ft_temperature_))
    assert form.zs_factor == pytest.approx(b / float(gla.zs_temperature_))
    torch.testing.assert_close(form.bias, -a * log_p - (a * rho + b) * log_q - offset)


def test_the_zero_shot_half_alone():
    zs, _, labels = halves()
    log_target = torch.linspace(-1, 1, CLASSES, dtype=torch.float64).log_softmax(0)
    for gla in (GLA().fit(zs, None, labels), fitted()):
        form = affine_form(gla, log_target, zs_only=True)
        expected = gla.decision_function(zs, log_target=log_target.numpy())
        np.testing.assert_allclose(form.zs_factor * zs + form.bias.numpy(), expected, atol=1e-5)
        assert form.ft_factor == 0
    with pytest.raises(ValueError, match="zs_only"):
        affine_form(GLA().fit(zs, None, labels))


def test_two_linear_heads_become_one():
    gla = fitted()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    zs, ft = ((torch.randn(CLASSES, 4, generator=generator), torch.randn(CLASSES, generator=generator)) for _ in "zf")
    weights, bias = affine_form(gla).of_heads(zs, ft)
    assert (weights.dtype, bias.dtype) == (torch.float32, torch.float32)
    logits = (x @ head[0].double().T + head[1].double() for head in (zs, ft))
    torch.testing.assert_close(x @ weights.double().T + bias, gla.decision_function(*logits), rtol=1e-5, atol=1e-5)


def test_without_an_affine_form_there_is_an_error():
    zs, ft, labels = halves()
    with pytest.raises(ValueError, match="unlabelled"):
        affine_form(GLA(prior="unlabelled").fit(zs, ft, labels))
    with pytest.raises(ValueError, match="probabilities"):
        affine_form(GLA().fit(*(torch.from_numpy(half).softmax(1).numpy() for half in (zs, ft)), labels))
    with pytest.raises(ValueError, match="not fitted"):
        affine_form(GLA())
