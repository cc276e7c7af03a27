"""The report of finished runs: one HTML page, and its figures and tables as files."""

from collections.abc import Iterable
from pathlib import Path

from unskew.runs.report import files, gather, page
from unskew.runs.report.bias import bias_section
from unskew.runs.report.blocks import Heading, Note, Section
from unskew.runs.report.calibration import calibration_section, confusion_section
from unskew.runs.report.overview import against_shots_section, overview_section
from unskew.runs.report.protocols import protocol_sections, published_section
from unskew.runs.report.training import cost_section, training_section
from unskew.utils.files import write_atomically

_MOST_DETAILED = 10  # datasets with a backbone each: a page of all would be slow and large


def write_report(
    folders: Iterable[str | Path],
    out: str | Path,
    images: bool = False,
    figures: str | Path = "",
    tables: str | Path = "",
) -> str:
    """Write the report of all finished runs in and below folders; return one line on the page.

    Args:
        folders: folders of runs.
        out: the HTML file to write; its folder is created.
        images: add thumbnails of the user's test images.
        figures: a folder for each figure as PDF and SVG.
        tables: a folder for each table as LaTeX and CSV.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: there is no finished run, or ``out`` is a file that is no page.
        OSError: a file cannot be written.
    """
    found, out = gather.collect(folders), Path(out)
    files.prepare(out, figures, tables)
    sections = _sections(found, images)
    content = page.render(sections, _summary(found.rows), out.parent)
    write_atomically(out, content)
    count = len(found.rows)
    parts = [f"{count:,} run{'s' if count > 1 else ''}", f"{len(content) / 1000:,.0f} kB"]
    if figures:
        parts.append(f"{files.save_figures(sections, Path(figures))} figures in '{figures}'")
    if tables:
        parts.append(f"{files.save_tables(sections, Path(tables))} tables in '{tables}'")
    return f"{out}: {', '.join(parts)}"


def _sections(found: gather.Found, images: bool) -> list[Section]:
    """Return the sections; those of protocols and published results are there if they have content."""
    more = [*protocol_sections(found), *published_section(found)]
    if not found.runs:
        return more
    runs = found.runs
    places, averages = gather.arrange(runs)
    order = list(dict.fromkeys(run.trainer for run in runs))
    detailed, others = places[:_MOST_DETAILED], places[_MOST_DETAILED:]
    closer = [
        bias_section(detailed, images),
        calibration_section(detailed),
        confusion_section(detailed),
        training_section(detailed, order),
    ]
    if others:
        left = ", ".join(place.title for place in others[:3]) + (" ..." if len(others) > 3 else "")
        text = f"{len(others)} more are not shown here ({left}): write a report of their folders alone."
        for section in closer:
            section.blocks += [Heading("Other datasets"), Note(text)]
    first = [overview_section(places, averages), against_shots_section(places, averages, order)]
    return [*first, *more, *closer, cost_section(places)]


def _summary(rows: list[dict]) -> str:
    datasets, trainers = (list(dict.fromkeys(row[key] for row in rows)) for key in ("dataset", "trainer"))
    seeds = {row["seed"] for row in rows}
    counts = [(len(rows), "run"), (len(datasets), "dataset"), (len(trainers), "trainer"), (len(seeds), "seed")]
    text = ", ".join(f"{count:,} {name}{'s' if count > 1 else ''}" for count, name in counts)
    shown = ", ".join(datasets[:12]) + (" ..." if len(datasets) > 12 else "")
    return f"{text}. {'Datasets' if len(datasets) > 1 else 'Dataset'}: {shown}."
