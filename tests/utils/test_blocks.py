"""Blocks of rows."""

import pytest

from unskew.utils import blocks


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (1, 5), (7, 5), (100, 3), (101, 10), (13, 1000), (5, 0)])
def test_blocks_cover_all_rows_in_order_and_are_small_and_alike(rows, columns, monkeypatch):
    monkeypatch.setattr(blocks, "MOST_NUMBERS", 60)
    found = blocks.row_blocks(rows, columns)
    assert [row for block in found for row in range(rows)[block]] == list(range(rows))
    sizes = [block.stop - block.start for block in found]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) * columns <= max(60, columns) + columns
    assert len(found) == 1 or rows * columns > 60
