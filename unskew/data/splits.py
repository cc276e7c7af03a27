"""Split files: CoOp's JSON format and the text lists of other datasets."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from unskew.data.dataset import Datum
from unskew.utils.files import read_json, write_json

SPLITS = ("train", "val", "test")

Splits = tuple[list[Datum], list[Datum], list[Datum]]

PREPARE_AGAIN = "check the data root, or prepare the dataset again"


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
    if not Path(path).is_file():
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
    return [[relative(item.impath, root), item.label, item.classname] for item in items]


def relative(path: str, root: str | Path) -> str:
    """Return a path relative to ``root``."""
    prefix = os.path.join(root, "")
    return path[len(prefix) :] if path.startswith(prefix) else os.path.relpath(path, root)  # relpath is slow


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
        if not impath or not label.isdecimal() or int(label) >= len(classnames):
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


def read_mat(path: str | Path, name: str) -> np.ndarray:
    """Return one array of a MATLAB file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a MATLAB file, or has no such array.
    """
    from scipy.io import loadmat

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file '{path}'; {PREPARE_AGAIN}")
    with Path(path).open("rb") as file:
        try:
            return loadmat(file, variable_names=[name])[name]
        except Exception as error:  # for a damaged file SciPy raises any type, UnboundLocalError too
            raise ValueError(f"'{path}' is not a MATLAB file with an array '{name}'; replace it") from error
