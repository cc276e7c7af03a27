"""The means of softmax(logits / tau + offset) for many offsets of the classes, with exponentials taken once."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 2**16  # elements of a block of rows: in float64 half of a processor's second cache

DEVICE_BLOCK = 2**24  # the same on an accelerator, where a launch costs more than the cache gives

TINY = 1e-130  # of a row's total: below it, what underflowed in the row might count


def block_rows(tensor: Tensor) -> int:
    """How many rows of ``[N, C]`` a block has: so few that temporaries in float64 stay in the cache."""
    return max(1, (BLOCK if tensor.device.type == "cpu" else DEVICE_BLOCK) // tensor.shape[1])


def blocks(tensor: Tensor) -> Iterator[slice]:
    """The rows of ``[N, C]`` in slices of `block_rows`."""
    step = block_rows(tensor)
    return (slice(start, min(start + step, len(tensor))) for start in range(0, len(tensor), step))


def buffers(tensor: Tensor, count: int) -> Tensor:
    """Room for ``count`` temporaries of a block, ``[count, rows, C]``, in float64: new memory for each block would cost
    more than the arithmetic.
    """
    shape = count, min(block_rows(tensor), len(tensor)), tensor.shape[1]
    return torch.empty(shape, dtype=torch.float64, device=tensor.device)


class Means(NamedTuple):
    """Means over the rows, at one offset."""

    log_partition: Tensor  # of logsumexp(logits / tau + offset)
    probabilities: Tensor  # [C]
    squares: Tensor | None  # [C], of the squared probabilities


class Exponentials:
    """E = exp(logits / tau + reference - the highest of the row), ``[N, C]`` in float64, all the memory there is to it.

    With f = exp(offset - reference) the probabilities softmax(logits / tau + offset) are E_ic f_c / (E f)_i, so that
    their means are two products with E. That is exact as long as no row's total is near underflow; where one is, E
    is made again around the offset in hand.

    Attributes:
        passes: over the logits or E.
    """

    def __init__(self, logits: Tensor, rows: Tensor | None = None, classes: Tensor | None = None):
        """Logits ``[*, *]`` of any type, of which ``rows`` ``[N]`` and ``classes`` ``[C]``, ascending, count."""
        samples, width = logits.shape
        shape = (samples if rows is None else len(rows), width if classes is None else len(classes))
        self._logits = logits
        self._rows, self._classes = rows if shape[0] < samples else None, classes if shape[1] < width else None
        self._e = torch.empty(shape, dtype=torch.float64, device=logits.device)
        self._inverse = self._e.new_empty(shape[0])  # 1 / (E f)
        self._reference: Tensor | None = None  # [C]; None: E is to be made
        self.tau = 1.0
        self.passes = 0

    def soften(self, tau: float) -> None:
        """From now on the logits are divided by tau."""
        if tau != self.tau:
            self.tau, self._reference = tau, None

    def at(self, offset: Tensor, squares: bool = False) -> Means:
        """The means at a finite offset ``[C]``."""
        if self._reference is not None:
            means = self._pass(offset, squares)
            if self._inverse.max() < 1 / TINY:
                return means
        self._reference, self._highest = offset, torch.zeros_like(offset[0])
        return self._pass(offset, squares, made=False)

    def _pass(self, offset: Tensor, with_squares: bool, made: bool = True) -> Means:
        self.passes += 1
        change = offset - self._reference
        shift = change.max()
        self._factors = (change - shift).exp()
        sums, squares = torch.zeros_like(change), torch.zeros_like(change)
        (room,) = buffers(self._e, 1)
        for part in blocks(self._e):
            block = self._e[part] if made else self._make(part)
            inverse = torch.mv(block, self._factors, out=self._inverse[part]).reciprocal_()
            sums += inverse @ block
            if with_squares:
                squares += inverse.square() @ torch.square(block, out=room[: len(block)])
        samples = len(self._e)
        log_partition = self._highest / samples + shift - self._inverse.log().mean()
        probabilities = self._factors * sums / samples
        return Means(log_partition, probabilities, self._factors.square() * squares / samples if with_squares else None)

    def _make(self, part: slice) -> Tensor:
        given = self._logits[part if self._rows is None else self._rows[part]]
        block = self._e[part].copy_(given if self._classes is None else given[:, self._classes])
        if self.tau != 1:
            block.div_(self.tau)
        highest = block.add_(self._reference).amax(1, keepdim=True)
        self._highest += highest.sum()
        return block.sub_(highest).exp_()

    def product(self, vector: Tensor) -> Tensor:
        """P^T P vector / N, ``[C]``, with P the probabilities ``[N, C]`` at the last offset."""
        self.passes += 1
        weighted, sums = self._factors * vector, torch.zeros_like(vector)
        for part in blocks(self._e):
            block = self._e[part]
            sums += (block @ weighted).mul_(self._inverse[part].square()) @ block
        return self._factors * sums / len(self._e)
