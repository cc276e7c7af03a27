"""The sections Overview and Accuracy against shots."""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from unskew.runs.report.blocks import EMPTY, Cell, Figure, Heading, Note, Section, Table, word
from unskew.runs.report.gather import Cell as RunsCell
from unskew.runs.report.gather import Place
from unskew.runs.tables import comparison, labelled, mean_and_deviation
from unskew.runs.tables.cells import is_transductive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unskew.runs.report.drawing import Ink

Point = tuple[float, float, float]  # mean, and the ends of its interval

_CAPTION = (
    "Test accuracy in percent: mean ± standard deviation over seeds; below it the 95% interval and the number of "
    "seeds. Marked (●): the best of several, and all that do not differ significantly from it."
)

_LEAD = (
    "Which trainer is most accurate, and which differences could be chance? The standard deviation covers the seeds "
    f"alone: the sampled training images and the random numbers. {comparison.INTERVAL_NOTE}. Few seeds give wide "
    "intervals. A trainer is marked if it is the best of its column or does not differ from it at a level of 5%: "
    f"{comparison.TEST_NOTE}."
)


def overview_section(places: Sequence[Place], averages: Sequence[Place]) -> Section:
    """Return the section Overview."""
    section = Section("Overview", _LEAD)
    for place in places:
        section.blocks += [Heading(place.title), _table(place, _CAPTION)]
        section.blocks += [
            Note(text) for text in (_labelled(place), _repeated(place), _skipped(place), _uncompared(place)) if text
        ]
    for average in averages:
        section.blocks.append(Heading(f"Average over datasets, {average.model}"))
        section.blocks += [_table(average, _average_caption(average))] if average.cells else []
        notes = [f"{note[0].upper()}{note[1:]}." for note in average.notes]
        section.blocks += [Note(text) for text in (*notes, _uncompared(average)) if text]
    return section


def _average_caption(average: Place) -> str:
    names = {cell.accuracy.datasets for cell in average.cells.values()}
    datasets = ", ".join(names.pop()) if len(names) == 1 else "the datasets that all trainers of a column have"
    return (
        f"Mean of the accuracies on {datasets} in percent, with its 95% interval over seeds and test images of all "
        "datasets, and the number of seeds. Marked (●): the best, and all that do not differ significantly from it."
    )


def _table(place: Place, caption: str) -> Table:
    rows = []
    for trainer in place.trainers:
        cells = [place.cells.get((trainer, shots)) for shots in place.shots]
        seen = any(is_transductive(run.row) for cell in cells if cell for run in cell.runs)
        images = labelled.mean([run.row for cell in cells if cell for run in cell.runs])
        count = EMPTY if images is None else Cell(labelled.text(images), images)
        rows.append([word(trainer, "used the unlabelled test images" if seen else ""), *map(_cell, cells), count])
    columns = ["trainer", *(f"{place.label(shots)} (%)" for shots in place.shots), labelled.HEADER]
    if len(place.shots) > 1 or all(row[-1] is EMPTY for row in rows):  # several numbers of shots have a note
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table(f"accuracy-{place.stem}", columns, rows, caption)


def _cell(cell: RunsCell | None) -> Cell:
    if cell is None:
        return EMPTY
    accuracy = cell.accuracy
    parts = [f"[{accuracy.interval.low:.1f}, {accuracy.interval.high:.1f}]"] if accuracy.interval else []
    seeds = min(map(len, accuracy.seeds))
    parts.append(f"{seeds} seed{'s' if seeds > 1 else ''}")
    return Cell(mean_and_deviation(accuracy.values), cell.mean, ", ".join(parts), cell.folder, accuracy.is_best)


def _labelled(place: Place) -> str:
    """Return a line on the methods that use more labelled images than the shots; "" for one number of shots."""
    text = labelled.note([run.row for run in place.runs]) if len(place.shots) > 1 else ""
    return f"{text}." if text else ""


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
        for cell in place.column(shots)
        if cell.accuracy.compared_with not in ("", cell.trainer) and cell.accuracy.difference is None
    ]
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    reason = "not tested for significance, because predictions are missing or of other test images"
    return f"{'; '.join(left[:3])}{more}: {reason}." if left else ""


# --- accuracy against shots -------------------------------------------------------------------------


def against_shots_section(places: Sequence[Place], averages: Sequence[Place], order: Sequence[str]) -> Section:
    """Return the section Accuracy against shots.

    Args:
        places: the runs.
        averages: their averages over datasets.
        order: all trainers; a trainer's place decides its colour and marker in all figures.
    """
    section = Section("Accuracy against shots", "How many training images per class does each trainer need?")
    band = "The band is the 95% interval over seeds and test images; the axis follows the lines."
    for place in places:
        caption = f"{place.title}: test accuracy by training images per class. {band} A higher line is better."
        section.blocks.append(_lines(place, caption, order))
    for average in averages:
        if average.cells:
            section.blocks.append(_lines(average, f"Average over datasets, {average.model}. {band}", order))
    return section


def _lines(place: Place, caption: str, order: Sequence[str]) -> Figure:
    name, trainers = f"shots-{place.stem}", place.trainers
    points = {key: (cell.mean, *(cell.accuracy.interval or (math.nan, math.nan))) for key, cell in place.cells.items()}
    if len(place.shots) == 1:
        draw = functools.partial(_draw_dots, points=points, trainers=trainers, order=order)
        text = (
            caption.replace("The band", "The bar")
            .replace("; the axis follows the lines", "")
            .replace("A higher line", "Further right")
        )
        return Figure(name, text, draw, place.folder, (4.2, 1.0 + 0.24 * len(trainers)))
    draw_lines = functools.partial(_draw_lines, points=points, trainers=trainers, order=order, shots=place.shots)
    return Figure(name, caption, draw_lines, place.folder, (4.2, 3.1 + 0.1 * len(trainers)))


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
