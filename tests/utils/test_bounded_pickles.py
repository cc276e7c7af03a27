"""Tests of the limits on pickles: plain data of any size are read, and what a small file asks for is bounded."""

import pickle
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch

from unskew.dassl.data import Datum
from unskew.utils.safe_pickle import check_torch_file, read_plain

SHARED = tuple((number, (str(number),)) for number in range(100))

PLAIN = [
    {"a": [1, 2.5, None, True, "ü", b"b", 10**30], "b": {(1, (2, 3)): {4}, frozenset([(1, 2)]): 3j}},
    [bytearray(b"abc"), bytearray(), range(10**5), slice(1, None, 2), complex(1, 2), set(range(50)), frozenset("ab")],
    [Counter("hello"), OrderedDict(b=1, a=2), deque([1, 2, 3], 2), deque("ab")],
    [SHARED] * 1000,
    {SHARED: SHARED},
    [list(range(200_000)), {str(number): (number, number) for number in range(20_000)}],
    [[[[[[]]]]]],
]


def read(path):
    with path.open("rb") as file:
        return read_plain(file, Datum)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("number", range(len(PLAIN)))
def test_plain_values_are_read_as_pickle_reads_them(tmp_path, number, protocol):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(PLAIN[number], protocol))
    assert read(path) == PLAIN[number]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_defaultdict_keeps_its_class_and_factory(tmp_path, protocol):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(defaultdict(list, a=[1]), protocol))
    found = read(tmp_path / "a.pkl")
    assert (type(found), found.default_factory, dict(found)) == (defaultdict, list, {"a": [1]})


def test_arrays_that_share_their_bytes_are_refused(tmp_path):
    """A copy of each array of one file would take a thousand times the memory of the file."""
    content = b"\0" * 10**6
    state = (1, (10**6,), np.dtype("u1"), False, content)
    arrays = [Shared(state) for _ in range(3)]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(arrays, 4))
    with pytest.raises(ValueError, match="share"):
        read(tmp_path / "a.pkl")


class Shared:
    """Pickles as an array of a given state."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return np.empty(0).__reduce__()[0], (np.ndarray, (0,), b"b"), self.state


def test_a_class_is_not_changed(tmp_path):
    before = dict(vars(Datum))
    body = b"\x80\x02cdassl.data.datasets\nDatum\nN}Vlabel\nK\x05s\x86b."
    (tmp_path / "a.pkl").write_bytes(body)
    with pytest.raises(ValueError, match="changes"):
        read(tmp_path / "a.pkl")
    assert dict(vars(Datum)) == before


@pytest.mark.parametrize("new", [True, False])
def test_files_of_torch_are_accepted(tmp_path, new):
    weights = {"w": torch.zeros(1000, 10), "b": torch.nn.Parameter(torch.ones(3)), "n": 3}
    content = {"state_dict": OrderedDict(weights), "optimizer": {"state": {0: {"step": 1}}, "groups": [(1, 2)]}}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    check_torch_file(tmp_path / "a.pt")


def test_a_compressed_file_of_torch_is_refused(tmp_path):
    torch.save({"w": torch.zeros(10**6)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as source,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(ValueError, match="compressed"):
        check_torch_file(tmp_path / "b.pt")
