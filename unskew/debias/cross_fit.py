"""Cross-fitting of GLA: each sample is adjusted by an estimator that was fitted without it."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from unskew.debias.gla import GLA

FOLDS = 5


def fold_numbers(labels: Tensor) -> Tensor:
    """Return the fold ``[N]`` of each sample; each class is distributed evenly, in order."""
    folds = torch.empty_like(labels)
    folds[labels.argsort(stable=True)] = torch.arange(len(labels)) % FOLDS
    return folds


def cross_fit(estimator: GLA, zs: Tensor, ft: Tensor, y: Tensor) -> list[tuple[Tensor, GLA]]:
    """Return for each fold its rows ``[N]``, bool, and a copy of the estimator fitted on the other folds.

    Raises:
        ValueError: Fewer than two samples.
    """
    if len(zs) < 2:
        raise ValueError("a single sample cannot be cross-fitted: fit on other samples (--val-zeroshot and so on)")
    folds = fold_numbers(y)
    plan = []
    for number in folds.unique():
        rows = folds == number
        fitted = copy.deepcopy(estimator).fit_zeroshot(zs[~rows], y[~rows])
        plan.append((rows, fitted.fit_finetuned(zs[~rows], ft[~rows], y[~rows])))
    return plan


def cross_predict(
    plan: Sequence[tuple[Tensor, GLA]], zs: Tensor, ft: Tensor, log_target: Tensor | None = None
) -> dict[str, Tensor]:
    """Return `GLA.parts` of all samples, each row from the estimator that was fitted without it.

    An estimator that uses the images to predict sees all samples, without labels.
    """
    merged: dict[str, Tensor] = {}
    for rows, fitted in plan:
        seen = torch.ones_like(rows) if fitted.transductive else rows
        for name, logits in fitted.parts(zs[seen], ft[seen], log_target=log_target).items():
            merged.setdefault(name, logits.new_empty(zs.shape))[rows] = logits[rows[seen]]
    return merged
