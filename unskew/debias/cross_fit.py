"""Cross-fitting of GLA: each sample is adjusted by an estimator that was fitted without it."""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from unskew.debias._predicting import PARTS, Scores, blocks
from unskew.debias._streamed_scan import LogProbabilities
from unskew.debias.gla import GLA
from unskew.debias.sources import SelectedRows, Source

FOLDS = 5


def fold_numbers(labels: Tensor) -> Tensor:
    """Return the fold ``[N]`` of each sample; each class is distributed evenly, in order."""
    folds = torch.empty_like(labels)
    folds[labels.argsort(stable=True)] = torch.arange(len(labels)) % FOLDS
    return folds


def fit_halves(estimator: GLA, zs: Any, ft: Any, y: Tensor | None, *, pool: Any = None) -> GLA:
    """Fit the zero-shot half and, unless ``ft`` is None, the rest, with the ``log_p_`` that the estimator has.

    Args:
        estimator: Is fitted and returned.
        zs: ``[N, C]``, zero-shot logits, a tensor or a source.
        ft: ``[N, C]``, fine-tuned logits of the same kind, or None.
        y: ``[N]``, or None.
        pool: Spreads the passes over sources, as in `GLA.fit`.
    """
    if isinstance(zs, Tensor) and ft is not None:
        return estimator.fit_zeroshot(zs, y).fit_finetuned(zs, ft, y)
    log_p = estimator._buffers["log_p_"]
    return estimator.fit(zs, ft, y, train_counts=None if log_p is None else log_p.exp(), pool=pool)


def cross_fit(
    estimator: GLA, zs: Any, ft: Any, y: Tensor, *, start: GLA | None = None, pool: Any = None
) -> list[tuple[Tensor, GLA]]:
    """Return for each fold its rows ``[N]``, bool, and a copy of the estimator fitted on the other folds.

    The solvers start at the numbers of ``start``, an estimator that was fitted on all samples. It has seen the labels
    of the fold, but they do not reach the result, because each solver that uses the start converges to the one minimum
    for the other folds from any start. The objectives of ``map`` for log q, the weights and the offsets are strictly
    convex by their priors. The temperatures of ``confidence`` and ``nll`` are roots of monotone functions. The
    objective of the temperature of ``map`` is not convex: a grid selects the interval, in which the start is only the
    first point. The other estimators of log q, and rho, may have no unique minimum and start from scratch.

    Probabilities are recognised in all samples at once, so that all folds read them alike: a single row that does not
    sum to one makes the array logits, also for the folds without that row.

    Sources are fitted from scratch, on the rows of a source that a fold selects.

    Raises:
        ValueError: Fewer than two samples.
    """
    if len(zs) < 2:
        raise ValueError("a single sample cannot be cross-fitted: fit on other samples (--val-zeroshot and so on)")
    if not isinstance(zs, Tensor):
        return _cross_fit_sources(estimator, zs, ft, y, pool)
    estimator = copy.deepcopy(estimator)
    halves = estimator._recognised(zs=zs) if ft is None else estimator._recognised(zs=zs, ft=ft)
    folds = fold_numbers(y)
    plan = []
    for number in folds.unique():
        rows = folds == number
        plan.append((rows, _fit_on(copy.deepcopy(estimator), ~rows, halves["zs"], halves.get("ft"), y, start)))
    return plan


def _fit_on(estimator: GLA, mask: Tensor, zs: Tensor, ft: Tensor | None, y: Tensor, start: GLA | None) -> GLA:
    """Fit on some rows of logits; their copies are freed before those of the next fold are made."""
    rows = mask.nonzero().flatten()
    zs, labels = zs.index_select(0, rows), y[rows]
    estimator._fit_zeroshot(zs, labels, start)
    if ft is None:
        estimator._store("ft_temperature_", math.nan)
        return estimator
    return estimator._fit_finetuned(zs, ft.index_select(0, rows), labels, start)


def _cross_fit_sources(estimator: GLA, zs: Source, ft: Source | None, y: Tensor, pool: Any) -> list[tuple[Tensor, GLA]]:
    """Run `cross_fit` on sources, with an estimator that has recognised probabilities in a fit on all samples."""
    least = {name: float(getattr(estimator, f"{name}_least_")) for name in ("zs", "ft")}
    sources = {name: source for name, source in (("zs", zs), ("ft", ft)) if source is not None}
    logits: dict[str, Any] = {
        name: LogProbabilities(source, least[name]) if least[name] else source for name, source in sources.items()
    }
    folds, plan = fold_numbers(y), []
    for number in folds.unique():
        mask = folds != number
        others = {name: SelectedRows(source, mask) for name, source in logits.items()}
        fitted = fit_halves(copy.deepcopy(estimator), others["zs"], others.get("ft"), y[mask], pool=pool)
        for name, value in least.items():
            fitted._store(f"{name}_least_", value)
        plan.append((~mask, fitted))
    return plan


def cross_scores(
    plan: Sequence[tuple[Tensor, GLA]],
    zs: Tensor,
    ft: Tensor | None,
    log_target: Tensor | None = None,
    names: Sequence[str] = PARTS,
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Yield `GLA.parts` block by block with its rows, each row from the estimator that was fitted without it.

    An estimator that uses the images to predict sees all samples, without labels.
    """
    scores = [(members, Scores(fitted, zs, ft, log_target, names)) for members, fitted in plan]
    for rows in blocks(zs):
        merged: dict[str, Tensor] = {}
        for members, of_fold in scores:
            places = members[rows].nonzero().flatten()
            for name, logits in of_fold[places + rows.start].items():
                shape = rows.stop - rows.start, zs.shape[1]
                merged.setdefault(name, logits.new_empty(shape))[places] = logits
        yield rows, merged
