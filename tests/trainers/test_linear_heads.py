"""The linear head of each trainer that has one gives the trainer's logits; a new trainer is tested unedited."""

import copy

import pytest
import torch
from building import build, some_paths

from unskew import config

# Trainers that are not linear with their own config. A new trainer may be on neither list: its head is compared if it
# has one.
MEMBERS = {"Backdoor", "BackdoorPaper", "SeedEnsemble"}
NOT_LINEAR = MEMBERS | {"CLIPAdapter", "FineTune", "TipAdapter", "TipAdapterF"}
LINEAR = set(
    "BCTS CLAP CoOp DebiasedZeroshot Ensemble GDA GLA GLAPaper LPPlusPlus LinearProbe ProGrad ResidualPrompt Stacking "
    "TaskRes ZSLinearProbe ZeroshotCLIP".split()
)


def trained(name, data_root, folder, *opts, **options):
    trainer = build(name, data_root, folder, *opts, "OPTIM.LR", 0.05, "TEST.NO_TEST", True, **options)
    trainer.train()
    return trainer


def check_head(trainer):
    """Compare A x + c with the prediction; x is computed here, by the backbone and the transforms of the crops."""
    paths = some_paths(trainer)
    weights, bias = trainer.linear_head()
    crops = [trainer._extract(paths, transform) for transform in trainer.dm.tfm_crops]
    x = torch.stack([crop / crop.norm(dim=1, keepdim=True) for crop in crops]).mean(0)
    torch.testing.assert_close(trainer.mean_features(paths), x)
    assert weights.shape == (10, x.shape[1]) and bias.shape == (10,)
    assert not weights.requires_grad and not bias.requires_grad
    assert (weights.dtype, bias.dtype) == (torch.float32, torch.float32)
    expected = trainer.predict_parts(paths).logits
    torch.testing.assert_close(x @ weights.T + bias, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 1e-3


@pytest.mark.parametrize("name", sorted({*config.names("trainers")} - MEMBERS))
def test_a_trainer_with_a_head_is_linear(name, data_root, tmp_path):
    trainer = trained(name, data_root, tmp_path)
    if name not in LINEAR and trainer.linear_head() is None:
        return
    assert name not in NOT_LINEAR
    check_head(trainer)


def test_all_names_are_known():
    assert LINEAR.isdisjoint(NOT_LINEAR) and {*config.names("trainers")} >= LINEAR | NOT_LINEAR


@pytest.mark.parametrize("name", ["ZeroshotCLIP", "LinearProbe", "GLA"])
def test_several_crops_are_a_mean_of_normalised_features(name, data_root, tmp_path):
    check_head(trained(name, data_root, tmp_path, "TEST.CROPS", 5, backbone="micro-vit"))


@pytest.mark.parametrize("combine", ["map", "fitted", "sum"])
def test_gla_is_one_linear_layer_over_an_unbalanced_sample(combine, data_root, tmp_path):
    """With log p, a target, and a base with a bias."""
    opts = ("TRAINER.GLA.BASE", "LinearProbe", "TRAINER.GLA.TARGET", "train", "TRAINER.GLA.COMBINE", combine)
    trainer = trained("GLA", data_root, tmp_path, *opts, dataset="digits_lt", shots=-1)
    assert trainer.gla.log_p_.std() > 0.1 and trainer.gla.log_target.std() > 0.1
    check_head(trainer)


def test_gla_over_gla_is_linear_too(data_root, tmp_path):
    check_head(trained("Ensemble", data_root, tmp_path, "TRAINER.ENSEMBLE.BASE", "DebiasedZeroshot"))


def test_a_base_on_other_features_is_not_linear_in_one_feature(data_root, tmp_path):
    """Another backbone, or other crops, in the config of the run in BASE_DIR."""
    trainer = trained("GLA", data_root, tmp_path, "TRAINER.GLA.BASE", "LinearProbe")
    assert trainer.linear_head() is not None
    for key, value in (("micro-b", {}), ("micro", {"TEST.CROPS": 5})):
        other = copy.copy(trainer)
        pairs = [part for pair in value.items() for part in pair]
        other.base = build("LinearProbe", data_root, tmp_path / "other", *pairs, backbone=key)
        assert other.linear_head() is None


@pytest.mark.parametrize(
    ("name", "opts"),
    [
        ("GLA", ("TRAINER.GLA.PRIOR", "unlabelled")),
        ("DebiasedZeroshot", ("TRAINER.DEBIASEDZEROSHOT.PRIOR", "unlabelled")),
        ("GLA", ("TRAINER.GLA.COMBINE", "otter")),
        ("DebiasedZeroshot", ("TRAINER.DEBIASEDZEROSHOT.COMBINE", "otter")),
        ("GLA", ("TRAINER.GLA.BASE", "CLIPAdapter")),
        ("Ensemble", ("TRAINER.ENSEMBLE.BASE", "TipAdapter")),
    ],
)
def test_a_prediction_that_is_not_linear_has_no_head(name, opts, data_root, tmp_path):
    assert trained(name, data_root, tmp_path, *opts).linear_head() is None


def test_a_cosine_head_without_an_adapter_is_linear(data_root, tmp_path):
    check_head(trained("FineTune", data_root, tmp_path, "TRAINER.FINETUNE.ADAPTER", "none"))
