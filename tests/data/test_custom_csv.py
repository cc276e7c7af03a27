"""Tests of the user's own images in a CSV file: columns, labels, names, splits and errors with line numbers."""

import os
import zlib
from collections import Counter
from pathlib import Path

import pytest
from test_custom_folder import counts
from trees import held, load, put, write

from unskew.engine import fingerprint, run_dir
from unskew.runs.run import Run


@pytest.fixture
def file(tmp_path, monkeypatch):
    """The path of the user's CSV file; caches are in another folder."""
    monkeypatch.setenv("UNSKEW_CACHE", str(tmp_path / "cache"))
    (tmp_path / "birds").mkdir()
    return tmp_path / "birds" / "birds.csv"


def table(file, header, *rows):
    """Write rows that begin with a path, and their images."""
    write(file, header, *rows)
    for row in rows:
        path = file.parent / row.split(",")[0].strip()
        put(path, shade=zlib.crc32(os.fsencode(path)))


SPLITS = ["train", "train", "val", "test"]


@pytest.mark.parametrize(
    ("header", "first", "second", "names"),
    [
        ("path,label,split", "0", "1", ["0", "1"]),
        ("path,label,split", "1", "2", ["1", "2"]),  # internal labels count from 0
        ("path,label,split", "9", "10", ["9", "10"]),  # sorted as numbers
        ("path,label,split", "robin", "wren", ["robin", "wren"]),
        ("path,classname,split", "wren", "Robin", ["Robin", "wren"]),
        ("path,label,classname,split", "1,robin", "0,wren", ["wren", "robin"]),
        ("path,label,classname,split", "b,robin", "a,wren", ["robin", "wren"]),  # labels are not numbers
        (" Path , LABEL,Split", "robin", "wren", ["robin", "wren"]),
        ("path,label,split,note", "robin", "wren", ["robin", "wren"]),
    ],
)
def test_columns(header, first, second, names, file, warned):
    whose = [who for who in (first, second) for _ in SPLITS]
    rows = [(f"images/{n}.jpg,{who}", SPLITS[n % len(SPLITS)]) for n, who in enumerate(whose)]
    table(file, header, *(f"{row},{split}" for row, split in rows))
    dataset = load("csv", file)
    assert dataset.classnames == names
    of = {0: names.index(first.split(",")[-1]), 1: names.index(second.split(",")[-1])}
    found = held(dataset, file.parent)
    expected = [(row.split(",")[0], of[n // 4], names[of[n // 4]], split) for n, (row, split) in enumerate(rows)]
    for split in ("train", "val", "test"):
        assert found[split] == [entry[:3] for entry in expected if entry[3] == split]
        assert all((file.parent / path).is_file() for path, *_ in found[split])
    assert not warned()


@pytest.mark.parametrize("header", ["path,label", "path,classname"])
def test_without_splits_a_class_is_divided(header, file):
    table(file, header, *(f"{name}{n}.jpg,{name}" for n in range(10) for name in ("robin", "wren")))
    first, second = (load("csv", file, "SEED", seed) for seed in (1, 2))
    assert counts(first) == [{0: 5, 1: 5}, {0: 2, 1: 2}, {0: 3, 1: 3}]
    assert held(first, file.parent) == held(second, file.parent)
    assert len({item.impath for item in [*first.train_x, *first.val, *first.test]}) == 20


def test_other_names_of_the_splits(file):
    table(file, "path,label,split", "a.jpg,x,Training", "b.jpg,x,valid", "c.jpg,y, TEST ", "d.jpg,x,dev")
    assert counts(load("csv", file)) == [{0: 1}, {0: 2}, {1: 1}]


def test_without_a_test_split_val_is_tested(file):
    table(file, "path,label,split", "a.jpg,x,train", "b.jpg,y,train", "c.jpg,x,val", "d.jpg,y,val")
    assert counts(load("csv", file)) == [{0: 1, 1: 1}, {}, {0: 1, 1: 1}]


def test_quotes_commas_and_a_byte_order_mark(file):
    text = 'path,classname,split\r\n"a, b.jpg","robin, ""red""",train\r\nc.jpg,"Zaunkönig\nkurz",test\r\n'
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    for name in ("a, b.jpg", "c.jpg"):
        put(file.parent / name)
    dataset = load("csv", file)
    assert dataset.classnames == ["Zaunkönig\nkurz", 'robin, "red"']
    assert held(dataset, file.parent)["train"] == [("a, b.jpg", 1, 'robin, "red"')]


def test_absolute_and_relative_paths(file, tmp_path, monkeypatch):
    put(tmp_path / "elsewhere" / "b.jpg")
    table(file, "path,label,split", "a.jpg,x,train")
    write(file, "path,label,split", "a.jpg,x,train", f"{tmp_path}/elsewhere/b.jpg,y,test")
    monkeypatch.chdir(tmp_path)
    for root in (file, "birds/birds.csv"):
        dataset = load("csv", root)
        assert Path(dataset.train_x[0].impath).samefile(file.parent / "a.jpg")
        assert dataset.test[0].impath == f"{tmp_path}/elsewhere/b.jpg"


def test_names_from_a_file(file, tmp_path):
    table(file, "path,label,split", "a.jpg,0,train", "b.jpg,1,train", "c.jpg,1,test")
    write(tmp_path / "names.json", '["European robin", "Eurasian wren"]')
    opts = ("DATASET.CLASSNAMES", str(tmp_path / "names.json"))
    assert load("csv", file, *opts).classnames == ["European robin", "Eurasian wren"]
    write(tmp_path / "names.json", '["European robin"]')
    with pytest.raises(ValueError, match=r"names\.json'.* 1 names .* 2 classes"):
        load("csv", file, *opts)


def test_prompts(file):
    table(file, "path,label,split", "a.jpg,x,train", "b.jpg,y,test")
    assert load("csv", file).templates == ["a photo of a {}."]
    assert load("csv", file, "DATASET.TEMPLATE", "a {}").context_init == "a {}"


def test_few_shots_write_nothing_beside_the_file(file, tmp_path):
    table(file, "path,label", *(f"{name}{n}.jpg,{name}" for n in range(10) for name in ("robin", "wren")))
    before = sorted(file.parent.iterdir())
    few = load("csv", file, shots=2)
    assert Counter(item.label for item in few.train_x) == {0: 2, 1: 2}
    assert held(load("csv", file, shots=2), file.parent) == held(few, file.parent)
    assert sorted(file.parent.iterdir()) == before
    assert len(list((tmp_path / "cache").rglob("shot_2-seed_1.json"))) == 1


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["path:label", "a.jpg:x"], "path:label;"),
        (["file,label", "a.jpg,x"], "file, label;"),
        (["path,split", "a.jpg,train"], "path, split;"),
        ([], "none;"),
        (["path,label"], "names no images"),
        (["path,label", "a.jpg,x", ",x"], "line 3: no path"),
        (["path,label", "a.jpg,x", "b.jpg"], "line 3: no label"),
        (["path,label,classname", "a.jpg,0,x", "b.jpg,1,"], "line 3: no classname"),
        (["path,label,split", "a.jpg,x,train", "b.jpg,x,"], "line 3: no split"),
        (["path,label,split", "a.jpg,x,train", "b.jpg,x,holdout"], "line 3: split"),
        (["path,label,split", "a.jpg,x,train", "", "", "b.jpg,x,holdout"], "line 5: split"),  # counted like editors
        (["path,label,split", '"a.jpg","x\ny",train', "b.jpg,x,holdout"], "line 4: split"),
        (["path,classname,split", "a.jpg,robin, red,train"], "line 2: there are 4 values"),  # an unquoted comma
        (["path,label,split", "a.jpg,x,train"], "training images only"),
    ],
)
def test_an_error_names_the_file_and_the_line(lines, expected, file):
    write(file, *lines)
    with pytest.raises(ValueError) as error:
        load("csv", file)
    message = str(error.value)
    assert expected in message and f"'{file}'" in message and "\n" not in message


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["a.jpg,0,robin,train", "b.jpg,0,wren,test"], "label 0 has two class names, 'robin' and 'wren'"),
        (["a.jpg,0,robin,train", "./a.jpg,1,wren,test"], "twice, in train and test"),
        (["a.jpg,0,robin,train", "a.jpg,0,robin,train"], "twice, in train:"),
        (["a.jpg,0,robin,train", "b.jpg,x,wren,test"], "line 3: "),
    ],
)
def test_labels_that_do_not_fit_their_names(rows, expected, file):
    write(file, "path,label,classname,split", *rows)
    with pytest.raises(ValueError) as error:
        load("csv", file)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_missing_or_not_text(file):
    for root in (file, file.parent):
        with pytest.raises(FileNotFoundError, match="--root") as error:
            load("csv", root)
        assert f"'{root}'" in str(error.value)
    file.write_bytes("path,label\nbär.jpg,x\n".encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8"):
        load("csv", file)


def test_a_changed_or_moved_file_is_another_run(file, tmp_path):
    def hashed(path):
        return fingerprint.config_hash(Run("csv", "ZeroshotCLIP", shots=2, seed=1, root=str(path), folder="out").config)

    table(file, "path,label,split", "a.jpg,x,train", "b.jpg,x,test")
    first = hashed(file)
    file.rename(tmp_path / "moved.csv")
    assert hashed(tmp_path / "moved.csv") != first  # its paths may be relative
    (tmp_path / "moved.csv").rename(file)
    assert hashed(file) == first
    write(file, "path,label,split", "a.jpg,x,train", "b.jpg,x,train", "c.jpg,x,test")
    assert hashed(file) != first
    run = Run("csv", "ZeroshotCLIP", shots=2, seed=1, root=str(file)).config
    assert run_dir.dataset_label(run) == "csv-birds" and "csv-birds" in run.OUTPUT_DIR


def test_an_unfinished_run_on_other_images_starts_from_scratch(file, tmp_path):
    def prepare():
        run_dir.RunDir(tmp_path / "out").prepare(Run("csv", "ZeroshotCLIP", root=str(file), folder="out").config)
        return (tmp_path / "out" / "prompt" / "model.pth.tar-1").is_file()

    table(file, "path,label,split", "a.jpg,x,train", "b.jpg,y,test")
    prepare()
    write(tmp_path / "out" / "prompt" / "model.pth.tar-1", "of these images")
    assert prepare()
    write(file, "path,label,split", "b.jpg,y,train", "a.jpg,x,test")
    assert not prepare()


@pytest.mark.skipif(os.sep == "\\", reason="backslashes separate folders there")
def test_paths_with_backslashes(file):
    for path in ("train/cats/x.jpg", "train/cats/y.jpg", "train/dogs/z.jpg"):
        put(file.parent / path)
    literal = file.parent / r"train\dogs\z.jpg"
    put(literal)
    write(
        file, "path,label,split", r"train\cats\x.jpg,cat,train", r".\train/cats\y.jpg,cat,test", f"{literal},dog,train"
    )
    dataset = load("csv", file)
    assert [item.impath for item in dataset.train_x] == [f"{file.parent}/train/cats/x.jpg", str(literal)]
    assert dataset.test[0].impath == f"{file.parent}/train/cats/y.jpg"
    write(file, "path,label,split", r"train\cats\x.jpg,cat,train", "train/cats/x.jpg,dog,test")
    with pytest.raises(ValueError, match="twice, in train and test"):
        load("csv", file)
