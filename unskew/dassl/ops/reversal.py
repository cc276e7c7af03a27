"""Gradient reversal."""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ReverseGrad", "reverse_grad"]


class _ReverseGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return input.view_as(input)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradient, None


reverse_grad = _ReverseGrad.apply


class ReverseGrad(nn.Module):
    """The identity with its gradient multiplied by ``-grad_scaling`` (DANN, arXiv 1505.07818)."""

    def forward(self, x: Tensor, grad_scaling: float = 1.0) -> Tensor:
        """Return ``x``."""
        if grad_scaling < 0:
            raise ValueError(f"grad_scaling must be 0 or more, got {grad_scaling}")
        return reverse_grad(x, grad_scaling)
