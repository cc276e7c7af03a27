"""Run folders -> rows -> tables."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate


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
            rows.append(read_metrics(path))
    return rows


def read_metrics(path: Path) -> dict:
    """One run's ``metrics.json``."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"'{path}' is not valid JSON ({error}); delete its folder and run again") from error


def _unique(values) -> list:
    return list(dict.fromkeys(values))


def shots_label(shots: int) -> str:
    """ "1 shot", "16 shots", "all images"."""
    return "all images" if shots < 0 else f"{shots} shot{'s' if shots > 1 else ''}"


def mean_and_deviation(values: Sequence[float]) -> str:
    """ "82.0 ± 0.4": mean and sample standard deviation; the mean alone for one value."""
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def table(rows: Sequence[dict], metric: str = "accuracy", style: str = "github") -> str:
    """Rows are trainers, columns are shots, cells are mean ± standard deviation over seeds.

    One table for each dataset and backbone, in the order in which the rows come.

    Raises:
        ValueError: no row has the metric; what there is is listed.
    """
    if not rows:
        return "no finished runs"
    numbers = _unique(k for row in rows for k, v in row.items() if isinstance(v, int | float) and k != "seed")
    if metric not in numbers:
        raise ValueError(f"no run has the metric '{metric}'; there are {', '.join(sorted(numbers))}")
    parts = []
    for dataset, backbone in _unique((row["dataset"], row["backbone"]) for row in rows):
        group = [row for row in rows if (row["dataset"], row["backbone"]) == (dataset, backbone)]
        parts.append(f"{metric} (%) on {dataset}, {backbone}, {_seeds(group)}\n\n{_one_table(group, metric, style)}")
    return "\n\n".join(parts)


def _seeds(rows: Sequence[dict]) -> str:
    seeds = sorted({row["seed"] for row in rows})
    return f"seed{'s' if len(seeds) > 1 else ''} {' '.join(map(str, seeds))}"


def _one_table(rows: Sequence[dict], metric: str, style: str) -> str:
    shots = sorted({row["shots"] for row in rows}, key=lambda k: (k < 0, k))
    lines = []
    for trainer in _unique(row["trainer"] for row in rows):
        line = [trainer]
        for k in shots:
            values = [r[metric] for r in rows if r["trainer"] == trainer and r["shots"] == k and metric in r]
            line.append(mean_and_deviation(values) if values else "")
        lines.append(line)
    return tabulate(lines, headers=["", *map(shots_label, shots)], tablefmt=style, disable_numparse=True)
