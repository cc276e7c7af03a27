"""Tables and data frames of the metrics of finished runs."""

import json
import logging
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unskew.engine.run_dir import RunDir, shots_label
from unskew.utils.errors import format_error
from unskew.utils.files import read_json, write_atomically
from unskew.utils.registry import unknown_name

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("unskew")

_LARGEST = 2**63  # a larger number in metrics.json is damage

# Keys of each metrics.json; the other values are numbers, texts or lists.
_TEXTS, _WHOLE_NUMBERS, _NUMBERS = ("dataset", "trainer", "backbone"), ("shots", "seed"), ("accuracy", "seconds")

_FIXED = ("accuracy", "error_rate", "macro_f1", "ece", "seconds")
_GROUP = "(many|medium|few)"

_MARK = "*"  # at the name of a trainer
_SKIPPED_MARK = "\N{DAGGER}"  # at a cell whose runs skipped unreadable test images


def collect(folder: str | Path) -> list[dict]:
    """Return the metrics of every finished run below a folder, in the order of their paths.

    A folder whose files are damaged or unreadable is left out, with a warning that names it.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder '{folder}'; give the output folder of finished runs")
    rows = []
    for done in sorted(folder.rglob("done")):
        run = RunDir(done.parent)
        try:
            if run.is_finished and run.metrics.exists():  # the members of a run have no metrics
                rows.append({**read_metrics(run.metrics), "folder": str(run.path)})
            elif (damage := run.damage()) and (run.config.is_file() or run.log.is_file()):
                logger.warning(f"{damage}, so '{run.path}' is left out: run it again")
        except (ValueError, OSError) as error:
            logger.warning(f"'{run.path}' is left out: {format_error(error)}")
    return rows


def select(rows: Sequence[dict], datasets: Sequence[str]) -> list[dict]:
    """Return the rows of datasets, whose names may be in upper or lower case; no names select all rows.

    Raises:
        ValueError: no row has one of the names; the message suggests similar ones.
    """
    known = {row["dataset"].lower(): row["dataset"] for row in rows}
    for name in datasets:
        if rows and name.lower() not in known:
            raise ValueError(unknown_name("dataset", name, known.values()))
    wanted = {name.lower() for name in datasets}
    return [row for row in rows if not wanted or row["dataset"].lower() in wanted]


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
    """Read one run's ``metrics.json``.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    try:
        metrics = read_json(path)
        if not isinstance(metrics, dict):
            raise ValueError(f"'{path}' must hold metrics by name")
        for keys, kind in ((_TEXTS, str), (_WHOLE_NUMBERS, int)):
            for key in keys:
                if not isinstance(metrics.get(key), kind) or isinstance(metrics[key], bool):
                    raise ValueError(f"'{path}' is damaged: {key} is {metrics.get(key)!r:.80}")
        for key, value in metrics.items():
            is_number = isinstance(value, int | float) and abs(value) < _LARGEST
            if (key in _NUMBERS and not (is_number or value != value)) or (isinstance(value, int) and not is_number):
                raise ValueError(f"'{path}' is damaged: {key} is {value!r:.80}")
    except ValueError as error:
        raise ValueError(f"{error}; delete the folder '{path.parent}' and run again") from error
    return metrics


def write_metrics(path: Path, metrics: Mapping[str, object]) -> None:
    """Write metrics as a JSON object with one line for each key."""
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in metrics.items())
    write_atomically(path, f"{{\n{lines}\n}}\n")


def check_columns(columns: Sequence[str], others: bool = False) -> None:
    """Raise ``ValueError`` for a column that no run of a sweep can have.

    Args:
        columns: names of metrics.
        others: accept other names too, because a plugin may report them.
    """
    for name in columns:
        if not (others or name in _FIXED or name.endswith("_accuracy") or is_group(name)):
            known = ", ".join(_FIXED)
            raise ValueError(f"no run has the metric '{name}'; choose from {known}, <part>_accuracy, p_few, d_few")


def is_group(name: str) -> bool:
    """Return whether a metric is the accuracy of a group of classes: "p_few", "d_many" or "d_many_p_few"."""
    return bool(re.fullmatch(f"[dp]_{_GROUP}|d_{_GROUP}_p_{_GROUP}", name))


def _grouped(rows: Iterable[dict], keys: Sequence[str]) -> dict[tuple, list[dict]]:
    """Return rows by their values of some keys, in the order of first appearance."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


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

    There is one table for each dataset and backbone, in the order of the rows. Trainers whose predictions used the
    unlabelled test images are marked, and so are cells whose runs skipped unreadable test images.

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
    for place, group in _grouped(rows, where_of).items():
        by_shots = {k: same for (k,), same in _grouped(group, ["shots"]).items()}
        where, shots = ", ".join(place), sorted(by_shots, key=lambda k: (k < 0, k))
        labels = {k: shots_label(k, group[0].get("longtail", False)) for k in shots}
        if not columns:
            title = f"{metric}{_unit(metric)} on {where}, {_seeds(group)}"
            parts.append((title, _grid(group, names, [(labels[k], k, metric) for k in shots], style)))
            continue
        for k in shots:
            title = f"{where}, {labels[k]}, {_seeds(by_shots[k])}{_unit(*columns)}"
            parts.append((title, _grid(by_shots[k], names, [(_short(name), k, name) for name in columns], style)))
    return "\n\n".join([*(f"{title}\n\n{grid}" for title, grid in parts), *_notes(rows)])


def _notes(rows: Sequence[dict]) -> list[str]:
    """Return the explanations of the marks."""
    notes = [f"{_MARK} used the unlabelled test images"] if any(map(_is_transductive, rows)) else []
    if most := max(map(_skipped, rows), default=0):
        notes.append(f"{_SKIPPED_MARK} without unreadable test images, at most {most:,} per run")
    return notes


def _skipped(row: dict) -> int:
    count = row.get("unreadable_test", 0)
    return count if isinstance(count, int) else 0


def _is_transductive(row: dict) -> bool:
    return bool(row.get("transductive"))


def _check_metrics(rows: Sequence[dict], wanted: Sequence[str]) -> None:
    numbers = {key for row in rows for key, value in row.items() if isinstance(value, int | float)}
    numbers -= {"seed", "shots", "longtail", "transductive", "unreadable_test"}
    for metric in wanted:
        if metric not in numbers:
            known = f"choose from {', '.join(sorted(numbers))}" if numbers else "no run has been tested"
            raise ValueError(f"no run has the metric '{metric}'; {known}")
        for row in rows:
            if not isinstance(row.get(metric, 0), int | float):
                logger.warning(f"'{row.get('folder')}' is not in the table: its {metric} is {row[metric]!r:.80}")


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
    for line, of_line in _grouped(rows, names).items():
        by_shots, cells = _grouped(of_line, ["shots"]), []
        for _, shots, metric in columns:
            same = by_shots.get((shots,), [])
            values = [row[metric] for row in same if isinstance(row.get(metric), int | float)]
            mark = f" {_SKIPPED_MARK}" if any(map(_skipped, same)) else ""
            cells.append(mean_and_deviation(values) + mark if values else "")
        seen = any(map(_is_transductive, of_line))
        lines.append([f"{line[0]} {_MARK}" if seen else line[0], *line[1:], *cells])
    headers = ["", *names[1:], *(head for head, *_ in columns)]
    return tabulate(lines, headers=headers, tablefmt=style, disable_numparse=True)
