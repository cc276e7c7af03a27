"""Cross-fitting of GLA: each sample is adjusted by an estimator that was fitted without it."""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from unskew.debias._predicting import PARTS, Scores, blocks
from unskew.debias.gla import GLA
from unskew.debias.sources import SelectedRows

FOLDS = 5


def fold_numbers(labels: Tensor) -> Tensor:
    """Return the fold ``[N]`` of each sample; each class is distributed evenly, in order."""
    folds = torch.empty_like(labels)
    folds[labels.argsort(stable=True)] = torch.arange(len(labels)) % FOLDS
    return folds


def fit_halves(estimator: GLA, zs: Any, ft: Any, y: Tensor | None, *, pool: Any = None) -> GLA:
    """Fit the zero-shot half and, unless ``ft`` is None, the rest, on tensors or on sources ``[N, C]``."""
    if ft is None:
        return estimator.fit(zs, None, y)
    return estimator.fit_zeroshot(zs, y).fit_finetuned(zs, ft, y)


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

    Raises:
        ValueError: Fewer than two samples.
    """
    if len(zs) < 2:
        raise ValueError("a single sample cannot be cross-fitted: fit on other samples (--val-zeroshot and so on)")
    estimator = copy.deepcopy(estimator)
    halves = estimator._recognised(zs=zs) if ft is None else estimator._recognised(zs=zs, ft=ft)
    folds = fold_numbers(y)
    plan = []
    for number in folds.unique():
        rows = folds == number
        plan.append((rows, _fit_on(copy.deepcopy(estimator), ~rows, halves["zs"], halves.get("ft"), y, start)))
    return plan


def _fit_on(estimator: GLA, mask: Tensor, zs: Any, ft: Any, y: Tensor, start: GLA | None) -> GLA:
    """Fit on some rows of logits; their copies are freed before those of the next fold are made."""
    zs, labels = _selected(zs, mask), y[mask]
    estimator._fit_zeroshot(zs, labels, start)
    if ft is None:
        estimator._store("ft_temperature_", math.nan)
        return estimator
    return estimator._fit_finetuned(zs, _selected(ft, mask), labels, start)


def _selected(logits: Any, mask: Tensor) -> Any:
    if isinstance(logits, Tensor):
        return logits.index_select(0, mask.nonzero().flatten())
    return SelectedRows(logits, mask)


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
