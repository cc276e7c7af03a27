"""Classes of an evaluation are matched with those of the trained run by their names."""

import pytest

from unskew import config
from unskew.data.transfer import match, same_images

CLASSES = ["red_cup", "Turkey", "turkey", "box", "crane", "crane"]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["box", "red cup"], {0: 3, 1: 0}),
        (["Red  Cup"], {0: 0}),
        (["crane", "box", "crane"], {0: 4, 1: 3, 2: 5}),
        (["turkey", "TURKEY"], {0: 1, 1: 2}),
        (["box", "cup"], None),
        (["cup"], None),
    ],
)
def test_names_match_as_prompts_do(names, labels):
    assert match(names, CLASSES) == labels


@pytest.mark.parametrize("names", [["crane"], ["box", "Box"], ["turkey", "box"]])
def test_a_name_of_several_classes_is_an_error(names):
    with pytest.raises(ValueError, match="name"):
        match(names, CLASSES)


def cfg(dataset="digits", shots=4, *opts):
    opts = ("DATASET.NUM_SHOTS", shots, "SEED", 1, *opts)
    return config.load(dataset, "micro", "GLA", opts)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (cfg(), cfg("digits", 4, "TRAINER.GLA.PRIOR", "convex", "OPTIM.LR", 1.0, "DATASET.ROOT", "elsewhere"), True),
        (cfg(), cfg("digits", 4, "SEED", 2), False),
        (cfg(), cfg("digits", 4, "SEED", 2, "DATASET.SEED", 1), True),
        (cfg(), cfg("digits", 8), False),
        (cfg(), cfg("shapes"), False),
        (cfg(), cfg("digits", 4, "DATASET.SUBSAMPLE_CLASSES", "base"), False),
        (cfg("digits", -1), cfg("digits", -1, "SEED", 2), True),
        (cfg("digits", 4, "SEED", -1), cfg("digits", 4, "SEED", -1), False),
        (cfg("folder", 4, "DATASET.ROOT", "a"), cfg("folder", 4, "DATASET.ROOT", "b"), False),
        (cfg("folder", 4, "DATASET.ROOT", "a"), cfg("folder", 4, "DATASET.ROOT", "./a"), True),
    ],
)
def test_the_images_of_a_run(first, second, same, tmp_path):
    (tmp_path / "config.yaml").write_text(config.dump(first))
    assert same_images(second, tmp_path) is same
    assert not same_images(second, tmp_path / "nothing")
