"""Splits: CoOp's split files, the lists of long-tailed datasets, and other tables."""

import hashlib
import json

import numpy as np
import pytest
from items import make, published_split
from scipy.io import savemat

from unskew.data.dataset import Datum
from unskew.data.splits import entries, read_lines, read_list, read_mat, read_split, read_table, relative, save_split
from unskew.datasets.eurosat import EuroSAT
from unskew.utils.files import read_json, write_json

# --- CoOp's split files ------------------------------------------------------------------------------


def test_eurosats_split_is_the_published_one():
    content = json.dumps(published_split("eurosat"), indent=4, separators=(",", ": ")).encode()
    (source,) = [source for source in EuroSAT.sources if source.name == EuroSAT.split_file]
    assert f"sha256:{hashlib.sha256(content).hexdigest()}" == source.checksum


def test_a_published_split_is_read(tmp_path):
    content = published_split("eurosat")
    write_json(content, tmp_path / "split.json")
    splits = read_split(tmp_path / "split.json", "2750")
    assert [len(items) for items in splits] == [EuroSAT.info.train, EuroSAT.info.val, EuroSAT.info.test]
    assert splits[0][0] == Datum("2750/AnnualCrop/AnnualCrop_1381.jpg", 0, 0, "Annual Crop Land")
    for items, split in zip(splits, ("train", "val", "test"), strict=True):
        assert entries(items, "2750") == content[split]


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


# --- lists and tables --------------------------------------------------------------------------------


def test_a_list_of_paths_and_labels(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("train/a b.jpg 1\n\n  val/c.jpg 0  \r\n")
    expected = [Datum("images/train/a b.jpg", 1, 0, "dog"), Datum("images/val/c.jpg", 0, 0, "cat")]
    assert read_list(path, "images", ["cat", "dog"]) == expected


@pytest.mark.parametrize("line", ["a.jpg", "a.jpg x", "a.jpg -1", "a.jpg 2", "a.jpg 1.0", "a.jpg ²", "7"])
def test_a_bad_line_of_a_list_is_named(tmp_path, line):
    path = tmp_path / "train.txt"
    path.write_text(f"a.jpg 0\n{line}\n")
    with pytest.raises(ValueError, match=r"train\.txt', line 2") as error:
        read_list(path, "images", ["cat", "dog"])
    assert f"'{line}'" in str(error.value)


def test_a_table_has_the_same_number_of_words_in_each_line(tmp_path):
    path = tmp_path / "table.txt"
    path.write_text("a 1\nb\t 2 \n\n")
    assert read_table(path, columns=2) == [["a", "1"], ["b", "2"]]
    path.write_text("a 1\n\nb 2 3\n")
    with pytest.raises(ValueError, match=r"table\.txt', line 2: .*'b 2 3'"):
        read_table(path, columns=2)


@pytest.mark.parametrize("read", [read_lines, lambda path: read_list(path, "r", []), lambda path: read_table(path, 1)])
def test_a_file_that_is_missing_or_not_text(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=r"'.*none\.txt'"):
        read(tmp_path / "none.txt")
    (tmp_path / "image.txt").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match=r"image\.txt'.* UTF-8"):
        read(tmp_path / "image.txt")


def test_an_array_of_a_matlab_file(tmp_path):
    savemat(tmp_path / "labels.mat", {"labels": np.arange(3)})
    assert read_mat(tmp_path / "labels.mat", "labels").tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match=r"labels\.mat'.*'setid'"):
        read_mat(tmp_path / "labels.mat", "setid")
    with pytest.raises(FileNotFoundError, match=r"none\.mat"):
        read_mat(tmp_path / "none.mat", "labels")
    for damage in (b"", b"no MATLAB file" * 20, (tmp_path / "labels.mat").read_bytes()[:150]):
        (tmp_path / "bad.mat").write_bytes(damage)
        with pytest.raises(ValueError, match=r"bad\.mat'"):
            read_mat(tmp_path / "bad.mat", "labels")


def test_relative_paths():
    assert relative("data/a/b/c.jpg", "data/a") == relative("data/a/b/c.jpg", "data/a/") == "b/c.jpg"
    assert relative("data/imagenet/a.jpg", "data/image") == "../imagenet/a.jpg"  # not a part of the name


def test_a_split_with_an_image_in_two_parts_is_refused(tmp_path):
    path = tmp_path / "split.json"
    write_json({"train": [["a.png", 0, "cat"]], "val": [], "test": [["a.png", 0, "cat"]]}, path)
    with pytest.raises(ValueError, match=r"split\.json'.*'images/a\.png' twice, in train and test"):
        read_split(path, "images")
