"""The first pass over a source: checks, sums that the labels decide, and some rows to keep in memory."""

import bisect
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unskew.debias._streamed import Block, Source, over_parts, parts, to_tensor
from unskew.debias._validation import (
    COSINE_DEVIATION,
    FEWEST_COSINES,
    LARGEST_LOGIT,
    as_logits,
    check_labels,
    log_probabilities,
    sum_to_one,
    warn_of,
)

# A source with at most so many logits and rows is loaded, and has the results of an array. Of a larger one as many rows
# are kept: a fit on them is the start of the fits on all rows.
KEPT_NUMBERS = 2**23
KEPT_ROWS = 2**16

# Random rows that are always kept, for the correlation of the classes, a check of the temperature, and its grid.
DRAWN = 2048


@dataclass(frozen=True)
class Streamed:
    """A scanned source with its labels, divided by a temperature.

    Attributes:
        source: Finite logits ``[N, C]``.
        labels: ``[N]``, or None.
        counts: ``[C]``, images per class; zeros without labels.
        largest: Largest absolute logit.
        label_logit: Sum of the logits of the labels.
        label_below: Sum of the logits of the labels minus the row maxima.
        correct: Images whose largest logit is that of the label.
        rows: ``[n]``, rows that are kept, ascending.
        kept: ``[n, C]``, their logits in the source, before the division.
        drawn: Places in ``rows`` of random rows, in the order in which `unskew.debias._softmax.some_rows` draws them.
        chosen: ``[n]``, whether a kept row is one of the subset for starts, in which no class has many more images than
            another; without labels the subset is random.
        pool: For the passes, or None.
        temperature: Divides the logits, or None.
    """

    source: Source
    labels: Tensor | None
    counts: Tensor
    largest: float
    label_logit: float
    label_below: float
    correct: int
    rows: Tensor
    kept: Tensor
    drawn: Tensor
    chosen: Tensor
    pool: Any = None
    temperature: Tensor | None = None
    is_source = True

    @property
    def shape(self) -> tuple[int, int]:
        """N and C."""
        samples, classes = self.source.shape
        return samples, classes

    @property
    def device(self) -> torch.device:
        """Device of the logits."""
        return self.source.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the logits."""
        return self.source.dtype

    def __len__(self) -> int:
        """Return N."""
        return self.shape[0]

    def divided(self, temperature: Tensor | float) -> "Streamed":
        """Return the logits divided by a temperature; no pass is needed."""
        by = torch.as_tensor(temperature, dtype=torch.float64)
        sums = {name: getattr(self, name) / float(by) for name in ("largest", "label_logit", "label_below")}
        before = 1.0 if self.temperature is None else self.temperature
        return dataclasses.replace(self, temperature=before * by, **sums)

    def some(self, most: int) -> tuple[Tensor, Tensor | None]:
        """Return the logits and labels of the rows of `unskew.debias._softmax.some_rows`, ascending."""
        places = self.drawn[:most].sort().values
        return self._kept(places), None if self.labels is None else self.labels[self.rows[places]]

    def subset(self) -> tuple[Tensor, Tensor | None]:
        """Return the logits and labels of the subset for starts."""
        return self._kept(self.chosen), None if self.labels is None else self.labels[self.rows[self.chosen]]

    def _kept(self, places: Tensor) -> Tensor:
        """Return some of the kept logits, divided by the temperature."""
        logits = self.kept[places]
        return logits if self.temperature is None else logits.div_(self.temperature)


def loads(source: Source) -> bool:
    """Return whether a source is small enough to be loaded."""
    samples, classes = source.shape
    return samples <= KEPT_ROWS and samples * classes <= KEPT_NUMBERS


def load(source: Source) -> Tensor:
    """Read all rows, ``[N, C]``."""
    samples, _ = source.shape
    step = max(1, source.block_rows)
    blocks = [slice(start, min(start + step, samples)) for start in range(0, samples, step)]
    return torch.cat([check_block(source, rows, source[rows]) for rows in blocks])


def open_stream(
    source: Source, labels: Any = None, *, name: str = "logits", cosines: bool = False, pool: Any = None
) -> "Tensor | Streamed":
    """Return a small source as a tensor of logits, and any other scanned, with the logarithm of probabilities.

    Args:
        source: ``[N, C]``.
        labels: ``[N]``, or None.
        name: Of the logits in warnings.
        cosines: As in `unskew.debias._validation.as_logits`.
        pool: For the passes.

    Raises:
        ValueError: As `scan`.
    """
    check_shape(source)
    if loads(source):
        return as_logits(cosines=cosines, **{name: load(source)})[0]
    least = recognise_sources({name: source}, cosines, pool)[name]
    logits: Source = LogProbabilities(source, least) if least else source
    return scan(logits, labels, pool=pool)


def scan(source: Source, labels: Any = None, *, pool: Any = None) -> Streamed:
    """Check a source and its labels in one pass, and keep some of its rows.

    Raises:
        ValueError: Wrong shapes, labels out of range, or logits that are not finite or above 1e8.
    """
    check_shape(source)
    samples, classes = source.shape
    targets, counts = None, torch.zeros(classes, dtype=torch.float64)
    if labels is not None:
        targets = check_labels(labels, torch.empty(1, 1).expand(samples, classes))  # of no more memory
        counts = targets.bincount(minlength=classes).double()
    rows, drawn, chosen = _choose(samples, classes, targets, counts)
    kept, extras, filled = torch.empty(len(rows), classes, dtype=source.dtype), [], 0
    for part in parts(samples):
        first, last = torch.searchsorted(rows, torch.tensor([part.start, part.stop])).tolist()
        wanted = (rows[first:last] - part.start).numpy()
        extras.append((wanted, None if targets is None else targets[part].numpy()))
    largest = label_logit = label_below = 0.0
    correct = 0
    for found in over_parts(_scan, [source], extras, pool=pool, name="scan"):
        if found.wrong is not None:
            raise _refused(source, found.wrong)
        largest, correct = max(largest, found.largest), correct + found.correct
        label_logit, label_below = label_logit + found.label_logit, label_below + found.label_below
        kept[filled : filled + len(found.kept)] = to_tensor(found.kept).to(kept)
        filled += len(found.kept)
    if largest > LARGEST_LOGIT:
        raise ValueError(f"logits must be at most {LARGEST_LOGIT:g} in size to be fitted (got {largest:.3g})")
    sums = largest, label_logit, label_below, correct
    return Streamed(source, targets, counts, *sums, rows, kept, drawn, chosen, pool)


def _choose(samples: int, classes: int, labels: Tensor | None, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows to keep, ascending, and their ``drawn`` and ``chosen`` of `Streamed`.

    The subset has all images of the rare classes and at most k of the others, so that the bias of each class, to which
    the class frequencies do not matter, starts equally near its estimate.
    """
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(0))  # as in `some_rows`
    most = min(samples, max(DRAWN, min(KEPT_ROWS, KEPT_NUMBERS // classes)))
    drawn, subset = order[:DRAWN], order[:most]
    if labels is not None:
        k = bisect.bisect_right(range(1, most + 1), most, key=lambda k: int(counts.clamp(max=k).sum()))
        if k:
            by_label = order[labels[order].argsort(stable=True)]
            rank = torch.arange(samples) - (counts.cumsum(0) - counts).long()[labels[by_label]]
            subset = by_label[rank < k]
    rows = torch.cat([drawn, subset]).unique()
    return rows, torch.searchsorted(rows, drawn), torch.isin(rows, subset)


def check_shape(source: Source) -> None:
    """Raise a ``ValueError`` unless a source is ``[N, C]`` with at least one row and one class."""
    if len(source.shape) != 2 or 0 in source.shape:
        raise ValueError(f"logits must be [N, C] with N and C of at least 1 (got {list(source.shape)})")


def check_block(source: Source, rows: slice, logits: Tensor) -> Tensor:
    """Return a block of a source, or raise a ``ValueError`` if a logit is not finite."""
    if not torch.stack(logits.aminmax()).isfinite().all():
        raise _refused(source, (rows.start, rows.stop))
    return logits


def _refused(source: Source, rows: tuple[int, int]) -> ValueError:
    logits = source[slice(*rows)]
    finite = logits.isfinite()
    row, column = (~finite).nonzero()[0].tolist()
    place = source.place(rows[0] + row) if hasattr(source, "place") else ""
    return ValueError(
        f"{int((~finite).sum())} of {logits.numel()} logits in rows {rows[0]}..{rows[1] - 1} are NaN or infinite, the "
        f"first in row {rows[0] + row}, column {column}{place and f': {place}'}"
    )


class _Scan(NamedTuple):
    """The scan of a part."""

    wrong: tuple[int, int] | None  # first block with logits that are not finite
    largest: float
    label_logit: float
    label_below: float
    correct: int
    kept: np.ndarray  # [n, C]


def _scan(blocks: Iterator[Block], extra: tuple[np.ndarray, np.ndarray | None]) -> _Scan:
    """Scan a part; ``extra`` has the rows to keep, ascending from the start of the part, and its labels."""
    wanted, labels = to_tensor(extra[0]), None if extra[1] is None else to_tensor(extra[1])
    largest, label_logit, label_below, correct, start = 0.0, 0.0, 0.0, 0, None
    kept = []
    for rows, (logits,) in blocks:
        start = rows.start if start is None else start
        ends = torch.stack(logits.aminmax())
        if not ends.isfinite().all():
            return _Scan((rows.start, rows.stop), 0.0, 0.0, 0.0, 0, np.empty(0))
        largest = max(largest, float(ends.double().abs().max()))
        here = slice(rows.start - start, rows.stop - start)
        first, last = torch.searchsorted(wanted, torch.tensor([here.start, here.stop])).tolist()
        kept.append(logits[(wanted[first:last] - here.start).to(logits.device)].cpu())
        if labels is not None:
            targets = labels[here].to(logits.device)
            highest, predicted = logits.max(1)
            of_label = logits.gather(1, targets[:, None])[:, 0].double()
            label_logit += float(of_label.sum())
            label_below += float((of_label - highest).sum())
            correct += int((predicted == targets).sum())
    values = torch.cat(kept)
    values = values.float() if values.dtype == torch.bfloat16 else values  # NumPy has no bfloat16
    return _Scan(None, largest, label_logit, label_below, correct, values.numpy())


# --- probabilities and cosines instead of logits --------------------------------------------------------


@dataclass(frozen=True)
class LogProbabilities:
    """The logarithm of a source of probabilities, with the smallest one for zeros."""

    source: Source
    least: float
    is_source = True

    @property
    def block_rows(self) -> int:
        """Rows to read at once."""
        return self.source.block_rows

    @property
    def shape(self) -> tuple[int, int]:
        """N and C."""
        return self.source.shape

    @property
    def device(self) -> torch.device:
        """Device of the blocks."""
        return self.source.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the blocks."""
        return torch.promote_types(self.source.dtype, torch.float32)

    def __len__(self) -> int:
        """Return N."""
        return len(self.source)

    def __getitem__(self, rows: slice) -> Tensor:
        """Read some rows, ``[n, C]``."""
        return log_probabilities(self.source[rows], self.least)


def recognise_sources(sources: dict[str, Source], cosines: bool = False, pool: Any = None) -> dict[str, float]:
    """Return the smallest positive value of each source of probabilities and 0 for logits, by name, and warn.

    The first row decides for nearly all logits; otherwise one more pass is needed.
    """
    least, similar = {}, []
    for name, source in sources.items():
        check_shape(source)
        first = source[slice(0, 1)]
        least[name] = 0.0
        if source.shape[1] < 2 or not (sum_to_one(first) or bool(cosines and first.abs().amax() <= 1)):
            continue
        found = _Kinds.summed(over_parts(_kinds, [source], pool=pool, name="recognise"))
        least[name] = found.least if found.probabilities and found.least < 1 else 0.0
        if cosines and found.are_cosines(*source.shape):
            similar.append(name)
    warn_of([name for name, value in least.items() if value], similar)
    return least


class _Kinds(NamedTuple):
    """Properties of all logits of a part, by which probabilities and cosines are recognised."""

    probabilities: bool
    least: float
    largest: float
    whole: bool
    squares: float

    @classmethod
    def summed(cls, several: Iterator["_Kinds"]) -> "_Kinds":
        """Return the properties of all parts."""
        total = cls(True, torch.inf, 0.0, True, 0.0)
        for each in several:
            total = cls(
                total.probabilities and each.probabilities,
                min(total.least, each.least),
                max(total.largest, each.largest),
                total.whole and each.whole,
                total.squares + each.squares,
            )
        return total

    def are_cosines(self, samples: int, classes: int) -> bool:
        """Return whether the logits are like cosines."""
        numbers = samples * classes
        deviation = (self.squares / numbers) ** 0.5
        return numbers >= FEWEST_COSINES and self.largest <= 1 and not self.whole and 0 < deviation < COSINE_DEVIATION


def _kinds(blocks: Iterator[Block], _: None) -> _Kinds:
    several = []
    for _rows, (logits,) in blocks:
        centred = logits.double() - logits.mean(1, keepdim=True, dtype=torch.float64)
        least = float(torch.where(logits > 0, logits, torch.inf).amin())
        whole = bool((logits == logits.round()).all())
        largest = float(logits.abs().amax())
        several.append(_Kinds(sum_to_one(logits), least, largest, whole, float(centred.square().sum())))
    return _Kinds.summed(iter(several))
