"""Predictions of trainers that combine several models, and predictions in blocks of rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from unskew.utils.blocks import row_blocks
from unskew.utils.derived_tensors import Sum


@dataclass(frozen=True)
class Prediction:
    """Logits of a trainer and, by name, the logits that a composite trainer reports beside them.

    Attributes:
        logits: the trainer's prediction, [N, C].
        parts: further logits [N, C] of the same images. A composite trainer lists its combination here too, so that
            its accuracy is reported under the combination's name.
        sums: the two terms of parts that are sums to the bit: another part's name, and a name or a tensor [C]. A run's
            file holds the terms instead.
    """

    logits: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    sums: Mapping[str, Sum] = field(default_factory=dict)


def in_blocks(function: Callable[[slice], Mapping[str, Tensor]], rows: int, columns: int) -> dict[str, Tensor]:
    """Return the tensors [N, ...] that a function gives for all rows, computed block by block.

    Only the results have the size of all rows; what the function computes on its way has the size of a block.

    Args:
        function: returns tensors [B, ...] by name for a block of B rows.
        rows: N.
        columns: the numbers that the function computes for each row, about.
    """
    blocks = row_blocks(rows, columns)
    if len(blocks) == 1:
        return dict(function(blocks[0]))
    results: dict[str, Tensor] = {}
    for block in blocks:
        for name, part in function(block).items():
            if name not in results:
                results[name] = part.new_empty(rows, *part.shape[1:])
            results[name][block] = part
    return results
