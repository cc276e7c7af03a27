"""Addition of GLA's two halves: the remaining bias rho and the weights, fitted on held-out images.

The paper's sum (arXiv 2310.08106) trusts both halves equally and assumes that the fine-tuned half is free of
pre-training bias. After a few shots neither holds: `fit_combination` measures both on held-out images; `SUM` is the
paper's.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unskew.debias._joint import LogitSums, Minimum, NormalPenalty, minimise
from unskew.debias._softmax import Exponentials, Selection
from unskew.debias._streamed_joint import StreamedSums
from unskew.debias._streamed_newton import minimise_joint
from unskew.debias._streamed_roots import expected_prior, mean_over
from unskew.debias._streamed_scan import Streamed
from unskew.debias._validation import (
    Array,
    as_logits,
    check_logits,
    check_same_shape,
    to_kind,
    to_prior,
    uses_numpy,
)
from unskew.debias.temperature import find_decreasing_root

# Strength of the penalty that keeps the weights near one half if few images are held out: nats at a distance of 1.
PULL = 2.0

# Lower bound of each weight. Both at 0 would give constant logits, on held-out images that contradict both halves.
MIN_WEIGHT = 1e-4


class Combination(NamedTuple):
    """The terms of ``ft_weight * (ft - log p - rho * log q) + zs_weight * (zs - log q) - offset``."""

    rho: float | Tensor  # in [0, 1], share of log q that remains in the fine-tuned logits
    ft_weight: float | Tensor
    zs_weight: float | Tensor
    offset: float | Tensor = 0.0  # [C], is subtracted


# The paper's sum, and the combination of ``map`` without held-out images.
SUM = Combination(rho=0.0, ft_weight=1.0, zs_weight=1.0)
MAP_PRIOR = Combination(rho=0.0, ft_weight=0.3, zs_weight=0.7)

# Standard deviations of the normal priors of ``map`` on the weights, and on the offset of each class in nats.
WEIGHT_DEVIATION = 0.5
OFFSET_DEVIATION = 0.25


def adjust(zs: Array, ft: Array, log_q: Array, log_p: Array | None = None, log_target: Array | None = None) -> Array:
    """Return GLA's logits (arXiv 2310.08106): ``ft + zs - log q - log p``, ``[N, C]``.

    ft contains log p, the label frequencies it was fine-tuned on; zs contains log q. Their adjusted sum is right for
    a balanced test set; ``log_target`` moves it to other label frequencies.

    Args:
        zs: ``[N, C]``, zero-shot logits, divided by their temperature.
        ft: ``[N, C]``, fine-tuned logits, divided by their temperature.
        log_q: ``[C]``.
        log_p: ``[C]``; omit it for balanced training data, and if the training loss was logit-adjusted.
        log_target: ``[C]``; uniform if omitted.

    Raises:
        ValueError: Shapes that do not fit; priors that are not finite log probabilities; mixed kinds of arrays.

    Examples:
        >>> import numpy as np
        >>> from unskew.debias import adjust
        >>> adjust(np.array([[2.0, 1.0]]), np.array([[0.0, 0.5]]), np.log([0.75, 0.25])).round(2)
        array([[2.29, 2.89]])
    """
    numpy = uses_numpy(zs=zs, ft=ft, log_q=log_q, log_p=log_p, log_target=log_target)
    zs_half, ft_half = as_logits(cosines=True, zs=zs, ft=ft)
    return to_kind(_adjust(zs_half, ft_half, log_q, log_p, log_target), numpy)


def _adjust(zs: Tensor, ft: Tensor, log_q: object, log_p: object = None, log_target: object = None) -> Tensor:
    check_same_shape(zs, ft)
    logits = ft + zs  # [N, C]
    for name, term, sign in (("log_q", log_q, -1), ("log_p", log_p, -1), ("log_target", log_target, 1)):
        if term is not None:
            logits = logits + sign * to_prior(term, name, logits.shape[1], logits)
    return logits


def combine(
    zs: Array,
    ft: Array,
    log_q: Array,
    combination: Combination = SUM,
    log_p: Array | None = None,
    log_target: Array | None = None,
) -> Array:
    """Return the weighted logits ``[N, C]`` of both halves; the arguments are those of `adjust`."""
    numpy = uses_numpy(zs=zs, ft=ft, log_q=log_q, log_p=log_p, log_target=log_target)
    zs_half, ft_half = as_logits(zs=zs, ft=ft)
    return to_kind(combine_logits(zs_half, ft_half, log_q, combination, log_p, log_target), numpy)


def combine_logits(
    zs: Tensor,
    ft: Tensor,
    log_q: object,
    combination: Combination = SUM,
    log_p: object = None,
    log_target: object = None,
) -> Tensor:
    """Run `combine` on logits as they are, for instance on a block of rows."""
    rho, ft_weight, zs_weight, offset = combination
    check_same_shape(zs, ft)
    classes, device = zs.shape[1], zs.device
    prior = to_prior(log_q, "log_q", classes, device)
    ft = ft - rho * prior
    if log_p is not None:
        ft = ft - to_prior(log_p, "log_p", classes, device)
    logits = _adjust(zs_weight * zs, ft_weight * ft, zs_weight * prior, log_target=log_target)
    return logits - offset.to(logits) if isinstance(offset, Tensor) else logits


def fit_combination(
    zs: Array,
    ft: Array,
    labels: Array | Sequence[int],
    log_q: Array,
    log_p: Array | None = None,
    *,
    method: str = "fitted",
) -> Combination:
    """Fit rho, then the weights, on calibrated logits ``[N, C]`` of both halves and held-out labels ``[N]``.

    Args:
        zs: ``[N, C]``, zero-shot logits, divided by their temperature.
        ft: ``[N, C]``, fine-tuned logits, divided by their temperature.
        labels: ``[N]``.
        log_q: ``[C]``.
        log_p: ``[C]``, contained in ft.
        method: ``fitted`` fits the weights as `fit_weights`. ``map`` also fits an offset of each class: normal priors
            hold the weights at 0.3 and 0.7 with a standard deviation of 0.5, and the offsets at 0 with one of 0.25.

    Raises:
        ValueError: Shapes or labels out of range; logits that are not finite; mixed kinds of arrays.
    """
    uses_numpy(zs=zs, ft=ft, labels=labels, log_q=log_q, log_p=log_p)
    zs_half, ft_half = as_logits(zs=zs, ft=ft)
    check_same_shape(zs_half, ft_half)
    scores, targets = check_logits(ft_half, labels, None)
    zs_half = check_logits(zs_half, None, None)[0]
    return fit_checked(Selection(zs_half), Selection(scores), targets, log_q, log_p, method)


def fit_checked(
    zs: Selection | Streamed,
    ft: Selection | Streamed,
    labels: Tensor,
    log_q: object,
    log_p: object,
    method: str,
    start: Combination | None = None,
) -> Combination:
    """Run `fit_combination` on checked logits and labels.

    ``start`` is a combination of similar images, at whose weights and offset the solver starts. Their objective is
    strictly convex by its priors, so that the start changes the number of steps, but not the result. The search for rho
    always starts at 0: without a prior, images of one class leave rho undetermined.
    """
    classes, device = zs.shape[1], labels.device
    prior = to_prior(log_q, "log_q", classes, device)
    log_p_term = torch.zeros_like(prior) if log_p is None else to_prior(log_p, "log_p", classes, device)
    rho = _remaining_bias(ft, labels, prior, log_p_term)
    offsets = (log_p_term.double() + rho * prior.double(), prior.double())
    weights = None if start is None else (float(start.ft_weight), float(start.zs_weight))
    if method == "fitted":
        penalty = NormalPenalty((0.5, 0.5), 2 * PULL, MIN_WEIGHT)
        fit = _fit_weights(zs, ft, labels, penalty, offsets, weights=weights)
        return Combination(rho, float(fit.weights[0]), float(fit.weights[1]))
    present = labels.unique()
    if len(present) < 2:
        return MAP_PRIOR._replace(rho=rho)
    means = (float(MAP_PRIOR.ft_weight), float(MAP_PRIOR.zs_weight))
    penalty = NormalPenalty(means, WEIGHT_DEVIATION**-2)
    offset = torch.zeros(classes, dtype=torch.float64, device=device)
    bias = None  # zeros, or for sources near the minimum
    if start is not None:
        bias = (offset + torch.as_tensor(start.offset).to(offset))[present]
    fit = _fit_weights(zs, ft, labels, penalty, offsets, OFFSET_DEVIATION, weights, bias)
    offset[present] = fit.bias
    return Combination(rho, float(fit.weights[0]), float(fit.weights[1]), offset)


def _log_frequencies(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the n classes with labels, ascending, and their log pi ``[n]``; the others leave the softmax."""
    counts = torch.bincount(labels, minlength=classes)
    present = counts.nonzero().flatten()
    return present, (counts[present].double() / len(labels)).log()


# --- rho --------------------------------------------------------------------------------------------


def remaining_bias(logits: Array, labels: Array | Sequence[int], log_q: Array) -> float:
    """Fit rho in [0, 1], the share of the pre-training bias log q that remains in fine-tuned logits ``[N, C]``.

    Fine-tuning starts at a model whose logits contain log q, and a few steps on a few images remove only a part of
    it. rho minimises the cross entropy of ``logits - rho * log q + log pi`` on labels ``[N]`` that the model was not
    trained on, with pi their frequencies. The objective is convex in rho; its slope is the mean of log q under the
    labels minus the mean under the model, and rho is the root: 0 if fine-tuning has removed the bias, 1 if all of the
    bias remains.

    Raises:
        ValueError: Shapes or labels out of range; logits that are not finite; mixed kinds of arrays.
    """
    uses_numpy(logits=logits, labels=labels, log_q=log_q)
    scores, targets = check_logits(as_logits(logits=logits)[0], labels, None)
    prior = to_prior(log_q, "log_q", scores.shape[1], scores.device)
    return _remaining_bias(scores, targets, prior, torch.zeros_like(prior))


def _remaining_bias(scores: Tensor | Selection | Streamed, targets: Tensor, prior: Tensor, log_p: Tensor) -> float:
    """Run `remaining_bias` on logits that contain log p."""
    prior, log_p = prior.double(), log_p.double()
    present, log_pi = _log_frequencies(targets, scores.shape[1])
    prior = prior - prior[present[0]]  # a uniform prior becomes exactly 0
    target = float(prior[targets].mean())
    offset = log_pi - log_p[present]
    every, prior = prior, prior[present]
    if isinstance(scores, Streamed):

        def streamed_excess(rho: float) -> tuple[float, float]:
            function = functools.partial(expected_prior, offset=offset - rho * prior, prior=prior, present=present)
            mean, variance = mean_over(function, scores, "rho")
            return mean - target, -variance

        some, labels = scores.subset()
        start = _remaining_bias(some, labels, every, log_p) if labels is not None else 0.0
        return find_decreasing_root(streamed_excess, 0.0, 1.0, start)[0]
    exponentials = Exponentials(scores, None, present)

    def excess(rho: float) -> tuple[float, float]:
        mean = exponentials.at(offset - rho * prior).probabilities
        variance = mean @ prior.square() - prior @ exponentials.product(prior)
        return float(mean @ prior) - target, -float(variance)

    return find_decreasing_root(excess, 0.0, 1.0, 0.0)[0]


# --- the weights ------------------------------------------------------------------------------------


def fit_weights(
    zs: Array,
    ft: Array,
    labels: Array | Sequence[int],
    pull: float = PULL,
    means: tuple[float, float] = (0.5, 0.5),
    least: float = MIN_WEIGHT,
) -> tuple[float, float]:
    """Fit a, b >= least that minimise ``sum_i CE(a ft_i + b zs_i + log pi, y_i) + pull |(a, b) - means|^2``.

    ft and zs ``[N, C]`` are both right for balanced data. Without the penalty this is stacking (Wolpert, Neural
    Networks 5, 1992). With the penalty, a handful of images can neither silence one half nor make the sum as confident
    as the images are separable; a thousand images can. One half each is the mean, which is calibrated if the halves
    agree for the same reason; if the halves are independent the fit approaches 1 and 1.

    Returns:
        The weights of ft and of zs, in the order of `Combination`.

    Raises:
        ValueError: Shapes or labels out of range; logits that are not finite; mixed kinds of arrays.
    """
    uses_numpy(zs=zs, ft=ft, labels=labels)
    zs_half, ft_half = as_logits(zs=zs, ft=ft)
    scores, targets = check_logits(zs_half, labels, None)
    fine_tuned = check_logits(ft_half, None, None)[0]
    check_same_shape(scores, fine_tuned)
    fit = _fit_weights(scores, fine_tuned, targets, NormalPenalty(means, 2 * pull, least))
    return float(fit.weights[0]), float(fit.weights[1])


def _fit_weights(
    zs: Tensor | Selection | Streamed,
    ft: Tensor | Selection | Streamed,
    labels: Tensor,
    penalty: NormalPenalty,
    offsets: Sequence[Tensor] = (),
    deviation: float = 0.0,
    weights: tuple[float, float] | None = None,
    bias: Tensor | None = None,
) -> Minimum:
    """Fit the weights of ft and zs minus their offsets and, with a ``deviation``, an offset of the present classes.

    The solver starts at ``weights``, the means of the penalty if omitted, and at ``bias``.
    """
    counts = labels.bincount(minlength=zs.shape[1])
    first = torch.tensor(weights or penalty.means, dtype=torch.float64, device=labels.device)
    variances = torch.full((int((counts > 0).sum()),), deviation**2).to(first) if deviation else None
    if isinstance(zs, Streamed) and isinstance(ft, Streamed):
        return minimise_joint(StreamedSums([ft, zs], counts, offsets), first, penalty, variances, bias=bias)
    assert not isinstance(zs, Streamed) and not isinstance(ft, Streamed)
    return minimise(LogitSums([ft, zs], labels, counts, offsets), first, penalty, variances, bias=bias)
