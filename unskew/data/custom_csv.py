"""Reading of the user's own images from a CSV file with the columns path, label or classname, and perhaps split."""

import csv
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

from unskew.data.custom import divided, split_name
from unskew.data.dataset import Datum
from unskew.data.names import class_order, composed, read_names, whole_number
from unskew.data.snapshot import remember
from unskew.data.splits import check_distinct
from unskew.utils.errors import check_regular

_COLUMNS = ("path", "label", "classname", "split")

_SEPARATORS = ",;\t|"

# A number of any form, and pandas's words for a missing value.
_NUMBER = re.compile(r"[+-]?(([0-9]+[.,]?[0-9]*|[.,][0-9]+)(e[+-]?[0-9]+)?|inf)", re.IGNORECASE)
_MISSING = ("nan", "<na>")


def read_csv(file: Path, names_file: str = "") -> dict[str, list[Datum]]:
    """Read a CSV file with the columns path, label or classname, and perhaps split.

    The header decides whether commas, semicolons, tabs or bars separate the values.

    Args:
        file: the CSV file; its paths are absolute or relative to its folder.
        names_file: a file of class names by label.

    Returns:
        All images by split.

    Raises:
        ValueError: a column is missing or there twice, a line has no path, no class, or an unknown split, or the names
            do not fit the labels.
    """
    splits = remember(("csv", file, names_file), lambda: _read_csv(file, names_file))
    return {split: list(items) for split, items in splits.items()}


def _read_csv(file: Path, names_file: str) -> dict[str, list[Datum]]:
    rows = _rows(file)
    columns = next(iter(rows.values()))
    column = "classname" if "classname" in columns else "label"
    order = "label" if _has_numbers(file, rows) else column  # the column that decides the labels
    ranks = {value: rank for rank, value in enumerate(class_order({row[order] for row in rows.values()}, f"'{file}'"))}
    labels = {number: ranks[row[order]] for number, row in rows.items()}
    classes = list(dict.fromkeys(rows[number][column] for number in sorted(rows, key=labels.__getitem__)))
    names = dict(zip(classes, read_names(names_file, classes, numbered=True), strict=True))
    splits: dict[str, list[Datum]] = {}
    for (number, row), path in zip(rows.items(), image_paths(file, rows), strict=True):
        split = split_name(row["split"]) if "split" in row else ""
        if split is None:
            raise ValueError(f"'{file}', line {number}: split must be train, val or test, got '{row['split']}'")
        splits.setdefault(split, []).append(Datum(path, labels[number], 0, names[row[column]]))
    check_distinct(file, splits)
    if "" in splits:
        return divided(splits[""])
    return splits


def image_paths(file: Path, rows: Mapping[int, Mapping[str, str]] | None = None) -> list[str]:
    """Return the paths of the images in a CSV file, line by line; within a snapshot the file is read once.

    Args:
        file: the CSV file.
        rows: its content, if it has been read. It may be newer than the snapshot, and must then fit its labels.
    """

    def texts() -> list[str]:
        return [row["path"] for row in (rows or _rows(file)).values()]

    known = remember(("paths", os.path.realpath(file)), texts)
    return [_image_path(file.parent, text) for text in (texts() if rows else known)]


def _image_path(folder: Path, text: str) -> str:
    """Return the path of an image.

    If there is no file of the path as it is written, backslashes separate folders, and accents may be composed or not.
    """
    path = os.path.normpath(folder / text)  # an absolute path stays as it is
    if ("\\" not in text and text.isascii()) or os.path.exists(path):
        return path
    path = os.path.normpath(folder / text.replace("\\", "/"))
    forms = [path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD"))]
    return next(filter(os.path.exists, forms), path)


def _has_numbers(file: Path, rows: Mapping[int, Mapping[str, str]]) -> bool:
    """Return whether the column ``label`` holds numbers beside class names; they may start at 1 or have gaps."""
    if "classname" not in (columns := next(iter(rows.values()))) or "label" not in columns:
        return False
    words = {number: row["label"] for number, row in rows.items() if not row["label"].isdecimal()}
    if words and len(words) < len(rows):
        number, word = next(iter(words.items()))
        raise ValueError(f"'{file}', line {number}: either all labels are numbers or none; got '{word}'")
    return not words


def _value(name: str, text: str) -> str:
    """Return the value of a column: accents are composed, and a whole number has no decimals."""
    return text if name == "path" else whole_number(composed(text))


def _check_class(place: str, row: Mapping[str, str]) -> None:
    """Raise ``ValueError`` if the label or class name of a line is missing, or the label is not a whole number."""
    for name in ("label", "classname"):
        value = row.get(name, "")
        if value.lower() in _MISSING:
            raise ValueError(f"{place}: {name} is '{value}', a missing value: give a class or remove the line")
    label = row.get("label", "")
    if _NUMBER.fullmatch(label) and not label.isdecimal():
        raise ValueError(f"{place}: label '{label}' is not a class: labels are words or whole numbers from 0 on")


def _rows(file: Path) -> dict[int, dict[str, str]]:
    """Return the values of the known columns by line number; none of the values is empty."""
    try:
        rows = dict(_parse(file))
    except UnicodeDecodeError as error:
        raise ValueError(f"'{file}' is not a CSV file in UTF-8 ({error}): save it as 'CSV UTF-8'") from error
    except (csv.Error, MemoryError) as error:
        raise ValueError(f"'{file}' is not a CSV file: {error}; put quotes around whole values") from error
    for number, row in rows.items():
        missing = [name for name, value in row.items() if not value]
        if missing:
            raise ValueError(f"'{file}', line {number}: no {missing[0]}")
        _check_class(f"'{file}', line {number}", row)
    if not rows:
        raise ValueError(f"'{file}' names no images")
    return rows


def _parse(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    check_regular(file)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        header = lines.readline()
        lines.seek(0)
        reader = csv.reader(lines, delimiter=max(_SEPARATORS, key=header.count), strict=True)
        titles = [title.strip().lower() for title in next(reader, [])]
        columns = {name: titles.index(name) for name in _COLUMNS if name in titles}
        if "path" not in columns or not {"label", "classname"} & set(columns):
            raise ValueError(
                f"'{file}' has the columns {', '.join(titles) or 'none'}; it must have path, and label or classname"
            )
        doubled = [name for name in columns if titles.count(name) > 1]
        if doubled:
            raise ValueError(f"'{file}' has {titles.count(doubled[0])} columns '{doubled[0]}': keep one")
        for row in reader:
            if not any(map(str.strip, row)):  # Excel writes such lines
                continue
            if any(row[len(titles) :]):
                raise ValueError(
                    f"'{file}', line {reader.line_num}: there are {len(row)} values for {len(titles)} columns; put "
                    "values with a separator in quotes"
                )
            row += [""] * (len(titles) - len(row))
            yield reader.line_num, {name: _value(name, row[place].strip()) for name, place in columns.items()}
