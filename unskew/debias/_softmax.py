"""Means of softmax(logits / tau + offset) for many class offsets, with the exponentials computed once."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 2**16  # elements of a block of rows: in float64 half of a processor's second-level cache

DEVICE_BLOCK = 2**24  # the same on an accelerator, where kernel launches cost more than the cache saves

TINY = 1e-130  # fraction of a row's total below which underflowed terms might matter


def block_rows(tensor: "Tensor | Selection") -> int:
    """Return the number of rows of ``[N, C]`` per block, so that float64 temporaries fit the cache."""
    return max(1, (BLOCK if tensor.device.type == "cpu" else DEVICE_BLOCK) // tensor.shape[1])


class Selection:
    """Rows and classes of logits ``[M, D]``, divided by a temperature: ``[N, C]``, of which only blocks are in memory.

    Attributes:
        shape: N and C.
        device: Device of the logits.
    """

    def __init__(
        self,
        logits: "Tensor | Selection",
        rows: Tensor | None = None,
        classes: Tensor | None = None,
        temperature: Tensor | None = None,
    ) -> None:
        """Select ``rows`` ``[N]`` and ``classes`` ``[C]``, ascending; None selects all."""
        samples, width = logits.shape
        self.shape: tuple[int, int] = (
            samples if rows is None else len(rows),
            width if classes is None else len(classes),
        )
        self.device: torch.device = logits.device
        self._logits, self._temperature = logits, temperature
        self._rows, self._classes = (
            rows if self.shape[0] < samples else None,
            classes if self.shape[1] < width else None,
        )

    def __len__(self) -> int:
        """Return N."""
        return self.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Return some of the rows; they may share the memory of the logits."""
        rows = rows if self._rows is None else self._rows[rows]
        if isinstance(rows, Tensor) and isinstance(self._logits, Tensor):
            logits = self._logits.index_select(0, rows)  # takes a third of the time of indexing
        else:
            logits = self._logits[rows]
        logits = logits if self._classes is None else logits.index_select(1, self._classes)
        return logits if self._temperature is None else logits / self._temperature


def blocks(tensor: Tensor | Selection) -> Iterator[slice]:
    """Return the rows of ``[N, C]`` as slices of `block_rows` rows."""
    step = block_rows(tensor)
    return (slice(start, min(start + step, len(tensor))) for start in range(0, len(tensor), step))


def buffers(tensor: Tensor | Selection, count: int) -> Tensor:
    """Allocate ``count`` float64 temporaries of one block, ``[count, rows, C]``, to be used for every block.

    New memory for each block would cost more than the arithmetic.
    """
    shape = count, min(block_rows(tensor), len(tensor)), tensor.shape[1]
    return torch.empty(shape, dtype=torch.float64, device=tensor.device)


def some_rows(tensor: Tensor | Selection, most: int) -> Tensor:
    """Return the indices of all rows of ``[N, C]``, or of ``most`` random rows, always the same.

    Rows at equal distances would have the same label where the labels repeat.
    """
    samples = len(tensor)
    if samples <= most:
        return torch.arange(samples, device=tensor.device)
    chosen = torch.randperm(samples, generator=torch.Generator().manual_seed(0))[:most]
    return chosen.sort().values.to(tensor.device)


def spread(logits: Tensor, classes: Tensor | None = None) -> float:
    """Return the standard deviation of logits ``[N, C]`` around their row means, from about 1000 rows."""
    some = logits[:: max(1, len(logits) // 1000)]
    return float((some if classes is None else some[:, classes]).double().var(1, correction=0).mean().sqrt())


class Means(NamedTuple):
    """Means over the rows, at one offset."""

    log_partition: Tensor  # of logsumexp(logits / tau + offset)
    probabilities: Tensor  # [C]
    squares: Tensor  # [C], of the squared probabilities; zeros if not requested


class Exponentials:
    """E = exp(logits / tau + reference - row maximum), ``[N, C]`` in float64; the only large array in memory.

    With f = exp(offset - reference) the probabilities softmax(logits / tau + offset) are E_ic f_c / (E f)_i, so
    their means are two products with E. This is exact unless a row's total is near underflow; then E is computed
    again around the current offset.

    Attributes:
        tau: Temperature of the softmax.
        passes: Number of passes over the logits or E so far.
    """

    def __init__(self, logits: Tensor | Selection, rows: Tensor | None = None, classes: Tensor | None = None) -> None:
        """Select ``rows`` ``[N]`` and ``classes`` ``[C]``, ascending, of logits of any type; None selects all."""
        self._logits = Selection(logits, rows, classes)
        self._e = torch.empty(self._logits.shape, dtype=torch.float64, device=logits.device)
        self._inverse = self._e.new_empty(len(self._e))  # 1 / (E f)
        self._reference: Tensor | None = None  # [C]; None: E must be computed
        self.tau = 1.0
        self.passes = 0

    def soften(self, tau: float) -> None:
        """Divide the logits by tau in all later passes."""
        if tau != self.tau:
            self.tau, self._reference = tau, None

    def at(self, offset: Tensor, squares: bool = False) -> Means:
        """Return the means at a finite offset ``[C]``."""
        if self._reference is not None:
            means = self._pass(offset, self._reference, squares)
            if self._inverse.max() < 1 / TINY:
                return means
        self._reference, self._highest = offset, torch.zeros_like(offset[0])
        return self._pass(offset, offset, squares, ready=False)

    def _pass(self, offset: Tensor, reference: Tensor, with_squares: bool, ready: bool = True) -> Means:
        self.passes += 1
        change = offset - reference
        shift = change.max()
        self._factors = (change - shift).exp()
        sums, squares = torch.zeros_like(change), torch.zeros_like(change)
        (workspace,) = buffers(self._e, 1)
        for rows in blocks(self._e):
            block = self._e[rows] if ready else self._fill(rows, reference)
            inverse = torch.mv(block, self._factors, out=self._inverse[rows]).reciprocal_()
            sums += inverse @ block
            if with_squares:
                squares += inverse.square() @ torch.square(block, out=workspace[: len(block)])
        samples = len(self._e)
        log_partition = self._highest / samples + shift - self._inverse.log().mean()
        probabilities = self._factors * sums / samples
        return Means(log_partition, probabilities, self._factors.square() * squares / samples)

    def _fill(self, rows: slice, reference: Tensor) -> Tensor:
        """Compute a block of E."""
        block = self._e[rows].copy_(self._logits[rows])
        if self.tau != 1:
            block.div_(self.tau)
        highest = block.add_(reference).amax(1, keepdim=True)
        self._highest += highest.sum()
        return block.sub_(highest).exp_()

    def product(self, vector: Tensor) -> Tensor:
        """Return P^T P vector / N, ``[C]``, with P the probabilities ``[N, C]`` at the last offset."""
        self.passes += 1
        weighted, sums = self._factors * vector, torch.zeros_like(vector)
        for rows in blocks(self._e):
            block = self._e[rows]
            sums += (block @ weighted).mul_(self._inverse[rows].square()) @ block
        return self._factors * sums / len(self._e)
