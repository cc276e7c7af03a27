"""Tables and data frames of the metrics of finished runs."""

import json
import logging
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unskew.engine.run_dir import shots_label
from unskew.utils.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("unskew")


def collect(folder: str | Path) -> list[dict]:
    """Return the metrics of every finished run below a folder, in the order of their paths.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: a ``metrics.json`` is not JSON.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder '{folder}'; give the output folder of finished runs")
    rows = []
    for done in sorted(folder.rglob("done")):
        path = done.with_name("metrics.json")
        if path.is_file():
            rows.append({**read_metrics(path), "folder": str(done.parent)})
    return rows


def results(folder: str | Path = "output") -> "pd.DataFrame":
    """Return the metrics of every finished run below a folder as a data frame with one row per run.

    Args:
        folder: a folder of runs, at any depth.

    Returns:
        The columns are the keys of ``metrics.json`` (dataset, trainer, backbone, shots, seed, accuracy, ...) and the
        run's ``folder``.

    Raises:
        FileNotFoundError: the folder does not exist.

    Example:
        >>> import tempfile, unskew
        >>> output = tempfile.mkdtemp()
        >>> run = unskew.train("digits", "ZeroshotCLIP", shots=1, seed=1, output=output)
        >>> frame = unskew.results(output)
        >>> len(frame), float(frame["accuracy"][0]) == run.metrics["accuracy"]
        (1, True)
    """
    import pandas as pd

    return pd.DataFrame(collect(folder))


def read_metrics(path: Path) -> dict:
    """Read one run's ``metrics.json``."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"'{path}' is not valid JSON ({error}); delete its folder and run again") from error
    if not isinstance(metrics, dict):
        raise ValueError(f"'{path}' must hold metrics by name; delete its folder and run again")
    return metrics


def write_metrics(path: Path, metrics: Mapping[str, object]) -> None:
    """Write metrics as a JSON object with one line for each key."""
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in metrics.items())
    write_atomically(path, f"{{\n{lines}\n}}\n")


def _unique(values: Iterable[tuple]) -> list[tuple]:
    return list(dict.fromkeys(values))


def mean_and_deviation(values: Sequence[float]) -> str:
    """Return "82.0 ± 0.4", mean and sample standard deviation; for one value only the mean."""
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def table(
    rows: Sequence[dict],
    metric: str = "accuracy",
    style: str = "github",
    columns: Sequence[str] = (),
    together: bool = False,
) -> str:
    """Return tables whose rows are trainers and whose cells are mean ± standard deviation over seeds.

    There is one table for each dataset and backbone, in the order of the rows.

    Args:
        rows: metrics of runs.
        metric: the metric in the cells; the columns are numbers of shots.
        style: a table format of tabulate.
        columns: several metrics as columns instead; there is one table for each number of shots too.
        together: put all backbones into one table, with a column of their names.

    Raises:
        ValueError: no row has a metric; the message lists the known ones.
    """
    if not rows:
        return "no finished runs"
    _check_metrics(rows, columns or [metric])
    _warn_of_mixtures(rows)
    parts = []
    where_of, names = (("dataset",), ("trainer", "backbone")) if together else (("dataset", "backbone"), ("trainer",))
    for place in _unique(_values(row, where_of) for row in rows):
        group = [row for row in rows if _values(row, where_of) == place]
        where, shots = ", ".join(place), sorted({row["shots"] for row in group}, key=lambda k: (k < 0, k))
        labels = {k: shots_label(k, group[0].get("longtail", False)) for k in shots}
        if not columns:
            title = f"{metric}{_unit(metric)} on {where}, {_seeds(group)}"
            parts.append((title, _grid(group, names, [(labels[k], k, metric) for k in shots], style)))
            continue
        for k in shots:
            same = [row for row in group if row["shots"] == k]
            title = f"{where}, {labels[k]}, {_seeds(same)}{_unit(*columns)}"
            parts.append((title, _grid(same, names, [(_short(name), k, name) for name in columns], style)))
    return "\n\n".join(f"{title}\n\n{grid}" for title, grid in parts)


def _check_metrics(rows: Sequence[dict], wanted: Sequence[str]) -> None:
    numbers = {key for row in rows for key, value in row.items() if isinstance(value, int | float)}
    numbers -= {"seed", "shots", "longtail"}
    for metric in wanted:
        if metric not in numbers:
            raise ValueError(f"no run has the metric '{metric}'; choose from {', '.join(sorted(numbers))}")


def _warn_of_mixtures(rows: Sequence[dict]) -> None:
    """Warn of runs that differ only in keys which the table does not show: it averages them like seeds."""
    seen: dict[tuple, dict] = {}
    for row in rows:
        key = tuple(row.get(name) for name in ("dataset", "backbone", "trainer", "shots", "seed"))
        if seen.setdefault(key, row) is not row:
            where = f"'{seen[key].get('folder')}' and '{row.get('folder')}'"
            shots = shots_label(row.get("shots", -1))
            logger.warning(f"{where} are both {key[2]}, {shots}, seed {key[4]}: the table averages them")


def _unit(*metrics: str) -> str:
    """Return the unit: all metrics except the time are percentages."""
    return "" if "seconds" in metrics else " (%)"


def _short(metric: str) -> str:
    """Return a short column header of a metric: "zs", "macro f1", "p few"."""
    return metric.removesuffix("_accuracy").replace("_", " ")


def _seeds(rows: Sequence[dict]) -> str:
    seeds = sorted({row["seed"] for row in rows})
    return f"seed{'s' if len(seeds) > 1 else ''} {' '.join(map(str, seeds))}"


def _values(row: dict, keys: Sequence[str]) -> tuple:
    return tuple(row[key] for key in keys)


def _grid(rows: Sequence[dict], names: Sequence[str], columns: Sequence[tuple[str, int, str]], style: str) -> str:
    """Return a table with one line for each combination of ``names``.

    Args:
        rows: metrics of runs.
        names: the keys that tell the lines apart, "trainer" and perhaps "backbone".
        columns: (header, shots, metric) of each column.
        style: a table format of tabulate.
    """
    from tabulate import tabulate

    lines = []
    for line in _unique(_values(row, names) for row in rows):
        cells = []
        for _, shots, metric in columns:
            same = [row for row in rows if _values(row, names) == line and row["shots"] == shots]
            values = [row[metric] for row in same if metric in row]
            cells.append(mean_and_deviation(values) if values else "")
        lines.append([*line, *cells])
    headers = ["", *names[1:], *(head for head, *_ in columns)]
    return tabulate(lines, headers=headers, tablefmt=style, disable_numparse=True)
