"""Heads between a backbone and a classifier."""

from collections.abc import Sequence

from torch import Tensor, nn

from unskew.dassl.modeling.registries import HEAD_REGISTRY
from unskew.utils.registry import unknown_name

__all__ = ["MLP", "mlp"]

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
