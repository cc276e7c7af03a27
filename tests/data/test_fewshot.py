"""Tests of the selection of images: few-shot samples and records, published pickles, hold-outs, halves of classes."""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from items import PUBLISHED, config, dump, dump_fewshot, make, paths, published_sample, published_split

from unskew.data.dataset import DatasetBase, Datum
from unskew.data.fewshot import select
from unskew.data.sampling import sample_fewshot
from unskew.data.splits import entries, read_split
from unskew.utils.files import read_json, write_json

TESTS = Path(__file__).parents[1]

# --- samples -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request, tmp_path_factory):
    """The name of a dataset and its splits with images below the folder ``images``."""
    path = tmp_path_factory.mktemp(request.param) / "split.json"
    write_json(published_split(request.param), path)
    return request.param, read_split(path, "images")


@pytest.mark.parametrize("shots", [1, 16])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_select_draws_the_published_files(published, tmp_path, shots, seed):
    dataset, (train, val, test) = published
    chosen = select(config(shots, seed), tmp_path, train, val, test)
    expected = published_sample(dataset, shots, seed)
    assert entries(chosen["train_x"], "images") == expected["train"]
    assert entries(chosen["val"], "images") == expected["val"]
    assert chosen["test"] == test


def test_sampling_does_not_grow_quadratically(tmp_path):
    items = make("r", 1000, 150)
    start = time.perf_counter()
    select(config(shots=16), tmp_path, items, [], [])
    assert time.perf_counter() - start < 15  # about one second; a search in lists would take an hour


@pytest.mark.parametrize(("shots", "val_shots"), [(0, -1), (-2, -1), (4, -2)])
def test_select_refuses_shots(tmp_path, shots, val_shots):
    with pytest.raises(ValueError, match="SHOTS is"):
        select(config(shots, val_shots=val_shots), tmp_path, make("r", 2, 5), [], [])


def test_all_shots_are_the_whole_split(tmp_path):
    train, test = make("r", 3, 5), make("r", 3, 2, "test")
    assert select(config(-1), tmp_path, train, [], test) == {"train_x": train, "val": [], "test": test}
    assert not list(tmp_path.iterdir())


def test_without_val_images_val_comes_from_train(tmp_path, warned):
    train, test = make("r", 3, 8), make("r", 3, 8, "test")
    chosen = select(config(shots=5), tmp_path, train, [], test)
    assert chosen["train_x"] == sample_fewshot(train, 5, random.Random(1))
    assert len(chosen["val"]) == 9 and set(chosen["val"]) <= set(train) - set(chosen["train_x"])
    assert not warned()  # 3 images are left for 4 val shots: the summary of the dataset warns


def test_classes_without_an_image_for_val_are_reported(tmp_path, warned):
    chosen = select(config(shots=4), tmp_path, make("r", 2, 4), [], [])
    assert len(chosen["train_x"]) == 8 and chosen["val"] == []
    (message,) = warned()
    assert message.startswith("val is empty")


def test_the_datasets_own_seed_wins(tmp_path):
    train, cfg = make(tmp_path, 3, 9), config(2, seed=1)
    cfg.DATASET.SEED = 0
    assert select(cfg, tmp_path, train, [], [])["train_x"] == sample_fewshot(train, 2, random.Random(0))
    assert [file.name for file in (tmp_path / "split_fewshot").iterdir()] == ["shot_2-seed_0.json"]


# --- the record --------------------------------------------------------------------------------------


def recorded(root, chosen):
    """Return the expected record of a sample, independent of the code that writes it."""
    splits = {"train": chosen["train_x"], "val": chosen["val"]}
    return {
        split: [[i.impath.removeprefix(f"{root}/"), i.label, i.classname] for i in items]
        for split, items in splits.items()
    }


def test_a_sample_is_recorded_with_relative_paths(tmp_path):
    train, val = make(tmp_path, 3, 9), make(tmp_path, 3, 9, "val")
    chosen = select(config(2, seed=0), tmp_path, train, val, [])
    path = tmp_path / "split_fewshot" / "shot_2-seed_0.json"
    content = json.loads(path.read_text())
    assert content == recorded(tmp_path, chosen)
    assert content["train"][0] == [f"train/2/{Path(chosen['train_x'][0].impath).name}", 2, "class 2"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no temporary file is left


def test_the_record_is_never_read(tmp_path):
    train = make(tmp_path, 3, 9)
    first = select(config(2), tmp_path, train, train, [])
    path = tmp_path / "split_fewshot" / "shot_2-seed_1.json"
    other = next(item for item in train if item not in first["train_x"])
    write_json({"train": entries([other], tmp_path), "val": []}, path)
    assert select(config(2), tmp_path, train, train, []) == first
    assert read_json(path) == recorded(tmp_path, first)


@pytest.mark.parametrize("change", ["images", "order", "broken", "list", "bytes"])
def test_a_wrong_record_is_overwritten(tmp_path, change):
    train, val = make(tmp_path, 3, 9), make(tmp_path, 3, 9, "val")
    select(config(), tmp_path, train, val, [])
    path = tmp_path / "split_fewshot" / "shot_2-seed_1.json"
    before = read_json(path)
    if change in ("images", "order"):
        train = train[3:] if change == "images" else train[::-1]
    else:
        path.write_bytes({"broken": b'{"train": [', "list": b"[]", "bytes": b"\xff\xfe"}[change])
    chosen = select(config(), tmp_path, train, val, [])
    assert chosen["train_x"] == sample_fewshot(train, 2, random.Random(1))
    assert read_json(path) == recorded(tmp_path, chosen)
    assert (read_json(path) == before) == (change not in ("images", "order"))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_correct_record_is_kept(tmp_path):
    train = make(tmp_path, 3, 9)
    select(config(), tmp_path, train, train, [])
    path = tmp_path / "split_fewshot" / "shot_2-seed_1.json"
    os.utime(path, (1, 1))
    before = path.stat()
    select(config(), tmp_path, train, train, [])
    assert (path.stat().st_mtime, path.stat().st_ino) == (1, before.st_ino)


def test_each_number_of_val_shots_has_its_own_record(tmp_path):
    train, val = make(tmp_path, 3, 9), make(tmp_path, 3, 9, "val")
    sizes = [len(select(config(5, val_shots=k), tmp_path, train, val, [])["val"]) for k in (-1, 4, 5, 0)]
    assert sizes == [12, 12, 15, 0]
    names = sorted(file.name for file in (tmp_path / "split_fewshot").iterdir())
    assert names == ["shot_5-seed_1-val_0.json", "shot_5-seed_1-val_5.json", "shot_5-seed_1.json"]


def test_a_negative_seed_draws_another_sample_each_time_and_leaves_no_record(tmp_path):
    train = make(tmp_path, 3, 50)
    samples = [paths(select(config(5, seed=-1), tmp_path, train, [], [])["train_x"]) for _ in range(2)]
    assert samples[0] != samples[1] and not list(tmp_path.iterdir())


def test_a_record_in_another_folder(tmp_path):
    train = make(tmp_path / "data", 3, 9)
    chosen = select(config(), tmp_path / "data", train, train, [], cache=tmp_path / "cache")
    assert read_json(tmp_path / "cache" / "split_fewshot" / "shot_2-seed_1.json") == recorded(tmp_path / "data", chosen)
    assert not (tmp_path / "data").exists()


def test_a_record_that_cannot_be_written_is_not_an_error(tmp_path):
    (tmp_path / "split_fewshot").write_text("a file where the folder should be")
    train = make(tmp_path, 3, 9)
    assert select(config(), tmp_path, train, train, [])["train_x"] == sample_fewshot(train, 2, random.Random(1))


SELECT_AS_SOMEBODY_ELSE = """
import json, os, sys
from items import config, make
from unskew.data.fewshot import select
if os.geteuid() == 0:  # root may write everywhere
    os.seteuid(65534)
root = sys.argv[1]
train = make(root, 3, 9)
print(json.dumps([item.impath for item in select(config(), root, train, train, [])["train_x"]]))
"""


@pytest.mark.parametrize("writable", [True, False])
def test_a_read_only_data_folder(writable):
    with tempfile.TemporaryDirectory() as base:  # tmp_path is closed to other users
        root, cache = Path(base) / "pets", Path(base) / "cache"
        for folder, mode in ((base, 0o755), (root, 0o555), (cache, 0o777 if writable else 0o555)):
            Path(folder).mkdir(exist_ok=True)
            Path(folder).chmod(mode)
        environment = {**os.environ, "UNSKEW_CACHE": str(cache), "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
        command = [sys.executable, "-c", SELECT_AS_SOMEBODY_ELSE, str(root)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        train = make(root, 3, 9)
        expected = sample_fewshot(train, 2, random.Random(1))
        assert json.loads(done.stdout) == paths(expected)
        assert not list(root.iterdir())
        found = [path for path in cache.rglob("*") if path.is_file()]
        assert len(found) == writable
        for path in found:
            assert path.match("pets-*/split_fewshot/shot_2-seed_1.json")
            assert read_json(path)["train"] == entries(expected, root)


# --- published pickles -------------------------------------------------------------------------------


def publish(root, train, val=None, name="shot_2-seed_1", there="/home/other/DATA/pets/"):
    """Write the pickle of a sample with the paths of another machine."""
    splits = {"train": train} if val is None else {"train": train, "val": val}
    moved = {
        split: [(there + i.impath.removeprefix(f"{root}/"), i.label, i.classname) for i in items]
        for split, items in splits.items()
    }
    if "\\" in there:
        moved = {split: [(path.replace("/", "\\"), *rest) for path, *rest in items] for split, items in moved.items()}
    dump_fewshot(root / "split_fewshot" / f"{name}.pkl", **moved)


def last(items, k):
    """Return the last ``k`` images of each class, classes in label order, which no seed draws."""
    labels = sorted({item.label for item in items})
    return [item for label in labels for item in [i for i in items if i.label == label][-k:]]


def test_the_published_sample_is_used(tmp_path):
    train, val = make(tmp_path, 3, 9), make(tmp_path, 3, 9, "val")
    publish(tmp_path, last(train, 2), last(val, 2))
    chosen = select(config(2), tmp_path, train, val, [])
    assert chosen["train_x"] == last(train, 2) and chosen["val"] == last(val, 2)
    assert read_json(tmp_path / "split_fewshot" / "shot_2-seed_1.json") == recorded(tmp_path, chosen)
    other = select(config(2, seed=2), tmp_path, train, val, [])  # the file is for one seed and number of shots
    assert other["train_x"] == sample_fewshot(train, 2, random.Random(2))
    assert select(config(3), tmp_path, train, val, [])["train_x"] == sample_fewshot(train, 3, random.Random(1))


def test_glas_files_with_as_many_val_images_as_shots(tmp_path):
    train = make(tmp_path, 3, 20)  # ImageNet, which has no val
    publish(tmp_path, last(train, 8), sorted(last(train, 16), key=lambda i: i in last(train, 8))[:24], "shot_8-seed_1")
    chosen = select(config(8, val_shots=8), tmp_path, train, [], [])
    assert chosen["train_x"] == last(train, 8)
    assert Counter(item.label for item in chosen["val"]) == {0: 8, 1: 8, 2: 8}
    assert set(chosen["val"]) == set(last(train, 16)) - set(last(train, 8))


def test_if_the_file_has_no_val_it_is_drawn_from_the_other_images(tmp_path):
    train = make(tmp_path, 3, 9)  # CoOp's ImageNet
    publish(tmp_path, last(train, 2))
    chosen = select(config(2), tmp_path, train, [], [])
    assert chosen["train_x"] == last(train, 2)
    assert Counter(item.label for item in chosen["val"]) == {0: 2, 1: 2, 2: 2}
    assert not set(chosen["val"]) & set(chosen["train_x"])
    assert chosen == select(config(2), tmp_path, train, [], [])


@pytest.mark.parametrize("has_val", [True, False])
def test_another_number_of_val_images_is_drawn(tmp_path, has_val):
    train, val = make(tmp_path, 3, 9), make(tmp_path, 3, 9, "val")
    others = [item for item in train if item not in last(train, 2)]
    publish(tmp_path, last(train, 2), last(val if has_val else others, 1))
    chosen = select(config(2, val_shots=3), tmp_path, train, val if has_val else [], [])
    left = val if has_val else [item for item in train if item not in last(train, 2)]
    assert chosen["train_x"] == last(train, 2)
    assert chosen["val"] == sample_fewshot(left, 3, random.Random(1))


def test_zero_val_shots_give_no_val(tmp_path):
    train, val = make(tmp_path, 3, 9), make(tmp_path, 3, 9, "val")
    publish(tmp_path, last(train, 2), last(val, 2))
    assert select(config(2, val_shots=0), tmp_path, train, val, [])["val"] == []


@pytest.mark.parametrize("there", ["/home/a/DATA/pets/", "D:\\data\\pets\\", "\\\\nas\\a\\", "./data/pets/", ""])
def test_paths_of_another_machine(tmp_path, there):
    train, val = make(tmp_path, 3, 9), make(tmp_path, 3, 9, "val")
    publish(tmp_path, last(train, 2), last(val, 2), there=there)
    chosen = select(config(2), tmp_path, train, val, [])
    assert chosen["train_x"] == last(train, 2) and chosen["val"] == last(val, 2)


def test_the_longest_known_tail_of_a_path_identifies_the_image(tmp_path):
    train = [Datum(f"{tmp_path}/{path}", 0, 0, "cat") for path in ("1.png", "a/1.png", "b/a/1.png")]
    for item in train:
        publish(tmp_path, [item], [], name="shot_1-seed_1", there="/home/b/c/")
        assert select(config(1), tmp_path, train, [], [])["train_x"] == [item]


@pytest.mark.parametrize("shots", [1, 16])
def test_a_published_file_as_a_pickle(published, tmp_path, shots):
    dataset, splits = published
    train, val, test = ([Datum(f"{tmp_path}/{i.impath}", i.label, 0, i.classname) for i in items] for items in splits)
    sample = published_sample(dataset, shots, seed=3)  # under another seed, which draws other images
    there = f"./data/{dataset}/images"
    moved = {split: [(f"{there}/{path}", *rest) for path, *rest in items] for split, items in sample.items()}
    dump_fewshot(tmp_path / "split_fewshot" / f"shot_{shots}-seed_1.pkl", **moved)
    chosen = select(config(shots, seed=1), tmp_path, train, val, test)
    assert entries(chosen["train_x"], tmp_path / "images") == sample["train"]
    assert entries(chosen["val"], tmp_path / "images") == sample["val"]


@pytest.mark.parametrize("what", ["image", "label", "shots", "pickle"])
def test_a_pickle_that_does_not_fit_is_refused(tmp_path, what):
    train, val = make(tmp_path, 3, 9), make(tmp_path, 3, 9, "val")
    sample = last(train, 1 if what == "shots" else 2)
    if what == "image":
        sample[3] = Datum(f"{tmp_path}/train/1/77.png", 1, 0, "class 1")
    if what == "label":
        sample[3] = Datum(sample[3].impath, 2, 0, "class 2")
    path = tmp_path / "split_fewshot" / "shot_2-seed_1.pkl"
    if what == "pickle":
        dump({"train": [print]}, path)
    else:
        publish(tmp_path, sample, last(val, 2))
    with pytest.raises(ValueError) as error:
        select(config(2), tmp_path, train, val, [])
    message = str(error.value)
    assert f"'{path}'" in message and "\n" not in message
    impath = sample[3].impath.replace(str(tmp_path), "/home/other/DATA/pets") if what != "shots" else ""
    assert {
        "image": f"'{impath}' with label 1",
        "label": f"'{impath}' with label 2",
        "shots": "1 images of class 2",
        "pickle": "builtins.print",
    }[what] in message
    assert "delete" in message
    assert not (tmp_path / "split_fewshot" / "shot_2-seed_1.json").exists()


# --- hold-outs ---------------------------------------------------------------------------------------


def long_tail(root):
    """Return shuffled classes of 100, 30, 20, 19 and 1 images."""
    items = [
        Datum(f"{root}/{label}/{i}.png", label, 0, f"class {label}")
        for label, n in enumerate((100, 30, 20, 19, 1))
        for i in range(n)
    ]
    return random.Random(0).sample(items, len(items))


def test_a_hold_out_is_a_part_of_each_class_that_has_enough_images(tmp_path):
    train = long_tail(tmp_path)
    chosen = select(config(-1, holdout=0.05), tmp_path, train, [], [])
    assert Counter(item.label for item in chosen["val"]) == {0: 5, 1: 2, 2: 1}  # 1.5 is rounded
    assert chosen["train_x"] == [item for item in train if item not in chosen["val"]]  # in their order
    assert len(chosen["train_x"]) + len(chosen["val"]) == len(train)
    assert not list(tmp_path.iterdir())


def test_a_hold_out_is_the_same_for_every_seed(tmp_path):
    train = long_tail(tmp_path)
    first, *others = [select(config(-1, seed, holdout=0.05), tmp_path, train, [], []) for seed in (1, 2, 3, -1)]
    assert all(other == first for other in others)


def test_only_runs_on_all_images_without_val_hold_out(tmp_path):
    train, val = long_tail(tmp_path), make(tmp_path, 5, 9, "val")
    assert select(config(-1), tmp_path, train, [], [])["val"] == []
    assert select(config(-1, holdout=0.05), tmp_path, train, val, []) == {"train_x": train, "val": val, "test": []}
    for given in ([], val):
        few = select(config(2, holdout=0.05), tmp_path, train, given, [])
        assert few == select(config(2), tmp_path, train, given, [])


@pytest.mark.parametrize("holdout", [-0.1, 1, 1.5, float("nan")])
def test_a_hold_out_is_a_fraction(tmp_path, holdout):
    with pytest.raises(ValueError, match=f"HOLDOUT is {holdout}"):
        select(config(-1, holdout=holdout), tmp_path, long_tail(tmp_path), [], [])


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


def test_a_half_of_the_classes_is_taken_from_the_sample_of_all_classes(tmp_path):
    train, val = make(tmp_path, 5, 9), make(tmp_path, 5, 9, "val")
    whole = select(config(2), tmp_path, train, val, [])
    base = select(config(2, subsample="base"), tmp_path, train, val, [])
    assert paths(base["train_x"]) == [item.impath for item in whole["train_x"] if item.label < 3]


def test_a_pickle_with_an_image_in_train_and_val_is_refused(tmp_path):
    train = make(tmp_path, 3, 9)
    publish(tmp_path, last(train, 2), last(train, 2))
    with pytest.raises(ValueError, match="both train and val"):
        select(config(2), tmp_path, train, [], [])


def test_a_pickle_without_a_class_is_refused(tmp_path):
    train = make(tmp_path, 3, 9)
    publish(tmp_path, [item for item in last(train, 2) if item.label != 1])
    with pytest.raises(ValueError, match="0 images of class 1"):
        select(config(2), tmp_path, train, [], [])
