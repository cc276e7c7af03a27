"""Split files: CoOp's JSON format and the text lists of other datasets."""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from unskew.data.dataset import Datum
from unskew.data.snapshot import remember
from unskew.download.fetch import mismatch
from unskew.download.sources import Source
from unskew.utils.errors import DAMAGE, check_regular
from unskew.utils.files import read_json, write_json
from unskew.utils.logging import warn_once

SPLITS = ("train", "val", "test")

Splits = tuple[list[Datum], list[Datum], list[Datum]]

PREPARE_AGAIN = "check the data root, or prepare the dataset again"


def read_once(key: Hashable, read: Callable[[], Splits]) -> Splits:
    """Return the images that a function reads, see `remember`, in lists that the caller may change."""
    train, val, test = remember(key, read)
    return list(train), list(val), list(test)


def read_split(path: str | Path, image_root: str | Path) -> Splits:
    """Read a split in CoOp's format, ``{"train": [[path, label, class name], ..], "val": .., "test": ..}``.

    Args:
        path: the split file.
        image_root: the folder that the paths in the file are relative to.

    Returns:
        Train, val and test.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another format, or names an image twice.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no split file '{path}'")
    content = read_json(path)
    if not isinstance(content, dict) or not set(SPLITS) <= content.keys():
        raise ValueError(f"'{path}' is not a split file: it must hold the lists train, val and test")
    train, val, test = (_read_entries(content[split], f"'{path}', {split}", image_root) for split in SPLITS)
    check_distinct(path, {"train": train, "val": val, "test": test})
    return train, val, test


def _read_entries(entries: object, place: str, image_root: str | Path) -> list[Datum]:
    if not isinstance(entries, list):
        raise ValueError(f"{place}: expected a list of [path, label, class name]")
    items = []
    for number, entry in enumerate(entries):
        match entry:
            case [str(path), int(label), str(name)] if label >= 0 and not isinstance(label, bool):
                items.append(Datum(os.path.join(image_root, path), label, 0, name))
            case _:
                raise ValueError(f"{place}, entry {number}: expected [path, label >= 0, class name], got {entry!r}")
    return items


def check_distinct(source: str | Path, splits: Mapping[str, Sequence[Datum]]) -> None:
    """Raise ``ValueError`` if an image appears twice, in one split or in two."""
    seen: dict[str, str] = {}
    for split, items in splits.items():
        for item in items:
            if item.impath in seen:
                both = " and ".join(dict.fromkeys(name for name in (seen[item.impath], split) if name))
                place = f", in {both}" if both else ""
                raise ValueError(
                    f"'{source}' names '{item.impath}' twice{place}: an image may be in one split only, once"
                )
            seen[item.impath] = split


def save_split(
    train: list[Datum], val: list[Datum], test: list[Datum], path: str | Path, image_root: str | Path
) -> None:
    """Write a split in CoOp's format with paths relative to ``image_root``."""
    splits = {"train": train, "val": val, "test": test}
    write_json({split: entries(items, image_root) for split, items in splits.items()}, path)


def entries(items: Iterable[Datum], root: str | Path) -> list[list]:
    """Return images as ``[path relative to root, label, class name]``."""
    prefix = os.path.join(root, "")
    return [[_below(item.impath, prefix), item.label, item.classname] for item in items]


def relative(path: str, root: str | Path) -> str:
    """Return a path relative to ``root``."""
    return _below(path, os.path.join(root, ""))


def _below(path: str, prefix: str) -> str:
    return path[len(prefix) :] if path.startswith(prefix) else os.path.relpath(path, prefix)  # relpath is slow


# --- lists, tables and arrays --------------------------------------------------------------------------


def read_list(path: str | Path, image_root: str | Path, classnames: Sequence[str]) -> list[Datum]:
    """Read a list of "path label" lines, the format of long-tailed datasets.

    Args:
        path: the list.
        image_root: the folder that the paths in the file are relative to.
        classnames: class names in the order of the labels.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a line has another format, or a label without a name.
    """
    items = []
    for number, line in enumerate(read_lines(path), start=1):
        impath, _, label = line.rpartition(" ")
        if not impath or not label.isdecimal() or len(label) > 9 or int(label) >= len(classnames):
            raise ValueError(
                f"'{path}', line {number}: expected a path and a label below {len(classnames)}, got '{line}'"
            )
        items.append(Datum(os.path.join(image_root, impath), int(label), 0, classnames[int(label)]))
    return items


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a text file without surrounding white space; empty lines are skipped.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not text in UTF-8.
    """
    try:
        check_regular(path)
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file '{path}'; {PREPARE_AGAIN}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not a text file in UTF-8: {error}") from None
    return [line.strip() for line in lines if line.strip()]


def read_table(path: str | Path, columns: int) -> list[list[str]]:
    """Return the words of each line of a text file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a line has another number of words.
    """
    rows = [line.split() for line in read_lines(path)]
    for number, row in enumerate(rows, start=1):
        if len(row) != columns:
            raise ValueError(f"'{path}', line {number}: expected {columns} words, got '{' '.join(row)}'")
    return rows


# Reads an array in a process of its own, because SciPy's reader crashes on some damaged files.
_MAT_PROGRAM = """
import sys
sys.path[:] = sys.argv[3:]
import pickle
from scipy.io import loadmat
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
except (ImportError, ValueError, OSError):
    pass
with open(sys.argv[1], "rb") as file:
    array = loadmat(file, variable_names=[sys.argv[2]])[sys.argv[2]]
pickle.dump(array, sys.stdout.buffer)
"""
_MAT_SECONDS = 120


def read_mat(path: str | Path, name: str, source: Source | None = None) -> np.ndarray:
    """Return one array of a MATLAB file.

    Args:
        path: the file.
        name: the array's name.
        source: the published file; another checksum brings a warning.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a MATLAB file, or has no such array.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file '{path}'; {PREPARE_AGAIN}")
    check_regular(path)
    if source and (difference := mismatch(source, path)):
        warn_once(f"'{path}' {difference}: it is not the published file; download it again if it is not your own")
    command = [sys.executable, "-c", _MAT_PROGRAM, os.fspath(path), name, *sys.path]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # each thread takes address space
    try:
        child = subprocess.run(command, capture_output=True, timeout=_MAT_SECONDS, env=environment, check=True)
        return pickle.loads(child.stdout)  # of our own program
    except subprocess.SubprocessError:
        pass
    except OSError:  # this user may not start Python
        from scipy.io import loadmat

        with contextlib.suppress(*DAMAGE):
            return loadmat(path, variable_names=[name])[name]
    raise ValueError(f"'{path}' is not a MATLAB file with an array '{name}'; replace it")
