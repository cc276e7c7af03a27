"""BCTS and Stacking as trainers: their formulas, their images, and that they are no bases."""

import pytest
import torch
from building import build, some_paths

from unskew.debias.rivals import fit_bcts, fit_stacking
from unskew.debias.temperature import fit_temperature


def trained(name, data_root, folder, *opts, **options):
    trainer = build(name, data_root, folder, *opts, "TEST.NO_TEST", True, **options)
    trainer.train()
    return trainer


def scaled(trainer, deviation=1.0):
    """BCTS on train and val, the images of GLA's zero-shot half, as a function of paths."""
    paths, labels = trainer.labelled([*trainer.dataset.train_x, *trainer.dataset.val])
    fit = fit_bcts(trainer.zeroshot_logits(paths), labels, deviation=deviation)
    return lambda images: trainer.zeroshot_logits(images) / fit.temperature - fit.bias


@pytest.mark.parametrize("deviation", [1.0, 0.2])
def test_bcts_is_fitted_on_the_images_of_glas_zero_shot_half(deviation, data_root, tmp_path):
    trainer = trained("BCTS", data_root, tmp_path, "TRAINER.BCTS.DEVIATION", deviation, shots=4)
    paths = some_paths(trainer)
    expected = scaled(trainer, deviation)(paths).float()
    torch.testing.assert_close(trainer.predict(paths), expected, rtol=1e-5, atol=1e-5)
    assert (expected - trainer.zeroshot_logits(paths)).std(1).min() > 0.1
    with pytest.raises(ValueError, match=r"BCTS\.DEVIATION"):
        build("BCTS", data_root, tmp_path / "other", "TRAINER.BCTS.DEVIATION", 0.0)


def test_a_deviation_whose_square_overflows_is_no_prior(data_root, tmp_path):
    """The docs give `inf` on the command line."""
    values = ("inf", "1e200")
    runs = [trained("BCTS", data_root, tmp_path / value, "TRAINER.BCTS.DEVIATION", value) for value in values]
    assert torch.equal(runs[0].predict(some_paths(runs[0])), runs[1].predict(some_paths(runs[1])))


@pytest.mark.parametrize(("dataset", "shots"), [("digits", 4), ("digits_lt", -1)])
def test_stacking_joins_bcts_and_the_base_on_val(dataset, shots, data_root, tmp_path):
    opts = ("TRAINER.STACKING.BASE", "LinearProbe", "DATASET.HOLDOUT", 0.2 if shots < 0 else 0.0)
    trainer = trained("Stacking", data_root, tmp_path, *opts, dataset=dataset, shots=shots)
    zeroshot, base = scaled(trainer), trainer.base
    log_p = torch.tensor([item.label for item in trainer.dataset.train_x]).bincount(minlength=10).double()
    log_p = (log_p / log_p.sum()).log()
    paths, labels = trainer.labelled(trainer.dataset.val)
    temperature = fit_temperature(base.predict(paths), labels, method="map")
    fit = fit_stacking(zeroshot(paths), base.predict(paths) / temperature - log_p, labels)
    images = some_paths(trainer)
    expected = fit.ft_weight * (base.predict(images) / temperature - log_p) + fit.zs_weight * zeroshot(images)
    prediction = trainer.predict_parts(images)
    difference = prediction.logits - (expected - fit.bias)
    difference = difference - difference.mean(1, keepdim=True)  # balanced log p are left out: a constant
    torch.testing.assert_close(difference, torch.zeros_like(difference), rtol=0, atol=2e-5)
    assert prediction.parts["stacking"] is prediction.logits and fit.bias.abs().max() > 1e-3
    torch.testing.assert_close(prediction.parts["debiased"], zeroshot(images).float(), rtol=1e-5, atol=1e-5)


def test_stacking_without_val_has_the_means_of_its_priors(data_root, tmp_path):
    opts = ("TRAINER.STACKING.BASE", "LinearProbe", "DATASET.NUM_VAL_SHOTS", 0, "TEST.FINAL_MODEL", "last_step")
    trainer = trained("Stacking", data_root, tmp_path, *opts)
    parts = trainer.predict_parts(some_paths(trainer)).parts
    torch.testing.assert_close(parts["stacking"], 0.3 * parts["ft"] + 0.7 * parts["debiased"])


@pytest.mark.parametrize("above", ["GLA", "Ensemble", "Stacking"])
@pytest.mark.parametrize("base", ["BCTS", "Stacking"])
def test_rivals_are_no_bases(above, base, data_root, tmp_path):
    with pytest.raises(ValueError, match=rf"TRAINER\.{above.upper()}\.BASE.*{base}") as error:
        build(above, data_root, tmp_path, f"TRAINER.{above.upper()}.BASE", base)
    assert "\n" not in str(error.value)
