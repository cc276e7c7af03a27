"""Data: few-shot samples against the published ones, caches, halves of the classes, split files."""

import gzip
import json
import logging
import random
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from unskew.data import (
    DATASET_REGISTRY,
    DatasetBase,
    Datum,
    build_dataset,
    longtail_counts,
    read_json,
    read_split,
    sample_fewshot,
    sample_longtail,
    save_split,
    select,
    write_json,
)

HERE = Path(__file__).parent / "data"


def unzip(name):
    return json.loads(gzip.decompress((HERE / name).read_bytes()))


def make(root, classes, images, split="train", first=0):
    """`images` per class, the classes in reversed order, so that first appearance is not label order."""
    return [
        Datum(f"{root}/{split}/{label}/{first + image}.png", label, 0, f"class {label}")
        for label in reversed(range(classes))
        for image in range(images)
    ]


def config(shots=2, seed=1, val_shots=-1, subsample="all"):
    dataset = SimpleNamespace(NUM_SHOTS=shots, NUM_VAL_SHOTS=val_shots, SEED=-1, SUBSAMPLE_CLASSES=subsample)
    return SimpleNamespace(SEED=seed, DATASET=dataset)


def paths(items):
    return [item.impath for item in items]


@pytest.fixture
def warned(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("unskew"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# --- Datum and DatasetBase ---------------------------------------------------------------------------


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


def test_dataset_base_knows_its_classes():
    class Pets(DatasetBase):
        template = "a photo of a {}, a type of pet."

    train, test = make("r", 3, 2), make("r", 4, 1, "test")
    pets = Pets(train_x=train, test=test)
    assert (pets.train_x, pets.train_u, pets.val, pets.test) == (train, None, None, test)
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


def test_build_dataset_goes_by_the_config_name():
    DATASET_REGISTRY.register("of_this_test", lambda cfg: ("built", cfg.SEED))
    cfg = config(seed=7)
    cfg.DATASET.NAME = "of_this_test"
    assert build_dataset(cfg) == ("built", 7)
    cfg.DATASET.NAME = "of_this_tst"
    with pytest.raises(ValueError, match="did you mean of_this_test"):
        build_dataset(cfg)


# --- sampling ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    path = tmp_path_factory.mktemp("pets") / "split.json"
    write_json(unzip("oxford_pets_split.json.gz"), path)
    return read_split(path, "images")


@pytest.mark.parametrize("shots", [1, 16])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_published_few_shot_files(pets, shots, seed):
    train, val, _ = pets
    published = unzip("oxford_pets_fewshot.json.gz")[f"shot_{shots}-seed_{seed}"]
    rng = random.Random(seed)
    for split, items, k in (("train", train, shots), ("val", val, min(shots, 4))):
        sample = sample_fewshot(items, k, rng)
        assert [[i.impath.removeprefix("images/"), i.label, i.classname] for i in sample] == published[split]


def test_select_draws_the_published_files_too(pets, tmp_path):
    train, val, test = pets
    chosen = select(config(shots=16, seed=2), tmp_path, train, val, test)
    published = unzip("oxford_pets_fewshot.json.gz")["shot_16-seed_2"]
    assert paths(chosen["train_x"]) == [f"images/{entry[0]}" for entry in published["train"]]
    assert paths(chosen["val"]) == [f"images/{entry[0]}" for entry in published["val"]]
    assert chosen["test"] == test


def test_more_shots_than_a_class_has(warned):
    items = make("r", 2, 5) + make("r", 1, 3, first=5)  # 8 of class 0, 5 of class 1
    sample = sample_fewshot(items, 7, random.Random(0))
    assert [item.label for item in sample].count(0) == 7 and [item.label for item in sample].count(1) == 5
    (message,) = warned()
    assert "7 images" in message and "'class 1' has 5" in message


def test_sampling_does_not_grow_quadratically(tmp_path):
    items = make("r", 1000, 150)
    start = time.perf_counter()
    select(config(shots=16), tmp_path, items, None, [])
    assert time.perf_counter() - start < 15  # about one second; a look-up in lists would take an hour


@pytest.mark.parametrize(("shots", "val_shots"), [(0, -1), (-2, -1), (4, -2)])
def test_select_refuses_shots(tmp_path, shots, val_shots):
    with pytest.raises(ValueError, match="SHOTS is"):
        select(config(shots, val_shots=val_shots), tmp_path, make("r", 2, 5), None, [])


def test_all_shots_are_the_whole_split(tmp_path):
    train, test = make("r", 3, 5), make("r", 3, 2, "test")
    assert select(config(-1), tmp_path, train, None, test) == {"train_x": train, "val": [], "test": test}
    assert not list(tmp_path.iterdir())


def test_val_comes_from_train_where_there_is_none(tmp_path, warned):
    train, test = make("r", 3, 8), make("r", 3, 8, "test")
    chosen = select(config(shots=5), tmp_path, train, None, test)
    assert chosen["train_x"] == sample_fewshot(train, 5, random.Random(1))
    assert len(chosen["val"]) == 9 and set(chosen["val"]) <= set(train) - set(chosen["train_x"])
    (message,) = warned()  # 3 of the 4 val images were left
    assert "has 3" in message


def test_no_image_left_for_val_is_said(tmp_path, warned):
    chosen = select(config(shots=4), tmp_path, make("r", 2, 4), [], [])
    assert len(chosen["train_x"]) == 8 and chosen["val"] == []
    assert any("2 class(es) have no image for val" in message for message in warned())


# --- long tails --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "classes", "imbalance", "total"),
    [
        (5000, 10, 100, 12406),
        (5000, 10, 50, 13996),
        (5000, 10, 10, 20431),
        (500, 100, 100, 10847),
        (500, 100, 50, 12608),
        (500, 100, 10, 19573),
    ],
)
def test_the_published_sizes_of_cifar_lt(most, classes, imbalance, total):
    counts = longtail_counts(most, classes, imbalance)
    assert sum(counts) == total
    assert (counts[0], counts[-1]) == (most, most / imbalance)


def test_a_long_tail_has_an_image_of_each_class():
    assert longtail_counts(5, 4, 1000) == [5, 1, 1, 1]
    assert longtail_counts(7, 1, 10) == [7]
    assert longtail_counts(7, 3, 1) == [7, 7, 7]


def counts_of(items, classes):
    return np.bincount([item.label for item in items], minlength=classes).tolist()


def test_sample_longtail_follows_the_order(warned):
    items = make("r", 4, 64)
    sample = sample_longtail(items, 8, random.Random(0), order=[2, 0, 3, 1])
    assert counts_of(sample, 4) == [32, 8, 64, 16]
    assert len(set(sample)) == 120 and set(sample) <= set(items) and not warned()
    drawn = [sample_longtail(items, 8, random.Random(seed)) for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len({tuple(counts_of(sample, 4)) for sample in drawn}) > 1  # the order is drawn too
    assert all(sorted(counts_of(sample, 4)) == [8, 16, 32, 64] for sample in drawn)
    assert sample_longtail(items[::-1], 8, random.Random(0), order=[2, 0, 3, 1])[0].label == 2


def test_sample_longtail_takes_the_longest_profile_that_the_classes_allow():
    items = make("r", 3, 40) + make("r", 1, 60, first=40)  # 100 of class 0, 40 of the others
    assert counts_of(sample_longtail(items, 4, random.Random(0), order=[0, 1, 2]), 3) == [81, 40, 20]
    assert counts_of(sample_longtail(items, 4, random.Random(0), order=[1, 0, 2]), 3) == [20, 40, 10]


@pytest.mark.parametrize(
    ("items", "imbalance", "order", "says"),
    [
        ([], 10, None, "no images"),
        (make("r", 3, 5), 0.1, None, "imbalance is .* got 0.1"),
        (make("r", 3, 5), float("nan"), None, "imbalance is"),
        (make("r", 3, 5), 10, [0, 1], "each of the 3 labels once"),
        (make("r", 3, 5), 10, [0, 1, 1], "each of the 3 labels once"),
    ],
)
def test_sample_longtail_refuses(items, imbalance, order, says):
    with pytest.raises(ValueError, match=says):
        sample_longtail(items, imbalance, random.Random(0), order)


# --- the cache ---------------------------------------------------------------------------------------


def test_the_cache_is_relative_and_is_read(tmp_path):
    train, val = make(tmp_path, 3, 9), make(tmp_path, 3, 9, "val")
    first = select(config(2, seed=0), tmp_path, train, val, [])
    path = tmp_path / "split_fewshot" / "shot_2-seed_0.json"
    content = read_json(path)
    assert content["train"] == [
        [str(Path(i.impath).relative_to(tmp_path)), i.label, i.classname] for i in first["train_x"]
    ]
    other = next(item for item in train if item not in first["train_x"])
    write_json({**content, "train": [[str(Path(other.impath).relative_to(tmp_path)), 2, "class 2"]]}, path)
    assert select(config(2, seed=0), tmp_path, train, val, [])["train_x"] == [other]
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no temporary file is left


@pytest.mark.parametrize("change", ["images", "order", "broken", "list", "unknown image"])
def test_a_cache_that_does_not_fit_is_remade(tmp_path, change):
    train, val = make(tmp_path, 3, 9), make(tmp_path, 3, 9, "val")
    select(config(), tmp_path, train, val, [])
    path = tmp_path / "split_fewshot" / "shot_2-seed_1.json"
    content = read_json(path)
    if change == "images":
        train = train[3:]
    elif change == "order":
        train = train[::-1]
    else:
        content["train"][0][0] = "elsewhere.png"
        path.write_text({"broken": '{"train": [', "list": "[]", "unknown image": json.dumps(content)}[change])
    chosen = select(config(), tmp_path, train, val, [])
    assert chosen["train_x"] == sample_fewshot(train, 2, random.Random(1))
    assert read_json(path)["train"] == [
        [i.impath.removeprefix(f"{tmp_path}/"), i.label, i.classname] for i in chosen["train_x"]
    ]


def test_a_cache_keeps_the_domain(tmp_path):
    train = [Datum(f"{tmp_path}/{n}.png", 0, n % 3, "cat") for n in range(9)]
    assert select(config(), tmp_path, train, train, []) == select(config(), tmp_path, train, train, [])


def test_each_number_of_val_shots_has_its_own_cache(tmp_path):
    train, val = make(tmp_path, 3, 9), make(tmp_path, 3, 9, "val")
    sizes = [len(select(config(5, val_shots=k), tmp_path, train, val, [])["val"]) for k in (-1, 4, 5, 0)]
    assert sizes == [12, 12, 15, 0]
    names = sorted(file.name for file in (tmp_path / "split_fewshot").iterdir())
    assert names == ["shot_5-seed_1-val_0.json", "shot_5-seed_1-val_5.json", "shot_5-seed_1.json"]


def test_a_negative_seed_draws_anew_and_leaves_no_cache(tmp_path):
    train = make(tmp_path, 3, 50)
    samples = [paths(select(config(5, seed=-1), tmp_path, train, None, [])["train_x"]) for _ in range(2)]
    assert samples[0] != samples[1] and not list(tmp_path.iterdir())


def test_a_root_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "split_fewshot").write_text("a file where the folder should be")
    train = make(tmp_path, 3, 9)
    assert select(config(), tmp_path, train, train, [])["train_x"] == sample_fewshot(train, 2, random.Random(1))


# --- halves of the classes ---------------------------------------------------------------------------


def test_base_and_new_halves(tmp_path):
    train, val, test = make("r", 5, 4), make("r", 5, 4, "val"), make("r", 5, 3, "test")
    base = select(config(-1, subsample="base"), tmp_path, train, val, test)
    new = select(config(-1, subsample="new"), tmp_path, train, val, test)
    for split, images in (("train_x", 4), ("val", 4), ("test", 3)):
        assert {(i.label, i.classname) for i in base[split]} == {(0, "class 0"), (1, "class 1"), (2, "class 2")}
        assert {(i.label, i.classname) for i in new[split]} == {(0, "class 3"), (1, "class 4")}
        assert len(base[split]) == 3 * images and len(new[split]) == 2 * images
    assert DatasetBase(**new).classnames == ["class 3", "class 4"]
    with pytest.raises(ValueError, match="'half'"):
        select(config(-1, subsample="half"), tmp_path, train, val, test)


# --- split files -------------------------------------------------------------------------------------


def test_a_split_survives_the_disk(tmp_path):
    splits = [make(tmp_path / "images", 3, n, name) for n, name in ((3, "train"), (2, "val"), (1, "test"))]
    path = tmp_path / "split.json"
    save_split(*splits, path, tmp_path / "images")
    assert read_json(path)["val"][0] == ["val/2/0.png", 2, "class 2"]
    assert list(read_split(path, tmp_path / "images")) == splits


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not a JSON file"),
        ("[]", "not a split file"),
        ('{"train": [], "test": []}', "not a split file"),
        ('{"train": {}, "val": [], "test": []}', "train: expected a list"),
        ('{"train": [], "val": [["a.png", 0, "cat"], ["b.png", "0", "cat"]], "test": []}', "val, entry 1"),
        ('{"train": [["a.png", 0]], "val": [], "test": []}', "train, entry 0"),
        ('{"train": [["a.png", -1, "cat"]], "val": [], "test": []}', "label >= 0"),
        ('{"train": [["a.png", true, "cat"]], "val": [], "test": []}', "label >= 0"),
    ],
)
def test_read_split_names_file_and_place(tmp_path, content, says):
    path = tmp_path / "split_of_pets.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"split_of_pets\.json") as error:
        read_split(path, "images")
    assert says in str(error.value)


def test_read_split_without_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_split(tmp_path / "none.json", "images")
