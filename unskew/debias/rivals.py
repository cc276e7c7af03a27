"""Methods that GLA is compared with: bias-corrected temperature scaling, stacking, and both.

All are fitted on logits ``[N, C]`` of images that no model was trained on, and predict for balanced classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unskew.debias._joint import LogitSums, NormalPenalty, ScalePenalty, minimise
from unskew.debias._validation import Array, as_logits, check_logits, check_same_shape, to_kind, uses_numpy
from unskew.debias.combination import MAP_PRIOR, OFFSET_DEVIATION, WEIGHT_DEVIATION

# Standard deviation of the normal prior on the bias of a class, in nats.
DEVIATION = 1.0


class BCTS(NamedTuple):
    """Bias-corrected temperature scaling: calibrated logits are ``logits / temperature - bias``."""

    temperature: float
    bias: Tensor  # [C], or a NumPy array


def fit_bcts(logits: Array, labels: Array | Sequence[int], *, deviation: float = DEVIATION) -> BCTS:
    """Fit a temperature and a bias per class (Alexandari et al., ICML 2020), with a normal prior on the bias.

    It minimises ``sum_i CE(s logits_i - b + log pi, y_i) + (s - 1 - log s) + |b|^2 / (2 deviation^2)``, with s = 1/T
    and the label frequencies pi. A class without labels has bias 0.

    Args:
        logits: ``[N, C]``, times the model's logit scale, NumPy or torch.
        labels: ``[N]``, integers in 0..C-1.
        deviation: Standard deviation of the prior, in nats; infinite for none.

    Raises:
        ValueError: Shapes or labels out of range; logits that are not finite; mixed kinds of arrays.
    """
    numpy = uses_numpy(logits=logits, labels=labels)
    scores, targets = check_logits(as_logits(logits=logits)[0], labels, None)
    counts = targets.bincount(minlength=scores.shape[1])
    data = LogitSums([scores], targets, counts)
    variances = torch.full_like(data.counts, deviation).square()
    fit = minimise(data, data.counts.new_ones(1), ScalePenalty(1.0), variances)
    return BCTS(1 / float(fit.weights), to_kind(_spread(fit.bias, counts), numpy))


class Stacking(NamedTuple):
    """Stacked logits are ``ft_weight * ft + zs_weight * zs - bias``."""

    ft_weight: float
    zs_weight: float
    bias: Tensor  # [C], or a NumPy array


def fit_stacking(
    zs: Array, ft: Array, labels: Array | Sequence[int], *, deviation: float = OFFSET_DEVIATION
) -> Stacking:
    """Fit weights of calibrated logits ft and zs, stacking (Wolpert, Neural Networks 5, 1992), and a bias per class.

    It minimises ``sum_i CE(a ft_i + b zs_i - d + log pi, y_i) + ((a - 0.3)^2 + (b - 0.7)^2) / (2 * 0.5^2)
    + |d|^2 / (2 deviation^2)`` over a, b >= 0 and d, with the label frequencies pi. The normal priors are those of
    GLA's ``map``. A class without labels has bias 0.

    Args:
        zs: ``[N, C]``, NumPy or torch.
        ft: ``[N, C]``.
        labels: ``[N]``, integers in 0..C-1.
        deviation: Standard deviation of the prior on the bias, in nats; 0 for no bias.

    Raises:
        ValueError: Shapes or labels out of range; logits that are not finite; mixed kinds of arrays.
    """
    numpy = uses_numpy(zs=zs, ft=ft, labels=labels)
    zs_half, ft_half = as_logits(zs=zs, ft=ft)
    scores, targets = check_logits(zs_half, labels, None)
    finetuned = check_logits(ft_half, None, None)[0]
    check_same_shape(scores, finetuned)
    penalty = NormalPenalty((float(MAP_PRIOR.ft_weight), float(MAP_PRIOR.zs_weight)), WEIGHT_DEVIATION**-2)
    counts = targets.bincount(minlength=scores.shape[1])
    data = LogitSums([finetuned, scores], targets, counts)
    variances = torch.full_like(data.counts, deviation).square() if deviation else None
    fit = minimise(data, data.counts.new_tensor(penalty.means), penalty, variances)
    ft_weight, zs_weight = fit.weights.tolist()
    return Stacking(ft_weight, zs_weight, to_kind(_spread(fit.bias, counts), numpy))


def _spread(bias: Tensor, counts: Tensor) -> Tensor:
    """Return the bias ``[C]`` of all classes from that of the classes with labels."""
    whole = torch.zeros(len(counts), dtype=torch.float64, device=counts.device)
    whole[counts.nonzero().flatten()] = bias
    return whole
