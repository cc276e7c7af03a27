"""Classification metrics and groups of classes, as pure functions of logits and labels."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unskew.debias.losses import cross_entropy

MANY, FEW = 100, 20  # training images: above, and below


def training_groups(counts: Tensor) -> dict[str, Tensor]:
    """Class indices with more than 100, 20 to 100, and fewer than 20 training images, from counts [C].

    Empty where all classes are in one group, as in few-shot runs: its accuracy would be the balanced accuracy.
    """
    many, few = counts > MANY, counts < FEW
    groups = {"d_many": many, "d_medium": ~(many | few), "d_few": few}
    groups = {name: members.nonzero()[:, 0] for name, members in groups.items()}
    return {} if any(len(classes) == len(counts) for classes in groups.values()) else groups


def prior_groups(log_q: Tensor) -> dict[str, Tensor]:
    """Class indices in the upper, middle and lower third of q, from log q [C]; of equal q the lower label is first.

    Sizes differ by at most one: of 3n + 1 classes the middle third has one more, of 3n + 2 it has one fewer; two
    classes are one in the upper and one in the lower third.
    """
    classes = len(log_q)
    order = log_q.argsort(descending=True, stable=True)
    thirds = order.tensor_split((round(classes / 3), round(2 * classes / 3)))
    return dict(zip(("p_many", "p_medium", "p_few"), thirds, strict=True))


def crossed_groups(groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The classes that a D group and a P group share, as ``d_many_p_few``; a pair that shares none is left out."""
    data, prior = ([name for name in groups if name.startswith(kind)] for kind in ("d_", "p_"))
    shared = {f"{d}_{p}": groups[d][torch.isin(groups[d].cpu(), groups[p].cpu())] for d in data for p in prior}
    return {name: classes for name, classes in shared.items() if len(classes)}


ECE_BINS = 15


# --- pure functions ----------------------------------------------------------------------------------


def compute_accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    """Top-k accuracies in percent of logits [B, C] (or a tuple that starts with them), each a tensor [1]."""
    if isinstance(output, tuple | list):
        output = output[0]
    ranked = output.topk(max(topk), dim=1).indices  # [B, K]
    hits = ranked == target.view(-1, 1)
    return [hits[:, :k].any(1).float().mean(0, keepdim=True) * 100 for k in topk]


def class_accuracies(correct: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Accuracy in [0, 1] of each class, [C], float64; NaN for a class without images.

    Args:
        correct: [N] bool. labels: [N], in 0..C-1.
    """
    right = torch.bincount(labels[correct.bool()], minlength=num_classes)
    return right.double() / torch.bincount(labels, minlength=num_classes)


def _calibration_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Expected calibration error in [0, 1] (Guo et al. 2017): mean of |accuracy - confidence| over the bins."""
    if logits.shape[1] == 1:  # one class: always right, with confidence 1
        return logits.new_zeros(())
    from torchmetrics.functional.classification import multiclass_calibration_error

    probabilities = logits.float().softmax(1)
    return multiclass_calibration_error(probabilities, labels, logits.shape[1], n_bins=ECE_BINS, norm="l1")


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics in percent, of logits [N, C] and labels [N].

    Macro F1 and balanced accuracy are means over the classes that ``labels`` contains; ``ece`` is the expected
    calibration error of softmax(logits) over 15 bins.

    Raises:
        ValueError: shapes that do not fit, no images, a label out of range, or NaN logits.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(f"expected logits [N, C] and labels [N], got {list(logits.shape)} and {list(labels.shape)}")
    num_classes = logits.shape[1]
    bad = torch.stack([logits.isnan().any(), (labels < 0).any() | (labels >= num_classes).any()])
    if bad.any():
        problem = "the logits hold NaN" if bad[0] else f"labels must be 0..{num_classes - 1}, the number of logits"
        raise ValueError(f"no metrics: {problem}")
    predicted = logits.argmax(1)
    correct = predicted == labels
    accuracy, recall = correct.double().mean(), class_accuracies(correct, labels, num_classes)
    true, called = (torch.bincount(classes, minlength=num_classes) for classes in (labels, predicted))
    # torchmetrics counts a class that is predicted but has no image as F1 0, and as accuracy 0.
    f1, balanced = (2 * recall * true / (true + called)).nanmean(), recall.nanmean()
    ece = _calibration_error(logits, labels).double()
    values = (100 * torch.stack([accuracy, 1 - accuracy, f1, balanced, ece])).tolist()  # the one synchronisation
    return dict(zip(("accuracy", "error_rate", "macro_f1", "balanced_accuracy", "ece"), values, strict=True))


def selection_score(logits: Tensor, labels: Tensor) -> float:
    """Accuracy in percent on val of logits [N, C], to choose an epoch by; a tie goes to the lower cross entropy.

    A few shots' val has few images, and epochs often tie.
    """
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    return 100 * accuracy - 1e-3 * cross_entropy(logits.double(), labels).item()


def group_accuracies(correct: Tensor, labels: Tensor, groups: Mapping[str, Tensor]) -> dict[str, float]:
    """Accuracy in percent of groups of classes: the mean over a group's classes of the class's own accuracy.

    Args:
        correct: [N] bool. labels: [N].
        groups: class indices by name. A group without images is left out.
    """
    highest = max([int(labels.max()), *(int(classes.max()) for classes in groups.values() if len(classes))])
    accuracies = class_accuracies(correct, labels, highest + 1)
    means = {name: accuracies[classes.to(labels.device).long()].nanmean().item() for name, classes in groups.items()}
    return {name: 100 * mean for name, mean in means.items() if not math.isnan(mean)}
