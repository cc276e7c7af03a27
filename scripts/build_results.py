"""Write the table of all methods on the embedded datasets into docs/RESULTS.md.

Usage: python scripts/build_results.py OUTPUT, where OUTPUT is the folder of the finished runs.
"""

import sys
from pathlib import Path

from unskew.runs import tables
from unskew.runs.tables import text_tables
from unskew.utils.files import write_atomically

PAGE = Path(__file__).resolve().parent.parent / "docs" / "RESULTS.md"
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def build(output: str, page: Path = PAGE) -> None:
    """Replace the part of a page between the marks by the table of the runs below a folder, with intervals."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    rows = [row for row in tables.collect(output) if not tables.is_half(row)]
    write_atomically(page, f"{before}{BEGIN}\n{text_tables.table(rows, ci=True)}\n{END}{after}")


if __name__ == "__main__":
    build(sys.argv[1])
