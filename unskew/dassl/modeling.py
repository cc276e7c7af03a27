"""`dassl.modeling`: registries of backbones, heads and networks; torchvision's backbones under Dassl's names."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models import get_model

from unskew.utils.registry import Registry, unknown_name

__all__ = [
    "BACKBONE_REGISTRY",
    "HEAD_REGISTRY",
    "MLP",
    "NETWORK_REGISTRY",
    "Backbone",
    "build_backbone",
    "build_head",
    "build_network",
    "mlp",
]

logger = logging.getLogger("unskew")

Factory = Callable[..., nn.Module]

BACKBONE_REGISTRY = Registry[Factory]("BACKBONE")
HEAD_REGISTRY = Registry[Factory]("HEAD")
NETWORK_REGISTRY = Registry[Factory]("NETWORK")


def _build(registry: Registry[Factory], kind: str, name: str, verbose: bool, kwargs: dict[str, Any]) -> nn.Module:
    if verbose:
        logger.info(f"{kind}: {name}")
    return registry.get(name)(**kwargs)


def build_backbone(name: str, verbose: bool = True, **kwargs) -> nn.Module:
    """Build a registered backbone: images [B, 3, H, W] -> features [B, ``out_features``]."""
    return _build(BACKBONE_REGISTRY, "Backbone", name, verbose, kwargs)


def build_head(name: str, verbose: bool = True, **kwargs) -> nn.Module:
    """Build a registered head: features [B, ``in_features``] -> features [B, ``out_features``]."""
    return _build(HEAD_REGISTRY, "Head", name, verbose, kwargs)


def build_network(name: str, verbose: bool = True, **kwargs) -> nn.Module:
    """Build a registered network; the package has none."""
    return _build(NETWORK_REGISTRY, "Network", name, verbose, kwargs)


# --- backbones ---------------------------------------------------------------------------------------


class Backbone(nn.Module):
    """Base class of user-defined backbones; a subclass sets ``_out_features``."""

    _out_features: int | None = None

    @property
    def out_features(self) -> int | None:
        """Width of the features."""
        return self._out_features


# Dassl's name -> torchvision's name and settings.
_TORCHVISION: dict[str, tuple[str, dict]] = {
    **{name: (name, {}) for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")},
    **{name: (name, {}) for name in ("alexnet", "vgg16", *(f"efficientnet_b{n}" for n in range(8)))},
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


# --- heads -------------------------------------------------------------------------------------------

_ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


class MLP(nn.Module):
    """Layers of linear map, batch norm (optional), activation and dropout.

    Args:
        in_features: width of the input.
        hidden_layers: width of each layer; an int for a single layer.
        activation: "relu" or "leaky_relu".
        bn: whether the layers have batch norm.
        dropout: the probability of dropout.

    Raises:
        ValueError: there are no layers, or the activation is unknown.
    """

    def __init__(
        self,
        in_features: int = 2048,
        hidden_layers: int | Sequence[int] = (),
        activation: str = "relu",
        bn: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [hidden_layers] if isinstance(hidden_layers, int) else list(hidden_layers)
        if not widths:
            raise ValueError("an MLP needs at least one layer: set MODEL.HEAD.HIDDEN_LAYERS to its width")
        if activation not in _ACTIVATIONS:
            raise ValueError(unknown_name("MODEL.HEAD.ACTIVATION", activation, _ACTIVATIONS))
        layers: list[nn.Module] = []
        for before, width in zip([in_features, *widths], widths, strict=False):
            layers += [nn.Linear(before, width)]
            layers += [nn.BatchNorm1d(width)] if bn else []
            layers += [_ACTIVATIONS[activation](inplace=True)]
            layers += [nn.Dropout(dropout)] if dropout > 0 else []
        self.mlp = nn.Sequential(*layers)
        self.out_features = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, ``out_features``] of features [B, ``in_features``]."""
        return self.mlp(x)


@HEAD_REGISTRY.register()
def mlp(**kwargs) -> MLP:
    """Build an `MLP`."""
    return MLP(**kwargs)
