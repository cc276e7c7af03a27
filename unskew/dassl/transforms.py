"""`dassl.data.transforms`: `build_transform` with Dassl's signature and log lines."""

import logging
from collections.abc import Sequence

from yacs.config import CfgNode

from unskew.dassl.randaugment import FIXMATCH, RANDAUGMENT2, RandomOperations
from unskew.data import transforms
from unskew.data.transforms import INTERPOLATION_MODES

__all__ = ["INTERPOLATION_MODES", "build_transform"]

logger = logging.getLogger("unskew")

transforms.ON_IMAGE.update(
    randaugment_fixmatch=lambda node, size: RandomOperations(FIXMATCH, node.RANDAUGMENT_N),
    randaugment2=lambda node, size: RandomOperations(RANDAUGMENT2, node.RANDAUGMENT_N, p=0.6),
)

# In the order of application; the names in braces are keys of INPUT.
_LINES = {
    "random_translation": "random translation",
    "random_crop": "random crop (padding = {CROP_PADDING})",
    "random_resized_crop": "random resized crop (size={SIZE}, scale={RRCROP_SCALE})",
    "random_flip": "random flip",
    "imagenet_policy": "imagenet policy",
    "cifar10_policy": "cifar10 policy",
    "svhn_policy": "svhn policy",
    "randaugment": "randaugment (n={RANDAUGMENT_N}, m={RANDAUGMENT_M})",
    "randaugment_fixmatch": "randaugment_fixmatch (n={RANDAUGMENT_N})",
    "randaugment2": "randaugment2 (n={RANDAUGMENT_N})",
    "colorjitter": "color jitter (brightness={COLORJITTER_B}, contrast={COLORJITTER_C}, "
    "saturation={COLORJITTER_S}, hue={COLORJITTER_H})",
    "randomgrayscale": "random gray scale",
    "gaussian_blur": "gaussian blur (kernel={GB_K})",
    "to_tensor": "to torch tensor of range [0, 1]",
    "cutout": "cutout (n_holes={CUTOUT_N}, length={CUTOUT_LEN})",
    "normalize": "normalization (mean={PIXEL_MEAN}, std={PIXEL_STD})",
    "gaussian_noise": "gaussian noise (mean={GN_MEAN}, std={GN_STD})",
    "instance_norm": "instance normalization",
}


def build_transform(
    cfg: CfgNode, is_train: bool = True, choices: Sequence[str] | None = None
) -> transforms.Transform | None:
    """Build the transform of a PIL image to a tensor [3, H, W] of ``cfg.INPUT.SIZE``.

    "center_crop" is always part of testing and never of training.

    Args:
        cfg: the config.
        is_train: build the transform for training, not for testing.
        choices: names that replace ``cfg.INPUT.TRANSFORMS``.

    Returns:
        The transform; ``None`` with ``cfg.INPUT.NO_TRANSFORM``.

    Raises:
        ValueError: a transform or an interpolation is unknown.
    """
    choices = [choice for choice in (cfg.INPUT.TRANSFORMS if choices is None else choices) if choice != "center_crop"]
    transform = transforms.build_transform(cfg, None, is_train, choices)
    for line in _log_lines(cfg.INPUT, is_train, choices) if transform else ["Note: no transform is applied!"]:
        logger.info(line)
    return transform


def _log_lines(node: CfgNode, is_train: bool, choices: Sequence[str]) -> list[str]:
    size = "x".join(str(side) for side in transforms.pair(node.SIZE))
    applied = {"to_tensor", *choices}
    if is_train:
        lines = ["Building transform_train"]
        if not applied & {"random_crop", "random_resized_crop"}:
            lines.append(f"+ resize to {size}")
    else:
        smaller = f"+ resize the smaller edge to {max(transforms.pair(node.SIZE))}"
        lines = ["Building transform_test", smaller, f"+ {size} center crop"]
        applied &= {"to_tensor", "normalize", "instance_norm"}
    return lines + [f"+ {line.format(**node)}" for name, line in _LINES.items() if name in applied]
