"""Mixup, cross-entropy, ramp-ups and other small operations."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Beta
from torch.nn import functional as F

from unskew.utils.registry import unknown_name

__all__ = [
    "Sequential2",
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


def mixup(
    x1: Tensor, x2: Tensor, y1: Tensor, y2: Tensor, beta: float, preserve_order: bool = False
) -> tuple[Tensor, Tensor]:
    """Mix two batches: ``l * x1 + (1 - l) * x2``, ``l ~ Beta(beta, beta)``, labels alike (mixup, arXiv 1710.09412).

    Images are [B, C, H, W], labels [B, K]. With ``preserve_order`` the share is ``max(l, 1 - l)``, so that each result
    is nearer to the first batch (MixMatch, arXiv 1905.02249).
    """
    share = Beta(beta, beta).sample((len(x1),)).to(x1)  # [B]
    share = torch.maximum(share, 1 - share) if preserve_order else share

    def mix(first: Tensor, second: Tensor) -> Tensor:
        weight = share.view(-1, *[1] * (first.ndim - 1))
        return weight * first + (1 - weight) * second

    return mix(x1, x2), mix(y1, y2)


class Sequential2(nn.Sequential):
    """A sequence of modules, each of which may take and return several values."""

    def forward(self, *inputs: Any) -> Any:
        """Return the output of the last module."""
        values: Any = inputs
        for module in self:
            values = module(*values) if isinstance(values, tuple) else module(values)
        return values


_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": torch.mean,
    "sum": torch.sum,
    "none": lambda losses: losses,
}


def cross_entropy(input: Tensor, target: Tensor, label_smooth: float = 0, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of logits [B, C] and labels [B], with smoothed labels (arXiv 1512.00567, section 7).

    Args:
        input: logits.
        target: labels.
        label_smooth: the share of the uniform distribution.
        reduction: "mean", "sum" or "none".

    Raises:
        ValueError: the reduction is unknown.
    """
    if reduction not in _REDUCTIONS:
        raise ValueError(unknown_name("reduction", reduction, _REDUCTIONS))
    classes = input.shape[1]
    smooth = (1 - label_smooth) * F.one_hot(target, classes).to(input) + label_smooth / classes
    return _REDUCTIONS[reduction](-(smooth * input.log_softmax(1)).sum(1))


def sharpen_prob(p: Tensor, temperature: float = 2) -> Tensor:
    """Return ``p ** temperature`` [B, C], normalised over the classes."""
    powers = p.pow(temperature)
    return powers / powers.sum(1, keepdim=True)


def create_onehot(label: Tensor, num_classes: int) -> Tensor:
    """Return labels [B] as one-hot vectors [B, C], float32."""
    return F.one_hot(label, num_classes).float()


def reverse_index(data: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Reverse the rows of both tensors."""
    return data.flip(0), label.flip(0)


def shuffle_index(data: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Shuffle the rows of both tensors in the same order."""
    order = torch.randperm(len(data), device=data.device)
    return data[order], label[order]


def linear_rampup(current: float, rampup_length: float) -> float:
    """Return ``current / rampup_length``, clipped to [0, 1]."""
    if rampup_length <= 0:
        raise ValueError(f"rampup_length must be above 0, got {rampup_length}")
    return float(min(max(current / rampup_length, 0.0), 1.0))


def sigmoid_rampup(current: float, rampup_length: float) -> float:
    """Return ``exp(-5 (1 - t)^2)`` for t of `linear_rampup` (Laine and Aila, arXiv 1610.02242)."""
    remaining = 1 - linear_rampup(current, rampup_length)
    return math.exp(-5 * remaining * remaining)


@torch.no_grad()
def ema_model_update(model: nn.Module, ema_model: nn.Module, alpha: float) -> None:
    """Update in place: ``ema = alpha * ema + (1 - alpha) * parameter`` (mean teacher, arXiv 1703.01780)."""
    for average, parameter in zip(ema_model.parameters(), model.parameters(), strict=True):
        average.mul_(alpha).add_(parameter, alpha=1 - alpha)
