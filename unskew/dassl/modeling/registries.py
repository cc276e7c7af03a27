"""Registries of backbones, heads and networks, and the functions that build from them."""

import logging
from collections.abc import Callable
from typing import Any

from torch import nn

from unskew.utils.registry import Registry

__all__ = [
    "BACKBONE_REGISTRY",
    "HEAD_REGISTRY",
    "NETWORK_REGISTRY",
    "Backbone",
    "build_backbone",
    "build_head",
    "build_network",
]

logger = logging.getLogger("unskew")

Factory = Callable[..., nn.Module]

BACKBONE_REGISTRY = Registry[Factory]("BACKBONE")
HEAD_REGISTRY = Registry[Factory]("HEAD")
NETWORK_REGISTRY = Registry[Factory]("NETWORK")


class Backbone(nn.Module):
    """Base class of backbones; a subclass sets ``_out_features``."""

    _out_features: int | None = None

    @property
    def out_features(self) -> int | None:
        """Width of the features."""
        return self._out_features


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
    """Build a registered network: images [B, 3, H, W] -> images [B, 3, H, W]."""
    return _build(NETWORK_REGISTRY, "Network", name, verbose, kwargs)
