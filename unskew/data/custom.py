"""Reading of the user's own images, from class folders or a CSV file. No file is written among the images."""

import csv
import logging
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

from yacs.config import CfgNode

from unskew.data.dataset import Datum, class_names
from unskew.data.fewshot import Selection, select
from unskew.data.image_folders import class_folders, folder_items, list_images
from unskew.data.sampling import split_in_three
from unskew.data.splits import SPLITS, check_distinct, read_lines
from unskew.utils.files import expand, read_json, user_cache

logger = logging.getLogger("unskew")

_ALIASES = {"valid": "val", "validation": "val", "dev": "val", "training": "train", "testing": "test"}

_COLUMNS = ("path", "label", "classname", "split")


class NamedSelection(Selection):
    """The images of a run and the names of all classes: arguments of `DatasetBase`."""

    classnames: list[str]


def select_splits(cfg: CfgNode, root: Path, splits: Mapping[str, list[Datum]]) -> NamedSelection:
    """Select a run's images; without test images, the images of val are tested, as with ImageNet.

    Args:
        cfg: the run's config, see `select`.
        root: the folder or CSV file; it identifies the cache.
        splits: the images by split.

    Raises:
        ValueError: there are training images only.
    """
    train, val, test = (splits.get(split, []) for split in SPLITS)
    if not test:
        val, test = [], val
    if not test:
        raise ValueError(f"'{root}' has training images only: add a split 'test' or 'val', or give no splits at all")
    names = class_names(f"'{root}'", (train, val, test))
    unseen = sorted(set(names) - {item.label for item in train}) if train else []
    if unseen:
        logger.warning(f"{len(unseen)} class(es) have no training images, for instance '{names[unseen[0]]}'")
    chosen = select(cfg, root, train, val, test, cache=user_cache(root))
    classnames = list(names.values()) if cfg.DATASET.SUBSAMPLE_CLASSES == "all" else []
    return NamedSelection(**chosen, classnames=classnames)


def _split_name(text: str) -> str | None:
    """Return ``train``, ``val`` or ``test`` for a common name of a split, ``None`` for any other word."""
    name = text.strip().lower()
    name = _ALIASES.get(name, name)
    return name if name in SPLITS else None


def _divided(items: list[Datum]) -> dict[str, list[Datum]]:
    """Return images without splits by split, the same for every seed."""
    return dict(zip(SPLITS, split_in_three(items, random.Random(0)), strict=True))


def _read_names(path: str) -> dict[str, str]:
    """Return class names by folder or label.

    Args:
        path: JSON (``{"n01440764": "tench"}``, or a list in the order of the labels or folders), or lines of text: a
            folder or label, a tab or a space, and the class name. An empty path gives no names.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another format.
    """
    if not path:
        return {}
    file = expand(path)
    if not file.is_file():
        raise FileNotFoundError(f"DATASET.CLASSNAMES '{path}' is not a file: give a file with the class names")
    if file.suffix == ".json":
        content = read_json(file)
        content = dict(enumerate(content)) if isinstance(content, list) else content
        if not isinstance(content, dict) or not all(isinstance(name, str) and name for name in content.values()):
            raise ValueError(f"DATASET.CLASSNAMES '{path}' must hold names by folder or label, or a list of names")
        return {str(key): name for key, name in content.items()}
    names = {}
    for line in read_lines(file):
        key, _, name = line.partition("\t" if "\t" in line else " ")
        if not name:
            raise ValueError(
                f"DATASET.CLASSNAMES '{path}': each line must be a folder or label and a name, got '{key}'"
            )
        names[key.strip()] = name.strip()
    return names


# --- class folders -------------------------------------------------------------------------------------


def read_folders(root: Path, names_file: str = "") -> dict[str, list[Datum]]:
    """Read ``root/<class>/*.jpg`` or ``root/{train,val,test}/<class>/*.jpg``.

    Args:
        root: the folder.
        names_file: a file of class names; default the folders' names.

    Returns:
        All images by split.

    Raises:
        ValueError: there are fewer than two class folders with images, or a class has no name.
    """
    folders = _split_folders(root) or {"": root}
    listed = {split: list_images(folder, user_cache(folder)) for split, folder in folders.items()}
    classes = sorted({name for images in listed.values() for name, paths in images.items() if paths})
    _check_classes(root, classes)
    names = _read_names(names_file)
    if set(names) == set(map(str, range(len(classes)))) != set(classes):  # a list in the order of the folders
        names = dict(zip(classes, names.values(), strict=True))
    unnamed = sorted(set(classes) - set(names)) if names else []
    if unnamed:
        raise ValueError(f"DATASET.CLASSNAMES '{names_file}' has no name for the folder '{unnamed[0]}'")
    empty = sorted({name for images in listed.values() for name in images} - set(classes))
    if empty:
        logger.warning(f"{len(empty)} folder(s) in '{root}' have no images and are skipped, for instance '{empty[0]}'")
    labels = {name: (label, names.get(name, name)) for label, name in enumerate(classes)}
    splits: dict[str, list[Datum]] = {}
    for split, folder in folders.items():
        present = {name: labels[name] for name in classes if name in listed[split]}
        splits[split] = folder_items(folder, present, user_cache(folder))
    if list(splits) in ([""], ["train"]):
        return _divided(next(iter(splits.values())))
    return splits


def _check_classes(root: Path, classes: list[str]) -> None:
    if len(classes) < 2:
        content = f"only the class folder '{classes[0]}'" if classes else "no class folders with images"
        raise ValueError(f"'{root}' has {content}: give the folder that holds a folder of images for each class")
    for name in classes:
        if not name.isprintable():
            raise ValueError(f"the name of the folder {name!r} in '{root}' is not printable UTF-8: rename it")


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of the splits in the order of ``SPLITS``, or none if ``root`` holds class folders.

    Raises:
        ValueError: two folders are the same split, or there are other folders beside the splits.
    """
    names = class_folders(root)
    folders: dict[str, Path] = {}
    for name in names:
        split = _split_name(name)
        if split in folders:
            raise ValueError(f"'{root}' has two folders for {split}, '{folders[split].name}' and '{name}': keep one")
        if split:
            folders[split] = root / name
    others = [name for name in names if not _split_name(name)]
    if others and folders:
        if any(map(class_folders, folders.values())):
            raise ValueError(
                f"'{root}' has folders of splits ('{next(iter(folders.values())).name}') and others ('{others[0]}'): "
                "keep either splits or classes in it"
            )
        return {}  # a class may be called "train"
    return {split: folders[split] for split in SPLITS if split in folders}


# --- CSV files -----------------------------------------------------------------------------------------


def read_csv(file: Path, names_file: str = "") -> dict[str, list[Datum]]:
    """Read a CSV file with the columns path, label or classname, and perhaps split.

    Args:
        file: the CSV file; its paths are absolute or relative to its folder.
        names_file: a file of class names by label.

    Returns:
        All images by split.

    Raises:
        ValueError: a column is missing, or a line has no path, no class, or an unknown split.
    """
    rows = _rows(file)
    columns = next(iter(rows.values()))
    names, column = _read_names(names_file), "classname" if "classname" in columns else "label"
    labels = _labels_by_number(file, rows) if column == "classname" else None
    if labels is None:
        values = sorted({row[column] for row in rows.values()}, key=_sort_key)
        ranks = {value: rank for rank, value in enumerate(values)}
        labels = {number: ranks[row[column]] for number, row in rows.items()}
    splits: dict[str, list[Datum]] = {}
    for number, row in rows.items():
        value = row[column]
        if names and value not in names:
            raise ValueError(f"DATASET.CLASSNAMES '{names_file}' has no name for '{value}'")
        split = _split_name(row["split"]) if "split" in row else ""
        if split is None:
            raise ValueError(f"'{file}', line {number}: split must be train, val or test, got '{row['split']}'")
        path = os.path.normpath(file.parent / row["path"])  # an absolute path stays as it is
        splits.setdefault(split, []).append(Datum(path, labels[number], 0, names.get(value, value)))
    check_distinct(file, splits)
    if "" in splits:
        return _divided(splits[""])
    return splits


def _labels_by_number(file: Path, rows: Mapping[int, Mapping[str, str]]) -> dict[int, int] | None:
    """Return the label of each line from the numbers in the column ``label``; ``None`` if there are no numbers.

    The numbers may start at 1 or have gaps.
    """
    if not any(row.get("label", "").isdecimal() for row in rows.values()):
        return None
    for number, row in rows.items():
        if not row["label"].isdecimal():
            raise ValueError(f"'{file}', line {number}: either all labels are numbers or none; got '{row['label']}'")
    ranks = {value: rank for rank, value in enumerate(sorted({int(row["label"]) for row in rows.values()}))}
    return {number: ranks[int(row["label"])] for number, row in rows.items()}


def _sort_key(value: str) -> tuple[int, int, str]:
    """Sort numbers by value before words by alphabet."""
    return (0, int(value), value) if value.isdecimal() else (1, 0, value)


def _rows(file: Path) -> dict[int, dict[str, str]]:
    """Return the values of the known columns by line number; none of the values is empty."""
    try:
        rows = dict(_parse(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"'{file}' is not a CSV file in UTF-8: {error}") from error
    for number, row in rows.items():
        missing = [name for name, value in row.items() if not value]
        if missing:
            raise ValueError(f"'{file}', line {number}: no {missing[0]}")
    if not rows:
        raise ValueError(f"'{file}' names no images")
    return rows


def _parse(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        titles = {(title or "").strip().lower(): title for title in reader.fieldnames or ()}
        columns = {name: titles[name] for name in _COLUMNS if name in titles}
        if "path" not in columns or not {"label", "classname"} & set(columns):
            raise ValueError(
                f"'{file}' has the columns {', '.join(titles) or 'none'}; it must have path, and label or classname"
            )
        for row in reader:
            yield reader.line_num, {name: (row[title] or "").strip() for name, title in columns.items()}
