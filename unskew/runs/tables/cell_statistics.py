"""Intervals of cells of tables, and their differences from those of another trainer."""

import logging
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from unskew.runs.tables import comparison, joint_comparison
from unskew.runs.tables.cells import Cell, is_percentage
from unskew.runs.tables.outcomes import Outcomes, outcomes
from unskew.runs.tables.protocol_rows import HARMONIC, sources
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
    if over_seeds := [cell.metric for cell in cells if not _part(cell)]:
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


def notes(cells: Sequence[Cell], compare: str) -> list[str]:
    """Return the sentences that tell which variation the intervals and p-values cover."""
    over_seeds = list(dict.fromkeys(cell.metric for cell in cells if not _part(cell)))
    found = [comparison.INTERVAL_NOTE] if any(_part(cell) for cell in cells) else []
    if over_seeds:
        found.append(f"intervals of {', '.join(over_seeds)} are Student's t and cover the choice of the seeds only")
    if any(cell.is_harmonic for cell in cells):
        found.append(f"{HARMONIC}: {joint_comparison.NOTE}")
    return [*found, comparison.TEST_NOTE] if compare else found


def _part(cell: Cell) -> str:
    """Return the name of the logits with a cell's accuracy: "logits", "zs"; "" for a metric that images do not have."""
    metric = cell.metric
    if metric == "accuracy" or cell.protocol:  # the numbers of protocols are accuracies
        return "logits"
    return metric.removesuffix("_accuracy") if metric.endswith("_accuracy") and metric not in _OVER_CLASSES else ""


class _Reader:
    """The correctness of the runs in a cell; each file is read once, and each problem is one warning."""

    def __init__(self) -> None:
        self._known: dict[tuple, Outcomes | None] = {}

    def __call__(self, cell: Cell) -> list[list[Outcomes]]:
        """Return the correctness in each test of each dataset; nothing if that of one test is not known.

        The numbers of ordinary runs have one test each. A harmonic mean and an average over targets have several.
        """
        found = [[self._of_part(test, _part(cell)) for test in _tests(rows, cell.metric)] for rows in cell.parts]
        known = [[table for table in tests if table is not None] for tests in found]
        return known if [*map(len, known)] == [*map(len, found)] else []

    def _of_part(self, rows: Sequence[Mapping], part: str) -> Outcomes | None:
        key = (part, *(row["folder"] for row in rows))
        if key not in self._known:
            self._known[key] = None
            try:
                self._known[key] = outcomes(rows, part)
            except ValueError as error:
                logger.warning(f"no interval of {rows[0]['trainer']} on {rows[0]['dataset']}: {error}")
        return self._known[key]


def _tests(rows: Sequence[Mapping], metric: str) -> list[tuple[Mapping, ...]]:
    """Return the metrics of each test that makes up a number, in the order of the seeds."""
    ordered = sorted(rows, key=lambda row: row["seed"])
    return list(zip(*(sources(row, metric) for row in ordered), strict=True))


def _generator(cell: Cell) -> np.random.Generator:
    """Return the same generator for a cell, whatever else is in the table."""
    key = (cell.datasets, cell.backbone, cell.trainer, cell.label, cell.metric)
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def _interval(cell: Cell, read: _Reader) -> comparison.Interval | None:
    if _part(cell):
        tests = [[found.correct for found in of_dataset] for of_dataset in read(cell)]
        if _is_joint(cell):
            return joint_comparison.interval(tests, _combine(cell), _generator(cell)) if tests else None
        return comparison.average_interval([table for (table,) in tests], _generator(cell)) if tests else None
    if len(cell.values) < 2:
        return None
    return comparison.seed_interval(cell.values, 100 if is_percentage(cell.metric) else math.inf)


def _is_joint(cell: Cell) -> bool:
    """Return whether the number is computed from several tests of the same run."""
    return any(len(sources(row, cell.metric)) > 1 for row in cell.rows)


def _combine(cell: Cell) -> joint_comparison.Combine:
    return joint_comparison.harmonic if cell.is_harmonic else joint_comparison.mean


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
    found, others = read(cell), read(reference)
    if not (found and others):
        return cell
    if [[t.images for t in tests] for tests in found] != [[t.images for t in tests] for tests in others]:
        names = f"{cell.trainer} and {reference.trainer}"
        logger.warning(f"no difference between {names} on {_place(cell)}: their test images differ; run both again")
        return cell
    pairs = [
        [(first.correct, second.correct) for first, second in zip(*of_dataset, strict=True)]
        for of_dataset in zip(found, others, strict=True)
    ]
    paired = [[t.seeds for t in tests] for tests in found] == [[t.seeds for t in tests] for tests in others]
    generator = _generator(cell)
    if _is_joint(cell):
        difference = joint_comparison.compare(pairs, _combine(cell), generator, paired)
    else:
        difference = comparison.compare_averages([pair for (pair,) in pairs], generator, paired)
    return replace(cell, difference=difference)


def _place(cell: Cell) -> str:
    return f"{cell.dataset or 'average'}, {cell.backbone}, {cell.label}"
