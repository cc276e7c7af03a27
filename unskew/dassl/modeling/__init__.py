"""`dassl.modeling`: registries of backbones, heads and networks, and those of Dassl with its initial weights."""

from unskew.dassl.modeling import backbones, ddaig_fcn
from unskew.dassl.modeling.heads import MLP, mlp
from unskew.dassl.modeling.registries import (
    BACKBONE_REGISTRY,
    HEAD_REGISTRY,
    NETWORK_REGISTRY,
    Backbone,
    build_backbone,
    build_head,
    build_network,
)

__all__ = [
    "BACKBONE_REGISTRY",
    "HEAD_REGISTRY",
    "MLP",
    "NETWORK_REGISTRY",
    "Backbone",
    "backbones",
    "build_backbone",
    "build_head",
    "build_network",
    "ddaig_fcn",
    "mlp",
]
