"""The sections Calibration and Confusion."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from unskew.runs.report.arrays import Predictions, calibration_error, reliability
from unskew.runs.report.bias import base_of
from unskew.runs.report.blocks import Block, Cell, Figure, Heading, Note, Section, Table, number, word
from unskew.runs.report.drawing import MATRIX_COLOUR, hide_grid, shorten
from unskew.runs.report.gather import Place, ReportRun
from unskew.runs.tables import mean_and_deviation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from unskew.runs.report.drawing import Ink

MATRIX_CLASSES = 100
_NAMED = 20  # classes of a matrix with names
_PAIRS = 15
_FEWEST = 5  # images of a bin that is drawn

Curve = tuple[str, "NDArray", "NDArray"]  # name, confidence [N], correctness [N]


def calibration_section(places: Sequence[Place]) -> Section:
    """Return the section Calibration."""
    section = Section("Calibration", "Can the probabilities be trusted? With a confidence of 80%, 80% should be right.")
    for place in places:
        section.blocks += [Heading(place.title), *_errors(place), _diagram(place)]
    return section


def _errors(place: Place) -> list[Block]:
    shots = [k for k in place.shots if any(cell.values("ece") for cell in place.column(k))]
    if not shots:
        return [Note("No run has an expected calibration error (ece) in its metrics.json: run again.")]
    rows = []
    for trainer in place.trainers:
        cells = [place.cells.get((trainer, k)) for k in shots]
        found = [(cell, cell.values("ece")) if cell else (None, []) for cell in cells]
        row = [
            Cell(mean_and_deviation(v), sum(v) / len(v), folder=cell.folder) if cell and v else Cell("")
            for cell, v in found
        ]
        rows.append([word(trainer), *row])
    caption = (
        "Expected calibration error (ECE) in percent, mean ± standard deviation over seeds: the mean difference "
        "between confidence and accuracy over 15 bins of confidence. Lower is better."
    )
    return [Table(f"ece-{place.stem}", ["trainer", *(f"{place.label(k)} (%)" for k in shots)], rows, caption)]


def _diagram(place: Place) -> Figure | Note:
    run = place.example
    if run.predictions is None:
        return Note(f"'{run.path}' has no predictions: run it again for a reliability diagram.")
    before, sources = _before(place, run)
    curves = [*before, (run.trainer, run.predictions.confidence(), run.predictions.correct())]
    errors = ", ".join(f"{name} {calibration_error(confidence, correct):.1f}%" for name, confidence, correct in curves)
    caption = (
        f"Reliability diagram, {run.label}: accuracy against confidence in 15 bins; a larger point has more images; "
        f"bins of fewer than {_FEWEST} are not drawn. "
        f"Below the diagonal a model is too sure. ECE: {errors}.{sources}"
    )
    return Figure(f"reliability-{place.stem}", caption, functools.partial(_draw_reliability, curves=curves), run.path)


def _before(place: Place, run: ReportRun) -> tuple[list[Curve], str]:
    """Return the curves of the zero-shot model and of the base, and a sentence on where they come from.

    The halves in a GLA run's predictions are calibrated already, so the runs of these trainers themselves come first.
    """
    curves: list[Curve] = []
    own, halves = [], []
    for trainer, part, label in (("ZeroshotCLIP", "zs", "zero-shot"), (base_of(run), "ft", "base")):
        cell = place.cells.get((trainer, run.row["shots"]))
        same = [other for other in cell.runs if other.seed == run.seed] if cell and trainer != run.trainer else []
        if same and (found := same[0].predictions):
            curves.append((trainer, found.confidence(), found.correct()))
            own.append(trainer)
        elif run.predictions and run.predictions.has(part):
            name = label if trainer == "base" or part == "zs" else trainer
            curves.append((name, run.predictions.confidence(part), run.predictions.correct(part)))
            halves.append(name)
    text = f" {' and '.join(own)}: before calibration, from runs of their own." if own else ""
    text += f" {' and '.join(halves)}: the half of this run, after its temperature." if halves else ""
    return curves, text


def _draw_reliability(axes: "Axes", ink: "Ink", curves: Sequence[Curve]) -> None:
    axes.plot([0, 100], [0, 100], color=ink.foreground, linestyle="--", linewidth=0.8)
    for index, (name, confidence, correct) in enumerate(curves):
        images, accuracy, mean = reliability(confidence, correct)
        style = ink.line(index)
        full = images >= min(_FEWEST, images.max())
        x, y = 100 * mean[full], 100 * accuracy[full]
        axes.plot(x, y, color=style["color"], linestyle=style["linestyle"], linewidth=1)
        sizes = 14 + 130 * images[full] / images.sum()
        axes.scatter(x, y, s=sizes, color=style["color"], marker=style["marker"], alpha=0.8, linewidths=0, label=name)
    axes.set_xlim(0, 102)
    axes.set_ylim(-2, 102)
    axes.set_xlabel("confidence (%)")
    axes.set_ylabel("accuracy (%)")


# --- confusion --------------------------------------------------------------------------------------


def confusion_section(places: Sequence[Place]) -> Section:
    """Return the section Confusion."""
    section = Section("Confusion", "Which classes are mistaken for which?")
    for place in places:
        section.blocks.append(Heading(place.title))
        run = place.example
        if run.predictions is None:
            section.blocks.append(Note(f"'{run.path}' has no predictions: run it again for its confusions."))
            continue
        section.blocks.append(_pairs_table(place.stem, run, run.predictions))
        if run.predictions.classes > MATRIX_CLASSES:
            text = f"A matrix of {run.predictions.classes:,} classes is not drawn: the limit is {MATRIX_CLASSES}."
            section.blocks.append(Note(text))
            continue
        parts = [(f"Zero-shot half of {run.label}", "zs")] if run.predictions.has("zs") else []
        for name, part in [*parts, (run.label, "logits")]:
            section.blocks.append(_matrix(f"confusion-{part}-{place.stem}", name, run, run.predictions, part))
    return section


def confused_pairs(labels: "NDArray", predicted: "NDArray", classes: int, count: int) -> list[tuple[int, int, int]]:
    """Return the most frequent wrong pairs (true class, predicted class, images), without a matrix of all classes."""
    wrong = labels != predicted
    pairs, images = np.unique(labels[wrong] * classes + predicted[wrong], return_counts=True)
    first = np.argsort(-images, kind="stable")[:count]
    return [(int(pairs[i] // classes), int(pairs[i] % classes), int(images[i])) for i in first]


def _pairs_table(stem: str, run: ReportRun, found: Predictions) -> Table:
    before = found.predicted("zs") if found.has("zs") else None
    totals = np.bincount(found.labels, minlength=found.classes)
    rows = []
    for true, wrong, images in confused_pairs(found.labels, found.predicted(), found.classes, _PAIRS):
        row = [word(run.classnames[true]), word(run.classnames[wrong]), number(images, 0, run.path)]
        row.append(number(100 * images / int(totals[true]), 0))
        if before is not None:
            row.append(number(int(((found.labels == true) & (before == wrong)).sum()), 0, run.path))
        rows.append(row)
    columns = ["true class", "predicted as", "images", "share (%)"]
    columns += ["zero-shot"] if before is not None else []
    half = "; zero-shot is the number of images that its zero-shot half confuses so" if before is not None else ""
    caption = f"The most confused pairs of {run.label}: test images and their share of the true class{half}."
    return Table(f"confused-{stem}", columns, rows, caption)


def _matrix(name: str, model: str, run: ReportRun, found: Predictions, part: str) -> Figure:
    cells = np.bincount(found.labels * found.classes + found.predicted(part), minlength=found.classes**2)
    matrix = cells.reshape(found.classes, found.classes)
    shares = matrix / matrix.sum(1, keepdims=True).clip(1)
    caption = (
        f"{model}: the share of each true class (rows) that is predicted as each class (columns), from transparent (0) "
        "to blue (all), with shades by the square root. A perfect model has a blue diagonal; a blue column is a "
        "preferred class."
    )
    draw = functools.partial(_draw_matrix, shares=shares, names=run.classnames)
    return Figure(name, caption, draw, run.path, (4.2, 4.0))


def _draw_matrix(axes: "Axes", ink: "Ink", shares: "NDArray", names: Sequence[str]) -> None:
    cells = np.empty((*shares.shape, 4))
    cells[..., :3], cells[..., 3] = MATRIX_COLOUR, np.sqrt(shares)
    axes.imshow(cells, interpolation="none", aspect="equal")
    if len(names) <= _NAMED:
        short = [shorten(name, 12) for name in names]
        axes.set_xticks(range(len(names)), short, rotation=90)
        axes.set_yticks(range(len(names)), short)
    axes.set_xlabel("predicted class" if len(names) <= _NAMED else "predicted class (label)")
    axes.set_ylabel("true class" if len(names) <= _NAMED else "true class (label)")
    hide_grid(axes)
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)
