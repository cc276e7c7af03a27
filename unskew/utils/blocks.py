"""Blocks of rows: what is computed in blocks has small temporaries, however large its result is."""

import itertools

# Numbers per block: 64 MiB in float32. The C library returns memory of this size to the system at once.
MOST_NUMBERS = 2**24


def row_blocks(rows: int, columns: int) -> list[slice]:
    """Return the blocks of a table ``[rows, columns]``, each with at most about `MOST_NUMBERS` numbers.

    A smaller table is one block. The sizes of the blocks differ by at most one row: matrix products of very few rows
    round differently, so a small last block would have other bits.

    Example:
        >>> from unskew.utils.blocks import row_blocks
        >>> row_blocks(10, 2**22)
        [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
    """
    count = max(1, min(rows, -(-rows * columns // MOST_NUMBERS)))
    ends = [rows * number // count for number in range(count + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(ends)]
