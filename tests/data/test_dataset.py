"""Tests of Datum, DatasetBase and build_dataset."""

import random

import numpy as np
import pytest
from items import config, make

from unskew.data.dataset import DATASET_REGISTRY, DatasetBase, Datum, build_dataset
from unskew.data.sampling import sample_fewshot


def test_datum_is_read_only_and_plain():
    item = Datum("a.png", np.int64(3), classname="cat")
    assert (item.impath, item.label, item.domain, item.classname) == ("a.png", 3, 0, "cat")
    assert type(item.label) is int and not hasattr(item, "__dict__")
    with pytest.raises(AttributeError):
        item.label = 4


@pytest.mark.parametrize("bad", [{"impath": 3}, {"label": -1}, {"label": 1.5}, {"domain": "x"}])
def test_datum_refuses(bad):
    with pytest.raises(ValueError, match="must be"):
        Datum(**bad)


def test_dataset_base_has_the_classes_of_all_splits():
    class Pets(DatasetBase):
        template = "a photo of a {}, a type of pet."

    train, test = make("r", 3, 2), make("r", 4, 1, "test")
    pets = Pets(train_x=train, test=test)
    assert (pets.train_x, pets.train_u, pets.val, pets.test) == (train, [], [], test)
    assert pets.num_classes == 4  # the fourth class has test images only
    assert pets.classnames == ["class 0", "class 1", "class 2", "class 3"]
    assert pets.lab2cname == dict(enumerate(pets.classnames))
    assert pets.templates == [pets.template] and pets.context_init == pets.template
    assert DatasetBase(train_x=train).templates == ["a photo of a {}."]


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        ({}, "no images"),
        ({"train_x": [Datum("a", 0, 0, "cat"), Datum("b", 2, 0, "dog")]}, "1 has no image"),
        ({"train_x": [Datum("a", 0, 0, "cat")], "test": [Datum("b", 0, 0, "dog")]}, "two class names"),
    ],
)
def test_dataset_base_refuses(splits, says):
    with pytest.raises(ValueError, match=says):
        DatasetBase(**splits)


def test_dassl_methods():
    items = make("r", 3, 5)
    by_label = DatasetBase.split_dataset_by_label(items)
    assert list(by_label) == [2, 1, 0] and all(len(group) == 5 for group in by_label.values())
    assert list(DatasetBase.split_dataset_by_domain(items)) == [0]
    assert DatasetBase.generate_fewshot_dataset(items) is items
    random.seed(3)  # Dassl draws from the global generator
    few, more = DatasetBase.generate_fewshot_dataset(items, items, num_shots=2)
    assert few == sample_fewshot(items, 2, random.Random(3)) and len(more) == 6
    assert len(DatasetBase.generate_fewshot_dataset(items, num_shots=8, repeat=True)) == 24


def test_build_dataset_uses_the_name_in_the_config():
    DATASET_REGISTRY.register("of_this_test", lambda cfg: ("built", cfg.SEED))
    cfg = config(seed=7)
    cfg.DATASET.NAME = "of_this_test"
    assert build_dataset(cfg) == ("built", 7)
    cfg.DATASET.NAME = "of_this_tst"
    with pytest.raises(ValueError, match="of_this_test"):
        build_dataset(cfg)


class WithPrompts(DatasetBase):
    template = "a {} thing."
    templates = ("a {} thing.", "the {}.")
    context_init = "a thing, {}."

    def __init__(self, cfg):
        super().__init__(train_x=make("r", 2, 3))


def test_a_template_of_the_config_replaces_all_prompts_of_the_dataset():
    DATASET_REGISTRY.register("with_prompts", WithPrompts, force=True)
    cfg = config()
    cfg.DATASET.NAME, cfg.DATASET.TEMPLATE = "with_prompts", ""
    own = build_dataset(cfg)
    assert (own.template, own.templates) == ("a {} thing.", ["a {} thing.", "the {}."])
    assert own.context_init == "a thing, {}."
    cfg.DATASET.TEMPLATE = "an X-ray of a {}."
    given = build_dataset(cfg)
    assert given.template == given.context_init == "an X-ray of a {}." and given.templates == ["an X-ray of a {}."]
    cfg.DATASET.TEMPLATE = "an X-ray"
    with pytest.raises(ValueError, match=r"TEMPLATE 'an X-ray'"):
        build_dataset(cfg)


def test_class_names_may_be_given_for_classes_without_images():
    dataset = DatasetBase(test=[Datum("a", 2, 0, "fox")], classnames=["cat", "dog", "fox"])
    assert dataset.classnames == ["cat", "dog", "fox"] and dataset.num_classes == 3
