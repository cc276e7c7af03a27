"""ResNet with pre-activation (arXiv 1603.05027), for images of 32 x 32 pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unskew.dassl.modeling.registries import BACKBONE_REGISTRY, Backbone

__all__ = ["PreActBlock", "PreActBottleneck", "PreActResNet", "preact_resnet18"]


class _PreAct(nn.Module):
    """Batch norm and ReLU before each convolution, and a shortcut from after the first of them."""

    expansion = 1
    bn1: nn.Module
    conv1: nn.Module
    # Kernel and relative width of each convolution; the stride is that of the first 3x3.
    _plan: Sequence[tuple[int, int]] = ()

    def __init__(self, in_planes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        width, remaining = in_planes, stride
        for number, (kernel, factor) in enumerate(self._plan, 1):
            step = remaining if kernel == 3 else 1
            remaining = 1 if kernel == 3 else remaining
            setattr(self, f"bn{number}", nn.BatchNorm2d(width))
            after = factor * planes
            setattr(self, f"conv{number}", nn.Conv2d(width, after, kernel, step, padding=kernel // 2, bias=False))
            width = after
        if stride != 1 or in_planes != width:
            self.shortcut = nn.Sequential(nn.Conv2d(in_planes, width, kernel_size=1, stride=stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, ``expansion`` * planes, H / stride, W / stride]."""
        activated = F.relu(self.bn1(x))
        shortcut = self.shortcut(activated) if hasattr(self, "shortcut") else x
        out = self.conv1(activated)
        for number in range(2, len(self._plan) + 1):
            out = getattr(self, f"conv{number}")(F.relu(getattr(self, f"bn{number}")(out)))
        return out + shortcut


class PreActBlock(_PreAct):
    """Two 3x3 convolutions."""

    _plan = ((3, 1), (3, 1))


class PreActBottleneck(_PreAct):
    """A 3x3 convolution between two 1x1 convolutions."""

    expansion = 4
    _plan = ((1, 1), (3, 1), (1, 4))


class PreActResNet(Backbone):
    """Images [B, 3, 32, 32] -> features [B, D].

    Args:
        block: `PreActBlock` or `PreActBottleneck`.
        num_blocks: the number of blocks in each of the four stages.
    """

    def __init__(self, block: type[_PreAct], num_blocks: Sequence[int]) -> None:
        super().__init__()
        self.in_planes = 64
        self.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        self.layer1 = self._make_layer(block, 64, num_blocks[0], stride=1)
        self.layer2 = self._make_layer(block, 128, num_blocks[1], stride=2)
        self.layer3 = self._make_layer(block, 256, num_blocks[2], stride=2)
        self.layer4 = self._make_layer(block, 512, num_blocks[3], stride=2)
        self._out_features = 512 * block.expansion

    def _make_layer(self, block: type[_PreAct], planes: int, num_blocks: int, stride: int) -> nn.Sequential:
        layers = []
        for number in range(num_blocks):
            layers.append(block(self.in_planes, planes, 1 if number else stride))
            self.in_planes = planes * block.expansion
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, D]."""
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return torch.flatten(F.avg_pool2d(x, 4), 1)


@BACKBONE_REGISTRY.register()
def preact_resnet18(**kwargs) -> PreActResNet:
    """Build a `PreActResNet` of 18 layers, as in augmented distribution alignment (arXiv 1905.08171)."""
    return PreActResNet(PreActBlock, [2, 2, 2, 2])
