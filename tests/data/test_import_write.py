"""Writing of an import: layout, names, hashes, what is left out, and the dataset `folder` afterwards."""

import errno
import io
import json
import os
import unicodedata
from pathlib import Path

import pytest
from import_sources import FORMATS, Memory, images, import_images, manifest, picture, some, tree
from PIL import Image
from trees import held, load

from unskew import config
from unskew.data.importing.classes import folder_names
from unskew.data.importing.formats import file_bytes
from unskew.data.importing.source import Stored, choose_splits, split_in
from unskew.data.verify import verify


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))


def test_the_stored_bytes_of_each_format_are_written_as_they_are(tmp_path):
    content = {"train": [(n % 2, picture(n, form)) for n, form in enumerate(FORMATS)]}
    import_images(Memory(content, ["cat", "dog"]), tmp_path / "out")
    assert images(tmp_path / "out") == {
        "train/cat": [picture(n, FORMATS[n]) for n in (0, 2, 4)],
        "train/dog": [picture(n, FORMATS[n]) for n in (1, 3, 5)],
    }
    names = sorted(path.name for path in (tmp_path / "out").glob("*/*/*"))
    assert names == [f"{n:08d}{end}" for n, end in enumerate((".jpg", ".png", ".webp", ".gif", ".bmp", ".tif"))]
    found = manifest(tmp_path / "out")
    assert found["splits"]["train"]["classes"] == {"cat": 3, "dog": 3}
    assert found["identity"] == {"kind": "memory", "source": "here"}
    assert found["classes"] == {"cat": {"name": "cat", "label": 0}, "dog": {"name": "dog", "label": 1}}


NAMES = [
    *("AC/DC", "a/b\\c", "..", ".hidden", "@eaDir", "lost+found", "train", "val", "CON", "nul.txt"),
    *(" spaced ", "dot.", "tab\there", "new\nline", "a:b*c?", "Cat", "cat", "CAT", "café", "cafe\u0301", "Straße"),
    *("1", "01", "1.0", "10", "x" * 300, "鳥" * 100, "under_score", "'quoted'", "STRASSE", "~", "%41"),
]


def test_class_names_of_any_kind_come_back_exactly(tmp_path):
    content = some(len(NAMES), each=1, splits=("train", "val", "test"))
    import_images(Memory(content, NAMES), tmp_path / "out")
    dataset = load("folder", tmp_path / "out")
    assert sorted(dataset.classnames) == sorted(NAMES)
    for split, items in (("train", dataset.train_x), ("val", dataset.val), ("test", dataset.test)):
        expected = {(NAMES[label], content) for label, content in content[split]}
        assert {(item.classname, Path(item.impath).read_bytes()) for item in items} == expected
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and tmp_path / "out" not in path.parents
                and tmp_path / "cache" not in path.parents]  # fmt: skip


def test_folder_names_fit_all_file_systems():
    folders = folder_names(NAMES)
    keys = [unicodedata.normalize("NFC", folder.casefold()) for folder in folders]
    assert len(set(keys)) == len(NAMES)
    for folder in folders:
        assert folder.isprintable() and not set(folder) & set('/\\:*?"<>|') and len(folder.encode()) < 255
        assert folder == folder.strip() and folder[0] != "." and folder[-1] != "."
    same = ("train", "Cat", "café", "under_score", "10", "Straße")
    assert [folders[NAMES.index(name)] for name in same] == list(same)


def test_the_names_of_a_plain_set_need_no_file_and_its_order_is_that_of_a_folder(tmp_path):
    import_images(Memory(some(), ["wren", "crow", "tit"]), tmp_path / "out")
    assert not (tmp_path / "out" / "classnames.json").exists()
    assert load("folder", tmp_path / "out").classnames == ["crow", "tit", "wren"]
    assert list(manifest(tmp_path / "out")["classes"]) == ["crow", "tit", "wren"]


def test_another_names_file_comes_before_that_of_the_import(tmp_path):
    import_images(Memory(some(2), ["a/b", "c"]), tmp_path / "out")
    assert load("folder", tmp_path / "out").classnames == ["a/b", "c"]
    (tmp_path / "names.json").write_text('{"a_b": "one", "c": "two"}')
    assert load("folder", tmp_path / "out", "DATASET.CLASSNAMES", tmp_path / "names.json").classnames == ["one", "two"]


def test_few_shot_samples_are_those_of_the_same_images_in_a_hand_made_folder(tmp_path):
    names = ["wren", "crow", "tit"]
    content = some(3, each=12, splits=("train", "test"))
    import_images(Memory(content, names), tmp_path / "out")
    for split, entries in content.items():
        for number, (label, image) in enumerate(entries):
            path = tmp_path / "hand" / split / names[label] / f"{number:08d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
    for seed in (1, 2):
        found = [
            held(load("folder", root, "SEED", seed, shots=2), root) for root in (tmp_path / "out", tmp_path / "hand")
        ]
        assert found[0] == found[1] and len(found[0]["train"]) == 6


def test_verify_finds_nothing_and_unreadable_images_are_kept_and_counted(tmp_path, warned):
    content = some(2)
    import_images(Memory(content, ["cat", "dog"]), tmp_path / "clean")
    opts = ("DATASET.ROOT", str(tmp_path / "clean"))
    report = verify(config.load("folder", trainer="ZeroshotCLIP", opts=opts), full=True)
    assert (report.images, report.opened, report.problems, report.copies) == (16, 16, [], [])
    broken = {"train": [(0, b"no image"), (1, picture(0)[:-20]), *content["train"]], "test": content["test"]}
    import_images(Memory(broken, ["cat", "dog"]), tmp_path / "out")
    unreadable = ["cat/00000000.jpg", "dog/00000001.jpg"]
    assert manifest(tmp_path / "out")["splits"]["train"]["unreadable"] == unreadable
    assert (tmp_path / "out" / "train" / unreadable[0]).read_bytes() == b"no image"
    assert any("2 image(s) cannot be read" in line for line in warned())
    with pytest.raises(ValueError, match="UNREADABLE"):
        load("folder", tmp_path / "out")
    assert len(load("folder", tmp_path / "out", "DATASET.UNREADABLE", "skip").train_x) == 8


def test_pixels_without_a_file_become_lossless_files():
    for mode, end in (("RGB", ".png"), ("L", ".png"), ("I;16", ".png"), ("I", ".tif"), ("F", ".tif")):
        image = Image.effect_noise((7, 5), 50).convert("I" if mode == "I;16" else mode).convert(mode)
        suffix, content = file_bytes(Stored(image))
        again = Image.open(io.BytesIO(content))
        assert (suffix, again.mode, again.tobytes()) == (end, mode, image.tobytes())


# --- what is left out --------------------------------------------------------------------------------


def test_images_without_a_label_are_left_out_with_a_line(tmp_path, warned):
    content = some(2, splits=("train", "val", "test"))
    content["val"] = [(-1, picture(7)), (None, picture(8)), *content["val"]]
    content["test"] = [(-1, image) for _, image in content["test"]]
    content["train"].append((1, None))
    import_images(Memory(content, ["cat", "dog", "eel"]), tmp_path / "out")
    found = manifest(tmp_path / "out")["splits"]
    assert {split: facts["images"] for split, facts in found.items()} == {"train": 8, "val": 8}
    assert found["train"]["without image"] == 1
    assert (tmp_path / "out" / "val" / "cat" / "00000002.jpg").exists()  # its place in the source
    lines = "\n".join(warned())
    assert "2 image(s) have no label" in lines and "8 image(s) have no label" in lines
    assert "1 row(s)" in lines and "'eel'" in lines


@pytest.mark.parametrize(
    ("content", "names", "match"),
    [
        ({"train": [(0, b"x")]}, ["cat"], "1 class"),
        ({"train": [], "test": []}, ["cat"], "0 class"),
        ({"train": [(0, b"x"), ("dog", b"x")]}, [], "'dog'"),
        ({"train": [(0, b"x"), (2, b"x")]}, ["cat", "dog"], "'2'"),
        ({"train": [(0, b"x"), (1, b"x")]}, ["cat", " "], "label 1"),
    ],
)
def test_labels_that_make_no_classes_are_refused_before_anything_is_written(content, names, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        import_images(Memory(content, names), tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_words_are_names_and_numbers_without_names_bring_a_warning(tmp_path, warned):
    import_images(Memory(some(labels=["b", "a", "c"])), tmp_path / "words")
    assert load("folder", tmp_path / "words").classnames == ["a", "b", "c"] and not warned()
    import_images(Memory(some(12, each=1)), tmp_path / "numbers")
    assert load("folder", tmp_path / "numbers").classnames == [str(n) for n in range(12)]
    assert any("--classnames" in line for line in warned())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("n.txt", "great white shark\n2 cats\n"),
        ("n.txt", "1\t2 cats\n0\tgreat white shark\n"),
        ("n.json", '["great white shark", "2 cats"]'),
        ("n.json", '{"1": "2 cats", "0": "great white shark"}'),
    ],
)
def test_a_file_gives_the_names(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    import_images(Memory(some(2), ["zero", "one"]), tmp_path / "out", str(tmp_path / name))
    classes = manifest(tmp_path / "out")["classes"]
    assert {entry["label"]: entry["name"] for entry in classes.values()} == {0: "great white shark", 1: "2 cats"}


@pytest.mark.parametrize(
    ("text", "match"), [("only one\n", "'1'"), ("0\tone\ntwo\n", "tab"), ("0\ta\n0\tb\n", "'0'"), (None, "names.txt")]
)
def test_a_file_that_does_not_name_all_labels_is_refused(text, match, tmp_path):
    if text is not None:
        (tmp_path / "names.txt").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        import_images(Memory(some(2)), tmp_path / "out", str(tmp_path / "names.txt"))
    assert not (tmp_path / "out").exists()


def test_splits_by_their_names():
    assert choose_splits(["train", "validation", "test", "extra"], "x") == (
        {"train": "train", "val": "validation", "test": "test"},
        ["extra"],
    )
    assert choose_splits(["everything"], "x") == ({"train": "everything"}, [])
    assert choose_splits(["test"], "x") == ({"test": "test"}, [])
    for names in (["val", "dev"], ["one", "two"], []):
        with pytest.raises(ValueError, match="x"):
            choose_splits(names, "x")
    assert [split_in(name) for name in ("train-000", "x_VAL_1", "latest", "train_test", "001")] == [
        *("train", "val", "", "", "")
    ]


def test_a_full_disk_is_one_line_and_the_same_command_continues(tmp_path, monkeypatch):
    real = Path.write_bytes

    def full(path, content):
        if path.name == "00000005.jpg" and "test" in path.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    source = Memory(some(3), ["a", "b", "c"])
    with pytest.raises(OSError, match="make room"):
        import_images(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))
    import_images(source, tmp_path / "out")
    assert manifest(tmp_path / "out")["splits"]["test"]["images"] == 12
    assert not set(tree(tmp_path / "out")) & {".lock", ".parts"} and json.loads(
        (tmp_path / "out" / "manifest.json").read_text()
    )


def test_classes_and_splits_whose_images_are_all_missing_are_left_out(tmp_path, warned):
    """A name in classnames.json without a folder would make the import unreadable."""
    content = some(3, each=2, splits=("train", "val", "test"))
    content["train"] = [(label, image if label else None) for label, image in content["train"]]
    content["val"] = [(label, b"") for label, _ in content["val"]]
    content["test"] = [(label, image if label else None) for label, image in content["test"]]
    import_images(Memory(content, ["a/b", "c/d", "e"]), tmp_path / "out")
    found = manifest(tmp_path / "out")
    assert set(found["splits"]) == {"train", "test"} and list(found["classes"]) == ["c_d", "e"]
    assert load("folder", tmp_path / "out").classnames == ["c/d", "e"]
    assert any("'a/b'" in line for line in warned())
    content = {"train": [(0, None), (1, picture(1))]}
    with pytest.raises(ValueError, match="1 class"):
        import_images(Memory(content, ["a", "b"]), tmp_path / "other")
    assert not (tmp_path / "other").exists()
