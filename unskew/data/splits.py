"""Split files: CoOp's JSON, and the lists of long-tailed datasets."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from unskew.data.dataset import Datum
from unskew.utils.files import read_json, write_json

PREPARE_AGAIN = "check the data root, or prepare the dataset again"


def read_split(path, image_root) -> tuple[list[Datum], list[Datum], list[Datum]]:
    """Read a split in CoOp's format, ``{"train": [[path, label, class name], ..], "val": .., "test": ..}``.

    Args:
        image_root: the folder that the file's paths are relative to.

    Returns:
        Train, val and test.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of this format; says where.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no split file '{path}'")
    content = read_json(path)
    if not isinstance(content, dict) or not {"train", "val", "test"} <= content.keys():
        raise ValueError(f"'{path}' is not a split file: it must hold the lists train, val and test")
    names = ("train", "val", "test")
    splits = [_read_entries(content[split], f"'{path}', {split}", image_root) for split in names]
    check_distinct(path, dict(zip(names, splits, strict=True)))
    return tuple(splits)


def check_distinct(source, splits: Mapping[str, Sequence[Datum]]) -> None:
    """Raise ``ValueError`` if an image is named twice, in one split or in two: test images must not be trained on."""
    seen: dict[str, str] = {}
    for split, items in splits.items():
        for item in items:
            if item.impath in seen:
                where = " and ".join(dict.fromkeys(name for name in (seen[item.impath], split) if name))
                place = f", in {where}" if where else ""
                raise ValueError(f"'{source}' names '{item.impath}' twice{place}: an image belongs to one split, once")
            seen[item.impath] = split


def save_split(train: list[Datum], val: list[Datum], test: list[Datum], path, image_root) -> None:
    """Write a split in CoOp's format, its paths relative to ``image_root``."""
    splits = {"train": train, "val": val, "test": test}
    write_json({split: entries(items, image_root) for split, items in splits.items()}, path)


def _read_entries(entries, where: str, image_root) -> list[Datum]:
    if not isinstance(entries, list):
        raise ValueError(f"{where}: expected a list of [path, label, class name]")
    items = []
    for number, entry in enumerate(entries):
        match entry:
            case [str(path), int(label), str(name)] if label >= 0 and not isinstance(label, bool):
                items.append(Datum(os.path.join(image_root, path), label, 0, name))
            case _:
                raise ValueError(f"{where}, entry {number}: expected [path, label >= 0, class name], got {entry!r}")
    return items


def read_list(path, image_root, classnames: Sequence[str]) -> list[Datum]:
    """A list of "path label" lines, as long-tailed datasets publish them.

    Args:
        image_root: the folder that the file's paths are relative to. classnames: of the labels, from 0.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is something else, or its label has no name; says which.
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


def read_lines(path) -> list[str]:
    """The lines of a text file that hold anything, without the white space around them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not text in UTF-8.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file '{path}'; {PREPARE_AGAIN}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not a text file in UTF-8: {error}") from None
    return [line.strip() for line in lines if line.strip()]


def read_table(path, columns: int) -> list[list[str]]:
    """The words of each line of a text file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line has another number of words; says which.
    """
    rows = [line.split() for line in read_lines(path)]
    for number, row in enumerate(rows, start=1):
        if len(row) != columns:
            raise ValueError(f"'{path}', line {number}: expected {columns} words, got '{' '.join(row)}'")
    return rows


def read_pairs(path) -> list[tuple[str, str]]:
    """The first word of each line of a text file, a class's folder, and what follows it, the class's name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line has no name; says which.
    """
    pairs = [line.partition(" ")[::2] for line in read_lines(path)]
    bad = [folder for folder, name in pairs if not name]
    if bad:
        raise ValueError(f"'{path}': expected a folder and a class name in each line, got '{bad[0]}'")
    return pairs


def read_mat(path, name: str):
    """One array of a MATLAB file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no MATLAB file, or has no such array.
    """
    from scipy.io import loadmat

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file '{path}'; {PREPARE_AGAIN}")
    with Path(path).open("rb") as file:
        try:
            return loadmat(file, variable_names=[name])[name]
        except Exception as error:  # scipy's reader of a damaged file ends in anything, UnboundLocalError too
            raise ValueError(f"'{path}' is not a MATLAB file with an array '{name}'; replace it") from error


def entries(items: Iterable[Datum], root) -> list[list]:
    return [[relative(item.impath, root), item.label, item.classname] for item in items]


def relative(path: str, root) -> str:
    prefix = os.path.join(root, "")
    return path[len(prefix) :] if path.startswith(prefix) else os.path.relpath(path, root)  # relpath is slow
