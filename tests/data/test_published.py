"""Tests of the published datasets in their real layouts: splits, labels, names, prompts, errors for damage."""

import json
from collections import Counter
from pathlib import Path

import pytest
import trees
from scipy.io import savemat
from trees import COOP, TREES, held, image_root, load, of, remove, with_lines

from unskew import config

PHOTO = "a photo of a {}."
# The zero-shot template and the prompt that residual prompts start from.
PROMPTS = {
    "oxford_pets": ("a photo of a {}, a type of pet.", "a type of pet, a photo of a {}."),
    "oxford_flowers": ("a photo of a {}, a type of flower.", "a type of flower, a photo of a {}."),
    "fgvc_aircraft": ("a photo of a {}, a type of aircraft.", "a type of aircraft, a photo of a {}."),
    "dtd": ("{} texture.", "a texture of {}."),
    "eurosat": ("a centered satellite photo of {}.",) * 2,
    "food101": ("a photo of {}, a type of food.", "a type of food, a photo of {}."),
    "ucf101": ("a photo of a person doing {}.",) * 2,
}
# Those of OpenAI's 80 templates.
IMAGENETS = ("imagenet", "imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r", "imagenet_lt")
ENSEMBLES = (*IMAGENETS, "caltech101", "sun397")
# The sizes of train, val and test without a split file, and CoOp's class names.
WITHOUT_SPLIT_FILE = {
    "caltech101": (25, 10, 15, ["face", "leopard", "motorbike", "accordion", "airplane"]),
    "dtd": (15, 6, 9, ["banded", "blotchy", "chequered"]),
    "food101": (15, 6, 9, ["apple_pie", "baby_back_ribs", "tuna_tartare"]),
    "oxford_pets": (24, 6, 9, ["abyssinian", "american_bulldog", "great_pyrenees"]),
    "oxford_flowers": (15, 6, 9, ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"]),
    "stanford_cars": (
        24,
        6,
        9,
        ["2000 AM General Hummer SUV", "2012 Audi TTS Coupe", "2012 Ram C/V Cargo Van Minivan"],
    ),
    "fgvc_aircraft": (12, 9, 6, ["707-320", "Cessna 172", "F/A-18"]),
    "sun397": (24, 6, 12, ["abbey", "outdoor apartment_building", "ocean_deep underwater"]),
    "ucf101": (24, 6, 12, ["Apply_Eye_Makeup", "Handstand_Pushups", "Yo_Yo"]),
    "eurosat": (
        *(50, 20, 30),
        [
            *("Annual Crop Land", "Forest", "Herbaceous Vegetation Land", "Highway or Road", "Industrial Buildings"),
            *("Pasture Land", "Permanent Crop Land", "Residential Buildings", "River", "Sea or Lake"),
        ],
    ),
}
WITH_SPLIT_FILE = sorted(set(COOP) - {"fgvc_aircraft"})


def everything(dataset):
    return [*dataset.train_x, *(dataset.val or []), *dataset.test]


def flat(splits):
    return [entry for entries in splits.values() for entry in entries]


# --- prompts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TREES)
def test_prompts_are_the_published_ones(name, tmp_path):
    TREES[name](tmp_path)
    dataset = load(name, tmp_path)
    template, context = PROMPTS.get(name, (PHOTO, PHOTO))
    assert (dataset.template, dataset.context_init) == (template, context)
    if name in ENSEMBLES:
        assert len(set(dataset.templates)) == 80
        assert all(prompt.count("{}") == 1 for prompt in dataset.templates)
        assert {"a bad photo of a {}.", "a tattoo of the {}."} <= set(dataset.templates)
    else:
        assert dataset.templates == [template]


def test_every_tree_is_of_a_published_dataset():
    published = {name for name in config.names("datasets") if hasattr(of(name), "sources")}
    assert set(TREES) <= published


def test_a_template_of_the_user_replaces_all_prompts(tmp_path):
    trees.caltech101(tmp_path)
    dataset = load("caltech101", tmp_path, "DATASET.TEMPLATE", "a sketch of {}.")
    assert dataset.templates == ["a sketch of {}."] and dataset.context_init == dataset.template == "a sketch of {}."
    with pytest.raises(ValueError, match="TEMPLATE 'a sketch'"):
        load("caltech101", tmp_path, "DATASET.TEMPLATE", "a sketch")


# --- splits, labels, names --------------------------------------------------------------------------


@pytest.mark.parametrize("name", COOP)
def test_without_a_split_file(name, tmp_path, warned):
    entries = COOP[name](tmp_path)
    dataset, root = load(name, tmp_path), image_root(name, tmp_path)
    found, (*sizes, names) = held(dataset, root), WITHOUT_SPLIT_FILE[name]
    assert [len(items) for items in found.values()] == sizes
    assert dataset.classnames == names
    assert sorted(flat(found)) == sorted(flat(entries))  # each image once, with its label
    for split in set(entries) & set(found):
        assert found[split] == entries[split]  # a published split stays as it is
    for items in (dataset.train_x, dataset.val, dataset.test):
        assert len(set(Counter(item.label for item in items).values())) == 1  # the same share of each class
    assert all(Path(item.impath).is_file() for item in everything(dataset))
    messages = [message for message in warned() if f"data prepare {name}" in message]
    assert len(messages) == (name != "fgvc_aircraft")
    path = tmp_path / of(name).dataset_dir / of(name).split_file
    assert not messages or (str(path) in messages[0] and "\n" not in messages[0])


@pytest.mark.parametrize("name", COOP)
def test_without_a_split_file_every_seed_has_the_same_split(name, tmp_path):
    COOP[name](tmp_path)
    first, second = (load(name, tmp_path, "SEED", seed) for seed in (1, 2))
    assert held(first, tmp_path) == held(second, tmp_path)
    if name != "fgvc_aircraft":  # random, not the first images
        val = [item.impath for item in first.val]
        assert val != sorted(item.impath for item in everything(first))[: len(val)]


@pytest.mark.parametrize("name", WITH_SPLIT_FILE)
def test_with_a_split_file(name, tmp_path, warned):
    entries, cls = COOP[name](tmp_path), of(name)
    split = trees.coop_split(tmp_path / cls.dataset_dir / cls.split_file, flat(entries))
    dataset = load(name, tmp_path)
    found = held(dataset, image_root(name, tmp_path))
    assert {key: [list(entry) for entry in items] for key, items in found.items()} == split
    assert dataset.classnames == WITHOUT_SPLIT_FILE[name][-1]
    assert all(Path(item.impath).is_file() for item in everything(dataset))
    assert not warned()


@pytest.mark.parametrize("name", COOP)
def test_few_shots_and_halves_of_the_classes(name, tmp_path, warned):
    COOP[name](tmp_path)
    whole = held(load(name, tmp_path), tmp_path)
    few = load(name, tmp_path, "SEED", 3, shots=2)
    labels = range(few.num_classes)
    for items, split in ((few.train_x, "train"), (few.val, "val")):
        assert Counter(item.label for item in items) == dict.fromkeys(labels, 2)
        assert set(held(few, tmp_path)[split]) <= set(whole[split])
    assert held(few, tmp_path)["test"] == whole["test"]
    note = tmp_path / of(name).dataset_dir / "split_fewshot" / "shot_2-seed_3.json"
    assert [entry[0] for entry in json.loads(note.read_text())["train"]] == [
        Path(item.impath).relative_to(note.parent.parent).as_posix() for item in few.train_x
    ]
    assert held(load(name, tmp_path, "SEED", 3, shots=2), tmp_path) == held(few, tmp_path)
    assert held(load(name, tmp_path, "SEED", 4, shots=2), tmp_path) != held(few, tmp_path)
    base, new = (load(name, tmp_path, "DATASET.SUBSAMPLE_CLASSES", half) for half in ("base", "new"))
    middle = (len(labels) + 1) // 2
    assert base.classnames == WITHOUT_SPLIT_FILE[name][-1][:middle]
    assert new.classnames == WITHOUT_SPLIT_FILE[name][-1][middle:]
    assert {item.label for item in everything(new)} == set(range(len(labels) - middle))
    assert len(everything(base)) + len(everything(new)) == sum(map(len, whole.values()))


def test_a_missing_image_of_a_split_file_is_named_when_it_is_read(tmp_path):
    from unskew.data.loaders import DataManager

    entries = trees.dtd(tmp_path)["all"]
    trees.coop_split(tmp_path / "dtd" / "split_zhou_DescribableTextures.json", entries)
    gone = tmp_path / "dtd" / "images" / entries[2][0]
    gone.unlink()
    opts = ("DATASET.ROOT", str(tmp_path), "DATALOADER.NUM_WORKERS", 0)
    manager = DataManager(config.load("dtd", trainer="ZeroshotCLIP", opts=opts))
    with pytest.raises(FileNotFoundError) as error:
        list(manager.test_loader)
    assert str(gone) in str(error.value)


# --- errors -------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def unlabelled(path):
    trees.cars_annotations(path, [("00001.jpg", 1)], labels=False)


def class_four(path):
    trees.cars_annotations(path, [("00001.jpg", 1), ("00002.jpg", 4)])


def few_images(folder):
    for number in range(4, 11):
        (folder / f"{number}005649.jpg").unlink()


META, ANNOTATIONS = "devkit/cars_meta.mat", "cars_test_annos_withlabels.mat"
# Dataset, damaged file, damage, and a part of the message.
FAULTS = [
    *((name, "", remove, f"data prepare {name}") for name in COOP),
    ("caltech101", "101_ObjectCategories", remove, "no folder"),
    ("dtd", "images", remove, "no folder"),
    ("dtd", "split_zhou_DescribableTextures.json", with_lines('{"train": [["a.jpg", 0, "banded"]'), "JSON"),
    ("oxford_pets", "split_zhou_OxfordPets.json", with_lines('{"train": []}'), "not a split file"),
    ("oxford_pets", "annotations/test.txt", remove, "no file"),
    ("oxford_pets", "annotations/test.txt", with_lines("Abyssinian_2 1 1 1", "Bengal_1 1 1"), "line 2: expected 4"),
    ("oxford_pets", "annotations/trainval.txt", with_lines("Abyssinian_1 first 1 1"), "'first'"),
    ("oxford_pets", "annotations/trainval.txt", with_lines("Abyssinian_1 0 1 1"), "'0'"),
    ("stanford_cars", META, remove, "no file"),
    ("stanford_cars", META, cut, "MATLAB"),
    ("stanford_cars", META, lambda path: savemat(path, {"other": [1]}), "'class_names'"),
    ("stanford_cars", ANNOTATIONS, cut, "MATLAB"),
    ("stanford_cars", ANNOTATIONS, with_lines("<html>404</html>"), "MATLAB"),
    ("stanford_cars", ANNOTATIONS, unlabelled, "labels"),
    ("stanford_cars", ANNOTATIONS, class_four, "class 4 of 3"),
    ("oxford_flowers", "imagelabels.mat", remove, "no file"),
    ("oxford_flowers", "imagelabels.mat", cut, "MATLAB"),
    ("oxford_flowers", "cat_to_name.json", with_lines('{"1": "pink primrose", "3": "rose"}'), "1 class(es): '2'"),
    ("oxford_flowers", "cat_to_name.json", remove, "there is no file"),
    ("fgvc_aircraft", "variants.txt", remove, "no file"),
    ("fgvc_aircraft", "images_variant_val.txt", with_lines("0034309 Airbus"), "'Airbus'"),
    ("sun397", "ClassName.txt", remove, "no file"),
    ("sun397", "Training_01.txt", with_lines("/z/zoo/sun_a.jpg"), "'/z/zoo'"),
    ("sun397", "Testing_01.txt", lambda path: path.write_bytes(b"/a/abbey/\xff\xfe.jpg\n"), "UTF-8"),
    ("ucf101", "ucfTrainTestlist", remove, "classInd.txt"),
    ("ucf101", "ucfTrainTestlist/classInd.txt", with_lines("one ApplyEyeMakeup"), "'one'"),
    ("ucf101", "ucfTrainTestlist/testlist01.txt", with_lines("Yo/v_Yo_g01_c01.avi"), "'Yo'"),
    ("ucf101", "ucfTrainTestlist/trainlist01.txt", with_lines("YoYo/v_YoYo_g01_c01.avi"), "line 1: expected 2"),
    ("food101", "images/apple_pie", few_images, "'apple_pie' has 3"),
]


@pytest.mark.parametrize(("name", "file", "damage", "expected"), FAULTS)
def test_an_error_has_one_line_and_names_the_file(name, file, damage, expected, tmp_path):
    COOP[name](tmp_path)
    path = tmp_path / of(name).dataset_dir / file
    damage(path)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load(name, tmp_path)
    message = str(error.value)
    assert path.name in message and expected in message and "\n" not in message
