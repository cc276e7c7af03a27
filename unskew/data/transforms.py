"""Transforms by Dassl's names: PIL image -> tensor."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import functional as F
from torchvision.transforms import v2
from yacs.config import CfgNode

from unskew.utils.registry import unknown_name

INTERPOLATION_MODES = {
    "bilinear": T.InterpolationMode.BILINEAR,
    "bicubic": T.InterpolationMode.BICUBIC,
    "nearest": T.InterpolationMode.NEAREST,
}

Size = tuple[int, int]  # (height, width)
Transform = Callable[[Image.Image], Tensor]


class Preprocessing(Protocol):
    """The input format of a backbone.

    It may have the attributes ``resize_mode`` ("shortest" side, "longest" side with a border, or "squash", which
    ignores the aspect ratio), ``fill_color`` of the border, and ``interpolation``.
    """

    @property
    def size(self) -> int | Sequence[int]:
        """Side, or height and width, in pixels."""

    @property
    def mean(self) -> Sequence[float]:
        """Mean per channel."""

    @property
    def std(self) -> Sequence[float]:
        """Standard deviation per channel."""


class Cutout(torch.nn.Module):
    """Zero ``holes`` squares of side ``length`` around random pixels, clipped at the border (DeVries 2017)."""

    def __init__(self, holes: int, length: int) -> None:
        super().__init__()
        self.holes, self.length = holes, length

    def forward(self, image: Tensor) -> Tensor:
        """Return a copy of the image [3, H, W] with holes."""
        image = image.clone()
        _, height, width = image.shape
        for _ in range(self.holes):
            y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
            top, left = max(0, y - self.length // 2), max(0, x - self.length // 2)
            image[:, top : y + self.length // 2, left : x + self.length // 2] = 0
        return image

    def extra_repr(self) -> str:
        """Return the settings, which are part of cache keys."""
        return f"holes={self.holes}, length={self.length}"


class Crop(torch.nn.Module):
    """One of torchvision's ten crops: four corners and the centre, then the same of the mirrored image."""

    def __init__(self, size: Size, number: int) -> None:
        super().__init__()
        self.size, self.number = size, number

    def forward(self, image: Image.Image) -> Image.Image:
        """Return the crop of an image."""
        image = F.hflip(image) if self.number >= 5 else image
        return F.five_crop(image, self.size)[self.number % 5]

    def extra_repr(self) -> str:
        """Return the settings, which are part of cache keys."""
        return f"size={self.size}, number={self.number}"


class FitInside(torch.nn.Module):
    """Resize the longer side of an image to fit, and add a border around the centre, as open_clip's "longest" does."""

    def __init__(self, size: Size, mode: T.InterpolationMode, fill: int) -> None:
        super().__init__()
        self.size, self.mode, self.fill = size, mode, fill

    def forward(self, image: Image.Image) -> Image.Image:
        """Return the image with its border."""
        sides = image.height, image.width
        ratio = max(side / target for side, target in zip(sides, self.size, strict=True))
        image = F.resize(image, [round(side / ratio) for side in sides], self.mode)
        down, right = self.size[0] - image.height, self.size[1] - image.width
        return F.pad(image, [right // 2, down // 2, (right + 1) // 2, (down + 1) // 2], fill=self.fill)

    def extra_repr(self) -> str:
        """Return the settings, which are part of cache keys."""
        return f"size={self.size}, interpolation={self.mode.value}, fill={self.fill}"


class InstanceNorm(torch.nn.Module):
    """Normalise each channel of an image to mean 0 and standard deviation 1."""

    def forward(self, image: Tensor) -> Tensor:
        """Return the normalised image [3, H, W]."""
        mean, std = image.mean((1, 2), keepdim=True), image.std((1, 2), keepdim=True)
        return (image - mean) / (std + 1e-8)


def _translation(node: CfgNode, size: Size) -> Callable:
    larger = tuple(round(1.125 * side) for side in size)
    return T.RandomApply([T.Resize(larger), T.RandomCrop(size)], p=0.5)


# Transforms of a PIL image in the order of application: (INPUT node, size) -> transform.
# None: a transform of Dassl's API, which `unskew.dassl.transforms` adds.
ON_IMAGE: dict[str, Callable[[CfgNode, Size], Callable] | None] = {
    "random_translation": _translation,
    "random_crop": lambda i, size: T.RandomCrop(size, padding=i.CROP_PADDING),
    "random_resized_crop": lambda i, size: T.RandomResizedCrop(size, i.RRCROP_SCALE, interpolation=interpolation(i)),
    "random_flip": lambda i, size: T.RandomHorizontalFlip(),
    "autoaugment": lambda i, size: T.AutoAugment(T.AutoAugmentPolicy.IMAGENET),
    "imagenet_policy": lambda i, size: T.AutoAugment(T.AutoAugmentPolicy.IMAGENET),
    "cifar10_policy": lambda i, size: T.AutoAugment(T.AutoAugmentPolicy.CIFAR10),
    "svhn_policy": lambda i, size: T.AutoAugment(T.AutoAugmentPolicy.SVHN),
    "randaugment": lambda i, size: T.RandAugment(i.RANDAUGMENT_N, i.RANDAUGMENT_M),
    "randaugment_fixmatch": None,
    "randaugment2": None,
    "colorjitter": lambda i, size: T.ColorJitter(i.COLORJITTER_B, i.COLORJITTER_C, i.COLORJITTER_S, i.COLORJITTER_H),
    "randomgrayscale": lambda i, size: T.RandomGrayscale(i.RGS_P),
    "gaussian_blur": lambda i, size: T.RandomApply([T.GaussianBlur(i.GB_K)], p=i.GB_P),
}

# Transforms of a tensor in [0, 1].
_BEFORE_NORMALIZE: dict[str, Callable[[CfgNode], Callable]] = {"cutout": lambda i: Cutout(i.CUTOUT_N, i.CUTOUT_LEN)}

_AFTER_NORMALIZE: dict[str, Callable[[CfgNode], Callable]] = {
    "gaussian_noise": lambda i: T.RandomApply([v2.GaussianNoise(i.GN_MEAN, i.GN_STD, clip=False)], p=0.5),
    "instance_norm": lambda i: InstanceNorm(),
}

TRANSFORMS = (*ON_IMAGE, "center_crop", *_BEFORE_NORMALIZE, "normalize", *_AFTER_NORMALIZE)


def interpolation(node: CfgNode) -> T.InterpolationMode:
    """Return torchvision's mode for ``INPUT.INTERPOLATION``."""
    if node.INTERPOLATION not in INTERPOLATION_MODES:
        raise ValueError(unknown_name("INPUT.INTERPOLATION", node.INTERPOLATION, INTERPOLATION_MODES))
    return INTERPOLATION_MODES[node.INTERPOLATION]


def pair(size: int | Sequence[int]) -> Size:
    """Return an image size as (height, width)."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))


def _check_transforms(choices: Sequence[str]) -> None:
    for choice in choices:
        if choice not in TRANSFORMS:
            raise ValueError(unknown_name("transform in INPUT.TRANSFORMS", choice, TRANSFORMS))
        if choice in ON_IMAGE and ON_IMAGE[choice] is None:
            raise ValueError(
                f"{choice} in INPUT.TRANSFORMS is a transform of Dassl's API: use `python -m unskew.dassl`, "
                "`--plugin`, or `import unskew.dassl.data`"
            )


def build_transform(
    cfg: CfgNode,
    backbone: Preprocessing | None = None,
    train: bool = True,
    choices: Sequence[str] | None = None,
    crop: int | None = None,
) -> Transform | None:
    """Build the transform of a PIL image to a tensor [3, H, W].

    Training applies the transforms in ``cfg.INPUT.TRANSFORMS``, in Dassl's order. Testing resizes the shorter side,
    crops the centre and normalises. With a backbone, images are always normalised, and testing resizes as the
    backbone's weights need it.

    Args:
        cfg: the config.
        backbone: its size, mean and standard deviation replace those of ``cfg.INPUT``.
        train: build the transform for training, not for testing.
        choices: names that replace ``cfg.INPUT.TRANSFORMS``.
        crop: for testing, take this one of ten crops of the image resized to 8/7 of the size, not the centre.

    Returns:
        The transform, whose ``repr`` contains all settings that decide its output; ``None`` with
        ``cfg.INPUT.NO_TRANSFORM``.

    Raises:
        ValueError: a transform or an interpolation is unknown, or needs `unskew.dassl`.
    """
    node = cfg.INPUT
    choices = list(node.TRANSFORMS if choices is None else choices)
    _check_transforms(choices)
    if node.NO_TRANSFORM:
        return None
    size = pair(node.SIZE if backbone is None else backbone.size)
    steps = _train_steps(node, size, choices) if train else _test_steps(node, size, backbone, crop)
    steps.append(T.ToTensor())
    if train:
        steps += [make(node) for name, make in _BEFORE_NORMALIZE.items() if name in choices]
    if backbone is not None:
        steps.append(T.Normalize(backbone.mean, backbone.std))
    elif "normalize" in choices:
        steps.append(T.Normalize(node.PIXEL_MEAN, node.PIXEL_STD))
    late = _AFTER_NORMALIZE if train else {"instance_norm": _AFTER_NORMALIZE["instance_norm"]}
    return T.Compose([*steps, *(make(node) for name, make in late.items() if name in choices)])


def _train_steps(node: CfgNode, size: Size, choices: Sequence[str]) -> list[Callable]:
    steps: list[Callable] = []
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        if "center_crop" in choices:
            steps = [T.Resize(max(size), interpolation(node)), T.CenterCrop(size)]
        else:
            steps = [T.Resize(size, interpolation(node))]
    return steps + [make(node, size) for name, make in ON_IMAGE.items() if make is not None and name in choices]


def _test_steps(node: CfgNode, size: Size, backbone: Preprocessing | None, crop: int | None) -> list[Callable]:
    if backbone is None:
        mode = interpolation(node)
    else:  # open_clip tests with bicubic interpolation unless bilinear is asked for
        bilinear = getattr(backbone, "interpolation", "bicubic") == "bilinear"
        mode = T.InterpolationMode.BILINEAR if bilinear else T.InterpolationMode.BICUBIC
    resize_mode = getattr(backbone, "resize_mode", "shortest")  # "squash": SigLIP's and CLIPA's weights
    if crop is not None:
        height, width = (round(side * 8 / 7) for side in size)
        return [T.Resize((height, width) if resize_mode == "squash" else max(height, width), mode), Crop(size, crop)]
    if resize_mode == "longest":
        return [FitInside(size, mode, getattr(backbone, "fill_color", 0))]
    return [T.Resize(size, mode)] if resize_mode == "squash" else [T.Resize(max(size), mode), T.CenterCrop(size)]


def build_crops(cfg: CfgNode, backbone: Preprocessing | None = None) -> list[Transform | None]:
    """Build the transforms of the ``cfg.TEST.CROPS`` views of a test image, over which logits are averaged.

    Raises:
        ValueError: ``TEST.CROPS`` is not 1 (the transform for testing), 5 or 10 (torchvision's `TenCrop`).
    """
    count = cfg.TEST.CROPS
    if count not in (1, 5, 10):
        raise ValueError(f"TEST.CROPS must be 1, 5 or 10, got {count}")
    return [build_transform(cfg, backbone, False, crop=None if count == 1 else crop) for crop in range(count)]
