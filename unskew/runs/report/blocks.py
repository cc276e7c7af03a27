"""The content of a report without its form: sections of tables, figures, pictures and notes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from unskew.runs.report.drawing import Ink


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: the text to show.
        value: the number or text to sort by; ``None`` for an empty cell, which sorts last.
        note: a second, smaller line.
        folder: the folder that the number comes from.
        best: mark the cell.
    """

    text: str
    value: float | str | None = None
    note: str = ""
    folder: Path | None = None
    best: bool = False


EMPTY = Cell("")


def number(value: object, digits: int = 1, folder: Path | None = None) -> Cell:
    """Return a number as a cell, with thousands separators; anything else gives an empty cell."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return EMPTY
    return Cell(f"{value:,.{digits}f}".replace("-", "−"), float(value), folder=folder)


def word(text: str, note: str = "") -> Cell:
    """Return a text as a cell that sorts by it."""
    return Cell(text, text, note)


@dataclass(frozen=True)
class Table:
    """A table with a caption.

    Attributes:
        name: the stem of its files.
        columns: the headers, with units.
        rows: cells in the order of the columns.
        caption: what to read off.
        folder: the folder that the numbers come from, unless their cells have one.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str
    folder: Path | None = None


@dataclass(frozen=True)
class Figure:
    """A figure of one pair of axes with a caption.

    Attributes:
        name: the stem of its files.
        caption: what to read off.
        draw: a function that draws into the axes.
        folder: the folder that the numbers come from.
        size: width and height in inches.
    """

    name: str
    caption: str
    draw: "Callable[[Axes, Ink], object]"
    folder: Path | None = None
    size: tuple[float, float] = (4.2, 3.1)


@dataclass(frozen=True)
class Pictures:
    """Rows of example images, as data URIs, each with a title."""

    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]  # title, and (URI, description) of each image
    caption: str
    folder: Path


@dataclass(frozen=True)
class Note:
    """One line of text, for instance of what is missing."""

    text: str


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str


Block = Table | Figure | Pictures | Note | Heading


@dataclass
class Section:
    """A section of the page."""

    title: str
    lead: str  # what the section answers
    blocks: list[Block] = field(default_factory=list)

    @property
    def groups(self) -> list[list[Block]]:
        """The blocks in groups that each begin with a heading."""
        found: list[list[Block]] = []
        for block in self.blocks:
            if isinstance(block, Heading) or not found:
                found.append([])
            found[-1].append(block)
        return found

    @property
    def anchor(self) -> str:
        """The section's id in the page."""
        return self.title.lower().replace(" ", "-")
