"""A name is found in upper or lower case, and suggestions have the README's spelling."""

import pytest

from unskew import config
from unskew.runs.run import Run


@pytest.mark.parametrize("name", ["ViT-B/16", "ViT-B-16", "vit-b/16", "vit-b-16", "VIT-B/16"])
def test_spellings_of_a_backbone(name):
    assert config.check_backbone(name) == "ViT-B/16"
    assert config.backbone_layer(name) == {"MODEL.BACKBONE.NAME": "ViT-B/16"}
    assert config.load("digits", name, "CoOp") == config.load("digits", "ViT-B/16", "CoOp")


def test_one_rule_for_datasets_trainers_and_bases():
    expected = Run("digits", "GLA", shots=1, opts=("TRAINER.GLA.BASE", "CoOp")).config
    assert Run("Digits", "gla", "MICRO", shots=1, opts=("TRAINER.GLA.BASE", "coop")).config == expected
    assert Run("digits", "backdoor").config == Run("digits", "Backdoor").config


def test_a_plugins_name_that_differs_only_in_case_keeps_its_meaning(monkeypatch):
    monkeypatch.setattr(config.plugins, "_names", {"datasets": {"EuroSAT": None}})
    assert [config.check_name("datasets", name) for name in ("EuroSAT", "eurosat")] == ["EuroSAT", "eurosat"]
    with pytest.raises(ValueError, match="did you mean"):
        config.check_name("datasets", "EUROSAT")


@pytest.mark.parametrize(("wrong", "right"), [("ViT-B/61", "ViT-B/16"), ("vitl14", "ViT-L/14"), ("RN5", "RN50")])
def test_suggestions_are_spelled_as_the_readme_does(wrong, right):
    with pytest.raises(ValueError, match=f"did you mean .*{right}") as error:
        config.check_backbone(wrong)
    assert "ViT-B-16" not in str(error.value) and "ViT-L-14" not in str(error.value)
