"""Methods that GLA is compared with: bias-corrected temperature scaling, stacking, and both.

All are fitted on logits ``[N, C]`` of images that no model was trained on, and predict for balanced classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unskew.debias._joint import LogitSums, ScalePenalty, minimise
from unskew.debias._validation import Array, as_logits, check_logits, to_kind, uses_numpy
from unskew.debias.combination import fit_weights

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
    variances = torch.full_like(data.counts, deviation**2)
    fit = minimise(data, data.counts.new_ones(1), ScalePenalty(1.0), variances)
    bias = torch.zeros(scores.shape[1], dtype=torch.float64, device=scores.device)
    bias[counts.nonzero().flatten()] = fit.bias
    return BCTS(1 / float(fit.weights), to_kind(bias, numpy))


def fit_stacking(zs: Array, ft: Array, labels: Array | Sequence[int]) -> tuple[float, float]:
    """Fit the weights of calibrated logits ft and zs, stacking (Wolpert, Neural Networks 5, 1992).

    Normal priors hold the weights at 0.3 and 0.7 with a standard deviation of 0.5, as in GLA's ``map``.

    Returns:
        The weights of ft and zs, at least 0.

    Raises:
        ValueError: Shapes or labels out of range; logits that are not finite; mixed kinds of arrays.
    """
    return fit_weights(zs, ft, labels, means=(0.3, 0.7), least=0.0)
