"""The report's figures and tables as files for a paper."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from unskew.runs.report import drawing
from unskew.runs.report.blocks import Cell, Figure, Section, Table
from unskew.utils.files import write_atomically

# LaTeX's special characters, and characters that its fonts lack outside formulas.
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "−": "$-$", "\n": " "},
}


_BEGINNING = b"<!DOCTYPE html>"  # of a page


_Named = TypeVar("_Named", Figure, Table)


def prepare(out: Path, *folders: str | Path) -> None:
    """Make the folders of the page, its figures and its tables.

    Args:
        out: the page; an older page is replaced, and any other file is an error.
        folders: folders of figures and tables; "" is none.

    Raises:
        ValueError: ``out`` is no name of a file, or a file that is no page.
        OSError: a folder cannot be made.
    """
    if not out.name:
        raise ValueError("--out needs the name of a file, such as report.html")
    if out.is_file():
        with out.open("rb") as file:
            if file.read(len(_BEGINNING)) not in (_BEGINNING, b""):
                raise ValueError(f"'{out}' is not replaced, because it is no page of a report: choose another --out")
    for folder in [out.parent, *(Path(folder) for folder in folders if folder)]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise type(error)(error.errno, f"cannot make '{folder}': {error.strerror}; choose another place") from error


def save_figures(sections: Sequence[Section], folder: Path) -> int:
    """Write each figure as PDF and SVG at paper size; return the number of figures."""
    found = _with_own_names([block for section in sections for block in section.blocks if isinstance(block, Figure)])
    for figure in found:
        drawing.save(figure, folder)
    return len(found)


def save_tables(sections: Sequence[Section], folder: Path) -> int:
    """Write each table as LaTeX (booktabs) and CSV; return the number of tables."""
    found = _with_own_names([block for section in sections for block in section.blocks if isinstance(block, Table)])
    for table in found:
        write_atomically(folder / f"{table.name}.tex", _encode(latex(table)))
        write_atomically(folder / f"{table.name}.csv", _encode(comma_separated(table)))
    return len(found)


def _with_own_names(blocks: list[_Named]) -> list[_Named]:
    """Return blocks with a number behind a name that an earlier one has, in upper or lower case."""
    seen: Counter[str] = Counter()
    found = []
    for block in blocks:
        seen[block.name.lower()] += 1
        count = seen[block.name.lower()]
        found.append(replace(block, name=f"{block.name}--{count}") if count > 1 else block)
    return found


def _encode(text: str) -> bytes:
    return text.encode(errors="backslashreplace")


def latex(table: Table) -> str:
    """Return a table for LaTeX's package booktabs; marked cells are bold."""
    numeric = [any(isinstance(row[i].value, float | int) for row in table.rows) for i in range(len(table.columns))]
    has_notes = any(cell.note for row in table.rows for cell in row)
    lines = [
        f"% {' '.join(table.caption.split())}",
        *["% Marked cells are bold here, and the smaller lines are in the CSV."] * has_notes,
        rf"\begin{{tabular}}{{{''.join('r' if right else 'l' for right in numeric)}}}",
        r"\toprule",
        " & ".join(map(escape, table.columns)) + r" \\",
        r"\midrule",
        *(" & ".join(map(_latex_cell, row)) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _latex_cell(cell: Cell) -> str:
    text = escape(cell.text)
    return rf"\textbf{{{text}}}" if cell.best else text


def escape(text: str) -> str:
    """Return a text for LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)


def comma_separated(table: Table) -> str:
    """Return a table as CSV: numbers in full, with the texts, notes, marks and folders in columns of their own."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    more = [_extra_columns(table, index) for index in range(len(table.columns))]
    rows.writerow(
        [name for i, column in enumerate(table.columns) for name in (column, *(f"{column}: {x}" for x in more[i]))]
    )
    for row in table.rows:
        rows.writerow(
            [value for i, cell in enumerate(row) for value in (_plain(cell), *(_extra(cell, x) for x in more[i]))]
        )
    return file.getvalue()


def _plain(cell: Cell) -> str | float:
    return cell.text if cell.value is None else cell.value


def _extra_columns(table: Table, index: int) -> list[str]:
    """Return the properties that some cell of a column has beside its value."""
    return [name for name in ("text", "note", "best", "folder") if any(_extra(row[index], name) for row in table.rows)]


def _extra(cell: Cell, name: str) -> str:
    if name == "text":
        return cell.text if "±" in cell.text else ""
    value = getattr(cell, name)
    return ("yes" if value is True else str(value)) if value else ""
