"""Records of the cells of tables, with all their numbers, for other programs."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unskew.runs import tables
from unskew.runs.tables import protocol_tables
from unskew.runs.tables.cells import all_cells

if TYPE_CHECKING:
    import pandas as pd


def records(
    rows: Sequence[Mapping], metrics: Sequence[str] = ("accuracy",), together: bool = False, compare: str = ""
) -> list[dict]:
    """Return a record of each dataset, backbone, number of shots, trainer and metric, and of the averages.

    Args:
        rows: metrics of runs with their ``folder``, as `unskew.runs.tables.collect` returns them.
        metrics: names of numbers in ``metrics.json``.
        together: the averages of all backbones are over the same datasets.
        compare: the trainer from which the differences of the others are computed.

    Raises:
        ValueError: no row has a metric, or the comparison is impossible.
    """
    return [cell.record() for cell in all_cells(rows, metrics, together, True, compare)[0]] if rows else []


def all_records(
    rows: Sequence[Mapping],
    evaluations: Sequence[Mapping],
    metrics: Sequence[str] = ("accuracy",),
    together: bool = False,
    compare: str = "",
) -> list[dict]:
    """Return the `records` of ordinary runs and, with the accuracy, those of base to new and of transfers to targets.

    Args:
        rows: metrics of runs with their ``folder``, as `unskew.runs.tables.collect` returns them.
        evaluations: metrics of their evaluations with their ``folder``.
        metrics: names of numbers in ``metrics.json``.
        together: the averages of all backbones are over the same datasets.
        compare: the trainer from which the differences of the others are computed.

    Raises:
        ValueError: no row has a metric, or the comparison is impossible.
    """
    whole = [row for row in rows if not tables.is_half(row)]
    protocols = protocol_tables.split(rows, evaluations) if "accuracy" in metrics else {}
    compare_with = protocol_tables.known_trainer(compare, whole, protocols)
    found = records(whole, metrics, together, compare_with)
    for of_protocol in protocols.values():
        for group in protocol_tables.groups(of_protocol):
            compare_with = protocol_tables.known_trainer(compare, group, {"": whole})
            found += records(group, protocol_tables.columns(group), False, compare_with)
    names = dict.fromkeys(name for record in found for name in record)
    return [{name: record.get(name) for name in names} for record in found]


def summarize(
    folder: str | Path = "output", metrics: str | Sequence[str] = "accuracy", compare: str = ""
) -> "pd.DataFrame":
    """Return means, 95% intervals and differences over the seeds of the finished runs below a folder.

    Args:
        folder: a folder of runs, at any depth.
        metrics: one or several names of numbers in ``metrics.json``.
        compare: the trainer from which the differences of the others are computed.

    Returns:
        A data frame with one row for each dataset, backbone, number of shots, trainer and metric, and for each average
        over datasets. Its columns are those of ``unskew table --format csv``. With the accuracy, it has rows of base to
        new and of transfers too, whose ``protocol`` is not empty and whose ``metric`` is a column of their table.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: no run has a metric, or the comparison is impossible.

    Examples:
        >>> import tempfile, unskew
        >>> output = tempfile.mkdtemp()
        >>> run = unskew.train("digits", "ZeroshotCLIP", shots=1, seed=1, output=output)
        >>> row = unskew.summarize(output).iloc[0]
        >>> bool(row["low"] < row["mean"] < row["high"]), int(row["seeds"])
        (True, 1)
    """
    import pandas as pd

    names = [metrics] if isinstance(metrics, str) else metrics
    return pd.DataFrame(all_records(*tables.collect_both(folder), names, compare=compare))


def as_json(found: Sequence[Mapping]) -> str:
    """Return records as a JSON list with one record in each line."""
    lines = ",\n".join(json.dumps(record) for record in found)
    return f"[\n{lines}\n]" if found else "[]"


def as_csv(found: Sequence[Mapping]) -> str:
    """Return records as CSV with a header; a number that a cell does not have is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0]) if found else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue().strip("\n")
