"""Tests of the list of images in class folders and its cache."""

import json
import os
import shutil
import time

import pytest

from unskew.data import image_folders
from unskew.data.image_folders import class_folders, list_images
from unskew.utils.files import user_cache

TREE = {"cat": ["2.jpg", "1.jpg"], "dog": ["b/3.jpg", "b/c/4.jpg", "5.jpg"], "none": []}
LISTED = {"cat": ["1.jpg", "2.jpg"], "dog": ["5.jpg", "b/3.jpg", "b/c/4.jpg"], "none": []}


def plant(folder, tree):
    for name, files in tree.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in files:
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / file).touch()
    return folder


def age(folder, seconds=3600.0):
    """Set old modification times for all folders."""
    then = time.time() - seconds
    for path, _, _ in os.walk(folder):
        os.utime(path, (then, then))


@pytest.fixture
def train(tmp_path):
    return plant(tmp_path / "images" / "train", TREE)


@pytest.fixture
def kept(train):
    """The path of the cached list of `train`."""
    return train.parent / ".listing-train.json"


@pytest.fixture
def scanned(monkeypatch):
    """The names of the class folders that were listed; lists of any length are cached."""
    folders, scan = [], image_folders._walk

    def spy(folder):
        folders.append(folder.name)
        return scan(folder)

    monkeypatch.setattr(image_folders, "CACHE_FROM", 1)
    monkeypatch.setattr(image_folders, "_walk", spy)
    return folders


# --- listing -----------------------------------------------------------------------------------------


def test_images_are_listed_sorted_at_any_depth(train):
    found = list_images(train)
    assert found == LISTED and list(found) == ["cat", "dog", "none"]


def test_only_visible_images_are_listed(tmp_path):
    files = ["a.JPEG", "b.Png", "c.webp", "d.txt", "jpg", "e.jpg.part", ".f.jpg", ".hidden/g.jpg", "h.tIFf"]
    plant(tmp_path, {"cat": files, ".git": ["a.jpg"]})
    (tmp_path / "stray.jpg").touch()
    assert list_images(tmp_path) == {"cat": ["a.JPEG", "b.Png", "c.webp", "h.tIFf"]}
    assert class_folders(tmp_path) == ["cat"]


@pytest.mark.parametrize("read", [list_images, class_folders])
def test_a_missing_folder(tmp_path, read):
    (tmp_path / "file").touch()
    for name in ("none", "file"):
        with pytest.raises(FileNotFoundError, match=f"'.*{name}'"):
            read(tmp_path / name)


def test_linked_class_folders_are_listed_and_cycles_of_links_are_not(train, tmp_path):
    plant(tmp_path / "elsewhere", {"fox": ["6.jpg"]})
    (train / "fox").symlink_to(tmp_path / "elsewhere" / "fox")
    (train / "itself").symlink_to("itself")
    (train / "gone").symlink_to("nowhere")
    (train / "dog" / "up").symlink_to("..")
    (train / "dog" / "b" / "round").symlink_to(train / "dog")
    (train / "cat" / "7.jpg").symlink_to(tmp_path / "elsewhere" / "fox" / "6.jpg")
    assert list_images(train) == {**LISTED, "cat": ["1.jpg", "2.jpg", "7.jpg"], "fox": ["6.jpg"]}


# --- the cached list -----------------------------------------------------------------------------------


def test_a_list_is_read_while_no_folder_changes(train, kept, scanned):
    age(train)
    assert list_images(train) == LISTED
    assert sorted(scanned) == ["cat", "dog", "none"]
    scanned.clear()
    found = list_images(train)
    assert found == LISTED and list(found) == list(LISTED) and not scanned
    assert list_images(str(train)) == LISTED and not scanned
    assert [path.name for path in train.parent.iterdir() if path != train] == [kept.name]


CHANGES = {
    "a file is added": lambda train: (train / "cat" / "3.jpg").touch(),
    "a file is removed": lambda train: (train / "cat" / "1.jpg").unlink(),
    "a file is renamed": lambda train: (train / "cat" / "1.jpg").rename(train / "cat" / "0.jpg"),
    "a file is added to an empty folder": lambda train: (train / "none" / "0.jpg").touch(),
    "a file is added further down": lambda train: (train / "dog" / "b" / "c" / "6.jpg").touch(),
    "a file is removed further down": lambda train: (train / "dog" / "b" / "3.jpg").unlink(),
    "a folder is added further down": lambda train: plant(train / "dog", {"d": ["7.jpg"]}),
    "a folder is removed further down": lambda train: shutil.rmtree(train / "dog" / "b" / "c"),
    "a class is added": lambda train: plant(train, {"fox": ["8.jpg"]}),
    "a class is removed": lambda train: shutil.rmtree(train / "cat"),
    "a class is renamed": lambda train: (train / "cat").rename(train / "kitten"),
    "a class is replaced": lambda train: ((train / "none").rmdir(), plant(train, {"none": ["9.jpg"]})),
}


@pytest.mark.parametrize("change", CHANGES)
def test_folders_are_listed_again_when(train, scanned, monkeypatch, change):
    age(train)
    list_images(train)
    scanned.clear()
    CHANGES[change](train)
    found = list_images(train)
    assert scanned and found != LISTED
    monkeypatch.setattr(image_folders, "CACHE_FROM", 10**9)
    age(train)  # as another list_images would find it
    (train.parent / ".listing-train.json").unlink()
    assert found == list_images(train)


def test_the_new_list_is_kept_in_turn(train, scanned):
    age(train)
    list_images(train)
    (train / "cat" / "3.jpg").touch()
    age(train, 600)
    changed = list_images(train)
    scanned.clear()
    assert list_images(train) == changed != LISTED and not scanned


def test_a_linked_folder_is_listed_again_when_its_target_changes(train, tmp_path, scanned):
    plant(tmp_path / "elsewhere", {"fox": ["6.jpg"]})
    (train / "fox").symlink_to(tmp_path / "elsewhere" / "fox")
    age(tmp_path)
    assert list_images(train)["fox"] == ["6.jpg"]
    scanned.clear()
    assert list_images(train)["fox"] == ["6.jpg"] and not scanned
    (tmp_path / "elsewhere" / "fox" / "7.jpg").touch()
    assert list_images(train)["fox"] == ["6.jpg", "7.jpg"]


@pytest.mark.parametrize("place", ["", "cat", "dog/b/c"])
@pytest.mark.parametrize(("seconds", "keeps"), [(-60, False), (0.5, False), (10, True)])
def test_folders_that_changed_just_now_are_not_trusted(train, kept, scanned, place, seconds, keeps):
    age(train)
    os.utime(train / place, (time.time() - seconds,) * 2)
    assert list_images(train) == LISTED
    assert kept.exists() == keeps


@pytest.mark.parametrize(("images", "keeps"), [(4, True), (5, True), (6, False)])
def test_only_long_lists_are_kept(train, kept, monkeypatch, images, keeps):
    monkeypatch.setattr(image_folders, "CACHE_FROM", images)
    age(train)
    list_images(train)
    assert kept.exists() == keeps


def test_what_counts_as_an_image_is_part_of_the_state(train, scanned, monkeypatch):
    age(train)
    (train / "cat" / "9.svg").touch()
    age(train)
    assert list_images(train) == LISTED
    monkeypatch.setattr(image_folders, "EXTENSIONS", (".svg",))
    assert list_images(train) == {"cat": ["9.svg"], "dog": [], "none": []}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b"{}", b'{"state": "0"}', b'{"below": [], "images": {}}']
)
def test_a_broken_list_is_replaced(train, kept, scanned, content):
    age(train)
    kept.write_bytes(content)
    assert list_images(train) == LISTED
    scanned.clear()
    assert list_images(train) == LISTED and not scanned


def test_a_list_with_the_right_state_but_wrong_content_is_replaced(train, kept, scanned):
    age(train)
    list_images(train)
    content = json.loads(kept.read_text())
    wrong = [("images", []), ("images", {"cat": 3}), ("below", []), ("below", {"dog": 3}), ("below", {"dog": ["x/"]})]
    for key, value in wrong:
        kept.write_text(json.dumps({**content, key: value}))
        assert list_images(train) == LISTED
        assert json.loads(kept.read_text()) == content


def test_the_list_of_another_tree_is_not_used(train, tmp_path, scanned):
    other = plant(tmp_path / "other" / "train", {**TREE, "dog": ["other.jpg"]})
    age(train)
    age(other, 600)
    cache = tmp_path / "cache"
    assert list_images(train, cache) == LISTED
    assert list_images(other, cache)["dog"] == ["other.jpg"]
    assert list_images(train, cache) == LISTED


def test_the_list_moves_with_its_folder(train, tmp_path, scanned):
    age(train)
    list_images(train)
    train.parent.rename(tmp_path / "moved")
    scanned.clear()
    assert list_images(tmp_path / "moved" / "train") == LISTED and not scanned


def test_the_list_may_be_kept_elsewhere(train, tmp_path, scanned):
    age(train)
    list_images(train, tmp_path / "cache")
    assert (tmp_path / "cache" / ".listing-train.json").is_file()
    assert [path.name for path in train.parent.iterdir()] == ["train"]
    scanned.clear()
    assert list_images(train, tmp_path / "cache") == LISTED and not scanned


@pytest.mark.parametrize("obstacle", ["a folder in its place", "no folder can be made"])
def test_a_list_that_cannot_be_kept_is_no_error(train, kept, tmp_path, scanned, obstacle):
    age(train)
    (tmp_path / "file").touch()
    kept.mkdir()
    cache = None if obstacle == "a folder in its place" else tmp_path / "file" / "cache"
    assert list_images(train, cache) == list_images(train, cache) == LISTED
    assert sorted(path.name for path in train.parent.iterdir()) == [kept.name, "train"]  # no temporary file


def test_where_the_folder_cannot_be_written_the_list_goes_to_the_users_cache(train, tmp_path, scanned, monkeypatch):
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda *arguments, **options: False)  # as on a read-only disk
    age(train)
    list_images(train)
    assert (user_cache(train.parent) / ".listing-train.json").is_file()
    scanned.clear()
    assert list_images(train) == LISTED and not scanned


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="names are Unicode there")
def test_names_that_are_not_utf8(train, kept, scanned):
    odd = os.fsdecode(b"caf\xe9")
    plant(train, {odd: [f"{odd}/{odd}.jpg"]})
    age(train)
    expected = {**LISTED, odd: [f"{odd}/{odd}.jpg"]}
    assert list_images(train) == expected and kept.is_file()
    scanned.clear()
    assert list_images(train) == expected and not scanned
