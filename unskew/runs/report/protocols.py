"""The sections Base to new, Transfer and Published results, with the numbers of ``unskew table``."""

from collections.abc import Sequence
from pathlib import Path

from unskew.engine.run_dir import path_safe
from unskew.runs.report.blocks import EMPTY, Cell, Heading, Note, Section, Table, word
from unskew.runs.report.gather import Found, common_folder
from unskew.runs.tables import cell_statistics, mean_and_deviation, protocol_tables, published_tables, text_tables
from unskew.runs.tables.cells import Cell as Number
from unskew.runs.tables.cells import all_cells
from unskew.runs.tables.protocol_rows import ProtocolRow
from unskew.runs.tables.protocol_tables import BASE_TO_NEW, CROSS_DATASET, DOMAINS

_MARKED = (
    "Accuracy in percent, mean ± standard deviation over seeds; below it the 95% interval and the number of seeds. "
    "Marked (●): the best, and all that do not differ significantly from it."
)

_SECTIONS = {
    "Base to new": (
        (BASE_TO_NEW,),
        "How accurate is a model on classes that it was not trained on? Runs train on the first half of the classes "
        "(base) and are tested on both halves. H is the harmonic mean of both means.",
    ),
    "Transfer": (
        (CROSS_DATASET, DOMAINS),
        "How accurate is a model on other datasets than the one that it was trained on, its source? No label of a "
        "target is used.",
    ),
}
_HEADINGS = {BASE_TO_NEW: "", CROSS_DATASET: "To other datasets from ", DOMAINS: "Domain generalisation from "}


def protocol_sections(found: Found) -> list[Section]:
    """Return the sections Base to new and Transfer, each only if there are such runs."""
    protocols = protocol_tables.split(found.rows, found.evaluations)
    sections = []
    for title, (names, lead) in _SECTIONS.items():
        section = Section(title, lead)
        for name in names:
            for group in protocol_tables.groups(protocols[name]) if name in protocols else []:
                section.blocks += _blocks(name, group)
        if section.blocks:
            sections.append(section)
    return sections


def _blocks(name: str, group: list[ProtocolRow]) -> list[Heading | Table | Note]:
    """Return a table for each dataset, backbone and number of shots, and for the averages over datasets."""
    columns = protocol_tables.columns(group)
    cells, notes = all_cells(group, columns)
    cells = cell_statistics.against_best(cells)
    headers = protocol_tables.headers(group)
    blocks: list[Heading | Table | Note] = []
    places: dict[tuple[str, ...], list[Number]] = {}
    for cell in cells:
        places.setdefault((cell.dataset, cell.backbone, cell.label), []).append(cell)
    for (dataset, backbone, label), there in places.items():
        where = dataset or f"average over {', '.join(there[0].datasets)}"
        blocks.append(Heading(f"{_HEADINGS[name]}{where}, {backbone}, {label}"))
        stem = path_safe(f"{name}-{dataset or 'average'}-{backbone}-{label}".replace("_", "-").replace(" ", "-"))
        by_metric = {(cell.trainer, cell.metric): cell for cell in there}
        trainers = dict.fromkeys(cell.trainer for cell in there)
        order = sorted(trainers, key=lambda trainer: -max(_last(by_metric, trainer, columns)))
        rows = [[word(trainer), *(_cell(by_metric.get((trainer, metric))) for metric in columns)] for trainer in order]
        blocks.append(Table(stem, ["trainer", *(f"{headers[metric]} (%)" for metric in columns)], rows, _MARKED))
    remarks = [*protocol_tables.notes(group), *text_tables.marks(cells), *notes]
    return [*blocks, *(Note(f"{text}.") for text in dict.fromkeys(remarks))]


def _last(by_metric: dict[tuple[str, str], Number], trainer: str, columns: Sequence[str]) -> list[float]:
    """Return the number by which a trainer is sorted: its last one."""
    found = [by_metric[trainer, metric].mean for metric in columns if (trainer, metric) in by_metric]
    return found[-1:] or [0.0]


def _cell(cell: Number | None) -> Cell:
    if cell is None:
        return EMPTY
    seeds = min(map(len, cell.seeds))
    parts = [f"[{cell.interval.low:.1f}, {cell.interval.high:.1f}]"] if cell.interval else []
    parts.append(f"{seeds} seed{'s' if seeds > 1 else ''}")
    marks = "".join(f" {mark}" for mark in text_tables.marks_of(cell))
    text = mean_and_deviation(cell.values, cell.mean) + marks
    return Cell(text, cell.mean, ", ".join(parts), _folder(cell), cell.is_best)


def _folder(cell: Number) -> Path:
    return common_folder(row["folder"] for row in cell.measured)


def published_section(found: Found) -> list[Section]:
    """Return the section Published results; none if no published result fits the runs."""
    pairs = published_tables.fitting(found.rows, found.evaluations)
    if not pairs:
        return []
    lead = "How do the runs compare with published results? Second-hand numbers were read in texts that quote them."
    section = Section("Published results", lead)
    numbers = published_tables.sources(pairs)
    for title, group in published_tables.grouped(pairs).items():
        rows = []
        for result, cell in group:
            texts = published_tables.cells_of(result, cell, numbers)
            own = Cell(texts[3], cell.mean, folder=_folder(cell)) if cell else EMPTY
            gap = Cell(texts[5], cell.mean - result.mean) if cell else EMPTY
            rows.append([*map(word, texts[:3]), own, Cell(texts[4], result.mean), gap, word(texts[6])])
        caption = "Accuracy in percent. Methods without a trainer have no run below the folders of this report."
        stem = path_safe(f"published-{title}".replace(", ", "-").replace(" ", "-").replace("_", "-"))
        section.blocks += [Heading(title), Table(stem, published_tables.HEADERS, rows, caption)]
    section.blocks += [Note(f"[{number}] {source}.") for source, number in numbers.items()]
    return [section]
