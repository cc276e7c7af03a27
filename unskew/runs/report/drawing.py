"""Figures by matplotlib's objects, without pyplot's state: as SVG for the page, and as PDF and SVG for a paper.

The SVG of the page holds text as text and names its colours by CSS variables, so that it follows light and dark mode.
"""

import html
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unskew.runs.report.blocks import Figure
from unskew.utils.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.figure import Figure as Canvas

LARGEST = 1e38  # a larger number in a file is damage, and matplotlib cannot draw it

# Colours of the page's SVG that stand for CSS variables: no other artist has them.
_PAGE_FOREGROUND = "#010203"
_PAGE_SERIES = tuple(f"#0a0b{number:02x}" for number in range(8))

# Colours of a paper's figures, by Okabe and Ito with darker tones, and the fill of a matrix on both backgrounds.
_PAPER_SERIES = ("#0072b2", "#d55e00", "#00855f", "#b0508c", "#8c5a2b", "#3a9bd9", "#6b7280", "#8a8500")
MATRIX_COLOUR = (0.2, 0.54, 0.93)

_MARKERS, _LINES = "osD^vP*X", ("-", "--", ":")

_PAPER_SCALE = 0.83  # a figure of 4.2 inches becomes a column of 3.5


@dataclass(frozen=True)
class Ink:
    """The colours of a figure."""

    foreground: str
    series: Sequence[str]

    def line(self, number: int) -> dict[str, Any]:
        """Return colour, marker and dash of a series, for ``Axes.plot``."""
        count = len(self.series)
        return {
            "color": self.series[number % count],
            "marker": _MARKERS[number % len(_MARKERS)],
            "linestyle": _LINES[number // count % len(_LINES)],
        }

    def colour(self, number: int) -> str:
        """Return the colour of a series."""
        return self.series[number % len(self.series)]


_PAGE = Ink(_PAGE_FOREGROUND, _PAGE_SERIES)
_PAPER = Ink("#000000", _PAPER_SERIES)


def shorten(name: str, longest: int = 22) -> str:
    """Return a name that fits into a figure, in one line; tables have the whole names."""
    name = " ".join(name.split())
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def page_svg(figure: Figure) -> str:
    """Return a figure as SVG for the page, without the XML header, and smaller than matplotlib's."""
    with _style(_PAGE, figure.name):
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        canvas = _draw(figure, _PAGE, 1)
        for background in (canvas.patch, *(axes.patch for axes in canvas.axes)):
            background.set_visible(False)
        file = io.StringIO()
        FigureCanvasSVG(canvas).print_svg(file, metadata={"Date": None})  # savefig would draw twice
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'(width|height)="[\d.]+pt" ', "", text, count=2)
    text = re.sub(r"\s*\n\s*", "\n", re.sub(r"<[^>]*>", lambda tag: _smaller(tag[0]), text))
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(figure.name)}" ', 1)


def _smaller(tag: str) -> str:
    """Return a tag with shorter numbers, the page's colours, and no name of a group; texts between tags are kept."""
    tag = re.sub(r'(<g) id="[^"]*"', r"\1", tag)  # the same names in every figure, and nothing refers to them
    tag = re.sub(r"(\d\.\d\d)\d+", r"\1", tag)  # hundredths of a point
    for number, colour in enumerate(_PAGE_SERIES):
        tag = tag.replace(colour, f"var(--series-{number})")
    return tag.replace(_PAGE_FOREGROUND, "currentColor")


def save(figure: Figure, folder: Path) -> None:
    """Write a figure as PDF and SVG at the size of a paper's column."""
    with _style(_PAPER, figure.name):
        canvas = _draw(figure, _PAPER, _PAPER_SCALE)
        for suffix in ("pdf", "svg"):
            metadata = {"CreationDate": None} if suffix == "pdf" else {"Date": None}
            file = io.BytesIO()
            canvas.savefig(file, format=suffix, metadata=metadata)
            write_atomically(folder / f"{figure.name}.{suffix}", file.getvalue())


def _draw(figure: Figure, ink: Ink, scale: float) -> "Canvas":
    from matplotlib.figure import Figure as Canvas

    width, height = (scale * size for size in figure.size)
    canvas = Canvas(figsize=(width, height), layout="constrained")
    axes = canvas.add_subplot()
    figure.draw(axes, ink)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        per_line = int(18 * width / (max(map(len, labels)) + 5))  # characters that fit into a line
        canvas.legend(handles, labels, loc="outside lower center", ncols=max(1, min(len(labels), per_line)))
    if engine := canvas.get_layout_engine():
        engine.execute(canvas)
        canvas.set_layout_engine("none")  # else drawing would do it again
    return canvas


@contextmanager
def _style(ink: Ink, name: str) -> Iterator[None]:
    import matplotlib as mpl

    fonts = logging.getLogger("matplotlib.font_manager")
    level = fonts.level
    fonts.setLevel(logging.ERROR)
    try:
        with mpl.rc_context(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a browser has more fonts
            mpl.rcdefaults()
            mpl.rcParams.update(_settings(ink, name))
            yield
    finally:
        fonts.setLevel(level)


def _settings(ink: Ink, name: str) -> dict[Any, Any]:
    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    return {
        **dict.fromkeys(names, ink.foreground),
        "text.parse_math": False,  # a class may be called "$x$"
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "pdf.fonttype": 42,
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.18,
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.5,
        "lines.markersize": 4,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "legend.handlelength": 1.6,
        "legend.columnspacing": 1.2,
    }


def use_log_scale(axis: "XAxis | YAxis", text: str, steps: Sequence[int] = (1, 2, 5)) -> None:
    """Make an axis logarithmic with plain numbers at the steps of each decade.

    Args:
        axis: the x or y axis.
        text: the format of a number ``x``.
        steps: the multiples of powers of ten that get a number.
    """
    from matplotlib.ticker import LogLocator

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(text)
    axis.set_minor_formatter("")


def hide_grid(axes: "Axes", axis: str = "both") -> None:
    """Remove the grid lines of an axis."""
    axes.grid(visible=False, axis=axis)  # type: ignore[arg-type]  # one of "x", "y" and "both"
