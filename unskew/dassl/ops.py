"""`dassl.modeling.ops`: the operations that Dassl's own trainers are made of."""

import math

import torch
from torch import Tensor, nn
from torch.distributions import Beta
from torch.nn import functional as F

__all__ = [
    "ReverseGrad",
    "create_onehot",
    "cross_entropy",
    "ema_model_update",
    "linear_rampup",
    "mixup",
    "reverse_index",
    "sharpen_prob",
    "shuffle_index",
    "sigmoid_rampup",
]


def mixup(x1, x2, y1, y2, beta, preserve_order=False) -> tuple[Tensor, Tensor]:
    """``l * x1 + (1 - l) * x2`` and the same of the labels, ``l ~ Beta(beta, beta)`` (arXiv 1710.09412).

    Args:
        x1, x2: [B, C, H, W]. y1, y2: [B, K].
        preserve_order: take ``max(l, 1 - l)``, so that each is nearer to its first part (MixMatch, arXiv 1905.02249).
    """
    share = Beta(beta, beta).sample((len(x1),)).to(x1)  # [B]
    share = torch.maximum(share, 1 - share) if preserve_order else share
    weights = (share.view(-1, *[1] * (tensor.ndim - 1)) for tensor in (x1, y1))
    return tuple(w * first + (1 - w) * second for w, first, second in zip(weights, (x1, y1), (x2, y2), strict=True))


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, scale):
        ctx.scale = scale
        return input.view_as(input)

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.scale * gradient, None


class ReverseGrad(nn.Module):
    """The identity, whose gradient is multiplied by ``-grad_scaling`` (DANN, arXiv 1505.07818)."""

    def forward(self, x: Tensor, grad_scaling: float = 1.0) -> Tensor:
        if grad_scaling < 0:
            raise ValueError(f"grad_scaling must be 0 or more, got {grad_scaling}")
        return _Reversed.apply(x, grad_scaling)


def cross_entropy(input, target, label_smooth=0, reduction="mean") -> Tensor:
    """PyTorch's, under Dassl's argument names: logits [B, C], labels [B]."""
    return F.cross_entropy(input, target, label_smoothing=label_smooth, reduction=reduction)


def sharpen_prob(p, temperature=2) -> Tensor:
    """``p ** temperature``, normalised over the classes: [B, C], rows that sum to one."""
    powers = p.pow(temperature)
    return powers / powers.sum(1, keepdim=True)


def create_onehot(label, num_classes) -> Tensor:
    """Labels [B] -> [B, C], float32."""
    return F.one_hot(label, num_classes).float()


def reverse_index(data, label) -> tuple[Tensor, Tensor]:
    """Both from the last row to the first."""
    return data.flip(0), label.flip(0)


def shuffle_index(data, label) -> tuple[Tensor, Tensor]:
    """Both in the same random order of their rows."""
    order = torch.randperm(len(data), device=data.device)
    return data[order], label[order]


def linear_rampup(current, rampup_length) -> float:
    """``current / rampup_length``, at least 0 and at most 1."""
    if rampup_length <= 0:
        raise ValueError(f"rampup_length must be above 0, got {rampup_length}")
    return float(min(max(current / rampup_length, 0.0), 1.0))


def sigmoid_rampup(current, rampup_length) -> float:
    """``exp(-5 (1 - t)^2)`` of `linear_rampup`'s t (Laine and Aila, arXiv 1610.02242)."""
    return math.exp(-5 * (1 - linear_rampup(current, rampup_length)) ** 2)


@torch.no_grad()
def ema_model_update(model, ema_model, alpha) -> None:
    """``ema = alpha * ema + (1 - alpha) * parameter``, in place (mean teacher, arXiv 1703.01780)."""
    for average, parameter in zip(ema_model.parameters(), model.parameters(), strict=True):
        average.mul_(alpha).add_(parameter, alpha=1 - alpha)
