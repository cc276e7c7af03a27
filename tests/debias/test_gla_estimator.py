"""The GLA estimator: its stages against the functions, its state, its edge cases."""

import copy
import pickle

import numpy as np
import pytest
import torch

from unskew.debias.combination import MAP_PRIOR, adjust, combine, fit_combination
from unskew.debias.gla import GLA
from unskew.debias.prior import estimate_log_prior
from unskew.debias.temperature import fit_temperature


def halves(samples=90, classes=4, seed=0, dtype=np.float64):
    """Logits of both models and labels; the zero-shot logits are skewed towards the first classes."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(samples) % classes)
    zs, ft = (2 * (rng.normal(size=(samples, classes)) + 2 * np.eye(classes)[y]) for _ in range(2))
    return (zs + np.linspace(3, 0, classes)).astype(dtype), ft.astype(dtype), y


def test_fit_is_temperature_prior_combination():
    zs, ft, y = map(torch.from_numpy, halves())
    gla = GLA(prior="convex", strength=2.0, combine="fitted", temperature="nll").fit(zs, ft, y)
    t_zs, t_ft = (fit_temperature(logits, y, method="nll") for logits in (zs, ft))
    log_q = estimate_log_prior(zs / t_zs, y, strength=2.0).log_q
    combination = fit_combination(zs / t_zs, ft / t_ft, y, log_q)
    assert (float(gla.zs_temperature_), float(gla.ft_temperature_)) == (t_zs, t_ft)
    assert torch.equal(gla.log_q_, log_q)
    assert (float(gla.rho_), float(gla.ft_weight_), float(gla.zs_weight_)) == combination[:3]
    expected = combine(zs / t_zs, ft / t_ft, log_q, combination)
    assert torch.equal(gla.decision_function(zs, ft), expected)
    assert torch.equal(gla.predict(zs, ft), expected.argmax(1))
    assert torch.equal(gla.predict_proba(zs, ft), expected.softmax(1))
    assert f"{t_zs:.3g}" in gla.summary() and f"{combination.rho:.2f}" in gla.summary()


def test_debiasing_helps_the_skewed_model():
    zs, ft, y = halves(400)
    gla = GLA().fit(*halves(400, seed=1))
    accuracy = [(predicted == y).mean() for predicted in (zs.argmax(1), gla.predict(zs), gla.predict(zs, ft))]
    assert accuracy[0] < accuracy[1] < accuracy[2]


def test_training_images_fit_the_zero_shot_half_until_enough_are_held_out():
    zs, ft, y = halves(60)
    zs_train, _, y_train = halves(30, seed=1)
    gla = GLA().fit(zs, ft, y, zs_train=zs_train, y_train=y_train)
    both, labels = np.concatenate([zs_train, zs]), np.concatenate([y_train, y])
    estimate = estimate_log_prior(both, labels, method="map")
    assert float(gla.zs_temperature_) == estimate.temperature
    assert float(gla.ft_temperature_) == fit_temperature(ft, y, method="map")
    np.testing.assert_array_equal(gla.log_q_, estimate.log_q)
    zs, ft, y = halves(80)  # 20 per class
    gla = GLA().fit(zs, ft, y, zs_train=zs_train, y_train=y_train)
    assert float(gla.zs_temperature_) == estimate_log_prior(zs, y, method="map").temperature


def test_train_counts_are_subtracted():
    zs, ft, y = halves()
    counts = np.array([10, 5, 0, 1])
    gla = GLA(prior="convex", combine="sum", temperature="none").fit(zs, ft, y, train_counts=counts)
    log_p = np.log(np.array([10, 5, 1, 1]) / 17)
    np.testing.assert_allclose(gla.log_p_, log_p, rtol=1e-6)
    np.testing.assert_allclose(gla.decision_function(zs, ft), adjust(zs, ft, gla.log_q_.numpy(), log_p), rtol=1e-6)
    balanced = GLA().fit(zs, ft, y, train_counts=[7] * 4)
    np.testing.assert_array_equal(balanced.decision_function(zs, ft), GLA().fit(zs, ft, y).decision_function(zs, ft))
    with pytest.raises(ValueError, match="train_counts"):
        GLA().fit(zs, ft, y, train_counts=counts[:3])
    with pytest.raises(ValueError, match="train_counts"):
        GLA().fit(zs, ft, y, train_counts=-counts)


@pytest.mark.parametrize("prior", ["convex", "em", "eigen"])
def test_without_labels_the_halves_are_added(prior):
    zs, ft, _ = map(torch.from_numpy, halves())
    gla = GLA(prior=prior, combine="sum").fit(zs, ft)
    log_q = estimate_log_prior(zs, method="eigen" if prior == "eigen" else "em").log_q
    torch.testing.assert_close(gla.decision_function(zs, ft), ft + zs - log_q)


def test_without_fine_tuned_logits_the_zero_shot_half_predicts():
    zs, _, y = map(torch.from_numpy, halves())
    gla = GLA().fit(zs, None, y)
    estimate = estimate_log_prior(zs, y, method="map")
    expected = zs / estimate.temperature - estimate.log_q
    assert torch.equal(gla.decision_function(zs), expected)
    target = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()
    torch.testing.assert_close(gla.decision_function(zs, log_target=target), expected + target)


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, list])
def test_a_known_prior_is_used_as_it_is(kind):
    zs, ft, y = halves()
    log_q = np.log([0.4, 0.3, 0.2, 0.1])
    gla = GLA(prior=kind(log_q)).fit(zs, ft, y)
    np.testing.assert_array_equal(gla.log_q_, log_q)
    with pytest.raises(ValueError, match=r"prior .*C = 4"):
        GLA(prior=kind(log_q[:3])).fit(zs, ft, y)


def test_the_target_is_added():
    zs, ft, y = halves()
    gla, target = GLA().fit(zs, ft, y), np.log([0.4, 0.3, 0.2, 0.1])
    moved = gla.decision_function(zs, ft, log_target=target) - gla.decision_function(zs, ft)
    np.testing.assert_allclose(moved, np.broadcast_to(target, moved.shape), atol=1e-12)


# --- state ------------------------------------------------------------------------------------------


def same(gla, fitted):
    zs, ft, _ = halves(seed=5)
    return np.array_equal(gla.decision_function(zs, ft), fitted.decision_function(zs, ft))


@pytest.mark.parametrize("move", [copy.deepcopy, copy.copy, lambda gla: pickle.loads(pickle.dumps(gla))])
def test_copies_predict_the_same(move):
    fitted = GLA().fit(*halves())
    assert same(move(fitted), fitted)
    assert move(GLA()).fit(*halves()).n_classes_ == 4


def test_a_state_dict_fits_an_unfitted_and_a_refitted_estimator():
    fitted, other = GLA().fit(*halves()), GLA().fit(*halves(classes=3))
    for gla in (GLA(), other):
        gla.load_state_dict(fitted.state_dict())
        assert same(gla, fitted)
    assert not torch.equal(other.log_q_, GLA().fit(*halves(seed=3)).log_q_)
    nested, copied = torch.nn.ModuleList([fitted]), torch.nn.ModuleList([GLA()])
    copied.load_state_dict(nested.state_dict())
    assert same(copied[0], fitted)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_is_independent(duplicate):
    fitted = GLA().fit(*halves())
    log_q = fitted.log_q_.clone()
    duplicate(fitted).fit(*halves(seed=9))
    assert torch.equal(fitted.log_q_, log_q)


def test_a_new_fit_forgets_the_last():
    zs, ft, y = halves()
    gla = GLA().fit(zs, ft, y, train_counts=[1, 2, 3, 4])
    assert gla.log_p_.any() and gla.offset_.any()
    gla.fit(zs, None, y)
    assert not gla.log_p_.any() and not gla.offset_.any()
    assert (gla.rho_, gla.ft_weight_, gla.zs_weight_) == MAP_PRIOR[:3]


# --- kinds and precision ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numpy_and_torch_give_the_same_bits(dtype):
    zs, ft, y = halves(dtype=dtype)
    by_numpy = GLA().fit(zs, ft, y)
    by_torch = GLA().fit(*map(torch.from_numpy, (zs, ft, y)))
    for name in ("decision_function", "predict_proba", "predict"):
        array, tensor = getattr(by_numpy, name)(zs, ft), getattr(by_torch, name)(*map(torch.from_numpy, (zs, ft)))
        assert isinstance(array, np.ndarray) and isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(array, tensor.numpy())
        assert array.dtype == (np.int64 if name == "predict" else dtype)


def test_half_precision_predicts_in_float32():
    zs, ft, y = map(torch.from_numpy, halves(dtype=np.float32))
    gla = GLA().fit(zs, ft, y)
    assert gla.decision_function(zs.half(), ft.half()).dtype == torch.float32
    assert gla.decision_function(zs.half()).dtype == torch.float32


def test_read_only_and_reversed_arrays():
    zs, ft, y = halves()
    expected = GLA().fit(zs, ft, y).decision_function(zs, ft)
    frozen = zs.copy()
    frozen.setflags(write=False)
    np.testing.assert_array_equal(GLA().fit(frozen, ft, y).decision_function(frozen, ft), expected)
    backwards = zs[::-1].copy()[::-1]
    np.testing.assert_array_equal(GLA().fit(backwards, ft, y.astype(np.uint16)).decision_function(zs, ft), expected)


# --- mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"prior": "convx"}, "convex"),
        ({"prior": [[0.5, 0.5]]}, "prior"),
        ({"prior": [0.0, float("nan")]}, "prior"),
        ({"prior": "convex", "strength": -1}, "strength"),
        ({"prior": "convex", "strength": "much"}, "strength"),
        ({"combine": "add"}, "combine"),
        ({"temperature": "hot"}, "temperature"),
        ({"logit_scale": "large"}, "logit_scale"),
    ],
)
def test_a_wrong_argument_is_named(options, named):
    with pytest.raises(ValueError, match=named):
        GLA(**options)


@pytest.mark.parametrize("name", ["decision_function", "predict_proba", "predict"])
def test_an_unfitted_estimator_is_refused(name):
    from sklearn.exceptions import NotFittedError

    zs, ft, _ = halves()
    with pytest.raises(NotFittedError, match="not fitted"):
        getattr(GLA(), name)(zs, ft)


def test_arrays_that_do_not_fit_are_refused_in_one_line():
    zs, ft, y = halves()
    gla, broken = GLA().fit(zs, ft, y), zs.copy()
    broken[3, 1] = np.nan
    calls = {
        "3 classes": lambda: gla.predict(zs[:, :3], ft[:, :3]),
        "row 3, column 1": lambda: gla.predict(broken, ft),
        "NaN": lambda: GLA().fit(zs, broken, y),
        "same kind": lambda: gla.predict(zs, torch.from_numpy(ft)),
        "kind": lambda: GLA().fit(torch.from_numpy(zs), torch.from_numpy(ft), y),
        r"\[89, 4\]": lambda: gla.predict(zs, ft[:-1]),
        "90 integers": lambda: GLA().fit(zs, ft, y[:-1]),
        "zs and ft": lambda: GLA().fit(zs, ft[:-1], y),
        "y_train": lambda: GLA().fit(zs, ft, y, zs_train=zs),
        "zs_train": lambda: GLA().fit(zs[:20], ft[:20], y[:20], zs_train=zs[:, :3], y_train=y.clip(0, 2)),
        "log_target": lambda: gla.predict(zs, ft, log_target=np.zeros(3)),
    }
    for named, call in calls.items():
        with pytest.raises(ValueError, match=named) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_failed_fit_changes_nothing():
    zs, ft, y = halves()
    gla = GLA(prior="convex", strength=0).fit(zs, ft, y, train_counts=[100, 20, 30, 10])
    before = gla.decision_function(zs, ft)
    with pytest.raises(ValueError, match="strength 0"):
        gla.fit(zs, ft, y % 3)
    np.testing.assert_array_equal(gla.decision_function(zs, ft), before)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_fit_does_not_share_the_memory_of_the_prior(kind):
    zs, ft, y = map(kind, halves())
    log_q = kind(np.log(np.array([0.6, 0.2, 0.1, 0.1])))
    gla = GLA(prior=log_q).fit(zs, ft, y)
    before = gla.decision_function(zs, ft)
    log_q[:] = 0
    np.testing.assert_array_equal(gla.decision_function(zs, ft), before)


def test_fine_tuned_logits_are_refused_after_a_fit_without_them():
    zs, ft, y = halves()
    gla = GLA().fit(zs, None, y)
    assert "not fitted" in gla.summary()
    for call in (gla.decision_function, gla.predict, gla.predict_proba, gla.parts):
        with pytest.raises(ValueError, match="zero-shot half"):
            call(zs, ft)
    restored = GLA()
    restored.load_state_dict(gla.state_dict())
    with pytest.raises(ValueError, match="zero-shot half"):
        restored.predict(zs, ft)
    assert gla.fit(zs, ft, y).predict(zs, ft).shape == (len(zs),)


def test_all_predictions_have_the_kind_of_all_arguments():
    zs, ft, y = halves()
    gla = GLA().fit(zs, ft, y)
    for call in (gla.decision_function, gla.predict_proba, gla.predict):
        assert isinstance(call(zs.tolist(), torch.from_numpy(ft)), torch.Tensor)
        assert isinstance(call(zs.tolist(), ft.tolist()), np.ndarray)


def test_the_summary_names_the_estimator_that_ran():
    zs, ft, y = halves()
    for prior, ran in (("map", "map"), ("convex", "em")):
        without = GLA(prior=prior).fit(zs, ft)
        assert f"({ran}, converged, " in without.summary() and without.assumes_uniform_
        assert f"({prior}, converged)" in GLA(prior=prior).fit(zs, ft, y).summary()
    assert not GLA(prior="eigen").fit(zs, ft).assumes_uniform_
    assert "(given, converged)" in GLA(prior=np.log(np.full(4, 0.25))).fit(zs, ft, y).summary()


@pytest.mark.parametrize("prior", ["em", np.log(np.array([0.4, 0.3, 0.2, 0.1]))])
def test_scikit_learn_clones_and_sets_parameters(prior):
    from sklearn.base import clone

    zs, ft, y = halves()
    gla = GLA(prior=prior, temperature="nll").fit(zs, ft, y)
    twin = clone(gla)
    with pytest.raises(ValueError, match="not fitted"):
        twin.predict(zs, ft)
    np.testing.assert_array_equal(twin.fit(zs, ft, y).decision_function(zs, ft), gla.decision_function(zs, ft))
    assert twin.set_params(combine="sum").get_params()["combine"] == "sum"
    for wrong in ({"combine": "product"}, {"C": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            twin.set_params(**wrong)
    assert twin.get_params()["temperature"] == "nll"


# --- the default: map -----------------------------------------------------------------------------------


def test_the_default_is_the_joint_fit_and_its_combination():
    zs, ft, y = map(torch.from_numpy, halves())
    gla = GLA().fit(zs, ft, y)
    estimate, t_ft = estimate_log_prior(zs, y, method="map"), fit_temperature(ft, y, method="map")
    assert torch.equal(gla.log_q_, estimate.log_q) and torch.equal(gla.log_q_deviation_, estimate.deviation)
    assert float(gla.zs_temperature_) == estimate.temperature and float(gla.ft_temperature_) == t_ft
    assert (gla.log_evidence_, gla.no_bias_) == (estimate.log_evidence, estimate.no_bias)
    fitted = fit_combination(zs / estimate.temperature, ft / t_ft, y, estimate.log_q, method="map")
    expected = combine(zs / estimate.temperature, ft / t_ft, estimate.log_q, fitted)
    torch.testing.assert_close(gla.decision_function(zs, ft), expected)
    assert "evidence for a bias e^" in gla.summary() and "offset" in gla.summary()


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_logits_of_unknown_scale_are_calibrated_at_any_scale(factor):
    """On few images a prior that expects T = 1 would hold the temperatures near 1."""
    zs, ft, y = halves(8)
    one, other = (GLA(logit_scale="unknown").fit(k * zs, k * ft, y) for k in (1.0, factor))
    assert float(other.ft_temperature_) == pytest.approx(factor * float(one.ft_temperature_), rel=1e-5)
    assert float(other.zs_temperature_) == pytest.approx(factor * float(one.zs_temperature_), rel=1e-5)
    np.testing.assert_allclose(other.predict_proba(factor * zs, factor * ft), one.predict_proba(zs, ft), atol=1e-5)
    known = GLA(temperature="map").fit(factor * zs, factor * ft, y)
    assert abs(np.log(float(known.ft_temperature_ / other.ft_temperature_))) > 0.1


def test_without_labels_the_default_uses_the_weights_of_its_prior():
    zs, ft, _ = map(torch.from_numpy, halves())
    gla = GLA().fit(zs, ft)
    torch.testing.assert_close(gla.decision_function(zs, ft), 0.3 * ft + 0.7 * (zs - gla.log_q_))


def test_map_has_no_strength():
    with pytest.raises(ValueError, match="strength"):
        GLA(prior="map", strength=1.0)
    with pytest.raises(ValueError, match="strength"):
        GLA(strength=1.0)
    with pytest.raises(ValueError, match="strength"):
        GLA(prior="convex", strength=1.0).set_params(prior="map")


def test_a_state_dict_holds_the_offset():
    zs, ft, y = halves()
    gla, restored = GLA().fit(zs, ft, y), GLA()
    restored.load_state_dict(gla.state_dict())
    assert gla.offset_.any()
    np.testing.assert_array_equal(restored.decision_function(zs, ft), gla.decision_function(zs, ft))
    sums = GLA(combine="sum").fit(zs, ft, y)
    gla.set_params(combine="sum").fit(zs, ft, y)  # the offset of the last fit is gone
    np.testing.assert_array_equal(gla.decision_function(zs, ft), sums.decision_function(zs, ft))


def test_a_fit_on_other_classes_forgets_the_offset():
    rng = np.random.default_rng(0)
    gla = GLA()
    for classes, labelled in ((5, True), (3, False)):
        labels = np.arange(60) % classes
        zs, ft = (rng.normal(size=(60, classes)) + 2 * np.eye(classes)[labels] for _ in range(2))
        gla.fit(zs, ft, labels if labelled else None)
        assert gla.predict_proba(zs, ft).shape == (60, classes)


def test_the_summary_names_the_estimator_of_the_last_fit():
    labels = np.arange(60) % 3
    zs = np.random.default_rng(0).normal(size=(60, 3)) + 2 * np.eye(3)[labels]
    gla = GLA(prior="convex").fit(zs, None, labels)
    assert gla.set_params(prior="map").fit(zs, None, labels).method_ == "map"
    assert gla.set_params(prior=np.log([0.2, 0.3, 0.5])).fit(zs, None, labels).method_ == "given"


def test_a_loaded_state_has_no_evidence_of_an_earlier_fit():
    labels = np.arange(60) % 3
    zs = np.random.default_rng(0).normal(size=(60, 3)) + 2 * np.eye(3)[labels]
    first, second = GLA().fit(zs, None, labels), GLA().fit(zs[:30], None, labels[:30])
    state = first.state_dict()
    del state["offset_"]  # as in the state of an older version
    second.load_state_dict(state)
    assert np.isnan(second.log_evidence_) and second.log_q_deviation_ is None
    np.testing.assert_array_equal(second.log_q_, first.log_q_)
