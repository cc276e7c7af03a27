"""Blocks of rows, so that temporaries stay small however large the result is."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Numbers per block: 8 MiB in float32. The C library gives larger memory back to the system after each block, and every
# page of the next block costs an interrupt.
MOST_NUMBERS = 2**21


def row_blocks(rows: int, columns: int, most: int | None = None) -> list[slice]:
    """Return the blocks of a table ``[rows, columns]``, each with at most about ``most`` numbers.

    A smaller table is one block. The sizes of the blocks differ by at most one row: matrix products of very few rows
    round differently, so a small last block would have other bits.

    Args:
        rows: the number of rows.
        columns: the numbers in each row.
        most: numbers per block; `MOST_NUMBERS` if omitted.

    Examples:
        >>> from unskew.utils.blocks import row_blocks
        >>> row_blocks(10, 2**19)
        [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
    """
    count = max(1, min(rows, -(-rows * columns // (most or MOST_NUMBERS))))
    ends = [rows * number // count for number in range(count + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(ends)]


def in_blocks(function: "Callable[[slice], Mapping[str, Tensor]]", blocks: Sequence[slice]) -> "dict[str, Tensor]":
    """Return the tensors [N, ...] that a function gives for all rows, computed block by block.

    Only the results have the size of all rows; temporaries of the function have the size of a block.

    Args:
        function: returns tensors [B, ...] by name for a block of B rows.
        blocks: those of `row_blocks` for N rows.
    """
    if len(blocks) == 1:
        return dict(function(blocks[0]))
    results: dict[str, Tensor] = {}
    for rows in blocks:
        for name, part in function(rows).items():
            if name not in results:
                results[name] = part.new_empty(blocks[-1].stop, *part.shape[1:])
            results[name][rows] = part
    return results
