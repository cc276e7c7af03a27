"""Cells of tables: one metric of one trainer in one setting, over the seeds of its runs."""

import logging
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unskew.engine.run_dir import shots_label
from unskew.runs import costs
from unskew.runs.tables.protocol_rows import HARMONIC, ProtocolRow, harmonic_mean, sources, transfer_of

if TYPE_CHECKING:
    from unskew.runs.tables.comparison import Difference, Interval

logger = logging.getLogger("unskew")

SIGNIFICANT = 0.05  # a smaller corrected p-value is marked


@dataclass(frozen=True)
class Cell:
    """The runs of a trainer that differ in their seeds, or their average over datasets.

    Attributes:
        backbone: the name of the backbone.
        trainer: the name of the trainer.
        shots: training images per class; -1: all of them.
        metric: the name of a number in ``metrics.json``.
        parts: for each dataset, the metrics of the runs that have the number.
        interval: the 95% interval of the mean, in percent.
        compared_with: the trainer from which differences are taken.
        difference: the mean minus that of the other trainer.
        adjusted_p: the p-value of the difference, corrected for the number of trainers.
    """

    backbone: str
    trainer: str
    shots: int
    metric: str
    parts: tuple[tuple[Mapping, ...], ...]
    interval: "Interval | None" = None
    compared_with: str = ""
    difference: "Difference | None" = None
    adjusted_p: float | None = None

    @property
    def datasets(self) -> tuple[str, ...]:
        """The names of the datasets, one or more."""
        return tuple(rows[0]["dataset"] for rows in self.parts)

    @property
    def dataset(self) -> str:
        """The name of the only dataset; "" for an average."""
        return self.datasets[0] if len(self.parts) == 1 else ""

    @property
    def rows(self) -> list[Mapping]:
        """The metrics of all runs."""
        return [row for rows in self.parts for row in rows]

    @property
    def label(self) -> str:
        """The number of shots in words."""
        return label_of(self.rows[0])

    @property
    def protocol(self) -> str:
        """The name of the protocol of the runs; "" for runs that were trained and tested on the same classes."""
        row = self.rows[0]
        return row.protocol if isinstance(row, ProtocolRow) else ""

    @property
    def is_harmonic(self) -> bool:
        """True if the number is the harmonic mean of a base and a new accuracy."""
        return self.metric == HARMONIC and bool(self.protocol)

    @property
    def measured(self) -> list[Mapping]:
        """The metrics of all runs and evaluations in which the number was measured."""
        return [source for row in self.rows for source in sources(row, self.metric)]

    @property
    def values(self) -> list[float]:
        """The number of each run; of an average, only the mean over datasets."""
        return [row[self.metric] for row in self.parts[0]] if len(self.parts) == 1 else [self.mean]

    @property
    def mean(self) -> float:
        """The mean over seeds; of an average, over datasets too.

        A harmonic mean is that of the two means, as in the tables of CoCoOp (Zhou et al., CVPR 2022, Table 1).
        """
        return harmonic_mean(self._mean("base"), self._mean("new")) if self.is_harmonic else self._mean(self.metric)

    def _mean(self, metric: str) -> float:
        return statistics.fmean(statistics.fmean(row[metric] for row in rows) for rows in self.parts)

    @property
    def seeds(self) -> list[tuple[int, ...]]:
        """The seeds of the runs on each dataset, sorted."""
        return [tuple(sorted({row["seed"] for row in rows})) for rows in self.parts]

    @property
    def is_best(self) -> bool:
        """True if the other trainer is the best, and this one is it or does not differ from it significantly."""
        is_alike = self.adjusted_p is not None and not self.is_significant
        return self.compared_with == self.trainer or is_alike

    @property
    def is_significant(self) -> bool:
        """True if the difference from the other trainer is significant at the level 0.05."""
        return self.adjusted_p is not None and self.adjusted_p < SIGNIFICANT

    def record(self) -> dict:
        """Return all numbers by name, for files; ``None`` for a number that the cell does not have."""
        low, high = self.interval or (None, None)
        row, values, seeds = self.rows[0], self.values, self.seeds
        record = {
            "dataset": self.dataset or "average",
            "datasets": ", ".join(self.datasets),
            "backbone": self.backbone,
            "shots": self.shots,
            "longtail": bool(row.get("longtail", False)),
            "trainer": self.trainer,
            "metric": self.metric,
            "mean": None if math.isnan(self.mean) else self.mean,
            "std": None if len(values) < 2 or math.isnan(self.mean) else statistics.stdev(values),
            "low": low,
            "high": high,
            "seeds": min(map(len, seeds)),
            "seed_numbers": " ".join(map(str, sorted(set(seeds[0]).intersection(*seeds)))),
            "transductive": any(map(is_transductive, self.measured)),
            "unreadable_test": max(map(skipped_images, self.measured)),
            "protocol": self.protocol,
            "transfer": ", ".join(sorted({kind for row in self.measured if (kind := transfer_of(row))})),
        }
        if self.compared_with:
            mean, low, high, p_value = self.difference or (None, None, None, None)
            record |= {
                "compared_with": self.compared_with,
                "difference": mean,
                "difference_low": low,
                "difference_high": high,
                "p_value": p_value,
                "adjusted_p": self.adjusted_p,
            }
        return record


def label_of(row: Mapping) -> str:
    """Return the number of shots of a run in words."""
    return shots_label(row["shots"], bool(row.get("longtail", False)))


def is_percentage(metric: str) -> bool:
    """Return whether a metric is in percent, as all are except costs."""
    return metric not in costs.NAMES


def skipped_images(row: Mapping) -> int:
    """Return the number of unreadable test images that a run skipped."""
    count = row.get("unreadable_test", 0)
    return count if isinstance(count, int) else 0


def is_transductive(row: Mapping) -> bool:
    """Return whether a run used the unlabelled test images."""
    return bool(row.get("transductive"))


def grouped(rows: Iterable[Mapping], keys: Sequence[str]) -> dict[tuple, list]:
    """Return rows by their values of some keys, in the order of first appearance."""
    groups: dict[tuple, list] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def all_cells(
    rows: Sequence[Mapping],
    metrics: Sequence[str],
    together: bool = False,
    intervals: bool = False,
    compare: str = "",
) -> tuple[list[Cell], list[str]]:
    """Return the cells of all datasets, then those of their averages, and notes for the reader.

    Args:
        rows: metrics of runs; for intervals and differences, with the ``folder`` of each.
        metrics: names of numbers in ``metrics.json``.
        together: the averages of all backbones are over the same datasets.
        intervals: compute the 95% intervals.
        compare: the trainer from which the differences of the others are computed.

    Raises:
        ValueError: no row has a metric, or the comparison is impossible; the message lists the known names.
    """
    _check_metrics(rows, metrics)
    _warn_of_mixtures(rows)
    cells = _cells_of_datasets(rows, metrics)
    means, notes = _averages(cells, together)
    cells += means
    if intervals or compare:  # these need NumPy and read the predictions
        from unskew.runs.tables import cell_statistics

        return cell_statistics.complete(cells, intervals, compare), [*notes, *cell_statistics.notes(cells, compare)]
    return cells, notes


def _check_metrics(rows: Sequence[Mapping], wanted: Sequence[str]) -> None:
    numbers = {key for row in rows for key, value in row.items() if isinstance(value, int | float)}
    numbers -= {"seed", "shots", "longtail", "transductive", "unreadable_test"}
    for metric in wanted:
        if metric not in numbers:
            known = f"choose from {', '.join(sorted(numbers))}" if numbers else "no run has been tested"
            raise ValueError(f"no run has the metric '{metric}'; {known}")
        for row in rows:
            if not isinstance(row.get(metric, 0), int | float):
                logger.warning(f"'{row.get('folder')}' is not in the table: its {metric} is {row[metric]!r:.80}")


def _warn_of_mixtures(rows: Sequence[Mapping]) -> None:
    """Warn of runs that differ only in keys which the table does not show: it averages them like seeds."""
    seen: dict[tuple, Mapping] = {}
    for row in rows:
        key = (*(row.get(name) for name in ("dataset", "backbone", "trainer", "seed")), label_of(row))
        if seen.setdefault(key, row) is not row:
            where = f"'{seen[key].get('folder')}' and '{row.get('folder')}'"
            logger.warning(f"{where} are both {key[2]}, {key[4]}, seed {key[3]}: they are averaged like seeds")


def _cells_of_datasets(rows: Sequence[Mapping], metrics: Sequence[str]) -> list[Cell]:
    """Return the cells of all settings and metrics; rows without the number are left out."""
    settings: dict[tuple, list[Mapping]] = {}
    for row in rows:
        settings.setdefault((row["dataset"], row["backbone"], row["trainer"], label_of(row)), []).append(row)
    cells = []
    for (_, backbone, trainer, _), same in settings.items():
        for metric in metrics:
            having = tuple(row for row in same if isinstance(row.get(metric), int | float))
            if having:
                cells.append(Cell(backbone, trainer, same[0]["shots"], metric, (having,)))
    return cells


def _averages(cells: Sequence[Cell], together: bool = False) -> tuple[list[Cell], list[str]]:
    """Return the averages over datasets, and lines about datasets that are not in them.

    All trainers with the same backbone, shots and metric are averaged over the same datasets: those that all have.
    The numbers of a protocol share their datasets, so that H is the harmonic mean of the base and new beside it.

    Args:
        cells: the cells of all datasets.
        together: all backbones share a table, so their averages are over the same datasets too.
    """
    groups: dict[tuple, dict[tuple, dict[str, Cell]]] = {}
    for cell in cells:
        setting = ("" if together else cell.backbone, cell.label, "" if cell.protocol else cell.metric)
        lines = groups.setdefault(setting, {})
        lines.setdefault((cell.trainer, cell.backbone, cell.metric), {})[cell.dataset] = cell
    found, notes = [], []
    for (_, label, _), lines in groups.items():
        every = list(dict.fromkeys(dataset for of_line in lines.values() for dataset in of_line))
        common = [dataset for dataset in every if all(dataset in of_line for of_line in lines.values())]
        if len(every) > 1:
            notes += _missing(lines, every, common, label)
        if len(common) > 1:
            for (trainer, backbone, metric), of_line in lines.items():
                chosen = [of_line[dataset] for dataset in common]
                parts = tuple(cell.parts[0] for cell in chosen)
                found.append(Cell(backbone, trainer, chosen[0].shots, metric, parts))
    return found, list(dict.fromkeys(notes))


def _missing(lines: Mapping[tuple, Mapping], every: Sequence[str], common: Sequence[str], label: str) -> list[str]:
    """Return a line about the datasets that are not in an average; none if all are."""
    left_out = []
    for dataset in every:
        if dataset not in common:
            without = dict.fromkeys(trainer for (trainer, *_), of_line in lines.items() if dataset not in of_line)
            left_out.append(f"{dataset} (no {', '.join(without)})")
    if not left_out:
        return []
    start = (
        "the average at {} leaves out {}" if len(common) > 1 else "no average at {}, because some runs are missing: {}"
    )
    return [start.format(label, ", ".join(left_out))]
