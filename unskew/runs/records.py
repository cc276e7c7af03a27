"""Records of the cells of tables, with all their numbers, for other programs."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unskew.runs import tables
from unskew.runs.cells import all_cells

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
        over datasets. Its columns are those of ``unskew table --format csv``.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: no run has a metric, or the comparison is impossible.

    Example:
        >>> import tempfile, unskew
        >>> output = tempfile.mkdtemp()
        >>> run = unskew.train("digits", "ZeroshotCLIP", shots=1, seed=1, output=output)
        >>> row = unskew.summarize(output).iloc[0]
        >>> bool(row["low"] < row["mean"] < row["high"]), int(row["seeds"])
        (True, 1)
    """
    import pandas as pd

    names = [metrics] if isinstance(metrics, str) else metrics
    return pd.DataFrame(records(tables.collect(folder), names, compare=compare))


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
