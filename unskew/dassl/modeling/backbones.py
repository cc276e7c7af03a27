"""All backbones of Dassl by name."""

from unskew.dassl.modeling import (  # noqa: F401 - they register backbones
    classic,
    digits,
    efficientnet,
    preact_resnet18,
    resnet,
    resnet_dynamic,
    wide_resnet,
)
from unskew.dassl.modeling.registries import BACKBONE_REGISTRY

__all__ = BACKBONE_REGISTRY.registered_names()
globals().update({_name: BACKBONE_REGISTRY.get(_name) for _name in __all__})
