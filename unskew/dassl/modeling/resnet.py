"""ResNet (arXiv 1512.03385), optionally with MixStyle or EFDMix after its first stages."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, conv3x3

from unskew.dassl.modeling.registries import BACKBONE_REGISTRY, Backbone
from unskew.dassl.modeling.weights import init_pretrained_weights, kaiming_convolutions, model_urls
from unskew.dassl.ops import EFDMix, MixStyle

logger = logging.getLogger("unskew")

DEPTHS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}

# The stages after which a backbone with this ending mixes the statistics of its features.
MIXED_STAGES = {ending: tuple(f"layer{stage}" for stage in ending[1:]) for ending in ("l123", "l12", "l1")}


class Stages(Backbone):
    """The convolutions of a ResNet, whose layers have torchvision's names.

    Args:
        block: the class of residual blocks.
        layers: the number of blocks in each of the four stages.
        norm_layer: the class of normalisation.
        groups: groups of the blocks' convolutions.
        width_per_group: width of a group in the first stage.
        dilate: for each of the last three stages, whether it has dilation instead of a stride.
    """

    _mixer = "mixstyle"  # the attribute that holds the layer which mixes statistics
    ms_layers: Sequence[str] = ()
    _make_layer: Callable[..., nn.Sequential] = models.ResNet._make_layer

    def __init__(
        self,
        block: Any,
        layers: Sequence[int],
        norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d,
        groups: int = 1,
        width_per_group: int = 64,
        dilate: Sequence[bool] = (False, False, False),
    ) -> None:
        super().__init__()
        self.inplanes, self.dilation, self.groups, self.base_width = 64, 1, groups, width_per_group
        self._norm_layer = norm_layer
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = self._make_layer(block, 64, layers[0])
        self.layer2 = self._make_layer(block, 128, layers[1], stride=2, dilate=dilate[0])
        self.layer3 = self._make_layer(block, 256, layers[2], stride=2, dilate=dilate[1])
        self.layer4 = self._make_layer(block, 512, layers[3], stride=2, dilate=dilate[2])
        self._out_features = 512 * block.expansion

    def _check_mixed(self, layers: Sequence[str]) -> list[str]:
        wrong = set(layers) - set(MIXED_STAGES["l123"])
        if wrong:
            raise ValueError(f"features are mixed after layer1, layer2 or layer3, got {sorted(wrong)}")
        return list(layers)

    def featuremaps(self, x: Tensor) -> Tensor:
        """Return the features of the last stage [B, D, H / 32, W / 32] of images [B, 3, H, W]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(self, name)(x)
            if name in self.ms_layers:
                x = getattr(self, self._mixer)(x)
        return x


class ResNet(Stages):
    """A ResNet without classifier: images [B, 3, H, W] -> features [B, D].

    Args:
        block: the class of residual blocks.
        layers: the number of blocks in each of the four stages.
        ms_class: the class of a layer that mixes statistics, such as `MixStyle`.
        ms_layers: the stages after which it is applied.
        ms_p: its probability.
        ms_a: its parameter alpha.
        **kwargs: ignored.
    """

    def __init__(
        self,
        block: Any,
        layers: Sequence[int],
        ms_class: Callable[..., nn.Module] | None = None,
        ms_layers: Sequence[str] = (),
        ms_p: float = 0.5,
        ms_a: float = 0.1,
        **kwargs,
    ) -> None:
        super().__init__(block, layers)
        self.global_avgpool = nn.AdaptiveAvgPool2d(1)
        self.mixstyle: nn.Module | None = None
        if ms_layers:
            if ms_class is None:
                raise ValueError("ms_layers needs ms_class, such as MixStyle")
            self.mixstyle, self.ms_layers = ms_class(p=ms_p, alpha=ms_a), self._check_mixed(ms_layers)
            logger.info(f"Insert {type(self.mixstyle).__name__} after {list(ms_layers)}")
        kaiming_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, D]."""
        return torch.flatten(self.global_avgpool(self.featuremaps(x)), 1)


def _register(name: str, depth: str, **settings) -> None:
    def build(pretrained: bool = True, **kwargs) -> ResNet:
        block, layers = DEPTHS[depth]
        model = ResNet(block, layers, **settings)
        if pretrained:
            init_pretrained_weights(model, model_urls[depth])
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"Build `{depth}`" + (f" with {settings}." if settings else ".")
    globals()[name] = BACKBONE_REGISTRY.register(name, build)
    __all__.append(name)


__all__ = ["BasicBlock", "Bottleneck", "ResNet", "conv3x3", "init_pretrained_weights", "model_urls"]
for _depth in DEPTHS:
    _register(_depth, _depth)
for _kind, _class in (("ms", MixStyle), ("efdmix", EFDMix)):
    for _depth in ("resnet18", "resnet50", "resnet101"):
        for _ending, _stages in MIXED_STAGES.items():
            _register(f"{_depth}_{_kind}_{_ending}", _depth, ms_class=_class, ms_layers=_stages)
