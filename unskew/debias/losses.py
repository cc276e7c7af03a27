"""Losses: pure functions of logits ``[N, C]`` and labels ``[N]``, each the mean over N, in nats.

``counts`` ``[C]`` are the training images of each class. A class without any counts as having one, so that
its log, margin and weight are finite.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from unskew.utils.registry import unknown_name


def cross_entropy(logits, labels) -> torch.Tensor:
    """-log softmax(logits)[label]."""
    return F.cross_entropy(logits, labels)


def logit_adjusted(logits, labels, log_prior) -> torch.Tensor:
    """Cross entropy of ``logits + log_prior`` (Menon et al., arXiv 2007.07314, Eq. 10 with tau 1).

    A model trained with it is right for balanced data as it stands: do not subtract log p again. It is also
    balanced softmax (Ren et al., arXiv 2007.10740, Theorem 1), which adds the log of the counts: the two
    differ by a constant, which cross entropy does not see.

    Args:
        log_prior: ``[C]``, of the training labels.
    """
    return F.cross_entropy(logits + log_prior, labels)


def focal(logits, labels, gamma: float = 2.0) -> torch.Tensor:
    """-(1 - p)^gamma log p, p being the probability of the label (Lin et al., arXiv 1708.02002, Eq. 4)."""
    log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]
    # expm1: the power's gradient stays exact where p rounds to one.
    return -((-torch.expm1(log_p)) ** gamma * log_p).mean()


def ldam(logits, labels, counts, max_margin: float = 0.5, scale: float = 30.0) -> torch.Tensor:
    """Cross entropy with the label's logit lowered by a margin ~ n^(-1/4) (Cao et al., arXiv 1906.07413, Sec. 3.2).

    Args:
        logits: of a cosine head, its scale included; the paper's are ``scale`` times a cosine.
        max_margin: margin of the rarest class, as a cosine; ``scale`` turns margins into logits.
    """
    margins = counts.clamp_min(1) ** -0.25  # [C]
    margins = scale * max_margin / margins.max() * margins
    return F.cross_entropy(logits - F.one_hot(labels, len(margins)) * margins, labels)


def class_balanced(logits, labels, counts, beta: float = 0.9999) -> torch.Tensor:
    """Cross entropy weighted by one over the effective number of images (Cui et al., arXiv 1901.05555, Sec. 4).

    The effective number of n images is (1 - beta^n) / (1 - beta); the weights sum to C.
    """
    weights = 1 / torch.expm1(counts.clamp_min(1) * math.log(beta))  # [C]; 1 - beta^n loses its digits in fp32
    weights = weights * (len(weights) / weights.sum())
    return (weights[labels] * F.cross_entropy(logits, labels, reduction="none")).mean()


def gla_train(logits, labels, log_p, log_q) -> torch.Tensor:
    """Cross entropy of ``logits + log p + log q`` (arXiv 2501.15955, Eq. 6), to be predicted by ``logits``.

    At its optimum logits + log p + log q is log P(y|x) of the training images, so the logits are those of
    balanced data *minus log q*: right for test labels distributed as 1/q. Adding log q to them gives
    what `logit_adjusted` would have learned.

    Args:
        log_p: ``[C]``, label prior of the training images.
        log_q: ``[C]``, label prior of the pre-training data.
    """
    return F.cross_entropy(logits + log_p + log_q, labels)


def distillation_kl(student_logits, teacher_logits, temperature: float = 1.0) -> torch.Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)) (Hinton et al., arXiv 1503.02531; ProGrad's general direction).

    T^2 keeps its gradients at the size of cross entropy's whatever T is. ProGrad's general direction is
    its gradient with the zero-shot prediction as the teacher.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, log_target=True, reduction="batchmean")


# --- by name -----------------------------------------------------------------------------------------


# What each takes beside logits and labels.
LOSSES = {
    "la": (logit_adjusted, ["log_p"]),
    "ce": (cross_entropy, []),
    "balanced_softmax": (logit_adjusted, ["log_p"]),
    "focal": (focal, []),
    "ldam": (ldam, ["counts"]),
    "class_balanced": (class_balanced, ["counts"]),
    "gla_train": (gla_train, ["log_p", "log_q"]),
}

# Whose optimum has log p out of the logits already. Class-balanced weights leave log(n / effective number) in,
# below 0.07 up to 1,280 images. LDAM's margins do not take log p out: of two classes with margins a and b (as
# logits) its optimum prefers the first where the odds exceed sigmoid(b) / sigmoid(a), which is between 1/2 and 2
# however rare a class is. Focal loss moves confidences, not decisions.
LOGIT_ADJUSTED = frozenset({"la", "balanced_softmax", "class_balanced", "gla_train"})


def build_loss(name: str, counts, log_q=None) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loss ``name`` of `LOSSES`, as a function of logits [N, C] and labels [N], on any device.

    Args:
        counts: [C], training images of each class.
        log_q: [C], label prior of the pre-training data; ``gla_train`` needs it.

    Raises:
        ValueError: an unknown name, counts that are none, or no log q where it is needed.
    """
    if name not in LOSSES:
        raise ValueError(unknown_name("loss", name, LOSSES))
    counts = torch.as_tensor(counts).double()
    if counts.ndim != 1 or not (counts >= 0).all() or not counts.sum() > 0:
        raise ValueError(f"counts must be one number of 0 or more for each class, not all 0; got {counts.tolist()}")
    function, needed = LOSSES[name]
    if "log_q" in needed and (log_q is None or log_q.shape != counts.shape):
        got = "none" if log_q is None else list(log_q.shape)
        raise ValueError(f"the loss '{name}' needs log q of all {len(counts)} classes, got {got}")
    log_p = counts.clamp_min(1).div(counts.clamp_min(1).sum()).log()
    given = {"counts": counts, "log_p": log_p, "log_q": log_q}

    def loss(logits, labels):
        return function(logits, labels, *(given[term].to(logits) for term in needed))

    return loss
