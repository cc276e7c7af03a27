"""Tests of the order of the user's classes: numbers as numbers, lists of names, and labels as pandas writes them."""

import json
import os
from pathlib import Path

import pytest
from test_custom_folder import birds, fill  # noqa: F401 - birds is a fixture
from trees import load, put, write

import unskew
from unskew.data.names import class_order
from unskew.micro import downstream


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("10 9 1", "1 9 10"),
        ("010 9 001", "001 9 010"),
        ("class10 class2 class1", "class1 class2 class10"),
        ("cat_10 cat_2", "cat_2 cat_10"),
        ("v1_10 v1_9", "v1_9 v1_10"),
        ("10.0 9.0", "9.0 10.0"),
        ("10 2 other", "10 2 other"),  # not all are numbers
        ("class10 class2 dog1", "class10 class2 dog1"),  # several prefixes
        ("Robin ant wren", "Robin ant wren"),
        ("2020-10 2020-9", "2020-9 2020-10"),
        ("n02 n1", "n1 n02"),
    ],
)
def test_numbers_are_sorted_as_numbers(names, expected):
    assert class_order(names.split(), "birds") == class_order(reversed(names.split()), "birds") == expected.split()


@pytest.mark.parametrize("pair", [("01", "1"), ("class1", "class001"), ("1", "1.0")])
def test_two_spellings_of_a_number_are_refused(pair, birds):  # noqa: F811
    for name in (*pair, pair[0][:-1] + "7"):
        fill(birds, **{name: 4})
    with pytest.raises(ValueError, match=f"'{min(pair)}' and '{max(pair)}'") as error:
        load("folder", birds)
    assert str(birds) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("prefix", ["", "class", "cat_"])
def test_numbered_folders_have_labels_in_the_order_of_their_numbers(prefix, birds):  # noqa: F811
    fill(birds, **{f"{prefix}{number}": 4 for number in range(1, 13)})
    dataset = load("folder", birds)
    assert dataset.classnames == [f"{prefix}{number}" for number in range(1, 13)]
    assert all(f"/{dataset.classnames[item.label]}/" in item.impath for item in dataset.train_x)


# --- lists of names ------------------------------------------------------------------------------------


def named(root, names, tmp_path, name="folder"):
    (tmp_path / "names.json").write_text(json.dumps(names))
    return load(name, root, "DATASET.CLASSNAMES", tmp_path / "names.json")


@pytest.mark.parametrize(
    "folders",
    [
        [str(number) for number in range(1, 13)],
        [str(number) for number in range(12)],  # torchvision's order of these folders is by alphabet
        ["class2", "class10"],
        ["Zebra", "ant"],
        ["a10", "a9", "b1"],
    ],
)
def test_a_list_whose_order_can_be_mistaken_is_refused(folders, birds, tmp_path):  # noqa: F811
    fill(birds, **dict.fromkeys(folders, 4))
    names = [f"the {name}" for name in folders]
    with pytest.raises(ValueError, match=r"CLASSNAMES .*names\.json.*\{") as error:
        named(birds, names, tmp_path)
    assert "\n" not in str(error.value)
    dataset = named(birds, dict(zip(folders, names, strict=True)), tmp_path)
    assert all(f"/{item.classname.removeprefix('the ')}/" in item.impath for item in dataset.train_x)


@pytest.mark.parametrize("folders", [["0", "1"], ["1", "2", "9"], ["01", "02", "10"], ["Robin", "wren"], ["a1", "b"]])
def test_a_list_with_one_possible_order_is_accepted(folders, birds, tmp_path):  # noqa: F811
    fill(birds, **dict.fromkeys(folders, 4))
    dataset = named(birds, [f"the {name}" for name in folders], tmp_path)
    assert dataset.classnames == [f"the {name}" for name in folders]
    assert all(f"/{item.classname.removeprefix('the ')}/" in item.impath for item in dataset.train_x)


@pytest.mark.parametrize("count", [1, 3])
def test_a_list_of_another_length_is_refused(count, birds, tmp_path):  # noqa: F811
    fill(birds, a=4, b=4)
    with pytest.raises(ValueError, match=f"CLASSNAMES .* {count} names .* 2 classes"):
        named(birds, ["x", "y", "z"][:count], tmp_path)


# --- labels in a CSV file ------------------------------------------------------------------------------


def table(root, labels, header="path,label,split"):
    """Write a CSV file with a training and a test image for each label."""
    for n in range(2 * len(labels)):
        put(root / f"{n}.jpg")
    pairs = [(label, split) for label in labels for split in ("train", "test")]
    write(root / "a.csv", header, *(f"{n}.jpg,{label},{split}" for n, (label, split) in enumerate(pairs)))
    return root / "a.csv"


@pytest.mark.parametrize("form", ["{}", "{}.0", "{}.", "{}.00", "class{}", "class_{}"])
@pytest.mark.parametrize("column", ["label", "classname"])
def test_numbers_of_a_csv_file_are_numbers(form, column, birds):  # noqa: F811
    file = table(birds, [form.format(number) for number in (11, *range(11))], f"path,{column},split")
    dataset = load("csv", file)
    expected = form.partition(".")[0]
    assert dataset.classnames == [expected.format(number) for number in range(12)]
    assert [item.label for item in dataset.test] == [11, *range(11)]


def test_floats_and_whole_numbers_are_the_same_labels(birds, tmp_path):  # noqa: F811
    dataset = load("csv", table(birds, ["0", "1.0", "1", "0.0", "10.0", "2"]))
    assert dataset.classnames == ["0", "1", "2", "10"]
    assert [item.label for item in dataset.test] == [0, 1, 1, 0, 3, 2]
    file = table(birds, ["1.0,robin", "0.0,wren"], "path,label,classname,split")
    assert load("csv", file).classnames == ["wren", "robin"]
    file = table(birds, ["1.0", "0.0"])
    assert named(file, {"1.0": "robin", "0": "wren"}, tmp_path, "csv").classnames == ["wren", "robin"]


@pytest.mark.parametrize("wrong", ["nan", "NaN", "<NA>", "1.5", "-1", "-1.0", "+1", "1e5", ".5", "-inf"])
@pytest.mark.parametrize("others", [("0", "1"), ("robin", "wren")])
def test_a_label_that_is_not_a_class_is_refused(wrong, others, birds):  # noqa: F811
    file = table(birds, [*others, wrong])
    with pytest.raises(ValueError, match=f"line 6: .*'{wrong.replace('+', '.')}'") as error:
        load("csv", file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_class_name_that_is_missing_is_refused(birds):  # noqa: F811
    with pytest.raises(ValueError, match=r"line 4: .*'nan'"):
        load("csv", table(birds, ["robin", "nan"], "path,classname,split"))
    assert load("csv", table(birds, ["1.5", "-1"], "path,classname,split")).classnames == ["-1", "1.5"]  # words


@pytest.mark.parametrize("header", ["path,label,split", "path,label,classname,split"])
def test_two_spellings_of_a_label_are_refused(header, birds):  # noqa: F811
    suffix = ",x" if "classname" in header else ""
    with pytest.raises(ValueError, match="'01' and '1'"):
        load("csv", table(birds, [f"01{suffix}", f"1{suffix}", "2,y" if suffix else "2"], header))


def test_a_list_of_names_by_label(birds, tmp_path):  # noqa: F811
    names = [f"bird {number}" for number in range(12)]
    for form in ("{}", "{}.0"):
        file = table(birds, [form.format(number) for number in range(12)])
        assert named(file, names, tmp_path, "csv").classnames == names
    with pytest.raises(ValueError, match=r"CLASSNAMES .*\{"):
        named(table(birds, [str(number) for number in range(1, 13)]), names, tmp_path, "csv")
    words = table(birds, ["robin", "wren"])
    assert named(words, ["a", "b"], tmp_path, "csv").classnames == ["a", "b"]


# --- accuracy ------------------------------------------------------------------------------------------


@pytest.fixture
def shapes(data_root):
    """A function that links the images of the 12 red classes of `shapes` into folders with given names."""
    splits = dict(zip(("train", "val", "test"), downstream.files(Path(data_root) / "shapes", "shapes"), strict=True))
    names = {item.label: item.classname for item in splits["test"] if item.classname.startswith("red ")}
    names = dict(sorted(names.items()))

    def plant(root, folders):
        folders = dict(zip(names, folders, strict=True))
        for item in (*splits["train"], *splits["test"]):
            if item.label in names:
                folder = root / Path(item.impath).parent.name / folders[item.label]
                folder.mkdir(parents=True, exist_ok=True)
                os.link(item.impath, folder / os.path.basename(item.impath))
        return list(names.values())

    return plant


def accuracy(root, output, *opts, name="folder"):
    run = unskew.train(name, "ZeroshotCLIP", backbone="micro", shots=4, seed=1, root=root, output=output, opts=opts)
    return run.metrics["accuracy"]


def test_numbered_folders_with_names_have_the_accuracy_of_named_folders(shapes, tmp_path):
    names = shapes(tmp_path / "numbers", [str(number) for number in range(1, 13)])
    shapes(tmp_path / "letters", [f"{letter} {name}" for letter, name in zip("abcdefghijkl", names, strict=True)])
    write(tmp_path / "list.json", json.dumps(names))
    write(tmp_path / "numbers.json", json.dumps({str(n): name for n, name in enumerate(names, start=1)}))
    found = {}
    for folder, file in (("numbers", "numbers.json"), ("letters", "list.json")):
        opts = ("DATASET.CLASSNAMES", str(tmp_path / file))
        found[folder] = accuracy(tmp_path / folder, tmp_path / "output", *opts)
    assert found["numbers"] == found["letters"] == pytest.approx(67.33, abs=0.01)
    with pytest.raises(ValueError, match="CLASSNAMES"):  # 6.3 in the order of the alphabet
        accuracy(tmp_path / "numbers", tmp_path / "output", "DATASET.CLASSNAMES", str(tmp_path / "list.json"))


def test_float_labels_and_backslashes_have_the_accuracy_of_named_folders(shapes, tmp_path):
    names = shapes(tmp_path, [str(number) for number in range(12)])
    write(tmp_path / "list.json", json.dumps(names))
    parts = [path.relative_to(tmp_path).parts for path in sorted(tmp_path.rglob("*.png"))]
    rows = (f"{split}\\{label}\\{file},{label}.0,{split}" for split, label, file in parts)
    write(tmp_path / "a.csv", "path,label,split", *rows)
    opts = ("DATASET.CLASSNAMES", str(tmp_path / "list.json"))
    assert accuracy(tmp_path / "a.csv", tmp_path / "output", *opts, name="csv") == pytest.approx(67.33, abs=0.01)
