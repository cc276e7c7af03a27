"""Dropout that several processes share: together they draw the mask that one process draws for the whole batch."""

import contextlib
import contextvars
from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from unskew.utils.processes import Share

_current: contextvars.ContextVar[Share | None] = contextvars.ContextVar("batch_share", default=None)


@contextlib.contextmanager
def of_batch(share: Share | None) -> Iterator[None]:
    """Let the inputs of `dropout` inside the ``with`` block be this process's part of a batch.

    Args:
        share: the part; ``None`` for inputs that all processes have.
    """
    token = _current.set(share)
    try:
        yield
    finally:
        _current.reset(token)


def dropout(x: Tensor, rate: float) -> Tensor:
    """Set a share ``rate`` of the numbers [B, ...] to zero and scale the others, as in training."""
    share = _current.get()
    if share is None:
        return F.dropout(x, rate)
    # Random numbers are drawn in the order of memory, so the mask has the layout of the whole batch.
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    sizes = [share.size if dim == 0 else x.shape[dim] for dim in order]
    mask = F.dropout(x.new_ones(sizes), rate).permute([order.index(dim) for dim in range(x.dim())])
    return x * mask[share.rows.start : share.rows.stop : share.rows.step]
