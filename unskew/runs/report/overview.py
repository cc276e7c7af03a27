"""The sections Overview and Accuracy against shots."""

import functools
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unskew.engine.run_dir import path_safe
from unskew.runs import comparison
from unskew.runs.report.blocks import EMPTY, Cell, Figure, Heading, Note, Section, Table, word
from unskew.runs.report.gather import Cell as RunsCell
from unskew.runs.report.gather import Place
from unskew.runs.tables import mean_and_deviation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unskew.runs.report.drawing import Ink

Point = tuple[float, float, float]  # mean, and the ends of its interval

_CAPTION = (
    "Test accuracy in percent: mean ± standard deviation over seeds; below it the 95% interval and the number of "
    "seeds. Marked (●): the best, and all that do not differ significantly from it."
)

_LEAD = (
    "Which trainer is most accurate, and which differences could be chance? The standard deviation covers the seeds "
    f"alone: the sampled training images and the random numbers. {comparison.INTERVAL_NOTE}. Few seeds give wide "
    "intervals. A trainer is marked if it is the best of its column or does not differ from it at a level of 5%: "
    f"{comparison.TEST_NOTE}."
)


def overview_section(places: Sequence[Place]) -> Section:
    """Return the section Overview."""
    section = Section("Overview", _LEAD)
    for place in places:
        section.blocks += [Heading(place.title), _table(place)]
        section.blocks += [Note(text) for text in (_repeated(place), _skipped(place), _uncompared(place)) if text]
    for average in averages(places):
        title = f"Average over {len(average.places)} datasets, {average.backbone}"
        section.blocks += [Heading(title), _averages_table(average)]
    return section


def _table(place: Place) -> Table:
    best = {shots: best_trainers(place, shots) for shots in place.shots}
    rows = []
    for trainer in place.trainers:
        cells = [place.cells.get((trainer, shots)) for shots in place.shots]
        seen = any(run.row.get("transductive") for cell in cells if cell for run in cell.runs)
        name = word(trainer, "used the unlabelled test images" if seen else "")
        rows.append([name, *(_cell(cell, trainer in best[k]) for k, cell in zip(place.shots, cells, strict=True))])
    columns = ["trainer", *(f"{place.label(shots)} (%)" for shots in place.shots)]
    return Table(f"accuracy-{place.stem}", columns, rows, _CAPTION)


def _cell(cell: RunsCell | None, best: bool) -> Cell:
    if cell is None:
        return EMPTY
    parts = [f"[{cell.interval[0]:.1f}, {cell.interval[1]:.1f}]"] if cell.interval else []
    parts.append(f"{len(cell.seeds)} seed{'s' if len(cell.seeds) > 1 else ''}")
    return Cell(mean_and_deviation(cell.values("accuracy")), cell.mean, ", ".join(parts), cell.folder, best)


def best_trainers(place: Place, shots: int) -> set[str]:
    """Return the best trainer of a number of shots, and all that do not differ significantly from it."""
    column = place.column(shots)
    best = max(column, key=lambda cell: cell.mean)
    found = _comparable(column, best)
    if len(found) < 2:
        return {best.trainer} if len(column) > 1 else set()
    return {best.trainer} | comparison.not_worse(found, np.random.default_rng(0))


def _comparable(column: Sequence[RunsCell], best: RunsCell) -> dict[str, np.ndarray]:
    """Return the correctness [S, N] of the trainers that were tested on the images of the best one."""
    if best.correct is None:
        return {}
    return {
        cell.trainer: cell.correct
        for cell in column
        if cell.correct is not None and best.runs[0].same_images(cell.runs[0])
    }


def _repeated(place: Place) -> str:
    """Return a line on runs that differ only in keys that the page does not show, "" if there are none."""
    for cell in place.cells.values():
        for one, other in itertools.pairwise(cell.runs):  # sorted by seed
            if one.seed == other.seed:
                return f"'{one.path}' and '{other.path}' are both {one.label}: the page averages them like seeds."
    return ""


def _skipped(place: Place) -> str:
    """Return a line on unreadable test images, "" if there are none."""
    counts = [count for run in place.runs if isinstance(count := run.row.get("unreadable_test"), int)]
    return f"Runs skipped unreadable test images, at most {max(counts):,} per run." if counts else ""


def _uncompared(place: Place) -> str:
    """Return a line on the cells that were not tested for significance, "" if there are none."""
    left = [
        f"{cell.trainer}, {place.label(shots)}"
        for shots in place.shots
        for column in [place.column(shots)]
        if len(column) > 1
        for found in [_comparable(column, max(column, key=lambda cell: cell.mean))]
        for cell in column
        if cell.trainer not in found
    ]
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    reason = "not tested for significance, because predictions are missing or of other test images"
    return f"{'; '.join(left[:3])}{more}: {reason}." if left else ""


# --- averages over datasets -------------------------------------------------------------------------


def _average(places: Sequence[Place], trainer: str, shots: int) -> Point | None:
    """Return the mean over datasets with its interval; ``None`` unless the trainer has runs on all of them."""
    cells = [place.cells[trainer, shots] for place in places if (trainer, shots) in place.cells]
    if len(cells) < len(places):
        return None
    mean = statistics.fmean(cell.mean for cell in cells)
    tables = [cell.correct for cell in cells if cell.correct is not None]
    if len(tables) < len(cells):
        return mean, math.nan, math.nan
    return mean, *comparison.average_interval(tables, np.random.default_rng(0))


@dataclass(frozen=True)
class Averages:
    """Accuracies on several datasets with one backbone: the mean over the datasets, by trainer and shots."""

    backbone: str
    places: Sequence[Place]
    points: Mapping[tuple[str, int], Point]

    @property
    def shots(self) -> list[int]:
        """The numbers of shots; all images (-1) come last."""
        return sorted({k for _, k in self.points}, key=lambda k: (k < 0, k))

    @property
    def trainers(self) -> list[str]:
        """The trainers, the best at the largest number of shots first."""
        last = {name: self.points[name, k][0] for k in self.shots for name, j in self.points if j == k}
        return sorted(last, key=lambda name: -last[name])


def averages(places: Sequence[Place]) -> list[Averages]:
    """Return the averages of each backbone that has several datasets; trainers that lack one are left out."""
    grouped: dict[str, list[Place]] = {}
    for place in places:
        grouped.setdefault(place.backbone, []).append(place)
    found = []
    for backbone, several in grouped.items():
        keys = dict.fromkeys(key for place in several for key in place.cells)
        points = {key: point for key in keys if (point := _average(several, *key))}
        if len(several) > 1:
            found.append(Averages(backbone, several, points))
    return found


def _averages_table(average: Averages) -> Table | Note:
    if not average.points:
        return Note("No trainer has runs on all datasets with the same number of shots.")
    best = {k: max(point[0] for (_, j), point in average.points.items() if j == k) for k in average.shots}
    rows = [
        [word(name), *(_average_cell(average.points.get((name, k)), best[k]) for k in average.shots)]
        for name in average.trainers
    ]
    columns = ["trainer", *(f"{average.places[0].label(k)} (%)" for k in average.shots)]
    caption = (
        f"Mean of the accuracies on {', '.join(place.dataset for place in average.places)} in percent, with its 95% "
        "interval over seeds and test images of all datasets. The largest mean is marked (●), without a test. Trainers "
        "without runs on all of the datasets are left out. The folders are those of the tables above."
    )
    return Table(path_safe(f"accuracy-average-{average.backbone}"), columns, rows, caption)


def _average_cell(point: Point | None, best: float) -> Cell:
    if point is None:
        return EMPTY
    mean, low, high = point
    return Cell(f"{mean:.1f}", mean, f"[{low:.1f}, {high:.1f}]" if low == low else "", best=mean == best)


# --- accuracy against shots -------------------------------------------------------------------------


def against_shots_section(places: Sequence[Place], order: Sequence[str]) -> Section:
    """Return the section Accuracy against shots.

    Args:
        places: the runs.
        order: all trainers; a trainer's place decides its colour and marker in all figures.
    """
    lead = "How many training images per class does each trainer need?"
    section = Section("Accuracy against shots", lead)
    band = "The band is the 95% interval over seeds and test images; the axis follows the lines."
    for place in places:
        points = {
            (name, k): (cell.mean, *(cell.interval or (math.nan, math.nan))) for (name, k), cell in place.cells.items()
        }
        caption = f"{place.title}: test accuracy by training images per class. {band} A higher line is better."
        section.blocks.append(_lines(f"shots-{place.stem}", caption, points, place.trainers, order, place.folder))
    for average in averages(places):
        if average.points:
            caption = f"Average over {len(average.places)} datasets, {average.backbone}. {band}"
            name = path_safe(f"shots-average-{average.backbone}")
            section.blocks.append(_lines(name, caption, average.points, average.trainers, order))
    return section


def _lines(
    name: str,
    caption: str,
    points: Mapping[tuple[str, int], Point],
    trainers: Sequence[str],
    order: Sequence[str],
    folder: Path | None = None,
) -> Figure:
    shots = sorted({k for _, k in points}, key=lambda k: (k < 0, k))
    if len(shots) == 1:
        draw = functools.partial(_draw_dots, points=points, trainers=trainers, order=order)
        text = (
            caption.replace("The band", "The bar")
            .replace("; the axis follows the lines", "")
            .replace("A higher line", "Further right")
        )
        return Figure(name, text, draw, folder, (4.2, 1.0 + 0.24 * len(trainers)))
    draw_lines = functools.partial(_draw_lines, points=points, trainers=trainers, order=order, shots=shots)
    return Figure(name, caption, draw_lines, folder, (4.2, 3.1 + 0.1 * len(trainers)))


def _draw_lines(
    axes: "Axes",
    ink: "Ink",
    points: Mapping[tuple[str, int], Point],
    trainers: Sequence[str],
    order: Sequence[str],
    shots: Sequence[int],
) -> None:
    largest = max(shots)
    position = {k: math.log2(k) if k > 0 else math.log2(max(largest, 1)) + 1 for k in shots}
    for trainer in trainers:
        there = [k for k in shots if (trainer, k) in points]
        x = [position[k] for k in there]
        mean, low, high = zip(*(points[trainer, k] for k in there), strict=True)
        style = ink.line(order.index(trainer))
        axes.plot(x, mean, label=trainer, **style)
        axes.fill_between(x, low, high, color=style["color"], alpha=0.13, linewidth=0)
    axes.set_xticks([position[k] for k in shots], ["all" if k < 0 else str(k) for k in shots])
    axes.set_xlabel("training images per class")
    axes.set_ylabel("test accuracy (%)")
    means = [point[0] for point in points.values()]
    margin = 1 + 0.3 * (max(means) - min(means))  # wide bands of two seeds would leave no room for the lines
    axes.set_ylim(min(means) - margin, max(means) + margin)


def _draw_dots(
    axes: "Axes", ink: "Ink", points: Mapping[tuple[str, int], Point], trainers: Sequence[str], order: Sequence[str]
) -> None:
    found = {name: point for (name, _), point in points.items()}
    for row, trainer in enumerate(reversed(trainers)):
        mean, low, high = found[trainer]
        style = ink.line(order.index(trainer))
        axes.plot([low, high], [row, row], color=style["color"])
        axes.plot([mean], [row], color=style["color"], marker=style["marker"], markersize=6)
    axes.set_yticks(range(len(trainers)), list(reversed(trainers)))
    axes.set_ylim(-0.6, len(trainers) - 0.4)
    axes.set_xlabel("test accuracy (%)")
