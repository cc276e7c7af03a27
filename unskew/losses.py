"""Losses: pure functions of logits ``[N, C]`` and labels ``[N]``, each the mean over N, in nats."""

import torch
import torch.nn.functional as F


def cross_entropy(logits, labels) -> torch.Tensor:
    """-log softmax(logits)[label]."""
    return F.cross_entropy(logits, labels)


def logit_adjusted(logits, labels, log_prior) -> torch.Tensor:
    """Cross entropy of ``logits + log_prior`` (Menon et al., arXiv 2007.07314, Eq. 10 with tau 1).

    A model trained with it is right for balanced data as it stands: do not subtract log p again.

    Args:
        log_prior: ``[C]``, of the training labels.
    """
    return F.cross_entropy(logits + log_prior, labels)


def distillation_kl(student_logits, teacher_logits, temperature: float = 1.0) -> torch.Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)) (Hinton et al., arXiv 1503.02531; ProGrad's general direction).

    T^2 keeps its gradients at the size of cross entropy's whatever T is. ProGrad's general direction is
    its gradient with the zero-shot prediction as the teacher.
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, log_target=True, reduction="batchmean")
