"""Tests of GLA, Ensemble and DebiasedZeroshot: their formulas, fitted numbers, bases and checkpoints."""

import json
import math

import pytest
import torch
from building import build, some_paths

from unskew.data import sampling
from unskew.debias.metrics import compute_accuracy
from unskew.engine import debiasing
from unskew.engine.run_dir import RunDir


def test_gla_equals_its_formula(data_root, tmp_path):
    trainer = build("GLA", data_root, tmp_path, shots=4)
    trainer.train()
    paths = some_paths(trainer)
    parts, t = trainer.predict_parts(paths).parts, trainer.gla
    zs = trainer.zeroshot_logits(paths) / t.zs_temperature_
    ft = trainer.base.predict(paths) / t.ft_temperature_
    assert 0 < t.rho_ <= 1
    expected = t.ft_weight_ * (ft - t.rho_ * t.log_q_) + t.zs_weight_ * (zs - t.log_q_) - t.offset_
    torch.testing.assert_close(parts["gla"], expected)
    torch.testing.assert_close(parts["ensemble"], ft + zs)
    torch.testing.assert_close(parts["debiased"], zs - t.log_q_)
    assert math.isclose(t.log_q_.exp().sum().item(), 1, abs_tol=1e-5)
    labels = torch.tensor([item.label for item in trainer.dataset.test])
    for part, logits in trainer.predict_parts([item.impath for item in trainer.dataset.test]).parts.items():
        accuracy = compute_accuracy(logits, labels)[0].item()
        assert math.isclose(trainer.results[f"{part}_accuracy"], accuracy, abs_tol=1e-3)
    assert trainer.results["accuracy"] == trainer.results["gla_accuracy"]


@pytest.mark.parametrize("base", ["ZeroshotCLIP", "LinearProbe", "CoOp", "ProGrad"])
def test_gla_accepts_any_base(base, data_root, tmp_path):
    trainer = build("GLA", data_root, tmp_path, "TRAINER.GLA.BASE", base)
    trainer.train()
    assert type(trainer.base).__name__ == base
    fresh = build("GLA", data_root, tmp_path / "fresh", "TRAINER.GLA.BASE", base)
    fresh.load_model(str(tmp_path))
    assert torch.equal(fresh.predict(some_paths(fresh)), trainer.predict(some_paths(trainer)))


def test_test_labels_change_only_the_metrics(data_root, tmp_path):
    from unskew.data.dataset import Datum

    plain, shifted = build("GLA", data_root, tmp_path / "a", shots=4), build("GLA", data_root, tmp_path / "b", shots=4)
    for trainer in (shifted, shifted.base):
        test = trainer.dataset.test
        test[:] = [Datum(item.impath, (item.label + 1) % 10, item.domain, item.classname) for item in test]
    plain.train()
    shifted.train()
    assert torch.equal(plain.gla.log_q_, shifted.gla.log_q_)
    assert torch.equal(plain.predict(some_paths(plain)), shifted.predict(some_paths(plain)))
    assert plain.results["accuracy"] != shifted.results["accuracy"]


def test_the_prior_is_fitted_on_train_and_val_or_on_a_large_val(data_root, tmp_path):
    from unskew.debias.prior import estimate_log_prior

    for large in (False, True):
        trainer = build("DebiasedZeroshot", data_root, tmp_path, shots=4)
        train, val = trainer.dataset.train_x, trainer.dataset.val
        if large:
            val *= 5  # 20 per class
        paths, labels = trainer.labelled(val if large else [*train, *val])
        estimate = estimate_log_prior(trainer.zeroshot_logits(paths), labels, method="map")
        trainer.fit_zeroshot()
        torch.testing.assert_close(trainer.gla.zs_temperature_, torch.tensor(estimate.temperature))
        torch.testing.assert_close(trainer.gla.log_q_, estimate.log_q)


@pytest.mark.slow
def test_the_estimate_matches_the_known_prior_and_debiasing_helps(data_root, tmp_path):
    from unskew.micro import true_log_prior

    trainer = build("GLA", data_root, tmp_path, shots=16, dataset="shapes")
    trainer.fit_zeroshot()
    truth, estimate = true_log_prior("micro", "shapes"), trainer.gla.log_q_
    assert torch.corrcoef(torch.stack([truth, estimate]))[0, 1] >= 0.9
    zs = trainer.zeroshot_logits([item.impath for item in trainer.dataset.test])
    labels = torch.tensor([item.label for item in trainer.dataset.test])
    plain = compute_accuracy(zs, labels)[0]
    debiased = compute_accuracy(zs / trainer.gla.zs_temperature_ - estimate, labels)[0]
    assert debiased >= plain + 5


# --- the prior --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GLA", "DebiasedZeroshot"])
def test_the_prior_may_come_from_a_file(name, data_root, tmp_path):
    values = list(range(1, 11))
    (tmp_path / "q.json").write_text(json.dumps(values))
    trainer = build(name, data_root, tmp_path, f"TRAINER.{name.upper()}.PRIOR", str(tmp_path / "q.json"))
    trainer.fit_zeroshot()
    log_q = trainer.gla.log_q_
    torch.testing.assert_close(log_q.exp(), torch.tensor(values) / 55)
    with pytest.raises(ValueError, match="10 values"):
        (tmp_path / "q.json").write_text(json.dumps(values[1:]))
        build(name, data_root, tmp_path, f"TRAINER.{name.upper()}.PRIOR", str(tmp_path / "q.json")).fit_zeroshot()


@pytest.mark.parametrize(
    ("key", "value"),
    [("PRIOR", "convx"), ("STRENGTH", "much"), ("STRENGTH", "-1"), ("TEMPERATURE", "hot"), ("COMBINE", "add")],
)
def test_invalid_values_raise(key, value, data_root, tmp_path):
    with pytest.raises(ValueError, match=rf"TRAINER\.GLA\.{key}.*{value}"):
        build("GLA", data_root, tmp_path, "TRAINER.GLA.PRIOR", "convex", f"TRAINER.GLA.{key}", value)


@pytest.mark.parametrize(("method", "strength"), [("eigen", 1.0), ("em", 1.0), ("released", 1.0), ("convex", "cv")])
def test_every_estimator_gives_the_prior(method, strength, data_root, tmp_path):
    from unskew.debias.prior import estimate_log_prior

    opts = ("TRAINER.GLA.PRIOR", method, "TRAINER.GLA.STRENGTH", strength)
    trainer = build("GLA", data_root, tmp_path, *opts)
    trainer.fit_zeroshot()
    paths, labels = trainer.labelled([*trainer.dataset.train_x, *trainer.dataset.val])
    zs = trainer.zeroshot_logits(paths) / trainer.gla.zs_temperature_
    expected = estimate_log_prior(zs, labels, method=method, strength=strength).log_q
    torch.testing.assert_close(trainer.gla.log_q_, expected, atol=1e-5, rtol=1e-5)


def test_map_fits_temperature_and_prior_together(data_root, tmp_path):
    from unskew.debias.prior import estimate_log_prior

    trainer = build("GLA", data_root, tmp_path, shots=4)
    trainer.train()
    paths, labels = trainer.labelled([*trainer.dataset.train_x, *trainer.dataset.val])
    estimate = estimate_log_prior(trainer.zeroshot_logits(paths), labels, method="map")
    torch.testing.assert_close(trainer.gla.log_q_, estimate.log_q)
    torch.testing.assert_close(float(trainer.gla.zs_temperature_), estimate.temperature, rtol=1e-5, atol=0)
    fresh = build("GLA", data_root, tmp_path / "fresh", shots=4)
    fresh.load_model(str(tmp_path))
    assert torch.equal(fresh.predict(some_paths(fresh)), trainer.predict(some_paths(trainer)))
    assert fresh.gla.offset_.any()


def test_a_checkpoint_without_an_offset_loads(data_root, tmp_path):
    trainer = build("GLA", data_root, tmp_path, "TRAINER.GLA.COMBINE", "fitted", shots=4)
    trainer.train()
    state = trainer.gla.state_dict()
    assert not state.pop("offset").any()
    trainer.gla.load_state_dict(state)


@pytest.mark.parametrize("prior", ["map", "unlabelled"])
@pytest.mark.parametrize("name", ["GLA", "DebiasedZeroshot"])
def test_a_joint_estimate_has_no_strength(name, prior, data_root, tmp_path):
    opts = (f"TRAINER.{name.upper()}.PRIOR", prior, f"TRAINER.{name.upper()}.STRENGTH", "2")
    with pytest.raises(ValueError, match=rf"TRAINER\.{name.upper()}\.PRIOR {prior}.*STRENGTH"):
        build(name, data_root, tmp_path, *opts)


def test_a_prior_from_a_file_has_no_strength(data_root, tmp_path):
    (tmp_path / "q.json").write_text(json.dumps([1] * 10))
    with pytest.raises(ValueError, match=r"PRIOR from a file.*STRENGTH"):
        build("GLA", data_root, tmp_path, "TRAINER.GLA.PRIOR", str(tmp_path / "q.json"), "TRAINER.GLA.STRENGTH", "2")


# --- other label frequencies ------------------------------------------------------------------------


def uneven(trainer):
    """Keep c + 1 training images of class c; return log p."""
    kept = [item for c in range(10) for item in [i for i in trainer.dataset.train_x if i.label == c][: c + 1]]
    trainer.dataset.train_x[:] = kept
    return (torch.arange(1, 11) / 55).log()


def test_train_frequencies_are_subtracted_unless_the_base_is_logit_adjusted(data_root, tmp_path):
    trainer = build("GLA", data_root, tmp_path, shots=16)
    trainer.fit_zeroshot()
    assert not trainer.gla.log_p_.any()  # balanced shots
    log_p = uneven(trainer)
    trainer.fit_zeroshot()
    torch.testing.assert_close(trainer.gla.log_p_, log_p)
    trainer.base.logit_adjusted = True
    trainer.fit_zeroshot()
    assert not trainer.gla.log_p_.any()


def test_the_target_prior_is_added(data_root, tmp_path):
    values = [10.0, *[1.0] * 9]
    (tmp_path / "target.json").write_text(json.dumps(values))
    plain = build("GLA", data_root, tmp_path)
    moved = build("GLA", data_root, tmp_path, "TRAINER.GLA.TARGET", str(tmp_path / "target.json"))
    paths = some_paths(plain)
    for trainer in (plain, moved):
        trainer.fit_zeroshot()
    difference = moved.predict(paths) - plain.predict(paths)
    torch.testing.assert_close(difference, (torch.tensor(values) / 19).log().expand(40, 10), atol=1e-4, rtol=1e-4)
    train = build("GLA", data_root, tmp_path, "TRAINER.GLA.TARGET", "train", shots=16)
    log_p = uneven(train)
    train.fit_zeroshot()
    torch.testing.assert_close(train.gla.log_target, log_p)
    with pytest.raises(ValueError, match=r"TRAINER\.GLA\.TARGET.*nowhere\.json"):
        build("GLA", data_root, tmp_path, "TRAINER.GLA.TARGET", "nowhere.json")


# --- the combination --------------------------------------------------------------------------------


def test_combine_sum_is_the_papers_formula(data_root, tmp_path):
    trainer = build("GLA", data_root, tmp_path, "TRAINER.GLA.COMBINE", "sum")
    trainer.train()
    parts = trainer.predict_parts(some_paths(trainer)).parts
    torch.testing.assert_close(parts["gla"], parts["ft"] + parts["zs"] - trainer.gla.log_q_)


def test_gla_paper_is_the_papers_formula(data_root, tmp_path):
    """From the definition: confidence equals accuracy at both temperatures, and q minimises the cross entropy."""
    trainer = build("GLAPaper", data_root, tmp_path, shots=4)
    assert type(trainer).__name__ == "GLA" and type(trainer.base).__name__ == "ResidualPrompt"
    trainer.train()
    fit = trainer.labelled([*trainer.dataset.train_x, *trainer.dataset.val])
    halves = {
        "zs": (trainer.zeroshot_logits, *fit),
        "ft": (trainer.base.predict, *trainer.labelled(trainer.dataset.val)),
    }
    for name, (logits_of, paths, labels) in halves.items():
        logits, temperature = logits_of(paths), getattr(trainer.gla, f"{name}_temperature_")
        confidence = (logits / temperature).softmax(1).amax(1).mean()
        assert confidence.item() == pytest.approx((logits.argmax(1) == labels).float().mean().item(), abs=1e-4)
    zs = trainer.zeroshot_logits(fit[0]) / trainer.gla.zs_temperature_
    mean = (zs - trainer.gla.log_q_).softmax(1).mean(0)  # the gradient of the cross entropy is 0, without a penalty
    torch.testing.assert_close(mean, torch.full((10,), 0.1), atol=1e-4, rtol=0)
    paths = some_paths(trainer)
    zs, ft = trainer.zeroshot_logits(paths), trainer.base.predict(paths)
    expected = ft / trainer.gla.ft_temperature_ + zs / trainer.gla.zs_temperature_ - trainer.gla.log_q_
    torch.testing.assert_close(trainer.predict(paths), expected)


def test_rho_is_near_one_for_a_zero_shot_base(data_root, tmp_path):
    opts = ("TRAINER.GLA.BASE", "ZeroshotCLIP", "DATASET.NUM_VAL_SHOTS", 16)
    opts = (*opts, "TRAINER.GLA.PRIOR", "convex", "TRAINER.GLA.TEMPERATURE", "confidence")  # equal temperatures
    trainer = build("GLA", data_root, tmp_path, *opts, shots=16)
    trainer.train()
    assert trainer.gla.rho_ > 0.8
    parts = trainer.predict_parts(some_paths(trainer)).parts
    assert (parts["gla"].argmax(1) == parts["debiased"].argmax(1)).float().mean() > 0.95


@pytest.mark.world
def test_gla_with_a_weak_base_is_not_worse_than_debiased_zero_shot(data_root, tmp_path):
    """The base is a linear probe on two images per class of 96 classes, far below zero-shot."""
    opts = ("TRAINER.GLA.BASE", "LinearProbe", "TRAINER.LINEARPROBE.INIT", "zeros", "TEST.SPLIT", "val")
    weak = {
        how: build("GLA", data_root, tmp_path / how, *opts, "TRAINER.GLA.COMBINE", how, dataset="shapes")
        for how in ("fitted", "sum")
    }
    for trainer in weak.values():
        trainer.train()
    fitted, plain = weak["fitted"].results, weak["sum"].results
    assert fitted["ft_accuracy"] < fitted["zs_accuracy"] - 10
    assert fitted["accuracy"] > plain["accuracy"] + 3
    assert fitted["accuracy"] > fitted["debiased_accuracy"] - 1


# --- checkpoints ------------------------------------------------------------------------------------

NUMBERS = ["rho", "ft_weight", "zs_weight", "zeroshot_temperature", "finetuned_temperature"]
CHECKPOINTS = {
    "GLA": {"classes", "log_q", "log_p", "log_target", "offset", *NUMBERS},
    "Ensemble": {"classes", *NUMBERS[3:]},
    "DebiasedZeroshot": {"classes", "log_q", "temperature"},
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_keep_their_format(name, data_root, tmp_path):
    """Checkpoints of earlier versions load: keys, types and shapes are the same."""
    keys = CHECKPOINTS[name]
    trainer = build(
        name, data_root, tmp_path, "TRAINER.GLA.BASE", "LinearProbe", "TRAINER.ENSEMBLE.BASE", "LinearProbe"
    )
    state = trainer.gla.state_dict()
    assert state.keys() == keys
    for key, value in state.items():
        assert value.dtype == (torch.int64 if key == "classes" else torch.float32)
        assert value.shape == ((10,) if key.startswith(("log_", "offset")) else ())
    old = {key: torch.rand(value.shape) + 1 if key != "classes" else value for key, value in state.items()}
    trainer.gla.load_state_dict(old)
    paths = some_paths(trainer)
    zs = trainer.zeroshot_logits(paths) / old["temperature" if name == "DebiasedZeroshot" else "zeroshot_temperature"]
    if name == "DebiasedZeroshot":
        expected = zs - old["log_q"]
    else:
        ft = trainer.base.predict(paths) / old["finetuned_temperature"]
        expected = ft + zs
    if name == "GLA":
        ft = old["ft_weight"] * (ft - old["rho"] * old["log_q"] - old["log_p"])
        expected = ft + old["zs_weight"] * (zs - old["log_q"]) - old["offset"] + old["log_target"]
    torch.testing.assert_close(trainer.predict(paths), expected)
    with pytest.raises(RuntimeError, match=r"zs_weight|temperature"):
        trainer.gla.load_state_dict({key: old[key] for key in ("classes",)})
    with pytest.raises(RuntimeError, match="extra"):
        trainer.gla.load_state_dict({**old, "extra": torch.zeros(1)})


# --- the ensemble -----------------------------------------------------------------------------------


def test_the_ensemble_is_the_sum_of_calibrated_logits(data_root, tmp_path):
    trainer = build("Ensemble", data_root, tmp_path, shots=4)
    trainer.train()
    paths = some_paths(trainer)
    parts, t = trainer.predict_parts(paths).parts, trainer.gla
    zs = trainer.zeroshot_logits(paths) / t.zs_temperature_
    torch.testing.assert_close(trainer.predict(paths), zs + trainer.base.predict(paths) / t.ft_temperature_)
    assert list(parts) == ["zs", "ft", "ensemble"]
    assert trainer.results["accuracy"] == trainer.results["ensemble_accuracy"]


# --- other classes, no val, large datasets -----------------------------------------------------------


@pytest.mark.parametrize("name", ["DebiasedZeroshot", "GLA"])
def test_a_prior_does_not_serve_other_classes(name, data_root, tmp_path):
    """From base to new classes, as in CoOp's protocol: the context is kept, log q is not, and none is fitted."""
    over = ("TRAINER.GLA.BASE", "CoOp")
    trained = build(name, data_root, tmp_path / "base", *over, "DATASET.SUBSAMPLE_CLASSES", "base")
    trained.train()
    moved = build(name, data_root, tmp_path / "new", *over, "DATASET.SUBSAMPLE_CLASSES", "new")
    moved.load_model(str(tmp_path / "base"))
    assert not moved.gla.log_q_.any() and not moved.gla.offset_.any() and moved.gla.zs_temperature_ == 1
    assert moved.gla.ft_temperature_ == trained.gla.ft_temperature_ and moved.gla.rho_ == trained.gla.rho_
    again = build(name, data_root, tmp_path / "again", *over, "DATASET.SUBSAMPLE_CLASSES", "base")
    again.load_model(str(tmp_path / "base"))
    assert torch.equal(again.predict(some_paths(again)), trained.predict(some_paths(again)))


@pytest.mark.parametrize("name", ["DebiasedZeroshot", "GLA"])
def test_a_checkpoint_with_other_settings_is_fitted_again(name, data_root, tmp_path):
    over = ("TRAINER.GLA.BASE", "CoOp", "OPTIM.MAX_EPOCH", 1)
    trained = build(name, data_root, tmp_path / "map", *over)
    RunDir(tmp_path / "map").prepare(trained.cfg)  # config.yaml tells that the images are those of the run
    trained.train()
    convex = (*over, f"TRAINER.{name.upper()}.PRIOR", "convex")
    moved = build(name, data_root, tmp_path / "moved", *convex)
    moved.load_model(str(tmp_path / "map"))
    fitted = build("DebiasedZeroshot", data_root, tmp_path / "x", "TRAINER.DEBIASEDZEROSHOT.PRIOR", "convex")
    fitted.fit_zeroshot()
    torch.testing.assert_close(moved.gla.log_q_, fitted.gla.log_q_)
    assert not torch.equal(moved.gla.log_q_, trained.gla.log_q_)


def test_without_val_the_base_is_not_calibrated_on_its_training_images(data_root, tmp_path):
    opts = ("TRAINER.GLA.BASE", "LinearProbe", "DATASET.NUM_VAL_SHOTS", 0, "TEST.FINAL_MODEL", "last_step")
    trainer = build("GLA", data_root, tmp_path, *opts, shots=16)
    trainer.train()
    assert trainer.gla.ft_temperature_ == 1
    parts = trainer.predict_parts(some_paths(trainer)).parts
    torch.testing.assert_close(parts["gla"], 0.3 * parts["ft"] + 0.7 * parts["debiased"])


def test_the_target_does_not_affect_the_selected_epoch(data_root, tmp_path):
    (tmp_path / "target.json").write_text(json.dumps([1000, *[1] * 9]))
    opts = ("OPTIM.MAX_EPOCH", 6, "OPTIM.LR", 0.005)
    plain = build("GLA", data_root, tmp_path / "a", *opts, shots=4)
    moved = build("GLA", data_root, tmp_path / "b", *opts, "TRAINER.GLA.TARGET", str(tmp_path / "target.json"), shots=4)
    for trainer in (plain, moved):
        trainer.train()
    assert moved.base.best_result == pytest.approx(plain.base.best_result, abs=1e-4)
    assert torch.equal(moved.base.predict(some_paths(moved)), plain.base.predict(some_paths(plain)))


def test_a_very_large_dataset_fits_the_prior_on_a_sample_of_each_class(data_root, tmp_path, monkeypatch):
    trainer = build("DebiasedZeroshot", data_root, tmp_path, shots=4)
    assert len(debiasing.fitting_items(trainer)) == 80  # 4 train and 4 val images of 10 classes
    monkeypatch.setattr(sampling, "MOST_LOGITS", 3 * 10 * 10)
    items = debiasing.fitting_items(trainer)
    assert len(items) == len(set(items)) == 30 and {item.label for item in items} == set(range(10))
    assert not set(items) & set(trainer.dataset.test)
