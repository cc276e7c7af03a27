"""The rows of the table of `unskew adjust`: logits of each row, and their accuracies counted block by block."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from unskew.debias._predicting import PARTS, Scores
from unskew.debias._streamed import Block, computed_blocks, over_parts, parts, read_ahead
from unskew.debias._streamed_scan import check_block
from unskew.debias.cross_fit import fold_numbers
from unskew.debias.gla import GLA
from unskew.debias.metrics import group_means, prior_groups
from unskew.debias.samples import Sample


def table_rows(found: Mapping[str, Tensor], log_target: Tensor | None, transported: bool) -> dict[str, Tensor]:
    """Return the logits ``[n, C]`` of each row of the table, the adjusted ones last, from `GLA.parts`."""
    name, debiased = "zero-shot - log q", found["debiased"]
    if transported:
        name = "zero-shot, transported"
    elif log_target is not None:
        name, debiased = "zero-shot - log q + log target", debiased + log_target.to(debiased)
    rows = {"zero-shot": found["zs"], name: debiased}
    if "gla" in found:
        rows |= {"fine-tuned": found["ft"], "ensemble": found["ensemble"], "GLA": found["gla"]}
    return rows


def names_of(sample: Sample) -> Sequence[str]:
    """Return the parts that the rows need."""
    return PARTS if sample.ft is not None else ("zs", "debiased")


def prior_of(gla: GLA, zs: Any) -> Tensor:
    """Return the log q ``[C]`` that is subtracted from zero-shot logits."""
    return torch.as_tensor(gla.log_q_for(zs)) if gla.method_ == "unlabelled" else gla.log_q_


class Tally:
    """Correct predictions per class, by the name of a row of the table.

    Attributes:
        counts: ``[C]``, images per class.
        right: ``[C]`` each, correct predictions per class.
    """

    def __init__(self, labels: Tensor, classes: int) -> None:
        self.counts = labels.bincount(minlength=classes)
        self.right: dict[str, Tensor] = {}

    def add(self, name: str, predicted: Tensor, labels: Tensor) -> None:
        """Count predictions ``[n]`` of some images."""
        self.add_counts(name, count_right(predicted, labels, len(self.counts)))

    def add_counts(self, name: str, right: Tensor) -> None:
        """Add correct predictions ``[C]``."""
        self.right[name] = self.right.get(name, 0) + right

    def table(self, log_q: Tensor) -> str:
        """Format the accuracies in percent: over all images, and the class mean by thirds of q."""
        groups = prior_groups(log_q)
        lines = []
        for name, right in self.right.items():
            by_group = group_means(right.double() / self.counts, groups)
            accuracy = 100 * int(right.sum()) / int(self.counts.sum())
            values = [accuracy, *map(by_group.get, ("p_many", "p_medium", "p_few"))]
            lines.append([name, *("" if value is None else f"{value:.1f}" for value in values)])
        headers = ["", "accuracy", "head", "medium", "tail"]
        return tabulate(lines, headers, "github", disable_numparse=True, colalign=("left", *["right"] * 4))


def count_right(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the correct predictions per class ``[C]``."""
    return labels[predicted == labels].bincount(minlength=classes)


# --- sources -----------------------------------------------------------------------------------------------


def stream(
    fits: Sequence[GLA], sample: Sample, log_target: Tensor | None, tally: Tally | None, *, keep: bool, pool: Any
) -> Iterator[Tensor]:
    """Read a sample of sources once; count its rows in ``tally`` and yield the adjusted logits, if they are kept.

    Args:
        fits: One estimator, or those of the folds of `fold_numbers`.
        sample: Sources, and labels if there is a tally or several fits.
        log_target: ``[C]``, or None.
        tally: For the accuracies, or None.
        keep: Yield the adjusted logits ``[n, C]``. This process computes them, since they are larger than the features
            that a pool would read.
        pool: As in `unskew.debias._streamed.over_parts`.
    """
    folds = fold_numbers(sample.labels).to(torch.uint8) if len(fits) > 1 and sample.labels is not None else None
    sources = [sample.zs] if sample.ft is None else [sample.zs, sample.ft]
    log_q = [prior_of(gla, sample.zs) for gla in fits]
    kernel = _Kernel(sources, fits, log_q, log_target, names_of(sample), keep, tally is not None)

    def extra(rows: slice) -> Extra:
        return rows.start, *(None if each is None else each[rows] for each in (sample.labels, folds))

    for right, logits in _blocks(kernel, extra) if keep else _parts(kernel, extra, pool):
        for name, counts in right.items():
            if tally is not None:
                tally.add_counts(name, counts)
        yield from logits


Extra = tuple[int, Tensor | None, Tensor | None]  # first row, and the labels and the folds of the rows
Found = tuple[dict[str, Tensor], list[Tensor]]  # correct predictions by row of the table, and adjusted logits


def _blocks(kernel: "_Kernel", extra: Callable[[slice], Extra]) -> Iterator[Found]:
    """Apply the kernel to a block after the other."""
    samples, step = len(kernel.sources[0]), min(source.block_rows for source in kernel.sources)
    slices = [slice(start, min(start + step, samples)) for start in range(0, samples, step)]
    with tqdm(total=samples, desc="predict", unit="image", delay=2, leave=False, disable=None) as bar:
        for block in read_ahead(kernel.sources, slices):
            yield kernel(iter([block]), extra(block[0]))
            bar.update(block[0].stop - block[0].start)


def _parts(kernel: "_Kernel", extra: Callable[[slice], Extra], pool: Any) -> Iterator[Found]:
    """Spread the kernel over a pool."""
    extras = [extra(part) for part in parts(len(kernel.sources[0]))]
    return over_parts(kernel, kernel.sources, extras, pool=pool, name="predict")


@dataclass(frozen=True)
class _Kernel:
    """A function of the blocks of a part: its correct predictions by row of the table, and its adjusted logits."""

    sources: Sequence[Any]
    fits: Sequence[GLA]
    log_q: Sequence[Tensor]
    log_target: Tensor | None
    names: Sequence[str]
    keep: bool
    counted: bool

    def __call__(self, blocks: Iterator[Block], extra: Extra) -> Found:
        start, labels, folds = extra
        classes = self.sources[0].shape[1]
        right: dict[str, Tensor] = {}
        kept: list[Tensor] = []
        for rows, halves in blocks:
            for some in computed_blocks(rows, classes):
                here = slice(rows.start - start + some.start, rows.start - start + some.stop)
                absolute = slice(start + here.start, start + here.stop)
                pairs = zip(self.sources, halves, strict=True)
                block = [check_block(source, absolute, half[some]) for source, half in pairs]
                found = self._rows(block, None if folds is None else folds[here])
                if self.counted and labels is not None:
                    for name, logits in found.items():
                        counts = count_right(logits.argmax(1), labels[here], classes)
                        right[name] = right.get(name, 0) + counts
                if self.keep:
                    kept.append(list(found.values())[-1])
        return right, kept

    def _rows(self, block: list[Tensor], folds: Tensor | None) -> dict[str, Tensor]:
        """Return the logits of each row of the table, of each image by the estimator of its fold."""
        if folds is None:
            return self._fitted(0, block)
        merged: dict[str, Tensor] = {}
        for number in folds.unique().tolist():
            places = (folds == number).nonzero().flatten()
            for name, logits in self._fitted(number, [half[places] for half in block]).items():
                merged.setdefault(name, logits.new_empty(len(folds), logits.shape[1]))[places] = logits
        return merged

    def _fitted(self, number: int, block: list[Tensor]) -> dict[str, Tensor]:
        zs, ft = (*block, None)[:2]
        scores = Scores(self.fits[number], zs, ft, self.log_target, self.names, log_q=self.log_q[number])
        return table_rows(scores[slice(0, len(block[0]))], self.log_target, transported=False)
