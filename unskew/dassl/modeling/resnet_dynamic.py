"""ResNet with dynamic convolutions (Dynamic Domain Generalization, arXiv 2205.13913)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1, conv3x3

from unskew.dassl.modeling.registries import BACKBONE_REGISTRY
from unskew.dassl.modeling.resnet import DEPTHS, MIXED_STAGES, Stages
from unskew.dassl.modeling.weights import init_pretrained_weights, kaiming_convolutions, model_urls
from unskew.dassl.ops import Conv2dDynamic, MixStyle


def conv3x3_dynamic(
    in_planes: int, out_planes: int, stride: int = 1, attention_in_channels: int | None = None
) -> Conv2dDynamic:
    """Return a dynamic 3x3 convolution with padding and without bias."""
    return Conv2dDynamic(
        in_planes, out_planes, 3, stride, padding=1, bias=False, attention_in_channels=attention_in_channels
    )


def load_state_dict(
    model: nn.Module, state_dict: dict[str, Tensor], allowed_missing_keys: Sequence[str] | None = None
) -> None:
    """Load weights; only keys in ``allowed_missing_keys`` may be missing.

    Raises:
        RuntimeError: other keys are missing, or there are unexpected ones.
    """
    missing, unexpected = model.load_state_dict(state_dict, strict=allowed_missing_keys is None)
    if unexpected or set(missing) - set(allowed_missing_keys or ()):
        raise RuntimeError(f"{type(model).__name__}: missing keys {missing}, unexpected keys {unexpected}")


class _DynamicBlock(nn.Module):
    """A residual block whose 3x3 convolutions are dynamic; the block's input decides their templates."""

    expansion = 1
    relu: nn.Module

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if groups != 1 or dilation != 1:
            raise ValueError(f"{type(self).__name__} has groups=1 and dilation=1, got {groups} and {dilation}")
        self._build(inplanes, planes, base_width, stride, norm_layer or nn.BatchNorm2d)
        self.downsample = downsample
        self.stride = stride

    def _build(
        self, inplanes: int, planes: int, base_width: int, stride: int, norm_layer: Callable[..., nn.Module]
    ) -> None:
        raise NotImplementedError

    def _residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, ``expansion`` * planes, H / stride, W / stride]."""
        out = self._residual(x)
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class BasicBlockDynamic(_DynamicBlock):
    """Two dynamic 3x3 convolutions."""

    def _build(
        self, inplanes: int, planes: int, base_width: int, stride: int, norm_layer: Callable[..., nn.Module]
    ) -> None:
        if base_width != 64:
            raise ValueError(f"BasicBlockDynamic has base_width=64, got {base_width}")
        self.conv1 = conv3x3_dynamic(inplanes, planes, stride, attention_in_channels=inplanes)
        self.bn1 = norm_layer(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3_dynamic(planes, planes, attention_in_channels=inplanes)
        self.bn2 = norm_layer(planes)

    def _residual(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x, attention_x=x)))
        return self.bn2(self.conv2(out, attention_x=x))


class BottleneckDynamic(_DynamicBlock):
    """A dynamic 3x3 convolution between two 1x1 convolutions."""

    expansion = 4

    def _build(
        self, inplanes: int, planes: int, base_width: int, stride: int, norm_layer: Callable[..., nn.Module]
    ) -> None:
        width = planes * base_width // 64
        self.conv1 = conv1x1(inplanes, width)
        self.bn1 = norm_layer(width)
        self.conv2 = conv3x3_dynamic(width, width, stride, attention_in_channels=inplanes)
        self.bn2 = norm_layer(width)
        self.conv3 = conv1x1(width, planes * self.expansion)
        self.bn3 = norm_layer(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)

    def _residual(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out, attention_x=x)))
        return self.bn3(self.conv3(out))


class ResNet(Stages):
    """A ResNet of any of the four blocks, with an optional classifier.

    Args:
        block: the class of residual blocks.
        layers: the number of blocks in each of the four stages.
        has_fc: whether it ends with a linear classifier.
        num_classes: width of the classifier.
        zero_init_residual: whether the last batch norm of a static block starts at 0.
        groups: groups of the blocks' convolutions.
        width_per_group: width of a group in the first stage.
        replace_stride_with_dilation: for the last three stages, dilation instead of a stride.
        norm_layer: the class of normalisation.
        ms_class: the class of a layer that mixes statistics, such as `MixStyle`.
        ms_layers: the stages after which it is applied.
        ms_p: its probability.
        ms_a: its parameter alpha.
    """

    _mixer = "ms_class"

    def __init__(
        self,
        block: Any,
        layers: Sequence[int],
        has_fc: bool = True,
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
        ms_class: Callable[..., nn.Module] | None = None,
        ms_layers: Sequence[str] | None = None,
        ms_p: float = 0.5,
        ms_a: float = 0.1,
    ) -> None:
        dilate = replace_stride_with_dilation or (False, False, False)
        if len(dilate) != 3:
            raise ValueError(f"replace_stride_with_dilation must have 3 elements, got {dilate}")
        super().__init__(block, layers, norm_layer or nn.BatchNorm2d, groups, width_per_group, dilate)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.has_fc = has_fc
        if has_fc:
            self.fc = nn.Linear(512 * block.expansion, num_classes)
            self._out_features = num_classes
        self.ms_class: nn.Module | None = None
        if ms_class is not None and ms_layers is not None:
            self.ms_class, self.ms_layers = ms_class(p=ms_p, alpha=ms_a), self._check_mixed(ms_layers)
        kaiming_convolutions(self)
        for module in self.modules() if zero_init_residual else ():
            if isinstance(module, Bottleneck | BasicBlock):
                last: Any = module.bn3 if isinstance(module, Bottleneck) else module.bn2
                nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, D], or logits [B, C] with ``has_fc``."""
        features = torch.flatten(self.avgpool(self.featuremaps(x)), 1)
        return self.fc(features) if self.has_fc else features


def _resnet(arch: str, block: Any, layers: Sequence[int], pretrained: bool, progress: bool, **kwargs) -> ResNet:
    model = ResNet(block, layers, **kwargs)
    if pretrained:
        init_pretrained_weights(model, model_urls[arch])
    return model


def _register(name: str, depth: str, **settings) -> None:
    def build(pretrained: bool = True, **kwargs) -> ResNet:
        static, layers = DEPTHS[depth]
        block = BasicBlockDynamic if static is BasicBlock else BottleneckDynamic
        return _resnet(f"{depth}_dynamic", block, layers, pretrained, progress=True, has_fc=False, **settings)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"Build `{depth}` with dynamic convolutions" + (f" and {settings}." if settings else ".")
    globals()[name] = BACKBONE_REGISTRY.register(name, build)
    __all__.append(name)


__all__ = [
    "BasicBlock",
    "BasicBlockDynamic",
    "Bottleneck",
    "BottleneckDynamic",
    "ResNet",
    "conv1x1",
    "conv3x3",
    "conv3x3_dynamic",
    "load_state_dict",
    "model_urls",
]
for _depth in ("resnet18", "resnet50", "resnet101"):
    _register(f"{_depth}_dynamic", _depth)
    for _ending, _stages in MIXED_STAGES.items():
        _register(f"{_depth}_dynamic_ms_{_ending}", _depth, ms_class=MixStyle, ms_layers=_stages)
