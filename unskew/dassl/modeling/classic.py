"""AlexNet and VGG without their last layer, and torchvision's MobileNetV2 and ShuffleNetV2."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.vgg import cfgs, make_layers

from unskew.dassl.modeling.registries import BACKBONE_REGISTRY, Backbone
from unskew.dassl.modeling.weights import init_pretrained_weights, kaiming_convolutions, model_urls

__all__ = ["VGG", "AlexNet", "alexnet", "cfgs", "init_pretrained_weights", "make_layers", "model_urls", "vgg16"]


class _TwoParts(Backbone):
    """Convolutions, pooling to a fixed size, and linear layers: images [B, 3, H, W] -> features [B, 4096]."""

    features: nn.Module
    avgpool: nn.Module
    classifier: nn.Module
    _out_features = 4096

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, 4096]."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class AlexNet(_TwoParts):
    """AlexNet (arXiv 1404.5997) without its last layer."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        # Width, kernel, stride and padding of each convolution, and whether a pooling follows.
        for width, kernel, stride, padding, pooled in (
            (64, 11, 4, 2, True),
            (192, 5, 1, 2, True),
            (384, 3, 1, 1, False),
            (256, 3, 1, 1, False),
            (256, 3, 1, 1, True),
        ):
            layers += [nn.Conv2d(before, width, kernel, stride, padding), nn.ReLU(inplace=True)]
            layers += [nn.MaxPool2d(kernel_size=3, stride=2)] if pooled else []
            before = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            *(nn.Dropout(), nn.Linear(256 * 6 * 6, 4096), nn.ReLU(inplace=True)),
            *(nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(inplace=True)),
        )


@BACKBONE_REGISTRY.register()
def alexnet(pretrained: bool = True, **kwargs) -> AlexNet:
    """Build an `AlexNet`."""
    model = AlexNet()
    if pretrained:
        init_pretrained_weights(model, model_urls["alexnet"])
    return model


class VGG(_TwoParts):
    """VGG (arXiv 1409.1556) without its last layer.

    Args:
        features: the convolutions, such as ``make_layers(cfgs["D"])``.
        init_weights: whether to draw initial weights.
    """

    def __init__(self, features: nn.Module, init_weights: bool = True) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            *(nn.Linear(512 * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout()),
            *(nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout()),
        )
        if init_weights:
            kaiming_convolutions(self, linear_std=0.01)


def _vgg(arch: str, cfg: str, batch_norm: bool, pretrained: bool) -> VGG:
    model = VGG(make_layers(cfgs[cfg], batch_norm), init_weights=not pretrained)
    if pretrained:
        init_pretrained_weights(model, model_urls[arch])
    return model


@BACKBONE_REGISTRY.register()
def vgg16(pretrained: bool = True, **kwargs) -> VGG:
    """Build a `VGG` of 16 layers."""
    return _vgg("vgg16", "D", False, pretrained)


# Backbones of earlier releases of Dassl: their name, torchvision's name and settings.
_TORCHVISION: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in (f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0"))},
    "mobilenetv2": ("mobilenet_v2", {"dropout": 0.0}),
}


def _register(name: str, model: str, settings: dict[str, Any]) -> None:
    def build(pretrained: bool = True, **kwargs) -> nn.Module:
        try:
            network = get_model(model, weights="IMAGENET1K_V1" if pretrained else None, **settings)
        except OSError as error:
            hint = "connect to the internet once, or set MODEL.BACKBONE.PRETRAINED False"
            raise OSError(f"torchvision's weights of '{name}' could not be downloaded ({error}); {hint}") from error
        layers = network.fc if hasattr(network, "fc") else network.classifier
        network.out_features = (layers[-1] if isinstance(layers, Sequence | nn.Sequential) else layers).in_features
        if isinstance(layers, nn.Sequential):
            del layers[-1]
        else:
            network.fc = nn.Identity()
        return network

    build.__name__ = name
    BACKBONE_REGISTRY.register(name, build)


for _name, (_model, _settings) in _TORCHVISION.items():
    _register(_name, _model, _settings)
