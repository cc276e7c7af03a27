"""Losses: pure functions of logits ``[N, C]`` and labels ``[N]``, each the mean over N, in nats.

``counts`` ``[C]`` are the training images per class. A class without images counts as one image, so that its log,
margin and weight are finite.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unskew.utils.registry import unknown_name


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log softmax(logits)[label]."""
    return F.cross_entropy(logits, labels)


def logit_adjusted(logits: Tensor, labels: Tensor, log_prior: Tensor) -> Tensor:
    """Return the cross entropy of ``logits + log_prior`` (Menon et al., arXiv 2007.07314, Eq. 10 with tau 1).

    The logits of a model trained with this loss are right for balanced data: do not subtract log p again. The loss
    equals balanced softmax (Ren et al., arXiv 2007.10740, Theorem 1), which adds the log of the counts: the two differ
    by a constant, which leaves the cross entropy unchanged.

    Args:
        logits: ``[N, C]``.
        labels: ``[N]``.
        log_prior: ``[C]``, of the training labels.
    """
    return F.cross_entropy(logits + log_prior, labels)


def focal(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Return -(1 - p)^gamma log p with p the probability of the label (Lin et al., arXiv 1708.02002, Eq. 4)."""
    log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]
    # expm1 keeps the power's gradient exact if p rounds to 1.
    return -((-torch.expm1(log_p)) ** gamma * log_p).mean()


def ldam(logits: Tensor, labels: Tensor, counts: Tensor, max_margin: float = 0.5, scale: float = 30.0) -> Tensor:
    """Return the cross entropy with the label's logit reduced by a margin ~ n^(-1/4) (arXiv 1906.07413, Sec. 3.2).

    Args:
        logits: ``[N, C]`` of a cosine head, scaled; the paper's (Cao et al.) are ``scale`` times a cosine.
        labels: ``[N]``.
        counts: ``[C]``.
        max_margin: Margin of the rarest class, as a cosine.
        scale: Factor from cosines to logits.
    """
    margins = counts.clamp_min(1) ** -0.25  # [C]
    margins = scale * max_margin / margins.max() * margins
    return F.cross_entropy(logits - F.one_hot(labels, len(margins)) * margins, labels)


def class_balanced(logits: Tensor, labels: Tensor, counts: Tensor, beta: float = 0.9999) -> Tensor:
    """Return the cross entropy weighted by 1 / the effective number of images (Cui et al., arXiv 1901.05555, Sec. 4).

    The effective number of n images is (1 - beta^n) / (1 - beta); the weights sum to C.
    """
    weights = 1 / torch.expm1(counts.clamp_min(1) * math.log(beta))  # [C]; 1 - beta^n would lose digits in fp32
    weights = weights * (len(weights) / weights.sum())
    return (weights[labels] * F.cross_entropy(logits, labels, reduction="none")).mean()


def gla_train(logits: Tensor, labels: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the cross entropy of ``logits + log p + log q`` (arXiv 2501.15955, Eq. 6); ``logits`` predict.

    At the optimum logits + log p + log q is log P(y|x) of the training images, so the logits are those of balanced data
    *minus log q*: right for test labels distributed as 1/q. Adding log q gives the optimum of `logit_adjusted`.

    Args:
        logits: ``[N, C]``.
        labels: ``[N]``.
        log_p: ``[C]``, label prior of the training images.
        log_q: ``[C]``, label prior of the pre-training data.
    """
    return F.cross_entropy(logits + log_p + log_q, labels)


def distillation_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return T^2 KL(softmax(teacher/T) || softmax(student/T)) (Hinton et al., arXiv 1503.02531).

    T^2 keeps the gradients at the size of the cross entropy's for every T. ProGrad's general direction is the
    gradient with the zero-shot prediction as the teacher.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, log_target=True, reduction="batchmean")


# --- by name -----------------------------------------------------------------------------------------


# name -> the function and its arguments besides logits and labels
LOSSES: dict[str, tuple[Callable[..., Tensor], list[str]]] = {
    "la": (logit_adjusted, ["log_p"]),
    "ce": (cross_entropy, []),
    "balanced_softmax": (logit_adjusted, ["log_p"]),
    "focal": (focal, []),
    "ldam": (ldam, ["counts"]),
    "class_balanced": (class_balanced, ["counts"]),
    "gla_train": (gla_train, ["log_p", "log_q"]),
}

# Losses whose optimal logits do not contain log p. Class-balanced weights leave log(n / effective number), below 0.07
# up to 1,280 images. LDAM's margins do not remove log p: of two classes with margins a and b (as logits) the optimum
# prefers the first if the odds exceed sigmoid(b) / sigmoid(a), which is between 1/2 and 2 for every class frequency.
# Focal loss changes confidences, not decisions.
LOGIT_ADJUSTED = frozenset({"la", "balanced_softmax", "class_balanced", "gla_train"})


def build_loss(name: str, counts: Any, log_q: Tensor | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss ``name`` of `LOSSES` as a function of logits ``[N, C]`` and labels ``[N]``, on any device.

    Args:
        name: Key of `LOSSES`.
        counts: ``[C]``, training images per class.
        log_q: ``[C]``, label prior of the pre-training data; ``gla_train`` requires it.

    Raises:
        ValueError: An unknown name, invalid counts, or a missing log q.
    """
    if name not in LOSSES:
        raise ValueError(unknown_name("loss", name, LOSSES))
    counts = torch.as_tensor(counts).double()
    if counts.ndim != 1 or not (counts >= 0).all() or not counts.sum() > 0:
        raise ValueError(f"counts must be one number of 0 or more per class, not all 0 (got {counts.tolist()})")
    function, needed = LOSSES[name]
    if "log_q" in needed and (log_q is None or log_q.shape != counts.shape):
        shape = "none" if log_q is None else list(log_q.shape)
        raise ValueError(f"the loss '{name}' needs log q of all {len(counts)} classes (got {shape})")
    log_p = counts.clamp_min(1).div(counts.clamp_min(1).sum()).log()
    terms = {"counts": counts, "log_p": log_p} | ({} if log_q is None else {"log_q": log_q})

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return function(logits, labels, *(terms[term].to(logits) for term in needed))

    return loss
