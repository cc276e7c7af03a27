"""Wide ResNet (arXiv 1605.07146) with leaky ReLU, as in semi-supervised learning (arXiv 1804.09170)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unskew.dassl.modeling.registries import BACKBONE_REGISTRY, Backbone
from unskew.dassl.modeling.weights import kaiming_convolutions

__all__ = ["BasicBlock", "NetworkBlock", "WideResNet", "wide_resnet_16_4", "wide_resnet_28_2"]


class BasicBlock(nn.Module):
    """Batch norm, leaky ReLU and a 3x3 convolution, twice."""

    def __init__(self, in_planes: int, out_planes: int, stride: int, dropRate: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.relu1 = nn.LeakyReLU(0.01, inplace=True)
        self.conv1 = nn.Conv2d(in_planes, out_planes, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_planes)
        self.relu2 = nn.LeakyReLU(0.01, inplace=True)
        self.conv2 = nn.Conv2d(out_planes, out_planes, kernel_size=3, padding=1, bias=False)
        self.droprate = dropRate
        self.equalInOut = in_planes == out_planes
        self.convShortcut: nn.Module | None = None
        if not self.equalInOut:
            self.convShortcut = nn.Conv2d(in_planes, out_planes, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, ``out_planes``, H / stride, W / stride]."""
        activated = self.relu1(self.bn1(x))
        out = self.relu2(self.bn2(self.conv1(activated)))
        if self.droprate > 0:
            out = F.dropout(out, p=self.droprate, training=self.training)
        out = self.conv2(out)
        return (x if self.convShortcut is None else self.convShortcut(activated)) + out


class NetworkBlock(nn.Module):
    """A stage of ``nb_layers`` blocks."""

    def __init__(
        self,
        nb_layers: float,
        in_planes: int,
        out_planes: int,
        block: Any,
        stride: int,
        dropRate: float = 0.0,
    ) -> None:
        super().__init__()
        first = block(in_planes, out_planes, stride, dropRate)
        self.layer = nn.Sequential(
            first, *(block(out_planes, out_planes, 1, dropRate) for _ in range(1, int(nb_layers)))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, ``out_planes``, H / stride, W / stride]."""
        return self.layer(x)


class WideResNet(Backbone):
    """Images [B, 3, H, W] -> features [B, 64 * ``widen_factor``].

    Args:
        depth: the number of layers: 6 n + 4.
        widen_factor: multiple of the widths 16, 32 and 64.
        dropRate: the probability of dropout.

    Raises:
        ValueError: the depth is not 6 n + 4.
    """

    def __init__(self, depth: int, widen_factor: int, dropRate: float = 0.0) -> None:
        super().__init__()
        if depth % 6 != 4:
            raise ValueError(f"the depth of a wide ResNet must be 6 n + 4, got {depth}")
        number, widths = depth // 6, [factor * widen_factor for factor in (16, 32, 64)]
        self.conv1 = nn.Conv2d(3, 16, kernel_size=3, padding=1, bias=False)
        self.block1 = NetworkBlock(number, 16, widths[0], BasicBlock, 1, dropRate)
        self.block2 = NetworkBlock(number, widths[0], widths[1], BasicBlock, 2, dropRate)
        self.block3 = NetworkBlock(number, widths[1], widths[2], BasicBlock, 2, dropRate)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.relu = nn.LeakyReLU(0.01, inplace=True)
        self._out_features = widths[2]
        kaiming_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, 64 * ``widen_factor``]."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return torch.flatten(F.adaptive_avg_pool2d(self.relu(self.bn1(x)), 1), 1)


@BACKBONE_REGISTRY.register()
def wide_resnet_28_2(**kwargs) -> WideResNet:
    """Build a `WideResNet` of 28 layers and twice the width."""
    return WideResNet(28, 2)


@BACKBONE_REGISTRY.register()
def wide_resnet_16_4(**kwargs) -> WideResNet:
    """Build a `WideResNet` of 16 layers and four times the width."""
    return WideResNet(16, 4)
