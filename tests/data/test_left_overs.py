"""Tests of left-over folders, Unicode forms of one name, and images that are in train and test."""

import os
import unicodedata

import pytest
import trees
from test_custom_folder import birds, counts, fill  # noqa: F401 - birds is a fixture
from trees import held, load, put, write

from unskew.cli.main import main
from unskew.data import copies, image_folders
from unskew.data.image_folders import class_folders, list_images
from unskew.engine import fingerprint
from unskew.runs.run import Run

LEFT_OVERS = (
    *("@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information", "#recycle", "@Recycle"),
    *("#snapshot", "$Recycle.bin", ".ipynb_checkpoints", ".Trash-1000"),
)


@pytest.mark.parametrize("name", LEFT_OVERS)
def test_left_over_folders_are_skipped_at_every_level(name, birds, warned):  # noqa: F811
    for split in ("train", "test"):
        fill(birds / split, robin=2, wren=2)
    expected = held(load("folder", birds), birds)
    places = ["", "train", "test", "train/robin", "train/robin/north"]
    put(birds / "train" / "robin" / "north" / "1.jpg", shade=1)
    expected["train"].insert(2, ("train/robin/north/1.jpg", 0, "robin"))
    for place in places:
        put(birds / place / name / "robin" / "000.jpg", shade=77)
        put(birds / place / name / "000.jpg", shade=78)
    assert held(load("folder", birds), birds) == expected
    assert class_folders(birds) == ["test", "train"]
    assert not warned()


def test_left_over_files_are_skipped(birds):  # noqa: F811
    fill(birds, robin=4, wren=4)
    for file in ("._000.jpg", "Thumbs.db", "desktop.ini", ".DS_Store"):
        write(birds / "robin" / file, "left over")
    assert {name: len(images) for name, images in list_images(birds).items()} == {"robin": 4, "wren": 4}


def test_left_over_folders_of_published_datasets_are_skipped(tmp_path):
    entries = trees.dtd(tmp_path)["all"]
    before = held(load("dtd", tmp_path), tmp_path / "dtd" / "images")
    put(tmp_path / "dtd" / "images" / "@eaDir" / "banded_0001.jpg")
    put(tmp_path / "dtd" / "images" / "banded" / "@eaDir" / "banded_0001.jpg")
    put(tmp_path / "dtd" / "images" / "__MACOSX" / "banded" / "._banded_0001.jpg")
    assert held(load("dtd", tmp_path), tmp_path / "dtd" / "images") == before
    assert sum(map(len, before.values())) == len(entries)


def test_a_cached_list_with_left_overs_is_not_used(birds, monkeypatch):  # noqa: F811
    fill(birds, robin=4, wren=4)
    put(birds / "robin" / "@eaDir" / "000.jpg")
    for path in [birds, *birds.rglob("*")]:
        os.utime(path, (1e9, 1e9))
    monkeypatch.setattr(image_folders, "CACHE_FROM", 1)
    with monkeypatch.context() as patch:  # the list of a version that reads this folder
        patch.setattr(image_folders, "LEFT_OVER", frozenset())
        assert len(list_images(birds)["robin"]) == 5
    assert len(list_images(birds)["robin"]) == 4


# --- Unicode -------------------------------------------------------------------------------------------

COMPOSED, APART = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))

pytestmark = pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="forms are one name there")


def test_forms_of_a_name_in_two_splits_are_one_class(birds, warned):  # noqa: F811
    fill(birds / "train", **{COMPOSED: 3, "bar": 2})
    fill(birds / "test", **{APART: 2, "bar": 1})
    dataset = load("folder", birds)
    assert dataset.classnames == ["bar", COMPOSED]
    assert counts(dataset) == [{0: 2, 1: 3}, {}, {0: 1, 1: 2}]
    assert {os.path.basename(os.path.dirname(item.impath)) for item in dataset.test} == {"bar", APART}
    assert all(os.path.isfile(item.impath) for item in dataset.test)
    assert not warned()


def test_forms_of_a_name_in_one_split_are_merged(birds):  # noqa: F811
    fill(birds, **{COMPOSED: 10, APART: 10, "bar": 10})
    dataset = load("folder", birds)
    assert dataset.classnames == ["bar", COMPOSED]
    assert counts(dataset) == [{0: 5, 1: 10}, {0: 2, 1: 4}, {0: 3, 1: 6}]


@pytest.mark.parametrize("folder", [COMPOSED, APART])
@pytest.mark.parametrize("key", [COMPOSED, APART])
@pytest.mark.parametrize("file", ["names.txt", "names.json"])
def test_forms_of_a_key_are_one_key(folder, key, file, birds, tmp_path):  # noqa: F811
    fill(birds, **{folder: 4, "bar": 4})
    content = f'{{"{key}": "coffee", "bar": "bar"}}' if file.endswith("json") else f"{key} coffee\nbar bar"
    write(tmp_path / file, content)
    assert load("folder", birds, "DATASET.CLASSNAMES", tmp_path / file).classnames == ["bar", "coffee"]


@pytest.mark.parametrize("column", ["label", "classname"])
def test_forms_of_a_label_are_one_label(column, birds):  # noqa: F811
    for n in range(3):
        put(birds / f"{n}.jpg")
    rows = (f"0.jpg,{COMPOSED},train", f"1.jpg,{APART},test", "2.jpg,bar,train")
    write(birds / "a.csv", f"path,{column},split", *rows)
    dataset = load("csv", birds / "a.csv")
    assert dataset.classnames == ["bar", COMPOSED] and [item.label for item in dataset.test] == [1]


@pytest.mark.parametrize(("there", "named"), [(COMPOSED, APART), (APART, COMPOSED)])
def test_a_path_in_a_csv_file_may_have_another_form(there, named, birds):  # noqa: F811
    put(birds / there / "0.jpg")
    put(birds / "1.jpg")
    write(birds / "a.csv", "path,label,split", f"{named}/0.jpg,a,train", "1.jpg,b,test")
    (item,) = load("csv", birds / "a.csv").train_x
    assert item.impath == f"{birds}/{there}/0.jpg"


# --- images in train and test --------------------------------------------------------------------------


@pytest.fixture
def doubled(birds):  # noqa: F811
    """The user's folder with 5 of 8 test images in train; other test images have the size of a training image."""
    for n in range(10):
        put(birds / "train" / "robin" / f"{n}.png", shade=n)
        put(birds / "train" / "wren" / f"{n}.png", shade=20 + n)
    for n in range(4):
        put(birds / "test" / "robin" / f"copy{n}.png", shade=n)
        put(birds / "test" / "wren" / f"{n}.png", shade=40 + n)
    put(birds / "test" / "wren" / "0.png", shade=3)  # under another class
    return birds


def warnings_of_copies(messages):
    return [message for message in messages if "byte" in message]


def test_copies_in_train_and_test_are_warned_of(doubled, warned):
    load("folder", doubled)
    (message,) = warnings_of_copies(warned())
    assert "5 of 8" in message and f"--root {doubled}" in message and "verify folder" in message
    load("folder", doubled, shots=1)  # the few-shot sample holds other images
    assert len(set(warnings_of_copies(warned()))) == 1


def test_copies_named_by_a_csv_file_are_warned_of(doubled, warned):
    rows = [f"{path.relative_to(doubled)},{path.parts[-2]},{path.parts[-3]}" for path in doubled.rglob("*.png")]
    write(doubled.parent / "birds.csv", "path,label,split", *(f"birds/{row}" for row in sorted(rows)))
    load("csv", doubled.parent / "birds.csv")
    (message,) = warnings_of_copies(warned())
    assert "5 of 8" in message and "verify csv" in message


def test_verify_lists_the_copies(doubled, capsys):
    main(["data", "verify", "folder", "--root", str(doubled)])
    shown = capsys.readouterr().out
    found = {line for line in shown.splitlines() if "copy3.png" in line or "wren/0.png" in line}
    assert len(found) == 2 and all("train/robin/3.png" in line for line in found)
    assert sum("test/" in line for line in shown.splitlines()) == 5


def test_data_without_copies_are_not_warned_of(birds, warned):  # noqa: F811
    for n in range(8):
        put(birds / ("train" if n % 2 else "test") / "ab"[n // 4] / f"{n}.png", shade=n)
    load("folder", birds)
    assert not warned()


def test_only_images_of_equal_size_are_read(birds, monkeypatch):  # noqa: F811
    for n in range(20):
        write(birds / f"{n}.jpg", "x" * (100 + n))
    write(birds / "20.jpg", "x" * 100)
    write(birds / "21.jpg", "y" * 101)
    (birds / "22.jpg").touch()  # empty files are damaged, not equal
    (birds / "23.jpg").touch()
    os.mkfifo(birds / "24.jpg")
    read, digest = [], copies._digest
    monkeypatch.setattr(copies, "_digest", lambda *arguments: (read.append(arguments[0]), digest(*arguments))[1])
    train = [f"{birds}/{n}.jpg" for n in range(20)]
    found = copies.find_copies([*train, f"{birds}/22.jpg"], [f"{birds}/{n}.jpg" for n in (20, 21, 23, 24, 99)])
    assert found == {f"{birds}/20.jpg": f"{birds}/0.jpg"}
    assert {os.path.basename(path) for path in read} == {"0.jpg", "1.jpg", "20.jpg", "21.jpg"}


def test_the_copies_of_many_images_are_cached(doubled, tmp_path, monkeypatch):
    monkeypatch.setattr(copies, "CACHE_FROM", 1)
    train = sorted(map(str, (doubled / "train").rglob("*.png")))
    test = sorted(map(str, (doubled / "test").rglob("*.png")))
    found = copies.find_copies(train, test, tmp_path / "copies.json")
    assert len(found) == 5
    read, digest = [], copies._digest
    monkeypatch.setattr(copies, "_digest", lambda *arguments: (read.append(arguments[0]), digest(*arguments))[1])
    assert copies.find_copies(train, test, tmp_path / "copies.json") == found and not read
    put(doubled / "test" / "robin" / "copy0.png", shade=60)
    os.utime(doubled / "test" / "robin" / "copy0.png", (1e9, 1e9))
    assert len(copies.find_copies(train, test, tmp_path / "copies.json")) == 4 and read
    write(tmp_path / "copies.json", "[]")
    assert len(copies.find_copies(train, test, tmp_path / "copies.json")) == 4


# --- finished runs -------------------------------------------------------------------------------------


def test_a_run_under_an_older_reading_is_another_run(birds, monkeypatch):  # noqa: F811
    fill(birds, **{str(number): 4 for number in range(12)})
    write(birds.parent / "a.csv", "path,label", *(f"birds/{n}/{i:03d}.jpg,{n}.0" for n in range(12) for i in range(4)))
    for name, root in (("folder", birds), ("csv", birds.parent / "a.csv")):
        cfg = Run(name, "ZeroshotCLIP", root=str(root), folder="out").config
        now = fingerprint.config_hash(cfg)
        assert fingerprint.config_hash(cfg) == now
        with monkeypatch.context() as patch:
            patch.setattr(fingerprint, "OWN_DATA_VERSION", 1)
            assert fingerprint.config_hash(cfg) != now
