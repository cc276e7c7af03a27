"""Classification metrics and groups of classes: pure functions of logits and labels."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unskew.debias._validation import Array, as_logits, to_kind, to_tensor, uses_numpy
from unskew.debias.losses import cross_entropy
from unskew.utils.blocks import row_blocks

MANY, FEW = 100, 20  # training images per class: more than MANY, fewer than FEW


def training_groups(counts: Tensor) -> dict[str, Tensor]:
    """Return the classes with more than 100, 20 to 100, and fewer than 20 training images, from counts ``[C]``.

    The result is empty if one group has all classes, as in few-shot runs: its accuracy would be the balanced accuracy.
    """
    many, few = counts > MANY, counts < FEW
    groups = {"d_many": many, "d_medium": ~(many | few), "d_few": few}
    groups = {name: members.nonzero()[:, 0] for name, members in groups.items()}
    return {} if any(len(classes) == len(counts) for classes in groups.values()) else groups


def prior_groups(log_q: Array) -> dict[str, Array]:
    """Return the classes in the upper, middle and lower third of q, from log q ``[C]``; ties go to the lower label.

    Sizes differ by at most one: of 3n + 1 classes the middle third has one more, of 3n + 2 classes one fewer; two
    classes are one in the upper and one in the lower third.

    Raises:
        ValueError: log q is not ``[C]`` or holds NaN.

    Examples:
        >>> import numpy as np
        >>> from unskew.debias import prior_groups
        >>> prior_groups(np.log([0.2, 0.7, 0.1]))
        {'p_many': array([1]), 'p_medium': array([0]), 'p_few': array([2])}
    """
    prior = to_tensor(log_q)
    if prior.ndim != 1 or prior.isnan().any():
        raise ValueError(f"log_q must be [C] without NaN (got {list(prior.shape)})")
    classes = len(prior)
    order = prior.argsort(descending=True, stable=True)
    thirds = order.tensor_split((round(classes / 3), round(2 * classes / 3)))
    numpy = uses_numpy(log_q=log_q)
    return {name: to_kind(third, numpy) for name, third in zip(("p_many", "p_medium", "p_few"), thirds, strict=True)}


def crossed_groups(groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the classes that a D group and a P group share, as ``d_many_p_few``, without empty pairs."""
    data, prior = ([name for name in groups if name.startswith(kind)] for kind in ("d_", "p_"))
    shared = {f"{d}_{p}": groups[d][torch.isin(groups[d].cpu(), groups[p].cpu())] for d in data for p in prior}
    return {name: classes for name, classes in shared.items() if len(classes)}


ECE_BINS = 15


def compute_accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    """Return top-k accuracies in percent, each ``[1]``, of logits ``[B, C]`` or a tuple that starts with them.

    A k above C counts as C: top-5 of two classes is 100, where Dassl raises an error from ``topk``.
    """
    if isinstance(output, tuple | list):
        output = output[0]
    ranked = output.topk(min(max(topk), output.shape[1]), dim=1).indices  # [B, K]
    hits = ranked == target.view(-1, 1)
    return [hits[:, :k].any(1).float().mean(0, keepdim=True) * 100 for k in topk]


def class_accuracies(correct: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the accuracy in [0, 1] of each class, ``[C]``, float64; NaN for a class without images.

    Args:
        correct: ``[N]``, whether each prediction is correct.
        labels: ``[N]``, in 0..C-1.
        num_classes: C.
    """
    right = torch.bincount(labels[correct.bool()], minlength=num_classes)
    return right.double() / torch.bincount(labels, minlength=num_classes)


def _calibration_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the expected calibration error in [0, 1] (Guo et al. 2017, Eq. 3) of softmax(logits).

    It is the sum over bins of the share of a bin's images times |accuracy - mean confidence|. Bin m holds the
    confidences in [(m-1)/M, m/M), and a confidence of exactly 1 has a bin of its own, as in torchmetrics.
    """
    if logits.shape[1] == 1:  # one class: always correct, with confidence 1
        return logits.new_zeros(())
    precision = torch.promote_types(logits.dtype, torch.float32)
    confidence, correct = torch.empty(2, len(labels), device=logits.device)  # [N] each
    for rows in row_blocks(*logits.shape):
        confidence[rows], predicted = logits[rows].to(precision).softmax(1).float().max(1)
        correct[rows] = (predicted == labels[rows]).float()
    edges = torch.linspace(0, 1, ECE_BINS + 1, device=logits.device)
    bins = torch.bucketize(confidence, edges, right=True) - 1
    terms = torch.stack([torch.ones_like(confidence), correct, confidence])  # [3, N]
    images, hits, total = terms.new_zeros(3, len(edges)).index_add_(1, bins, terms)
    gaps = (hits / images - total / images).nan_to_num().abs()  # NaN in empty bins
    return (gaps * (images / images.sum())).sum()


def classification_metrics(logits: Array, labels: Array | Sequence[int]) -> dict[str, float]:
    """Return metrics in percent of logits ``[N, C]`` and labels ``[N]``.

    Macro F1 and balanced accuracy are means over the classes in ``labels``; ``ece`` is the expected calibration error
    of softmax(logits) over 15 bins.

    Raises:
        ValueError: Shapes that do not fit, no images, a label out of range, logits that are NaN or plus infinity,
            or mixed kinds of arrays.

    Examples:
        >>> import numpy as np
        >>> from unskew.debias import classification_metrics
        >>> classification_metrics(np.array([[2.0, 0.0], [1.0, 0.0]]), [0, 1])["accuracy"]
        50.0
    """
    uses_numpy(logits=logits, labels=labels)
    (scores,), targets = as_logits(logits=logits), to_tensor(labels)
    if targets.is_floating_point():
        raise ValueError(f"labels must be integers (got {targets.dtype})")
    return metrics_of(scores, targets.long())  # a byte cannot be compared with more than 255 classes


def metrics_of(logits: Tensor, labels: Tensor, predicted: Tensor | None = None) -> dict[str, float]:
    """Return `classification_metrics` of tensors; ``predicted``, ``[N]``, is ``logits.argmax(1)`` if it is known."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"logits must be [N, C] and labels [N] with N of at least 1 "
            f"(got {list(logits.shape)} and {list(labels.shape)})"
        )
    num_classes = logits.shape[1]
    bad = torch.stack([~(logits.amax() < math.inf), (labels < 0).any() | (labels >= num_classes).any()])
    if bad.any():
        columns = f"labels must be in 0..{num_classes - 1}, the columns of logits"
        problem = "the logits hold NaN or infinity" if bad[0] else columns
        raise ValueError(f"cannot compute metrics: {problem}")
    predicted = logits.argmax(1) if predicted is None else predicted
    correct = predicted == labels
    accuracy, recall = correct.double().mean(), class_accuracies(correct, labels, num_classes)
    true_counts, predicted_counts = (torch.bincount(each, minlength=num_classes) for each in (labels, predicted))
    # A class that is predicted but has no image is NaN in both means and does not count.
    f1, balanced = (2 * recall * true_counts / (true_counts + predicted_counts)).nanmean(), recall.nanmean()
    ece = _calibration_error(logits, labels).double()
    values = (100 * torch.stack([accuracy, 1 - accuracy, f1, balanced, ece])).tolist()  # the one synchronisation
    return dict(zip(("accuracy", "error_rate", "macro_f1", "balanced_accuracy", "ece"), values, strict=True))


def selection_score(logits: Tensor, labels: Tensor) -> float:
    """Return a score to select an epoch by: accuracy in percent of logits ``[N, C]``, ties by cross entropy.

    The validation set of a few-shot run has few images, so that epochs often tie.
    """
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    return 100 * accuracy - 1e-3 * cross_entropy(logits.double(), labels).item()


def group_accuracies(correct: Tensor, labels: Tensor, groups: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the accuracy in percent of groups of classes: the mean over a group's classes of the class accuracy.

    Args:
        correct: ``[N]``, whether each prediction is correct.
        labels: ``[N]``.
        groups: Class indices by name. Groups without images are omitted.
    """
    highest = max([int(labels.max()), *(int(classes.max()) for classes in groups.values() if len(classes))])
    return group_means(class_accuracies(correct, labels, highest + 1), groups)


def group_means(accuracies: Tensor, groups: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the mean in percent over the classes of each group, from class accuracies ``[C]`` in [0, 1].

    A class without images (NaN) does not count, and a group without images is omitted.
    """
    means = {
        name: accuracies[classes.to(accuracies.device).long()].nanmean().item() for name, classes in groups.items()
    }
    return {name: 100 * mean for name, mean in means.items() if not math.isnan(mean)}
