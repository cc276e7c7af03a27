"""Accuracies on long-tailed test sets whose class frequencies are known, as LADE reports them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from unskew.debias.metrics import class_accuracies
from unskew.utils.blocks import row_blocks

IMBALANCES = (50, 25, 10, 5, 2)  # most : least frequent class, as in LADE (section 4.3)
NAMES = (*(f"forward_{r}" for r in IMBALANCES), *(f"backward_{r}" for r in reversed(IMBALANCES)))


def long_tailed_targets(counts: Tensor) -> dict[str, Tensor]:
    """Return the log class frequencies [C] of LADE's long-tailed test sets by name, from training counts [C].

    These are the exponential profiles of Hong et al., CVPR 2021 (arXiv 2012.00321, section 4.3): in ``forward_50`` the
    class with the most training images is 50 times as frequent as the class with the fewest; in ``backward_50`` the
    order is reversed. Classes with equal counts are ordered by label.
    """
    rank = counts.argsort(descending=True, stable=True).argsort()  # [C]; 0: the most frequent in training
    place = rank.double() / max(1, len(counts) - 1)
    targets = {}
    for name in NAMES:
        direction, _, imbalance = name.partition("_")
        targets[name] = float(imbalance) ** -(place if direction == "forward" else 1 - place)
    return {name: (weights / weights.sum()).log() for name, weights in targets.items()}


def target_accuracies(
    logits: Tensor, labels: Tensor, log_targets: Mapping[str, Tensor], log_prior: Tensor
) -> dict[str, float]:
    """Return the accuracy in percent that is expected on test sets with other class frequencies.

    The frequencies are known to the classifier: it predicts the largest logit - log prior + log target, the
    post-compensated softmax of Hong et al. (arXiv 2012.00321, section 3). The accuracy is the mean class accuracy
    weighted by the frequencies, which is the expectation over test sets that are drawn with these frequencies.

    Args:
        logits: [N, C].
        labels: [N]; classes without images are left out of the weighted mean.
        log_targets: log class frequencies [C] by name.
        log_prior: the log class frequencies [C] that the logits assume.
    """
    offsets = {name: (target - log_prior).to(logits) for name, target in log_targets.items()}
    predicted = {name: torch.empty_like(labels) for name in offsets}
    for rows in row_blocks(*logits.shape):
        for name, offset in offsets.items():
            predicted[name][rows] = (logits[rows] + offset).argmax(1)
    results = {}
    for name, target in log_targets.items():
        accuracies = class_accuracies(predicted[name] == labels, labels, logits.shape[1])  # NaN without images
        weights = target.to(accuracies).exp() * ~accuracies.isnan()
        results[name] = 100 * ((weights * accuracies.nan_to_num()).sum() / weights.sum()).item()
    return results
