"""Cross-fitting of GLA: each sample is adjusted by an estimator that was fitted without it."""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from unskew.debias._predicting import Scores, blocks
from unskew.debias.gla import GLA

FOLDS = 5


def fold_numbers(labels: Tensor) -> Tensor:
    """Return the fold ``[N]`` of each sample; each class is distributed evenly, in order."""
    folds = torch.empty_like(labels)
    folds[labels.argsort(stable=True)] = torch.arange(len(labels)) % FOLDS
    return folds


def cross_fit(
    estimator: GLA, zs: Tensor, ft: Tensor, y: Tensor, *, start: GLA | None = None
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
    halves = estimator._recognised(zs=zs, ft=ft)
    folds = fold_numbers(y)
    plan = []
    for number in folds.unique():
        rows = folds == number
        others = (~rows).nonzero().flatten()
        plan.append((rows, _fit_on(copy.deepcopy(estimator), others, halves["zs"], halves["ft"], y, start)))
    return plan


def _fit_on(estimator: GLA, rows: Tensor, zs: Tensor, ft: Tensor, y: Tensor, start: GLA | None) -> GLA:
    """Fit on some rows of logits; their copies are freed before those of the next fold are made."""
    zs, labels = zs.index_select(0, rows), y[rows]
    estimator._fit_zeroshot(zs, labels, start)
    return estimator._fit_finetuned(zs, ft.index_select(0, rows), labels, start)


def cross_scores(
    plan: Sequence[tuple[Tensor, GLA]], zs: Tensor, ft: Tensor, log_target: Tensor | None = None
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Yield `GLA.parts` block by block with its rows, each row from the estimator that was fitted without it.

    An estimator that uses the images to predict sees all samples, without labels.
    """
    scores = [(members, Scores(fitted, zs, ft, log_target)) for members, fitted in plan]
    for rows in blocks(zs):
        merged: dict[str, Tensor] = {}
        for members, of_fold in scores:
            places = members[rows].nonzero().flatten()
            for name, logits in of_fold[places + rows.start].items():
                shape = rows.stop - rows.start, zs.shape[1]
                merged.setdefault(name, logits.new_empty(shape))[places] = logits
        yield rows, merged
