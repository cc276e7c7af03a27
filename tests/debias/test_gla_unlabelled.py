"""Tests of GLA with the images to predict: the prior ``unlabelled`` and the combination ``otter``."""

import sys

import numpy as np
import pytest
import torch

from unskew.debias import GLA, estimate_log_prior, fit_combination, fit_temperature, transport_offset
from unskew.debias.cross_fit import cross_fit, cross_scores


def halves(samples, seed=0, classes=4):
    """Return zero-shot and fine-tuned logits and labels; the zero-shot half prefers the first classes."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(samples) % classes)
    zs, ft = (rng.normal(size=(samples, classes)) + 2 * np.eye(classes)[labels] for _ in range(2))
    return zs + np.linspace(2, 0, classes), ft, labels


VAL, TEST = halves(60), halves(200, seed=1)


def test_unlabelled_estimates_the_prior_on_the_images_to_predict():
    gla = GLA(prior="unlabelled").fit(*VAL)
    zs, ft, _ = TEST
    assert gla.transductive and gla.assumes_uniform_ and gla.zs_temperature_ == 1
    fitted = estimate_log_prior(VAL[0], method="map").log_q
    np.testing.assert_allclose(gla.log_q_, fitted)
    log_q = estimate_log_prior(zs, method="map").log_q
    np.testing.assert_array_equal(gla.log_q_for(zs), log_q)
    np.testing.assert_allclose(gla.decision_function(zs), zs - log_q)
    t = fit_temperature(VAL[1], VAL[2], method="map")
    rho, a, b, offset = fit_combination(VAL[0], VAL[1] / t, VAL[2], fitted, method="map")
    offset = offset.numpy()
    np.testing.assert_allclose(gla.decision_function(zs, ft), a * (ft / t - rho * log_q) + b * (zs - log_q) - offset)
    known = a * (ft / t - rho * fitted) + b * (zs - fitted) - offset
    np.testing.assert_allclose(gla.fitted_logits(*map(torch.from_numpy, (zs, ft))), known)
    np.testing.assert_array_equal(gla.log_q_, fitted)  # a prediction changes nothing


def test_labels_do_not_enter_the_unlabelled_prior():
    labelled, without = (estimate_log_prior(VAL[0], y, method="unlabelled") for y in (VAL[2], None))
    np.testing.assert_array_equal(labelled.log_q, without.log_q)
    with pytest.raises(ValueError, match="strength"):
        estimate_log_prior(VAL[0], method="unlabelled", strength=2)
    with pytest.raises(ValueError, match="strength"):
        GLA(prior="unlabelled", strength=2)


def test_unlabelled_calibrates_logits_of_unknown_scale():
    zs, ft, y = VAL
    one, other = (GLA(prior="unlabelled", logit_scale="unknown").fit(k * zs, ft, y) for k in (1, 50))
    assert one.zs_temperature_ == fit_temperature(zs, y, method="map", expected=fit_temperature(zs, y))
    np.testing.assert_allclose(one.predict_proba(TEST[0]), other.predict_proba(50 * TEST[0]), atol=1e-6)


@pytest.mark.parametrize("margin", [17, 40])
@pytest.mark.parametrize("seed", range(4))
def test_confident_images_without_labels_show_no_bias(margin, seed):
    labels = np.arange(500) % 5
    zs = np.random.default_rng(seed).normal(size=(500, 5)) + margin * np.eye(5)[labels]
    estimate = estimate_log_prior(zs.astype(np.float32), method="unlabelled")
    np.testing.assert_allclose(np.exp(estimate.log_q), 0.2, atol=0.1)
    assert np.isnan(estimate.log_evidence)  # there are no labels to compute it from


@pytest.mark.parametrize("options", [{"prior": "unlabelled"}, {"combine": "otter"}])
def test_one_image_keeps_its_prediction(options):
    gla = GLA(**options).fit(*VAL)
    for zs, ft in zip(TEST[0][:20, None], TEST[1][:20, None], strict=True):
        assert gla.predict(zs) == zs.argmax()
        if options == {"combine": "otter"}:  # nothing is transported
            assert gla.predict(zs, ft) == gla.fitted_logits(*map(torch.from_numpy, (zs, ft))).argmax()


def test_otter_transports_the_weighted_sum():
    gla = GLA(combine="otter").fit(*VAL)
    weights = GLA(combine="map").fit(*VAL)
    assert gla.transductive and not weights.transductive
    for name in ("rho_", "ft_weight_", "zs_weight_", "offset_"):
        assert torch.equal(getattr(gla, name), getattr(weights, name))
    zs, ft, labels = TEST
    target = np.log([0.4, 0.3, 0.2, 0.1])
    for log_target in (None, target):
        total = float(gla.ft_weight_) * ft / float(gla.ft_temperature_)
        total = total + float(gla.zs_weight_) * zs / float(gla.zs_temperature_)
        logits = gla.decision_function(zs, ft, log_target=log_target)
        np.testing.assert_array_equal(logits.argmax(1), (total - transport_offset(total, log_target)).argmax(1))
        shares = 200 * (np.full(4, 0.25) if log_target is None else np.exp(target))
        for given in ((zs,), (zs, ft)):
            counts = np.bincount(gla.predict(*given, log_target=log_target), minlength=4)
            np.testing.assert_allclose(counts, shares, atol=1)
    assert (gla.predict(zs) == labels).mean() > (zs.argmax(1) == labels).mean() + 0.05


def test_otter_without_pot_is_refused_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ValueError, match=r"unskew\[transport\]"):
        GLA(combine="otter")


def test_without_labels_otter_has_the_weights_of_map():
    gla = GLA(combine="otter").fit(*TEST[:2])
    assert (gla.ft_weight_.item(), gla.zs_weight_.item()) == (0.3, 0.7)
    assert np.bincount(gla.predict(*TEST[:2])).tolist() == [50] * 4


@pytest.mark.parametrize("options", [{"prior": "unlabelled"}, {"combine": "otter"}])
def test_cross_fitting_predicts_with_all_images(options):
    zs, ft, labels = map(torch.from_numpy, TEST)
    plan = cross_fit(GLA(**options), zs, ft, labels)
    logits = torch.cat([parts["gla"] for _, parts in cross_scores(plan, zs, ft)])
    for rows, fitted in plan:
        torch.testing.assert_close(logits[rows], fitted.decision_function(zs, ft)[rows])


def test_the_summary_names_the_assumption_and_the_transport():
    both = GLA(prior="unlabelled", combine="otter").fit(*VAL).summary()
    assert "uniform class frequency" in both and "transported" in both
    assert "uniform class frequency" not in GLA(prior="map").fit(*VAL).summary()
    assert "transported" in GLA(combine="otter").fit(VAL[0], None, VAL[2]).summary()
