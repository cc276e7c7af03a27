"""The sections Training and Cost."""

import csv
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from unskew.runs.report.blocks import Cell, Figure, Heading, Note, Section, Table, number, word
from unskew.runs.report.drawing import LARGEST, use_log_scale
from unskew.runs.report.gather import Place, ReportRun
from unskew.utils.errors import DAMAGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unskew.runs.report.drawing import Ink

_POINTS = 200  # of a line

# Columns of history.csv with the names of their axes and what to read off.
_CURVES = {
    "loss": ("training loss", "it falls until the model has learnt the training images"),
    "accuracy": ("training accuracy (%)", "near 100% the model has learnt the training images by heart"),
    "lr": ("learning rate", "the schedule of the optimizer"),
    "val_score": ("validation score", "accuracy on val in percent, less a thousandth of the cross entropy; its highest "
                  "epoch is kept"),
}  # fmt: skip

_COSTS = {
    "seconds": ("seconds", 1),
    "peak_memory_mb": ("peak memory (MB)", 0),
    "trained_parameters": ("trained parameters", 0),
    "labelled_images": ("labelled images per class", 1),
    "images_encoded": ("images encoded", 0),
    "images_cached": ("images from the cache", 0),
}

History = Mapping[str, list[tuple[int, float]]]  # (epoch, value) by column


def read_history(run: ReportRun) -> History:
    """Return the columns of a run's ``history.csv`` without empty cells; nothing if the file is missing or damaged."""
    columns: dict[str, list[tuple[int, float]]] = {}
    try:
        with (run.path / "history.csv").open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                for name in _CURVES:
                    if row.get(name) and abs(value := float(row[name])) < LARGEST:
                        columns.setdefault(name, []).append((int(row["epoch"]), value))
    except DAMAGE:
        return {}
    epochs = [epoch for points in columns.values() for epoch, _ in points]
    return columns if max(epochs, default=0) < LARGEST else {}


def training_section(places: Sequence[Place], order: Sequence[str]) -> Section:
    """Return the section Training; a trainer's place in ``order`` decides its colour."""
    section = Section("Training", "Did the training converge, and would fewer or more epochs do?")
    for place in places:
        section.blocks.append(Heading(place.title))
        shots = place.focus.shots
        runs = [min(cell.runs, key=lambda run: run.seed) for cell in place.column(shots)]
        histories = {run.trainer: found for run in runs if (found := read_history(run))}
        if not histories:
            reason = "older runs and trainers without training have none"
            section.blocks.append(Note(f"No run with {place.label(shots)} has epochs in a history.csv: {reason}."))
            continue
        seeds = {run.trainer: run for run in runs}
        numbers = {seeds[name].seed for name in histories}
        seed = f"seed {min(numbers)}" if len(numbers) == 1 else "the smallest seed of each trainer"
        for column, (axis, reading) in _CURVES.items():
            lines = {name: found[column] for name, found in histories.items() if column in found}
            if lines:
                caption = f"{axis.capitalize()} by epoch, {place.label(shots)}, {seed}: {reading}."
                draw = functools.partial(_draw, lines=lines, axis=axis, order=order)
                folder = seeds[next(iter(lines))].path if len(lines) == 1 else place.folder
                section.blocks.append(Figure(f"{column}-{place.stem}".replace("_", "-"), caption, draw, folder))
    return section


def _draw(
    axes: "Axes", ink: "Ink", lines: Mapping[str, list[tuple[int, float]]], axis: str, order: Sequence[str]
) -> None:
    from matplotlib.ticker import MaxNLocator

    for trainer, points in lines.items():
        step = -(-len(points) // _POINTS)
        epochs, values = zip(*[*points[:-1:step], points[-1]], strict=True)
        style = {**ink.line(order.index(trainer)), "marker": "o" if len(epochs) == 1 else None}
        axes.plot(epochs, values, label=trainer, linewidth=1.2, **style)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(axis)
    if axis == _CURVES["lr"][0]:
        _widen(axes, [max(value for _, value in points) for points in lines.values()])


def _widen(axes: "Axes", peaks: Sequence[float]) -> None:
    """Show three orders of magnitude below the smallest of the peaks: trainers differ that much."""
    if min(peaks) > 0:
        use_log_scale(axes.yaxis, "{x:g}", steps=(1,))
        axes.set_ylim(min(peaks) / 1000, 2 * max(peaks))


def cost_section(places: Sequence[Place]) -> Section:
    """Return the section Cost: all runs, with their folders."""
    section = Section("Cost", "What does each run take? This is also the list of all runs and their folders.")
    runs = [run for place in places for run in place.runs]
    known = [key for key in _COSTS if any(number(run.row.get(key)).text for run in runs)]
    rows: list[list[Cell]] = []
    for place in places:
        for cell in sorted(place.cells.values(), key=lambda cell: (cell.trainer, cell.shots < 0, cell.shots)):
            shots = Cell("all" if cell.shots < 0 else str(cell.shots), float("inf") if cell.shots < 0 else cell.shots)
            for run in cell.runs:
                names = [
                    word(place.dataset),
                    word(place.backbone),
                    word(cell.trainer),
                    shots,
                    Cell(str(run.seed), run.seed),
                ]
                costs = [number(run.row.get(key), _COSTS[key][1]) for key in known]
                rows.append([*names, number(run.row["accuracy"], 1, run.path), *costs])
    columns = ["dataset", "backbone", "trainer", "shots", "seed", "accuracy (%)", *(_COSTS[key][0] for key in known)]
    caption = (
        "Every run; its accuracy links to its folder. Seconds are of training and test together, and the first run of "
        "a sweep includes loading the backbone. Images are encoded once and come from the cache afterwards."
    )
    section.blocks.append(Table("runs", columns, rows, caption))
    missing = [_COSTS[key][0] for key in _COSTS if key not in known]
    if missing:
        section.blocks.append(Note(f"No run has recorded {', '.join(missing)}: older versions did not."))
    return section
