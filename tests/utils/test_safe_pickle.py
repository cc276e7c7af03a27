"""Tests of safe pickles: files of Dassl's codebases and CIFAR are read, and no code in them is run."""

import builtins
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from cifar_tree import python2_pickle
from items import DASSL, datum_class, dump, dump_fewshot

from unskew.utils.safe_pickle import read_arrays, read_fewshot

TRAIN = [("/data/pets/images/a b.jpg", 3, "cat"), ("C:\\pets\\ü.jpg", 0, "d'og")]
VAL = [("./data/pets/images/c.jpg", 1, "fox")]


def refused(read, path, says):
    """The error has one line and names the file."""
    with pytest.raises(ValueError, match=says) as error:
        read(path)
    assert f"'{path}'" in str(error.value) and "\n" not in str(error.value)


# --- few-shot files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("module", [DASSL, "Dassl.dassl.data.datasets", "datum"])
def test_a_few_shot_file_of_any_codebase(tmp_path, module, protocol):
    path = dump_fewshot(tmp_path / "shot_1-seed_1.pkl", module, protocol, train=TRAIN, val=VAL)
    with pytest.raises((ImportError, AttributeError)):  # the module of the class does not exist
        pickle.loads(path.read_bytes())
    assert read_fewshot(path) == {"train": TRAIN, "val": VAL}


def test_a_few_shot_file_without_val_and_with_other_splits(tmp_path):
    assert read_fewshot(dump_fewshot(tmp_path / "a.pkl", train=TRAIN)) == {"train": TRAIN}
    assert read_fewshot(dump_fewshot(tmp_path / "b.pkl", train=TRAIN, val=[], test=VAL)) == {"train": TRAIN, "val": []}


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pkl"):
        read_fewshot(tmp_path / "none.pkl")


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


CALLS = {
    "os.system": lambda mark: Call(os.system, f"touch '{mark}'"),
    "eval": lambda mark: Call(eval, f"open({str(mark)!r}, 'w')"),
    "getattr": lambda mark: Call(builtins.getattr, Call(Path, str(mark)), "name"),
    "touch": lambda mark: Call(Path.touch, Path(mark)),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("place", ["top level", "in train", "an attribute", "beside train"])
@pytest.mark.parametrize("protocol", [2, 5])
def test_nothing_is_called(tmp_path, call, place, protocol):
    mark, cls = tmp_path / "was called", datum_class(DASSL)
    bomb, datum = CALLS[call](mark), cls("a.jpg", 0, 0, "cat")
    content = {
        "top level": bomb,
        "in train": {"train": [datum, bomb]},
        "an attribute": {"train": [cls(bomb, 0, 0, "cat")]},
        "beside train": {"other": bomb, "train": [datum]},
    }[place]
    path = dump(content, tmp_path / "a.pkl", [cls], protocol)
    refused(read_fewshot, path, r"asks for .* Datum")
    refused(read_arrays, path, "asks for")
    assert not mark.exists()


@pytest.mark.parametrize("call", ["os.system", "eval", "touch"])
def test_the_calls_leave_a_mark_if_they_are_run(tmp_path, call):
    path = dump(CALLS[call](tmp_path / "mark"), tmp_path / "a.pkl")
    pickle.loads(path.read_bytes())
    assert (tmp_path / "mark").exists()


def test_a_datum_that_calls_something(tmp_path):
    cls = datum_class(DASSL)
    cls.__reduce__ = lambda self: (os.system, (f"touch '{tmp_path / 'mark'}'",))
    refused(read_fewshot, dump({"train": [cls()]}, tmp_path / "a.pkl", [cls]), r"asks for .*system")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"no pickle", b"{}", b"\x80", b"\x80\x05.", b"\x80\x05N", b"Pid\n.", b"\x80\x04\x95" + b"\xff" * 8, b"Fx\n."],
    ids=repr,
)
@pytest.mark.parametrize("read", [read_fewshot, read_arrays])
def test_a_file_that_is_not_a_pickle(tmp_path, read, content):
    (tmp_path / "a.pkl").write_bytes(content)
    refused(read, tmp_path / "a.pkl", "was not read: .+")


def test_a_pickle_that_is_cut_anywhere(tmp_path):
    whole = dump_fewshot(tmp_path / "whole.pkl", train=TRAIN, val=VAL).read_bytes()
    for size in range(len(whole)):
        (tmp_path / "a.pkl").write_bytes(whole[:size])
        refused(read_fewshot, tmp_path / "a.pkl", "was not read")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "'train'"),
        ("train", "'train'"),
        ({}, "'train'"),
        ({"val": []}, "'train'"),
        ({"train": {}}, "lists of Datum"),
        ({"train": None}, "lists of Datum"),
        ({"train": ["a.jpg"]}, "lists of Datum"),
        ({"train": [{"_impath": "a.jpg", "_label": 0, "_classname": "cat"}]}, "lists of Datum"),
        ({"train": [], "val": [3]}, "lists of Datum"),
    ],
)
def test_a_pickle_that_is_not_a_few_shot_file(tmp_path, content, says):
    refused(read_fewshot, dump(content, tmp_path / "a.pkl"), says)


@pytest.mark.parametrize(
    "bad", [{"impath": None}, {"impath": b"a.jpg"}, {"label": "0"}, {"label": 0.0}, {"classname": 3}, {"classname": []}]
)
def test_a_datum_with_wrong_attributes(tmp_path, bad):
    cls = datum_class(DASSL)
    content = {"train": [cls(**{"impath": "a.jpg", "classname": "cat", **bad})]}
    refused(read_fewshot, dump(content, tmp_path / "a.pkl", [cls]), "lists of Datum")


def test_incomplete_datums_are_refused(tmp_path):
    cls = datum_class(DASSL)
    without = cls("a.jpg")
    del without._classname
    called = cls()
    called.__class__ = type("Datum", (cls,), {"__reduce__": lambda self: (cls, ("a.jpg", 0, 0, "cat"))})
    for item in (without, called, cls):  # a missing attribute, no state, the class
        refused(read_fewshot, dump({"train": [item]}, tmp_path / "a.pkl", [cls]), "lists of Datum")


# --- arrays ------------------------------------------------------------------------------------------


def dump_python2(content, path, numpy="numpy.core"):
    path.write_bytes(python2_pickle(content).replace(b"cnumpy.core.", f"c{numpy}.".encode()))
    return path


@pytest.mark.parametrize("numpy", ["numpy.core", "numpy._core"])
def test_cifars_files(tmp_path, numpy):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 12), np.uint8)
    content = {"data": pixels, "fine_labels": [3, 1, 4, 1, 5], "filenames": ["a.png", "b.png"], "batch_label": "1"}
    path = dump_python2(content, tmp_path / "train", numpy)
    read = read_arrays(path)
    assert read["data"].dtype == np.uint8 and np.array_equal(read.pop("data"), content.pop("data"))
    assert read == content


@pytest.mark.parametrize("dtype", ["|u1", "|b1", "<i8", ">i8", "<f4", ">f8", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_equal_those_that_numpy_reads(tmp_path, dtype, order):
    array = np.asarray(np.arange(12).reshape(3, 4) % 7, dtype, order)
    path = dump_python2({"a": array, "none": array[:0], "one": np.array(3, dtype)}, tmp_path / "a")
    with path.open("rb") as file:
        expected = pickle.load(file, encoding="latin1")
    read = read_arrays(path)
    assert read.keys() == expected.keys()
    for name, found in read.items():
        assert found.shape == expected[name].shape
        assert found.dtype.newbyteorder("=") == expected[name].dtype  # NumPy swaps the bytes when it reads
        assert np.array_equal(found, expected[name])


def test_arrays_of_a_newer_protocol(tmp_path):
    path = dump({"a": np.arange(6).reshape(2, 3)}, tmp_path / "a", protocol=4)
    assert read_arrays(path)["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_object_arrays_are_refused(tmp_path):
    bomb = Call(os.system, f"touch '{tmp_path / 'mark'}'")
    refused(read_arrays, dump({"a": np.array([bomb], object)}, tmp_path / "a", protocol=4), r"asks for .*system")
    refused(read_arrays, dump({"a": np.array(["x"], object)}, tmp_path / "a", protocol=4), "'O8'")
    refused(read_arrays, dump({"a": np.zeros(2, "i4,f8")}, tmp_path / "a", protocol=4), "'V12'")
    assert not (tmp_path / "mark").exists()


class MadeUp:
    """Pickles as a NumPy array with any state."""

    def __init__(self, *state):
        self.state = state

    def __reduce__(self):
        return np.empty(0).__reduce__()[0], (np.ndarray, (0,), b"b"), self.state


@pytest.mark.parametrize(
    "state",
    [
        (),
        (1, (2,), np.dtype("u1"), False, b"\0"),  # too few bytes
        (1, (-1, 0), np.dtype("u1"), False, b"\0"),
        (1, (2**62, 2**62), np.dtype("u1"), False, b"\0"),
        (1, "x", np.dtype("u1"), False, b"\0"),
        (1, (1,), "u1", False, b"\0"),
        (1, (1,), np.dtype("u1"), False, [0]),
        (1, (1,), np.dtype("u1"), False, None),
    ],
    ids=str,
)
def test_arrays_of_a_made_up_state(tmp_path, state):
    refused(read_arrays, dump({"a": MadeUp(*state)}, tmp_path / "a", protocol=4), "was not read")


def test_arrays_outside_a_mapping_are_refused(tmp_path):
    refused(read_arrays, dump([1, 2], tmp_path / "a"), "holds a list")
