"""Priors in files: every format, the published prior, and one clear line for each kind of bad file."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from unskew.debias.io import read_prior

COUNTS = [10, 30, 60]
PICKLE = pickle.dumps([1.0, 2.0, 3.0], protocol=2)  # the one that torch reads without a warning


def write(path, values):
    values = np.asarray(values, dtype=np.float64)
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".pt":
        torch.save(torch.from_numpy(values), path)
    elif path.suffix == ".csv":
        path.write_text("\n".join(map(str, values)) + "\n")
    else:
        path.write_text(json.dumps({"source": "a note", "q": values.tolist()}))
    return path


@pytest.mark.parametrize("suffix", [".json", ".npy", ".pt", ".csv"])
def test_every_format(tmp_path, suffix):
    path = write(tmp_path / f"q{suffix}", COUNTS)
    for classes in (3, ["cat", "dog", "fox"]):
        torch.testing.assert_close(read_prior(path, classes).exp(), torch.tensor([0.1, 0.3, 0.6]))
    for classes in (2, 4):
        with pytest.raises(ValueError, match=rf"q{suffix}.*{classes} values.*\[3\]"):
            read_prior(path, classes)
    for bad in ([1, 0, 2], [1, float("nan"), 2], [1, -1, 2], [1, float("inf"), 2]):
        with pytest.raises(ValueError, match=rf"q{suffix}.*class 1"):
            read_prior(write(path, bad), 3)


def test_the_published_prior_is_normalised(caplog):
    path = Path(__file__).parents[1] / "data" / "gla_prior_head.json"
    values = np.array(json.loads(path.read_text())["q"])
    assert len(values) == 20 and values.sum() < 0.1
    np.testing.assert_allclose(read_prior(path, 20).exp().numpy(), values / values.sum(), rtol=1e-6)
    assert f"{values.sum():.3f}" in caplog.text


def test_lists_whole_numbers_and_large_counts(tmp_path):
    (tmp_path / "q.json").write_text(json.dumps(COUNTS))
    torch.testing.assert_close(read_prior(tmp_path / "q.json", 3).exp(), torch.tensor([0.1, 0.3, 0.6]))
    np.save(tmp_path / "q.npy", np.array(COUNTS, dtype=np.int32))
    torch.testing.assert_close(read_prior(tmp_path / "q.npy", 3).exp(), torch.tensor([0.1, 0.3, 0.6]))
    torch.save(torch.tensor(COUNTS, dtype=torch.bfloat16), tmp_path / "q.pt")
    torch.testing.assert_close(read_prior(tmp_path / "q.pt", 3).exp(), torch.tensor([0.1, 0.3, 0.6]))
    torch.testing.assert_close(read_prior(write(tmp_path / "r.json", [1e308] * 4), 4).exp(), torch.full((4,), 0.25))


def test_names_may_be_in_any_order(tmp_path):
    path = tmp_path / "q.csv"
    for mark in ("", "\ufeff"):  # as spreadsheets write it
        path.write_text(mark + "dog,30\nfox,60\ncat,10\n", encoding="utf-8")
        torch.testing.assert_close(read_prior(path, ["cat", "dog", "fox"]).exp(), torch.tensor([0.1, 0.3, 0.6]))
    for classes in (3, np.int64(3)):
        with pytest.raises(ValueError, match=r"q\.csv.*names"):
            read_prior(path, classes)
    (tmp_path / "column.csv").write_text("30\n60\n10\n")
    torch.testing.assert_close(read_prior(tmp_path / "column.csv", np.int64(3)).exp(), torch.tensor([0.3, 0.6, 0.1]))
    for names, odd in ((["cat", "dog", "owl"], "fox"), (["cat", "dog", "fox", "owl"], "owl")):
        with pytest.raises(ValueError, match=odd):
            read_prior(path, names)
    path.write_text("cat,1\ncat,2\ndog,3\n")
    with pytest.raises(ValueError, match="repeated"):
        read_prior(path, ["cat", "dog"])


def cut(save, share):
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()[: int(share * buffer.tell())]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("q.json", b"{", "JSON"),
        ("q.json", b"\xff\xfe", "JSON"),
        ("q.json", b'{"p": [1]}', "list of numbers"),
        ("q.json", b"3", "list of numbers"),
        ("q.json", b"[[1, 2, 3]]", "list of numbers"),
        ("q.json", b"[[1, 2], [3]]", "list of numbers"),
        ("q.json", b'["1", "2", "3"]', "list of numbers"),
        ("q.json", b"[1, null, 3]", "list of numbers"),
        ("q.json", b"[1, true, 3]", "list of numbers"),
        ("q.json", b"[1" + 400 * b"0" + b", 2, 3]", "too large"),
        ("q.csv", b"a,b,c\n", "name,value"),
        ("q.csv", b"one\ntwo\nthree\n", "'one'"),
        ("q.csv", b"\x80\x04\x95", "can't decode"),
        ("q.csv", b"", r"3 values.*\[0\]"),
        ("q.npy", b"no array", "one array"),
        ("q.npy", b"", "one array"),
        ("q.npy", PICKLE, "pickled"),
        ("q.pt", b"no tensor", "one tensor"),
        ("q.pt", b"", "one tensor"),
        ("q.pt", PICKLE, "one tensor"),
        *(("q.pt", cut(lambda f: torch.save(torch.ones(3), f), share), "one tensor") for share in (0.3, 0.9)),
        *(("q.npy", cut(lambda f: np.save(f, np.ones(3)), share), "one array") for share in (0.3, 0.99)),
        ("q.pkl", PICKLE, ".json, .npy, .pt, .csv"),
        ("q", b"1\n2\n3\n", ".json, .npy, .pt, .csv"),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else len(value),
)
def test_bad_files(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says) as error:
        read_prior(tmp_path / name, 3)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_bad_arrays_and_tensors(tmp_path):
    for values in (np.ones((3, 1)), np.ones((1, 3)), np.float64(1)):
        np.save(tmp_path / "q.npy", values)
        with pytest.raises(ValueError, match=r"q\.npy.*shape"):
            read_prior(tmp_path / "q.npy", 3)
    for values in (np.array(["1", "2", "3"]), np.ones(3, complex), np.ones(3, bool)):
        np.save(tmp_path / "q.npy", values)
        with pytest.raises(ValueError, match="real numbers"):
            read_prior(tmp_path / "q.npy", 3)
    with (tmp_path / "q.npy").open("wb") as file:
        np.savez(file, q=np.ones(3))
    with pytest.raises(ValueError, match="one array"):
        read_prior(tmp_path / "q.npy", 3)
    for values in ([1.0, 2.0, 3.0], {"q": torch.ones(3)}, torch.ones(3, dtype=torch.bool), torch.ones(3) * 1j):
        torch.save(values, tmp_path / "q.pt")
        with pytest.raises(ValueError, match="one tensor"):
            read_prior(tmp_path / "q.pt", 3)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_prior(tmp_path / "none.json", 3)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was executed')",))


def test_no_pickle_is_executed(tmp_path):
    torch.save(Bomb(), tmp_path / "q.pt")
    np.save(tmp_path / "q.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    for name in ("q.pt", "q.npy"):
        with pytest.raises(ValueError, match=f"{name}.*refused"):
            read_prior(tmp_path / name, 1)
