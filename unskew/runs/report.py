"""Run folders -> rows -> tables."""

import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from unskew.engine.run_dir import shots_label
from unskew.utils.files import write_atomically

logger = logging.getLogger("unskew")


def collect(folder: str | Path) -> list[dict]:
    """The metrics of every finished run below ``folder``, by path in order.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: a ``metrics.json`` is not JSON; the message names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder '{folder}'; give the output folder of a sweep")
    rows = []
    for done in sorted(folder.rglob("done")):
        path = done.with_name("metrics.json")
        if path.is_file():
            rows.append({**read_metrics(path), "folder": str(done.parent)})
    return rows


def read_metrics(path: Path) -> dict:
    """One run's ``metrics.json``."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"'{path}' is not valid JSON ({error}); delete its folder and run again") from error
    if not isinstance(metrics, dict):
        raise ValueError(f"'{path}' holds no metrics by name; delete its folder and run again")
    return metrics


def write_metrics(path: Path, metrics: Mapping[str, object]) -> None:
    """Write a flat object with a line for each key, that of a list too."""
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in metrics.items())
    write_atomically(path, f"{{\n{lines}\n}}\n")


def _unique(values) -> list:
    return list(dict.fromkeys(values))


def mean_and_deviation(values: Sequence[float]) -> str:
    """ "82.0 ± 0.4": mean and sample standard deviation; the mean alone for one value."""
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def table(
    rows: Sequence[dict],
    metric: str = "accuracy",
    style: str = "github",
    columns: Sequence[str] = (),
    together: bool = False,
) -> str:
    """Rows are trainers, cells are mean ± standard deviation over seeds.

    One table for each dataset and backbone, in the order in which the rows come, whose columns are shots; with
    ``columns`` one for each number of shots as well, whose columns are these metrics. With ``together`` one for all
    backbones, which stand beside the trainers.

    Raises:
        ValueError: no row has a metric; what there is is listed.
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
            raise ValueError(f"no run has the metric '{metric}'; there are {', '.join(sorted(numbers))}")


def _warn_of_mixtures(rows: Sequence[dict]) -> None:
    """Runs that differ in a key which no row or column shows would be averaged as if they were seeds."""
    seen: dict[tuple, dict] = {}
    for row in rows:
        key = tuple(row.get(name) for name in ("dataset", "backbone", "trainer", "shots", "seed"))
        if seen.setdefault(key, row) is not row:
            where = f"'{seen[key].get('folder')}' and '{row.get('folder')}'"
            logger.warning(f"{where} are both {key[2]}, {shots_label(key[3])}, seed {key[4]}: the table averages them")


def _unit(*metrics: str) -> str:
    """All metrics are percentages but the time."""
    return "" if "seconds" in metrics else " (%)"


def _short(metric: str) -> str:
    """ "zs", "macro f1", "p few": a metric as the head of a narrow column."""
    return metric.removesuffix("_accuracy").replace("_", " ")


def _seeds(rows: Sequence[dict]) -> str:
    seeds = sorted({row["seed"] for row in rows})
    return f"seed{'s' if len(seeds) > 1 else ''} {' '.join(map(str, seeds))}"


def _values(row: dict, keys: Sequence[str]) -> tuple:
    return tuple(row[key] for key in keys)


def _grid(rows: Sequence[dict], names: Sequence[str], columns: Sequence[tuple[str, int, str]], style: str) -> str:
    """A line for each trainer (and backbone, with both in ``names``); a column is its head, shots and a metric."""
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
