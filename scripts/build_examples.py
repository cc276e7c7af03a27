"""Run the examples and write docs/EXAMPLES.md, or print the section of one example.

    python scripts/build_examples.py                             # write the page
    python scripts/build_examples.py examples/debias_logits.py   # print a section

An example is a Python file in cells. A cell starts with a line `# %%`; the comments of a cell `# %% [markdown]` are
text.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "EXAMPLES.md"

INTRODUCTION = """# Examples

Each example is a Python file in cells: run the file, or single cells in an editor that knows `# %%`, such as VS Code or
(with jupytext) Jupyter. They need no network, only data and models of the package, and less than a minute each. Run
them in an empty folder: they write their files there, such as `data`, `output` and `report.html`.
`python scripts/build_examples.py` runs them and writes this page.
"""


class Cell(NamedTuple):
    """A cell of an example."""

    is_text: bool
    line: int  # the number of its first line in the file
    content: str


def read_cells(path: Path) -> list[Cell]:
    """Return the cells of an example.

    Raises:
        ValueError: the file does not start with a text cell, whose first line is the title.
    """
    source = path.read_text(encoding="utf-8")
    cells = []
    for match in re.finditer(r"^# %%([^\n]*)\n(.*?)(?=^# %%|\Z)", source, re.MULTILINE | re.DOTALL):
        is_text, content = match[1].strip() == "[markdown]", match[2].strip("\n")
        if is_text:
            content = "\n".join(line.removeprefix("#").removeprefix(" ") for line in content.splitlines())
        cells.append(Cell(is_text, source.count("\n", 0, match.start(2)), content))
    if not (source.startswith("# %%") and cells[0].is_text and cells[0].content.startswith("# ")):
        raise ValueError(f"'{path}' must start with a cell '# %% [markdown]' whose first line is a title, '# # Title'")
    return cells


def build_section(path: Path) -> str:
    """Run an example in the current folder and return its section: text, code and what the code prints."""
    names: dict[str, object] = {"__name__": "__main__"}
    parts = []
    for cell in read_cells(path):
        if cell.is_text:
            parts.append(re.sub("^#", "##", cell.content, flags=re.MULTILINE))  # a heading below that of the page
            continue
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile("\n" * cell.line + cell.content, str(path), "exec"), names)
        parts.append(f"```python\n{cell.content}\n```")
        if text := output.getvalue().replace(f"{Path.cwd()}{os.sep}", "").rstrip():
            parts.append("\n".join(["```text", *(line.rstrip() for line in text.splitlines()), "```"]))
    title, *rest = parts[0].split("\n", 1)
    link = f"[`examples/{path.name}`](../examples/{path.name})"
    return "\n\n".join([title, link, *(part.strip() for part in [*rest, *parts[1:]])]) + "\n"


def run(path: Path) -> str:
    """Return the section of an example that runs in a process of its own, in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, str(path.resolve())]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        return subprocess.run(words, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def main(words: list[str]) -> None:
    """Print the section of the given example, or write the page of all examples in the order of their titles."""
    if words:
        print(build_section(Path(words[0])), end="")
        return
    sections = sorted(run(path) for path in (ROOT / "examples").glob("*.py"))
    PAGE.write_text("\n".join([INTRODUCTION, *sections]), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
