"""The page: one HTML file with its style, script and figures inside, which loads nothing from a network."""

import base64
import hashlib
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from unskew import __version__
from unskew.runs.report.blocks import Section
from unskew.runs.report.drawing import page_svg

_HERE = Path(__file__).parent


def render(sections: Sequence[Section], summary: str, folder: Path) -> bytes:
    """Return the page in UTF-8.

    Args:
        sections: the content.
        summary: one line on all runs.
        folder: where the page will be; links to runs are relative to it.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["svg"] = lambda figure: Markup(page_svg(figure))  # matplotlib escapes all text in it
    environment.filters["link"] = lambda path: _link(path, folder)
    environment.tests["of_kind"] = lambda block, kind: type(block).__name__ == kind
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("style.css", "table.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("page.html").render(
        sections=sections,
        summary=summary,
        version=__version__,
        style=Markup(style),
        script=Markup(script),
        script_hash=digest,
    )
    return page.encode(errors="backslashreplace")  # bytes of a path may not be UTF-8


def _link(path: Path, folder: Path) -> str:
    """Return the relative URL of a run's folder."""
    relative = os.path.relpath(os.path.abspath(path), os.path.abspath(folder))
    return urllib.parse.quote(os.fsencode(relative)) + "/"
