"""Sums over the images of sources: `unskew.debias._joint.LogitSums` in constant memory, one pass for each point."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unskew.debias._joint import LARGE, MOST_CORRELATED, LogitSums, Sums
from unskew.debias._streamed import Block, computed_blocks, over_parts, to_tensor
from unskew.debias._streamed_scan import Streamed

# The whole Hessian is computed up to this number of classes, and its diagonal beyond.
MOST_WHOLE = 5000


class StreamedSums:
    """Sums over N images, from J sources.

    Attributes:
        features: The J scanned sources.
        counts: ``[c]``, images per class, in float64; they may be fractions for images without labels.
        log_pi: ``[c]``, their log frequencies.
        label_logits: ``[J]``, sum over the images of the logit of the label; zeros without labels.
        whole: Whether the number of classes allows the whole Hessian.
        passes: Number of passes over the images so far.
    """

    def __init__(self, features: Sequence[Streamed], counts: Tensor, offsets: Sequence[Tensor] = ()) -> None:
        """Select the classes that occur.

        Args:
            features: J scanned sources ``[N, C]`` with the same labels.
            counts: ``[C]``, images per class; a class with 0 leaves the softmax.
            offsets: ``[C]`` each, are subtracted from the features.
        """
        self.features, self._all_counts = features, counts.cpu().double()
        self._offsets = [offset.cpu().double() for offset in offsets]
        self.counts = self._all_counts[self._all_counts > 0]
        self.log_pi = (self.counts / self.counts.sum()).log()
        self._below = max(feature.largest for feature in features) > LARGE
        sums = [feature.label_below if self._below else feature.label_logit for feature in features]
        self.label_logits = self.counts.new_tensor(sums)
        if features[0].labels is not None and offsets:
            self.label_logits -= torch.stack(self._offsets) @ self._all_counts
        self.whole = len(self.counts) <= MOST_WHOLE
        self.passes, self._gram = 0, torch.zeros(0)

    def __len__(self) -> int:
        """Return N."""
        return len(self.features[0])

    def at(self, weights: Tensor, bias: Tensor, keep: bool = True) -> Sums:
        """Return the sums at weights ``[J]`` and bias ``[c]``, in one pass.

        Args:
            weights: ``[J]``.
            bias: ``[c]``.
            keep: Compute what the Hessian needs: ``squares``, ``crossed`` and, up to `MOST_WHOLE` classes, `gram`.
        """
        self.passes += 1
        first = self.features[0]
        kernel = functools.partial(
            _sums,
            counts=self._all_counts.numpy(),
            offsets=[offset.numpy() for offset in self._offsets],
            temperatures=[feature.temperature for feature in self.features],
            weights=weights.numpy(),
            bias=bias.numpy(),
            keep=keep,
            with_gram=keep and self.whole,
            below=self._below,
        )
        sources, total = [feature.source for feature in self.features], None
        size = 8 * len(bias) ** 2 if keep and self.whole else 0
        for found in over_parts(kernel, sources, pool=first.pool, name=f"pass {self.passes}", result_bytes=size):
            total = found if total is None else total.plus(found)
        assert total is not None  # there is at least one part
        if keep and self.whole:
            self._gram = to_tensor(total.gram)
        return Sums(total.log_partition, *map(to_tensor, total[1:-1]))

    def gram(self) -> Tensor:
        """Return sum_i p_i p_i^T, ``[c, c]``, at the last point with ``keep``."""
        return self._gram

    def correlation(self) -> Tensor:
        """Return that of `LogitSums`, from the same images."""
        logits = self.features[0].some(MOST_CORRELATED)[0][:, self._all_counts > 0].double()
        return torch.corrcoef((logits - logits.mean(1, keepdim=True)).T).nan_to_num(0)

    def subset(self) -> tuple[LogitSums, Tensor]:
        """Return the sums over the subset for starts, and the share ``[c]`` of the images of each class in it."""
        kept = [feature.subset()[0] for feature in self.features]
        if self._below:
            kept = [each.double() - each.double().amax(1, keepdim=True) for each in kept]
        labels = self.features[0].subset()[1]
        counts = self._all_counts * (len(kept[0]) / len(self))
        if labels is not None:
            counts = labels.bincount(minlength=len(counts)).double()
        share = (counts / self._all_counts)[self._all_counts > 0]
        return LogitSums(kept, labels, counts, self._offsets), share


class _PartSums(NamedTuple):
    """`Sums` of a part as arrays, with gram ``[c, c]``, or ``[0, 0]`` if it is not needed."""

    log_partition: float
    probabilities: np.ndarray
    squares: np.ndarray
    expected: np.ndarray
    covariance: np.ndarray
    crossed: np.ndarray
    gram: np.ndarray

    def plus(self, other: "_PartSums") -> "_PartSums":
        """Return the sums of both; the arrays of this part are used for them, unless a pool has made them read-only."""
        arrays = [
            np.add(mine, others, out=mine if mine.flags.writeable else None)
            for mine, others in zip(self[1:], other[1:], strict=True)
        ]
        return _PartSums(self.log_partition + other.log_partition, *arrays)


def _sums(
    blocks: Iterator[Block],
    _: None,
    *,
    counts: np.ndarray,
    offsets: Sequence[np.ndarray],
    temperatures: Sequence[Tensor | None],
    weights: np.ndarray,
    bias: np.ndarray,
    keep: bool,
    with_gram: bool,
    below: bool,
) -> _PartSums:
    """Sum over a part with `LogitSums`; see `StreamedSums.at`."""
    total = None
    for rows, several in blocks:
        to = functools.partial(to_tensor, device=several[0].device)
        for some in computed_blocks(rows, len(counts)):
            logits = [
                each[some] if temperature is None else each[some] / temperature.to(each.device)
                for each, temperature in zip(several, temperatures, strict=True)
            ]
            if below:
                logits = [each.double() - each.double().amax(1, keepdim=True) for each in logits]
            data = LogitSums(logits, None, to(counts), [to(offset) for offset in offsets])
            sums = data.at(to(weights), to(bias), keep)
            gram = data.gram() if with_gram else sums.crossed.new_zeros(0, 0)
            found = _PartSums(sums.log_partition, *(array.cpu().numpy() for array in (*sums[1:], gram)))
            total = found if total is None else total.plus(found)
    assert total is not None  # a part has at least one row
    return total
