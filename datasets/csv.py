"""Images of your own that a CSV file names: columns path, label or classname, and split."""

import csv
import os
import random
from pathlib import Path

from unskew.data.custom import read_names, selected, split_name
from unskew.data.dataset import DATASET_REGISTRY, DatasetBase, Datum
from unskew.data.published import SPLITS
from unskew.data.sampling import split_in_three
from unskew.data.splits import check_distinct
from unskew.utils.files import expand

COLUMNS = ("path", "label", "classname", "split")


@DATASET_REGISTRY.register("csv")
class CSV(DatasetBase):
    """``ROOT`` is the file; its paths are absolute or relative to its folder.

    Without a column ``split`` 50, 20 and 30% of each class are train, val and test, the same for every seed.
    """

    def __init__(self, cfg):
        file = expand(cfg.DATASET.ROOT)
        if not file.is_file():
            raise FileNotFoundError(f"there is no file '{cfg.DATASET.ROOT}': give your CSV file with --root")
        super().__init__(**selected(cfg, file, read(file, cfg.DATASET.CLASSNAMES)))


def read(file: Path, names_file: str = "") -> dict[str, list[Datum]]:
    """All images by split.

    Raises:
        ValueError: a column is missing, or a line has no path, no class, or another split; says which.
    """
    rows = _rows(file)
    names, column = read_names(names_file), "classname" if "classname" in next(iter(rows.values())) else "label"
    values = sorted({row[column] for row in rows.values()}, key=_in_order)
    labels = {value: label for label, value in enumerate(values)}
    numbered = column == "classname" and any(row.get("label", "").isdecimal() for row in rows.values())
    numbers = sorted({int(row["label"]) for row in rows.values() if numbered and row["label"].isdecimal()})
    places = {number: label for label, number in enumerate(numbers)}  # those from 1 on, or with gaps
    splits: dict[str, list[Datum]] = {}
    for number, row in rows.items():
        value = row[column]
        if numbered and not row["label"].isdecimal():
            raise ValueError(
                f"'{file}', line {number}: beside class names labels must be numbers, all or none; got '{row['label']}'"
            )
        if names and value not in names:
            raise ValueError(f"DATASET.CLASSNAMES '{names_file}' has no name for '{value}'")
        label = places[int(row["label"])] if numbered else labels[value]
        split = split_name(row["split"]) if "split" in row else ""
        if split is None:
            raise ValueError(f"'{file}', line {number}: split must be train, val or test, got '{row['split']}'")
        path = os.path.normpath(file.parent / row["path"])  # an absolute one stays as it is
        splits.setdefault(split, []).append(Datum(path, label, 0, names.get(value, value)))
    check_distinct(file, splits)
    if "" in splits:
        return dict(zip(SPLITS, split_in_three(splits[""], random.Random(0)), strict=True))
    return splits


def _in_order(value: str) -> tuple:
    """Numbers by their value, before words by the alphabet."""
    return (0, int(value), value) if value.isdecimal() else (1, 0, value)


def _rows(file: Path) -> dict[int, dict[str, str]]:
    """By line number, the values of the columns that count; none of them is empty."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            known = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
            columns = {name: known[name] for name in COLUMNS if name in known}
            if "path" not in columns or not {"label", "classname"} & set(columns):
                raise ValueError(
                    f"'{file}' has the columns {', '.join(known) or 'none'}; it must have path, and label or classname"
                )
            rows = {}
            for row in reader:
                rows[reader.line_num] = {name: (row[title] or "").strip() for name, title in columns.items()}
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"'{file}' is not a CSV file in UTF-8: {error}") from error
    for number, row in rows.items():
        if not all(row.values()):
            missing = next(name for name, value in row.items() if not value)
            raise ValueError(f"'{file}', line {number}: no {missing}")
    if not rows:
        raise ValueError(f"'{file}' names no images")
    return rows
