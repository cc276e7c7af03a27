"""Tables of finished runs as text and LaTeX."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unskew.runs.tables import labelled, mean_and_deviation
from unskew.runs.tables.cells import (
    SIGNIFICANT,
    Cell,
    all_cells,
    grouped,
    is_percentage,
    is_transductive,
    label_of,
    skipped_images,
)
from unskew.runs.tables.protocol_rows import transfer_of

if TYPE_CHECKING:
    from unskew.runs.tables.comparison import Difference

_MARK = "*"  # at the name of a trainer
_SKIPPED_MARK = "\N{DAGGER}"  # at a cell whose runs skipped unreadable test images
_SIGNIFICANT_MARK = "\N{DOUBLE DAGGER}"  # at a significant difference
# Marks at a cell whose fitted terms were carried over to other classes in these ways.
_TRANSFER_MARKS = {"unlabelled": "\N{SECTION SIGN}", "zero-shot": "\N{PILCROW SIGN}"}
_TRANSFER_NOTES = {
    "unlabelled": "fitted on the target's unlabelled images",
    "zero-shot": "zero-shot prior on the target",
}
_MOST_NAMES = 4  # of datasets, in a title

_Key = tuple[str, str, str, str, str]  # dataset, backbone, trainer, shots in words, metric
_Column = tuple[str, str, str]  # header, shots in words, metric


def table(rows: Sequence[Mapping], metric: str = "accuracy", style: str = "github", **options: Any) -> str:
    """Return the tables of `tables_and_notes`, which has the arguments, as one text."""
    if not rows:
        return "no finished runs"
    return joined(*tables_and_notes(rows, metric, style, **options), style)


def joined(parts: Sequence[str], notes: Sequence[str], style: str = "github") -> str:
    """Return tables and the notes below them as one text; in LaTeX, notes are comments."""
    start = "% " if style.startswith("latex") else ""
    return "\n\n".join([*parts, *(f"{start}{note}" for note in dict.fromkeys(notes))])


def tables_and_notes(
    rows: Sequence[Mapping],
    metric: str = "accuracy",
    style: str = "github",
    columns: Sequence[str] = (),
    together: bool = False,
    ci: bool = False,
    compare: str = "",
    title: str = "",
    headers: Mapping[str, str] | None = None,
) -> tuple[list[str], list[str]]:
    """Return tables whose rows are trainers and whose cells are mean ± standard deviation over seeds, and their notes.

    There is one table for each dataset and backbone, in the order of the rows, and then the averages over datasets.
    Trainers whose predictions used the unlabelled test images are marked, and so are cells whose runs skipped
    unreadable test images. If the seeds differ between the cells of a table, each has the number of its seeds. The
    labelled images per class, train and val, are a column of accuracies with one number of shots, else a note.

    Args:
        rows: metrics of runs.
        metric: the metric in the cells; the columns are numbers of shots.
        style: a table format of tabulate; in LaTeX, titles and notes are comments.
        columns: several metrics as columns instead; there is one table for each number of shots too.
        together: put all backbones into one table, with a column of their names.
        ci: show 95% intervals instead of standard deviations; the rows need the ``folder`` of their runs.
        compare: the trainer from which the differences of the others are shown, with intervals and p-values.
        title: the beginning of each title.
        headers: the header of each column of metrics, if it is not the metric's name in short.

    Raises:
        ValueError: no row has a metric, or the comparison is impossible; the message lists the known names.
    """
    cells, notes = all_cells(rows, columns or [metric], together, ci, compare)
    by_key: dict[_Key, Cell] = {(c.dataset, c.backbone, c.trainer, c.label, c.metric): c for c in cells}
    start = "% " if style.startswith("latex") else ""
    places = ["dataset"] if together else ["dataset", "backbone"]
    parts = []
    for place, group in grouped([*rows, *_rows_of_averages(cells)], places).items():
        where = ", ".join([place[0] or _datasets(cells, {row["backbone"] for row in group}), *place[1:]])
        for shots, same in _by_label(group).items() if columns else [("", group)]:
            words = f"{title} {_title(where, not place[0], '' if columns else metric, shots, same)}".split()
            heads = [((headers or {}).get(name) or _short(name), shots, name) for name in columns]
            heads = heads or [(k, k, metric) for k in _by_label(group)]
            unit = _unit(*columns) if columns else ""
            versus = f": differences from {compare}" if compare else ""
            parts.append(f"{start}{' '.join(words)}{unit}{versus}\n\n{_grid(same, together, heads, by_key, style, ci)}")
    if not columns and metric == "accuracy" and len(_by_label(rows)) > 1:
        notes = [*filter(None, [labelled.note(rows)]), *notes]
    return parts, [*marks(cells), *notes]


def _rows_of_averages(cells: Sequence[Cell]) -> list[dict]:
    """Return each row that is in an average, with the dataset "" of averages."""
    rows = {id(row): row for cell in cells if not cell.dataset for row in cell.rows}
    return [{**row, "dataset": ""} for row in rows.values()]


def _by_label(rows: Sequence[Mapping]) -> dict[str, list[Mapping]]:
    """Return rows by their number of shots in words, in the order of the numbers; all images are last."""
    groups: dict[str, list[Mapping]] = {}
    for row in sorted(rows, key=lambda row: (row["shots"] < 0, row["shots"])):
        groups.setdefault(label_of(row), []).append(row)
    return groups


def _datasets(cells: Sequence[Cell], backbones: Collection[str]) -> str:
    """Return the datasets of the averages of some backbones in words."""
    found = {cell.datasets for cell in cells if not cell.dataset and cell.backbone in backbones}
    if len(found) > 1:
        return "the datasets that all trainers have"
    names = next(iter(found))
    return ", ".join(names) if len(names) <= _MOST_NAMES else f"{len(names)} datasets"


def _title(where: str, is_average: bool, metric: str, shots: str, rows: Sequence[Mapping]) -> str:
    seeds = sorted({row["seed"] for row in rows})
    of_seeds = f"seed{'s' if len(seeds) > 1 else ''} {' '.join(map(str, seeds))}"
    if metric:
        start = f"average {metric}{_unit(metric)} over" if is_average else f"{metric}{_unit(metric)} on"
        return f"{start} {where}, {of_seeds}"
    return f"{'average over ' if is_average else ''}{where}, {shots}, {of_seeds}"


def _unit(*metrics: str) -> str:
    """Return the unit if all metrics are percentages."""
    return " (%)" if all(map(is_percentage, metrics)) else ""


def _short(metric: str) -> str:
    """Return a short column header of a metric: "zs", "macro f1", "p few"."""
    return metric.removesuffix("_accuracy").replace("_", " ")


def _grid(
    rows: Sequence[Mapping], together: bool, heads: Sequence[_Column], by_key: Mapping[_Key, Cell], style: str, ci: bool
) -> str:
    """Return a table with one line for each trainer, or for each trainer and backbone together.

    Args:
        rows: metrics of runs on one dataset.
        together: add a column of the backbones.
        heads: the header, the shots and the metric of each column.
        by_key: all cells.
        style: a table format of tabulate.
        ci: show 95% intervals instead of standard deviations.
    """
    from tabulate import tabulate

    lines, marked, images = [], [], []
    for (trainer, backbone), of_line in grouped(rows, ["trainer", "backbone"]).items():
        dataset = of_line[0]["dataset"]
        images.append(labelled.text(labelled.mean(of_line)))
        lines.append([by_key.get((dataset, backbone, trainer, shots, metric)) for _, shots, metric in heads])
        name = f"{trainer} {_MARK}" if any(map(is_transductive, of_line)) else trainer
        marked.append([name, backbone] if together else [name])
    counted = len({seeds for line in lines for cell in line if cell for seeds in cell.seeds}) > 1
    has_images = [metric for *_, metric in heads] == ["accuracy"] and any(images)
    texts = [
        [*names, *(cell_text(cell, ci, counted) if cell else "" for cell in line), *[count] * has_images]
        for names, line, count in zip(marked, lines, images, strict=True)
    ]
    headers = ["", *["backbone"] * together, *(head for head, *_ in heads), *[labelled.HEADER] * has_images]
    return tabulate(texts, headers=headers, tablefmt=style, disable_numparse=True)


def cell_text(cell: Cell, ci: bool = False, counted: bool = False) -> str:
    """Return the text of a cell; with ``counted``, it ends with the number of seeds."""
    mark = "".join(f" {mark}" for mark in marks_of(cell))
    number = f" (n={min(map(len, cell.seeds))})" if counted else ""
    if cell.compared_with not in ("", cell.trainer):
        if cell.difference is None or cell.adjusted_p is None:
            return ""
        significant = f" {_SIGNIFICANT_MARK}" if cell.is_significant else ""
        return _difference(cell.difference, cell.adjusted_p) + significant + mark + number
    text = mean_and_deviation([cell.mean] if ci else cell.values, cell.mean)
    if cell.interval:
        text += f" [{cell.interval.low:.1f}, {cell.interval.high:.1f}]"
    return text + mark + number


def marks_of(cell: Cell) -> list[str]:
    """Return the marks of a cell's number; `marks` explains them."""
    kinds = {*map(transfer_of, cell.measured)}
    found = [mark for kind, mark in _TRANSFER_MARKS.items() if kind in kinds]
    return [*found, *[_SKIPPED_MARK] * any(map(skipped_images, cell.measured))]


def _difference(difference: "Difference", p_value: float) -> str:
    """Return "+1.3 [+0.2, +2.4], p 0.012"."""
    mean, low, high = (f"{round(number, 1) + 0.0:+.1f}" for number in difference[:3])  # + 0.0: no "-0.0"
    return f"{mean} [{low}, {high}], {f'p {p_value:.3f}' if p_value >= 0.001 else 'p < 0.001'}"


def marks(cells: Sequence[Cell]) -> list[str]:
    """Return the explanations of the marks."""
    rows = [row for cell in cells for row in cell.measured]
    kinds = set(map(transfer_of, rows))
    notes = [f"{_MARK} used the unlabelled test images"] if any(map(is_transductive, rows)) else []
    notes += [f"{mark} {_TRANSFER_NOTES[kind]}" for kind, mark in _TRANSFER_MARKS.items() if kind in kinds]
    if most := max(map(skipped_images, rows), default=0):
        notes.append(f"{_SKIPPED_MARK} without unreadable test images, at most {most:,} per run")
    if any(cell.is_significant for cell in cells):
        notes.append(
            f"{_SIGNIFICANT_MARK} p < {SIGNIFICANT}; other seeds may reverse a difference whose interval contains 0"
        )
    return notes
