"""Intervals of cells of tables, and their differences from those of another trainer."""

import logging
import math
import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from unskew.runs import comparison
from unskew.runs.cells import Cell, is_percentage
from unskew.runs.outcomes import Outcomes, outcomes
from unskew.utils.registry import unknown_name

logger = logging.getLogger("unskew")

# Metrics whose names end like accuracies of parts of the prediction, but which are means over classes.
_OVER_CLASSES = ("balanced_accuracy", "perclass_accuracy")


def complete(cells: Sequence[Cell], intervals: bool, compare: str) -> list[Cell]:
    """Return cells with their 95% intervals and their differences from another trainer.

    Args:
        cells: cells whose rows have the ``folder`` of their runs.
        intervals: compute the intervals.
        compare: the name of the other trainer; "": no differences.

    Raises:
        ValueError: no cell is of the trainer, or a metric has no value for each image.
    """
    read = _Reader()
    completed = [replace(cell, interval=_interval(cell, read)) for cell in cells] if intervals else [*cells]
    if not compare:
        return completed
    trainers = list(dict.fromkeys(cell.trainer for cell in cells))
    if compare not in trainers:
        raise ValueError(unknown_name("trainer to compare with", compare, trainers))
    if over_seeds := [cell.metric for cell in cells if not _part(cell.metric)]:
        wrong = over_seeds[0]
        raise ValueError(
            f"'{wrong}' is not defined for a single image, so it cannot be compared; choose accuracy or zs_accuracy"
        )
    return [cell for group in _settings(completed) for cell in _compared(group, compare, read)]


def against_best(cells: Sequence[Cell]) -> list[Cell]:
    """Return cells of accuracies with their 95% intervals and their differences from the best trainer of their setting.

    The best is chosen by the same images, so the level is exceeded somewhat: of 5 (10) equal trainers, some differ
    significantly with a probability of 8% (10%) instead of 5%. A trainer alone in its setting has no difference.
    """
    read = _Reader()
    completed = []
    for group in _settings([replace(cell, interval=_interval(cell, read)) for cell in cells]):
        best = max(group, key=lambda cell: cell.mean)
        completed += _compared(group, best.trainer, read) if len(group) > 1 else group
    return completed


def _settings(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Return cells by dataset, backbone, number of shots and metric."""
    groups: dict[tuple, list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.dataset, cell.backbone, cell.label, cell.metric), []).append(cell)
    return list(groups.values())


def notes(metrics: Sequence[str], compare: str) -> list[str]:
    """Return the sentences that tell which variation the intervals and p-values cover."""
    over_seeds = [metric for metric in metrics if not _part(metric)]
    found = [comparison.INTERVAL_NOTE] if len(over_seeds) < len(metrics) else []
    if over_seeds:
        found.append(f"intervals of {', '.join(over_seeds)} are Student's t and cover the choice of the seeds only")
    return [*found, comparison.TEST_NOTE] if compare else found


def _part(metric: str) -> str:
    """Return the name of the logits with this accuracy: "logits", "zs"; "" for a metric that images do not have."""
    if metric == "accuracy":
        return "logits"
    return metric.removesuffix("_accuracy") if metric.endswith("_accuracy") and metric not in _OVER_CLASSES else ""


class _Reader:
    """The correctness of the runs in a cell; each file is read once, and each problem is one warning."""

    def __init__(self) -> None:
        self._known: dict[tuple, Outcomes | None] = {}

    def __call__(self, cell: Cell) -> list[Outcomes]:
        """Return the correctness on each dataset; nothing if that of one dataset is not known."""
        found = [self._of_part(rows, _part(cell.metric)) for rows in cell.parts]
        known = [table for table in found if table is not None]
        return known if len(known) == len(found) else []

    def _of_part(self, rows: Sequence, part: str) -> Outcomes | None:
        rows = sorted(rows, key=lambda row: row["seed"])
        key = (part, *(row["folder"] for row in rows))
        if key not in self._known:
            self._known[key] = None
            try:
                self._known[key] = outcomes(rows, part)
            except ValueError as error:
                logger.warning(f"no interval of {rows[0]['trainer']} on {rows[0]['dataset']}: {error}")
        return self._known[key]


def _generator(cell: Cell) -> np.random.Generator:
    """Return the same generator for a cell, whatever else is in the table."""
    key = (cell.datasets, cell.backbone, cell.trainer, cell.label, cell.metric)
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def _interval(cell: Cell, read: _Reader) -> comparison.Interval | None:
    if _part(cell.metric):
        tables = [found.correct for found in read(cell)]
        return comparison.average_interval(tables, _generator(cell)) if tables else None
    if len(cell.values) < 2:
        return None
    return comparison.seed_interval(cell.values, 100 if is_percentage(cell.metric) else math.inf)


def _compared(cells: Sequence[Cell], compare: str, read: _Reader) -> list[Cell]:
    """Return cells of one setting with their differences from a trainer, corrected for the number of trainers."""
    cells = [replace(cell, compared_with=compare) for cell in cells]
    reference = next((cell for cell in cells if cell.trainer == compare), None)
    if reference is None:
        logger.warning(f"no difference from {compare} on {_place(cells[0])}: it has no runs there")
        return cells
    cells = [cell if cell is reference else _with_difference(cell, reference, read) for cell in cells]
    p_values = {index: cell.difference.p_value for index, cell in enumerate(cells) if cell.difference}
    for index, p_value in zip(p_values, comparison.holm(list(p_values.values())), strict=True):
        cells[index] = replace(cells[index], adjusted_p=p_value)
    return cells


def _with_difference(cell: Cell, reference: Cell, read: _Reader) -> Cell:
    tables, others = read(cell), read(reference)
    if not (tables and others):
        return cell
    if [table.images for table in tables] != [other.images for other in others]:
        names = f"{cell.trainer} and {reference.trainer}"
        logger.warning(f"no difference between {names} on {_place(cell)}: their test images differ; run both again")
        return cell
    pairs = [(table.correct, other.correct) for table, other in zip(tables, others, strict=True)]
    paired = [table.seeds for table in tables] == [other.seeds for other in others]
    return replace(cell, difference=comparison.compare_averages(pairs, _generator(cell), paired))


def _place(cell: Cell) -> str:
    return f"{cell.dataset or 'average'}, {cell.backbone}, {cell.label}"
