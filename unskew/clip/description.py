"""Description of a backbone for files that leave a run: weights, preprocessing and licence."""

import re
from typing import Any

from yacs.config import CfgNode

from unskew.clip.backbones import Backbone
from unskew.micro import weights as micro

UNKNOWN_LICENSE = "unknown: see the source of the weights"

# Licences of weights, by patterns of open_clip's tags (those of the model cards of OpenAI, LAION and Google).
_LICENSES = {r"openai|laion(400m|2b)_.*|datacomp_.*": "MIT", "webli": "Apache-2.0"}


def license_of(name: str, tag: str) -> str:
    """Return the licence of a backbone's weights; the embedded models have that of the package."""
    if name in micro.NAMES:
        return "MIT"
    return next((known for tags, known in _LICENSES.items() if re.fullmatch(tags, tag)), UNKNOWN_LICENSE)


def describe(cfg: CfgNode, backbone: Backbone | None = None) -> dict[str, Any]:
    """Return the description of a backbone with the preprocessing of test images, as JSON values.

    Args:
        cfg: the config of the trainer on the backbone.
        backbone: ``None`` for a trainer written for Dassl, whose model is its own and is preprocessed by ``INPUT``.
    """
    if backbone is None:
        node = cfg.INPUT
        weights = {"name": cfg.MODEL.BACKBONE.NAME, "id": "", "architecture": "", "tag": ""}
        images: tuple = (list(node.SIZE), node.INTERPOLATION, "shortest", node.PIXEL_MEAN, node.PIXEL_STD, 0)
    else:
        weights = {key: getattr(backbone, key) for key in ("name", "id", "architecture", "tag")}
        size = backbone.size if isinstance(backbone.size, int) else list(backbone.size)
        mode = "bilinear" if backbone.interpolation == "bilinear" else "bicubic"
        images = (size, mode, backbone.resize_mode, backbone.mean, backbone.std, backbone.fill_color)
    keys = ("size", "interpolation", "resize_mode", "mean", "std", "fill_color")
    preprocessing = dict(zip(keys, images, strict=True)) | {"crops": cfg.TEST.CROPS, "upright": cfg.DATASET.UPRIGHT}
    preprocessing |= {key: list(preprocessing[key]) for key in ("mean", "std")}
    return {
        "backbone": weights,
        "preprocessing": preprocessing,
        "license": license_of(weights["name"], weights["tag"]),
    }
