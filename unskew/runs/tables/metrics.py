"""Metrics of finished runs: their files, and a data frame of all runs below a folder."""

import logging
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unskew.engine.run_dir import RunDir
from unskew.runs import costs
from unskew.utils.errors import format_error
from unskew.utils.files import read_json
from unskew.utils.registry import unknown_name

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("unskew")

_LARGEST = 2**63  # a larger number in metrics.json is damage

# Keys of each metrics.json; the other values are numbers, texts or lists.
_TEXTS, _WHOLE_NUMBERS, _NUMBERS = ("dataset", "trainer", "backbone"), ("shots", "seed"), ("accuracy", "seconds")

_FIXED = ("accuracy", "error_rate", "macro_f1", "ece", *costs.NAMES)
_GROUP = "(many|medium|few)"


def collect(folder: str | Path) -> list[dict]:
    """Return the metrics of every finished run below a folder, in the order of their paths.

    A folder whose files are damaged or unreadable is left out, with a warning that names it. Evaluations of trained
    runs are left out too, and `evaluations` leaves out those of runs that were trained again.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    return collect_both(folder)[0]


def evaluations(folder: str | Path) -> list[dict]:
    """Return the metrics of every finished evaluation below a folder, see `collect`."""
    return collect_both(folder)[1]


def collect_both(folder: str | Path) -> tuple[list[dict], list[dict]]:
    """Return the metrics of the finished runs and of the finished evaluations; each file is read once."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder '{folder}'; give the output folder of finished runs")
    rows = []
    for done in sorted(folder.rglob("done")):
        run = RunDir(done.parent)
        try:
            if run.is_finished and run.metrics.exists():  # the members of a run have no metrics
                row = {**read_metrics(run.metrics), "folder": str(run.path)}
                if is_outdated(row, source_folder(row)):
                    logger.warning(f"'{run.path}' is left out: its run was trained again since; evaluate it again")
                else:
                    rows.append(row)
            elif (damage := run.damage()) and (run.config.is_file() or run.log.is_file()):
                logger.warning(f"{damage}, so '{run.path}' is left out: run it again")
        except (ValueError, OSError) as error:
            logger.warning(f"'{run.path}' is left out: {format_error(error)}")
    return [row for row in rows if "evaluated_from" not in row], [row for row in rows if "evaluated_from" in row]


def source_folder(evaluation: Mapping) -> Path:
    """Return the folder of the evaluated run: the evaluation is below it, unless its folder was chosen."""
    folder = Path(os.path.abspath(evaluation["folder"]))
    above, given = folder.parent.parent, os.path.abspath(str(evaluation.get("evaluated_from") or folder))
    is_below = folder.parent.name == "eval" and (RunDir(above).metrics.is_file() or not Path(given).is_dir())
    return above if is_below else Path(given)


def state_of_training(folder: str | Path) -> str:
    """Return the fingerprint and the accuracy of a finished run, for the evaluations of it; "" for other folders."""
    run = RunDir(folder)
    if not (run.is_finished and run.metrics.is_file()):
        return ""
    return f"{run.done.read_text(encoding='utf-8').split()[0]} {read_json(run.metrics).get('accuracy')}"


def is_outdated(evaluation: Mapping, source: str | Path) -> bool:
    """Return whether a run was trained again after an evaluation; evaluations of older versions do not tell."""
    state = evaluation.get("source_state")
    return state is not None and Path(source).is_dir() and state != state_of_training(source)


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

    Examples:
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


def check_columns(columns: Sequence[str], others: bool = False) -> None:
    """Raise ``ValueError`` for a column that no run of a sweep can have.

    Args:
        columns: names of metrics.
        others: accept other names too, because a plugin may report them.
    """
    for name in columns:
        if not (others or name in _FIXED or name.endswith("_accuracy") or is_group(name) or is_target(name)):
            known = ", ".join(_FIXED)
            raise ValueError(f"no run has the metric '{name}'; choose from {known}, <part>_accuracy, p_few, d_few")


def is_group(name: str) -> bool:
    """Return whether a metric is the accuracy of a group of classes: "p_few", "d_many" or "d_many_p_few"."""
    return bool(re.fullmatch(f"[dp]_{_GROUP}|d_{_GROUP}_p_{_GROUP}", name))


def is_target(name: str) -> bool:
    """Return whether a metric is the accuracy at other class frequencies than uniform ones: "forward_50"."""
    return bool(re.fullmatch("(forward|backward)_[0-9]+", name))


def mean_and_deviation(values: Sequence[float], mean: float | None = None) -> str:
    """Return "82.0 ± 0.4", mean and sample standard deviation; for one value only the mean.

    Args:
        values: the number of each run.
        mean: their mean, if it is not the arithmetic one.
    """
    text = f"{statistics.fmean(values) if mean is None else mean:.1f}"
    return f"{text} ± {statistics.stdev(values):.1f}" if len(values) > 1 else text


def is_half(row: Mapping) -> bool:
    """Return whether a run was trained on half of the classes, so that no ordinary table shows it."""
    return row.get("subsample", "all") != "all"
