"""Tests of the user's own images in folders: splits, names, skipped files, caches and run folders."""

import json
import os
import zlib
from collections import Counter

import pytest
from trees import held, load, put, write

from unskew.data import image_folders
from unskew.engine import fingerprint, run_dir
from unskew.runs.run import Run


def counts(dataset):
    return [Counter(item.label for item in items) for items in (dataset.train_x, dataset.val, dataset.test)]


def fill(folder, **classes):
    """Write class folders with the given numbers of images, no two of them equal."""
    for name, images in classes.items():
        for n in range(images):
            path = folder / name / f"{n:03d}.jpg"
            put(path, shade=zlib.crc32(os.fsencode(path)))


def everything_below(root):
    return sorted((str(path), path.stat().st_mtime_ns) for path in [root, *root.rglob("*")])


@pytest.fixture
def birds(tmp_path, monkeypatch):
    """The user's folder; caches are in another folder."""
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))
    (tmp_path / "birds").mkdir()
    return tmp_path / "birds"


# --- splits -----------------------------------------------------------------------------------------


def test_three_splits(birds, warned):
    fill(birds / "train", wren=3, Robin=2)
    fill(birds / "val", wren=1, Robin=1)
    fill(birds / "test", wren=2, Robin=1)
    found = held(load("folder", birds), birds)
    assert found["train"] == [
        *((f"train/Robin/{n:03d}.jpg", 0, "Robin") for n in range(2)),
        *((f"train/wren/{n:03d}.jpg", 1, "wren") for n in range(3)),
    ]
    assert found["val"] == [("val/Robin/000.jpg", 0, "Robin"), ("val/wren/000.jpg", 1, "wren")]
    assert [label for _, label, _ in found["test"]] == [0, 1, 1]
    assert all((birds / path).is_file() for items in found.values() for path, *_ in items)
    assert not warned()


@pytest.mark.parametrize(
    "names", [("training", "valid", "testing"), ("Train", "validation", "TEST"), ("train", "dev", "test")]
)
def test_other_names_of_the_splits(names, birds):
    for name, images in zip(names, (5, 2, 3), strict=True):
        fill(birds / name, robin=images, wren=images)
    assert counts(load("folder", birds)) == [{0: n, 1: n} for n in (5, 2, 3)]


@pytest.mark.parametrize("second", ["val", "test"])
def test_two_splits_are_train_and_test(second, birds):
    fill(birds / "train", robin=5, wren=5)
    fill(birds / second, robin=2, wren=2)
    dataset = load("folder", birds)
    assert dataset.val == [] and len(dataset.train_x) == 10
    assert {path.split("/")[0] for path, *_ in held(dataset, birds)["test"]} == {second}
    few = load("folder", birds, shots=2)  # val comes from the rest of train, never from test
    assert len(few.val) == 4 and not {item.impath for item in few.val} & {item.impath for item in few.test}


@pytest.mark.parametrize("below", ["", "train"])
def test_without_splits_a_class_is_divided(below, birds):
    fill(birds / below, robin=10, wren=20)
    dataset, other = load("folder", birds, "SEED", 1), load("folder", birds, "SEED", 2)
    assert counts(dataset) == [{0: 5, 1: 10}, {0: 2, 1: 4}, {0: 3, 1: 6}]
    found = held(dataset, birds)
    assert held(other, birds) == found
    assert len({entry for entries in found.values() for entry in entries}) == 30
    assert found["train"] != sorted(found["train"])  # random


def test_fewer_than_four_images_cannot_be_divided(birds):
    fill(birds, robin=4, wren=3)
    with pytest.raises(ValueError, match=r"'wren' has 3 .* 4 ") as error:
        load("folder", birds)
    assert "\n" not in str(error.value)
    fill(birds, wren=4)
    assert counts(load("folder", birds)) == [{0: 2, 1: 2}, {0: 1, 1: 1}, {0: 1, 1: 1}]


def test_two_folders_of_one_split_are_refused(birds):
    for name in ("train", "val", "validation"):
        fill(birds / name, robin=1, wren=1)
    with pytest.raises(ValueError, match="val, 'val' and 'validation'") as error:
        load("folder", birds)
    assert str(birds) in str(error.value)


def test_a_class_may_be_called_train(birds):
    fill(birds, car=10, plane=10, train=10)
    assert load("folder", birds).classnames == ["car", "plane", "train"]


def test_other_folders_beside_the_splits_are_refused(birds):
    for name in ("train", "test", "sketches"):
        fill(birds / name, robin=2, wren=2)
    with pytest.raises(ValueError, match=r"'test'.*'sketches'"):
        load("folder", birds)


def test_a_single_class_is_refused(birds):
    fill(birds / "images" / "robin", young=2, old=2)
    with pytest.raises(ValueError, match="'images'"):
        load("folder", birds)


def test_a_list_of_names_is_in_the_order_of_the_folders(birds, tmp_path):
    fill(birds, b=4, a=4)
    (tmp_path / "names.json").write_text('["the first", "the second"]')
    dataset = load("folder", birds, "DATASET.CLASSNAMES", tmp_path / "names.json")
    assert dataset.classnames == ["the first", "the second"]


def test_added_images_make_another_run(birds):
    def hashed():
        return fingerprint.config_hash(Run("folder", "ZeroshotCLIP", root=str(birds), folder="out").config)

    fill(birds, robin=4, wren=4)
    first = hashed()
    assert hashed() == first
    fill(birds, robin=5)
    assert hashed() != first


def test_a_class_without_training_images_keeps_its_label(birds):
    fill(birds / "train", robin=2, wren=2)
    fill(birds / "test", robin=1, owl=1)
    dataset = load("folder", birds)
    assert dataset.classnames == ["owl", "robin", "wren"]
    assert [item.label for item in dataset.test] == [0, 1]


@pytest.mark.parametrize(
    ("fills", "expected"),
    [
        ({}, "no class folders with images"),
        ({"train": {}}, "no class folders with images"),
        ({"train": {"robin": 0}, "test": {"robin": 0}}, "no class folders with images"),
        ({"train": {"robin": 3, "wren": 3}, "test": {"robin": 0}}, "training images only"),
    ],
)
def test_a_folder_without_enough_images(fills, expected, birds):
    for split, classes in fills.items():
        for name, images in classes.items():
            (birds / split / name).mkdir(parents=True)
            fill(birds / split, **{name: images})
    put(birds / "loose.jpg")
    with pytest.raises(ValueError, match=expected) as error:
        load("folder", birds)
    assert str(birds) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_folder(birds):
    with pytest.raises(FileNotFoundError, match="--root") as error:
        load("folder", birds / "none")
    assert f"'{birds / 'none'}'" in str(error.value)


# --- image files ------------------------------------------------------------------------


def test_images_are_found_at_any_depth_and_hidden_files_are_not(birds, warned):
    for split in ("train", "test"):
        fill(birds / split, robin=1, wren=1)
    put(birds / "train" / "robin" / "north" / "2024" / "b.PNG", shade=1)
    put(birds / "train" / "robin" / "._000.jpg")
    put(birds / "train" / "robin" / ".thumbs" / "000.jpg")
    put(birds / "train" / ".cache" / "000.jpg")
    put(birds / ".git" / "a.jpg")
    write(birds / "train" / "robin" / "notes.txt", "no image")
    dataset = load("folder", birds)
    assert [path for path, *_ in held(dataset, birds)["train"]] == [
        "train/robin/000.jpg",
        "train/robin/north/2024/b.PNG",
        "train/wren/000.jpg",
    ]
    assert not warned()


def test_an_empty_class_folder_is_skipped_with_a_warning(birds, warned):
    for split in ("train", "test"):
        fill(birds / split, robin=2, wren=2)
    (birds / "train" / "owl").mkdir()
    write(birds / "train" / "owl" / "notes.txt", "none yet")
    assert load("folder", birds).classnames == ["robin", "wren"]
    (message,) = warned()
    assert "'owl'" in message and str(birds) in message


# --- names, prompts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("names.txt", "wren Eurasian wren\n\nrobin   European robin \n"),
        ("names.json", '{"wren": "Eurasian wren", "robin": "European robin"}'),
    ],
)
def test_names_from_a_file(file, content, birds, tmp_path):
    fill(birds, robin=4, wren=4)
    write(tmp_path / file, content)
    dataset = load("folder", birds, "DATASET.CLASSNAMES", str(tmp_path / file))
    assert dataset.classnames == ["European robin", "Eurasian wren"]
    assert {item.classname for item in dataset.test} == set(dataset.classnames)


def test_numbers_in_a_file_of_names_are_names_of_folders(birds, tmp_path):
    fill(birds, **{str(number): 4 for number in range(11)})  # "10" comes before "2"
    (tmp_path / "names.json").write_text(json.dumps({str(number): f"bird {number}" for number in range(11)}))
    dataset = load("folder", birds, "DATASET.CLASSNAMES", tmp_path / "names.json")
    assert all(f"/{item.classname.removeprefix('bird ')}/" in item.impath for item in dataset.train_x)


def test_a_list_of_names_for_numbered_folders(birds, tmp_path):
    fill(birds, **{"0": 4, "1": 4})
    write(tmp_path / "names.json", json.dumps(["robin", "wren"]))
    assert load("folder", birds, "DATASET.CLASSNAMES", str(tmp_path / "names.json")).classnames == ["robin", "wren"]


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("names.txt", "robin European robin", "'wren'"),
        ("names.txt", "robin European robin\nwren", "'wren'"),
        ("names.json", '{"robin": 3, "wren": "wren"}', "names"),
        ("names.json", '"robin"', "names"),
        ("names.json", "{", "JSON"),
        ("none.txt", None, "CLASSNAMES"),
        ("none.json", None, "CLASSNAMES"),
    ],
)
def test_a_wrong_file_of_names(file, content, expected, birds, tmp_path):
    fill(birds, robin=4, wren=4)
    if content is not None:
        write(tmp_path / file, content)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load("folder", birds, "DATASET.CLASSNAMES", str(tmp_path / file))
    message = str(error.value)
    assert expected in message and str(tmp_path / file) in message and "\n" not in message


def test_prompts(birds):
    fill(birds, robin=4, wren=4)
    assert load("folder", birds).templates == ["a photo of a {}."]
    dataset = load("folder", birds, "DATASET.TEMPLATE", "the song of a {}.")
    assert dataset.templates == ["the song of a {}."] and dataset.context_init == "the song of a {}."


# --- written files and run folders --------------------------------------------------------


@pytest.mark.parametrize("splits", [("",), ("train", "test")])
def test_no_file_is_written_among_the_users_images(splits, birds, tmp_path, monkeypatch):
    for split in splits:
        fill(birds / split, robin=12, wren=12)
    monkeypatch.setattr(image_folders, "CACHE_FROM", 1)
    for path in [birds, *birds.rglob("*")]:
        os.utime(path, (1e9, 1e9))  # long unchanged, so that the list of images is cached
    before = everything_below(birds)
    first = [held(load("folder", birds, "SEED", seed, shots=2), birds) for seed in (1, 2)]
    assert everything_below(birds) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["birds", "cache"]
    assert sorted(path.name for path in (tmp_path / "cache").rglob("*.json")) == [
        ".listing-birds.json",
        "shot_2-seed_1.json",
        "shot_2-seed_2.json",
    ]
    assert first == [held(load("folder", birds, "SEED", seed, shots=2), birds) for seed in (1, 2)]
    fill(birds / splits[0], owl=12)  # the cached list is out of date
    assert load("folder", birds).classnames == ["owl", "robin", "wren"]


def test_folders_of_one_name_do_not_share_a_cache(birds, tmp_path):
    samples = []
    for root in (birds, tmp_path / "other" / "birds"):
        fill(root, robin=12, wren=12)
        samples.append(held(load("folder", root, shots=2), root))
    assert samples[0] == samples[1]
    assert len(list((tmp_path / "cache").rglob("shot_2-seed_1.json"))) == 2


def test_two_folders_are_two_runs():
    runs = [Run("folder", "ZeroshotCLIP", shots=2, seed=1, root=root).config for root in ("/a/birds", "/a/cats")]
    assert [run_dir.dataset_label(cfg) for cfg in runs] == ["folder-birds", "folder-cats"]
    assert runs[0].OUTPUT_DIR != runs[1].OUTPUT_DIR and "folder-birds" in runs[0].OUTPUT_DIR
    hashes = {
        fingerprint.config_hash(Run("folder", "ZeroshotCLIP", shots=2, seed=1, root=root, folder="out").config)
        for root in ("/a/birds", "/b/birds", "/a/birds/")
    }
    assert len(hashes) == 2
    published = {fingerprint.config_hash(Run("dtd", "ZeroshotCLIP", root=root).config) for root in ("/a", "/b")}
    assert len(published) == 1  # the place of a published dataset does not matter


def test_changed_names_are_another_run(birds, tmp_path):
    names = tmp_path / "names.txt"
    run = Run("folder", "ZeroshotCLIP", root=str(birds), opts=("DATASET.CLASSNAMES", str(names)))
    hashes = []
    for line in ("robin robin", "robin European robin", "robin robin"):
        write(names, line)
        hashes.append(fingerprint.config_hash(run.config))
    assert hashes[0] == hashes[2] != hashes[1]


def test_a_run_from_the_command_line_writes_only_to_its_output_folder(birds, tmp_path, monkeypatch):
    from unskew.cli.main import main

    monkeypatch.chdir(tmp_path)
    fill(birds, robin=10, wren=10)
    before = everything_below(birds)
    command = ["train", "-d", "folder", "-t", "LinearProbe", "-b", "micro", "--root", str(birds), "--shots", "2"]
    assert main([*command, "--output-dir", str(tmp_path / "run"), "DATALOADER.NUM_WORKERS", "0"]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["dataset"] == "folder-birds"
    assert everything_below(birds) == before
    other = tmp_path / "other" / "birds"
    fill(other, robin=10, wren=10)
    command[command.index(str(birds))] = str(other)
    assert main([*command, "--output-dir", str(tmp_path / "run"), "DATALOADER.NUM_WORKERS", "0"]) == 2
