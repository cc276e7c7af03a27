"""Write the table of all methods on the embedded datasets into docs/RESULTS.md.

Usage: python scripts/build_results.py OUTPUT [MARK], where OUTPUT is the folder of the finished runs, and MARK is the
name of the table on the page: results or emoji.
"""

import re
import sys
from pathlib import Path

from unskew.runs import tables
from unskew.runs.tables import text_tables
from unskew.utils.files import write_atomically

PAGE = Path(__file__).resolve().parent.parent / "docs" / "RESULTS.md"


def build(output: str, mark: str = "results", page: Path = PAGE) -> None:
    """Replace the part of a page between the marks by the table of the runs below a folder, with intervals."""
    rows = [row for row in tables.collect(output) if not tables.is_half(row)]
    replace(page, mark, text_tables.table(rows, ci=True))


def replace(page: Path, mark: str, text: str) -> None:
    """Replace the part of a page between its marks by a text."""
    before, after = around(page, mark)
    write_atomically(page, f"{before}{text}\n{after}")


def around(page: Path, mark: str) -> tuple[str, str]:
    """Return a page up to the line `<!-- MARK:begin -->`, and from the line `<!-- MARK:end -->` on, with both lines.

    Raises:
        ValueError: the page does not have both lines once, in this order.
    """
    begin, end = f"<!-- {mark}:begin -->\n", f"<!-- {mark}:end -->\n"
    found = re.fullmatch(f"(.*{begin}).*({end}.*)", content := page.read_text(encoding="utf-8"), re.DOTALL)
    if not found or (content.count(begin), content.count(end)) != (1, 1):
        raise ValueError(f"{page} must have the lines '{begin.strip()}' and '{end.strip()}' once, in this order")
    return found[1], found[2]


if __name__ == "__main__":
    build(*sys.argv[1:])
