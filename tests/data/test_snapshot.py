"""Within a snapshot of the data, lists and states of files are read once; outside, every time."""

import os
import random
import threading
from pathlib import Path

import pytest
from trees import TREES, load, put, write

from unskew import config
from unskew.data.custom_csv import image_paths, read_csv
from unskew.data.dataset import Datum
from unskew.data.image_folders import list_images, list_subfolder
from unskew.data.images import file_keys
from unskew.data.published import PublishedDataset
from unskew.data.snapshot import Snapshot, file_states, remember, with_snapshot
from unskew.engine import fingerprint
from unskew.runs.run import Run


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))


def fill(folder, **counts):
    for name, count in counts.items():
        for n in range(count):
            put(folder / name / f"{n:03d}.jpg")


@pytest.fixture
def birds(tmp_path):
    fill(tmp_path / "birds", robin=12, wren=12)
    return tmp_path / "birds"


# --- the memory --------------------------------------------------------------------------------------


def test_a_result_is_kept_until_the_snapshot_ends():
    numbers = iter(range(10))
    data = Snapshot()
    with data.used():
        assert [remember("a", numbers.__next__), remember("b", numbers.__next__)] == [0, 1]
        assert remember("a", numbers.__next__) == 0
        with Snapshot().used():  # a run of a sweep uses the snapshot of the sweep
            assert remember("a", numbers.__next__) == 0
    assert remember("a", numbers.__next__) == 2
    with data.used():
        assert remember("a", numbers.__next__) == 0
    assert with_snapshot(lambda: [remember("a", numbers.__next__), remember("a", numbers.__next__)])() == [3, 3]


def test_an_error_is_not_kept_and_ends_the_snapshot():
    with pytest.raises(ZeroDivisionError), Snapshot().used():
        with pytest.raises(ZeroDivisionError):
            remember("a", lambda: 1 / 0)
        assert remember("a", lambda: 1) == 1
        raise ZeroDivisionError
    assert remember("a", lambda: 2) == 2


def test_another_thread_has_no_part_in_the_snapshot():
    found = []
    with Snapshot().used():
        remember("a", lambda: 1)
        thread = threading.Thread(target=lambda: found.append(remember("a", lambda: 2)))
        thread.start()
        thread.join()
    assert found == [2]


@pytest.mark.parametrize("count", [3, 1000])
def test_states_and_keys_are_those_of_each_file(count, tmp_path, monkeypatch):
    paths = [str(tmp_path / f"{n}.jpg") for n in range(count)]
    for n, path in enumerate(paths):
        write(tmp_path / path, "x" * n)
    monkeypatch.chdir(tmp_path)
    names = [os.path.basename(path) for path in paths]
    expected = [(s.st_size, s.st_mtime_ns, s.st_ctime_ns, 1) for s in map(os.stat, paths)]
    keys = file_keys(paths)
    assert len(set(keys.tolist())) == count and (keys == file_keys(names)).all()
    asked, stat = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: (asked.append(path), stat(path, **options))[1])
    with Snapshot().used():
        assert file_states([*paths, *names]) == expected * 2
        assert (file_keys([*names, *paths[:1]]) == [*keys, keys[0]]).all()
    assert sorted(asked) == sorted(paths)


def test_a_missing_file_is_looked_for_again(tmp_path):
    path = str(tmp_path / "1.jpg")
    with Snapshot().used():
        assert file_states([path, "\0"]) == [None, None]
        (missing,) = file_keys([path])
        put(tmp_path / "1.jpg")
        assert file_states([path])[0]
        (there,) = file_keys([path])
        os.utime(path, (1, 1))
        assert file_keys([path]) == there != missing
    assert file_keys([path]) != there


# --- datasets ----------------------------------------------------------------------------------------


def plant(kind, tmp_path):
    """Write a dataset of a kind; return its name and root."""
    if kind == "whole":
        fill(tmp_path / "birds", robin=8, wren=8)
    elif kind == "split":
        for split in ("train", "val", "test"):
            fill(tmp_path / "birds" / split, robin=4, wren=4)
    elif kind == "csv":
        fill(tmp_path / "birds", robin=8, wren=8)
        rows = (f"birds/{name}/{n:03d}.jpg,{name}" for name in ("robin", "wren") for n in range(8))
        write(tmp_path / "birds.csv", "path,classname", *rows)
        return "csv", tmp_path / "birds.csv"
    elif kind in TREES:
        TREES[kind](tmp_path)
        return kind, tmp_path
    return {"digits": ("digits", tmp_path)}.get(kind, ("folder", tmp_path / "birds"))


def drawn(name, root):
    """Return the images of runs with several shots and seeds."""
    found = [load(name, root, "SEED", seed, shots=shots) for shots in (1, 2, -1) for seed in (1, 2)]
    return [(data.train_x, data.val, data.test, data.classnames) for data in found]


KINDS = ("whole", "split", "csv", "imagenet", "dtd", "imagenet_lt", "digits")


@pytest.mark.parametrize("kind", KINDS)
def test_all_images_are_read_once_and_each_run_draws_the_same_sample(kind, tmp_path, monkeypatch):
    name, root = plant(kind, tmp_path)
    expected = drawn(name, root)
    made, check = [], Datum.__post_init__
    monkeypatch.setattr(Datum, "__post_init__", lambda item: (made.append(item.impath), check(item))[1])
    with Snapshot().used():
        assert drawn(name, root) == expected
    assert made and len(set(made)) == len(made)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_may_change_its_lists(kind, tmp_path):
    name, root = plant(kind, tmp_path)
    with Snapshot().used():
        first = load(name, root)
        before = list(first.train_x), list(first.test)
        random.Random(0).shuffle(first.train_x)
        first.test.clear()
        second = load(name, root)
    assert (second.train_x, second.test) == before


def test_other_settings_are_another_dataset(tmp_path):
    TREES["cifar100_lt"](tmp_path)
    sizes = {
        imbalance: len(load("cifar100_lt", tmp_path, "DATASET.IMBALANCE", imbalance).train_x) for imbalance in (10, 100)
    }
    with Snapshot().used():
        for imbalance, size in sizes.items():
            assert len(load("cifar100_lt", tmp_path, "DATASET.IMBALANCE", imbalance).train_x) == size
    assert len(set(sizes.values())) == 2


def test_each_run_warns(birds, tmp_path, warned):
    (birds / "owl").mkdir()
    TREES["dtd"](tmp_path)
    with Snapshot().used():
        for _ in range(2):
            load("folder", birds)
            load("dtd", tmp_path)
    assert sum("'owl'" in message for message in warned()) == 2
    assert sum("split_zhou" in message for message in warned()) == 2


CHANGES = {
    "added": lambda birds: put(birds / "wren" / "new.jpg"),
    "removed": lambda birds: (birds / "wren" / "003.jpg").unlink(),
    "a new class": lambda birds: fill(birds, owl=12),
    "replaced in place": lambda birds: (birds / "wren" / "003.jpg").write_bytes(b"more"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed_after_the_snapshot(change, birds):
    cfg = Run("folder", "ZeroshotCLIP", root=str(birds), folder="out").config

    def seen():
        images = [item.impath for item in load("folder", birds).train_x]
        return fingerprint.files(cfg), images, file_keys([*images, str(birds / "wren" / "003.jpg")]).tolist()

    with Snapshot().used():
        before = seen()
        CHANGES[change](birds)
        assert seen() == before
    assert fingerprint.files(cfg) != before[0]
    if change == "replaced in place":
        with pytest.raises(ValueError, match="1 of 24"):
            seen()
    else:
        assert seen()[1] != before[1]


def test_class_names_belong_to_the_snapshot(birds, tmp_path):
    names = tmp_path / "names.txt"
    write(names, "robin red", "wren small")
    opts = ("DATASET.CLASSNAMES", str(names))
    cfg = Run("folder", "ZeroshotCLIP", root=str(birds), folder="out", opts=opts).config
    with Snapshot().used():
        before = fingerprint.files(cfg), load("folder", birds, *opts).classnames
        write(names, "robin red", "wren tiny")
        assert (fingerprint.files(cfg), load("folder", birds, *opts).classnames) == before
    assert fingerprint.files(cfg) != before[0]
    assert load("folder", birds, *opts).classnames == ["red", "tiny"]


# --- the list of a split -----------------------------------------------------------------------------


@pytest.mark.parametrize("linked", [False, True])
def test_the_list_of_a_subfolder_is_that_of_the_folder_itself(linked, tmp_path):
    train = tmp_path / "birds" / "train"
    fill(train, robin=3, wren=2)
    for path in ("stray.jpg", "wren/inner/2.jpg", "wren/.hidden/3.jpg", "wren/text.txt", "@eaDir/4.jpg", "zoo/b/5.jpg"):
        write(train / path, "x")
    (train / "empty").mkdir()
    fill(tmp_path / "elsewhere", owl=2)
    (train / "wren" / "link").symlink_to(tmp_path / "elsewhere" / "owl")
    if linked:
        (train / "owl").symlink_to(tmp_path / "elsewhere" / "owl")
    above = list_images(tmp_path / "birds", tmp_path / "cache")["train"]
    found = list_subfolder(train, above, tmp_path / "cache")
    assert found == list_images(train) and list(found) == list(list_images(train))
    assert ("owl" in found) == linked and not found["empty"] and found["zoo"] == ["b/5.jpg"]


def test_paths_and_labels_of_a_csv_file_are_of_one_reading(tmp_path):
    file = tmp_path / "images.csv"
    lines = [f"{name}{n}.jpg,{name}" for name in "ab" for n in range(4)]
    file.write_text("\n".join(["path,label", *lines]))
    with Snapshot().used():
        image_paths(file)
        file.write_text("\n".join(["path,label", *lines[::-1]]))
        items = [item for split in read_csv(file).values() for item in split]
    assert len(items) == 8 and all(Path(item.impath).name[0] == item.classname for item in items)


def test_a_plugins_dataset_is_read_in_each_run():
    class Plugin(PublishedDataset):
        @classmethod
        def read(cls, cfg, root):
            items = [Datum(f"{n}.png", n % 2, 0, "ab"[n % 2]) for n in range(20)]
            random.Random(cfg.SEED).shuffle(items)
            return items[:10], items[10:15], items[15:]

    cfg = config.load("digits", "micro", "ZeroshotCLIP")
    cfgs = [config.derive(cfg, {"SEED": seed, "DATASET.NAME": "Plugin"}) for seed in (1, 2)]
    with Snapshot().used():
        first, second = (Plugin.splits(cfg, Path("data")) for cfg in cfgs)
    assert first != second and second == Plugin.splits(cfgs[1], Path("data"))
