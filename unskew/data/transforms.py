"""The only transforms: PIL image -> tensor, by Dassl's names and in its order."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import functional as F
from torchvision.transforms import v2

from unskew.utils.registry import unknown_name

INTERPOLATION_MODES = {
    "bilinear": T.InterpolationMode.BILINEAR,
    "bicubic": T.InterpolationMode.BICUBIC,
    "nearest": T.InterpolationMode.NEAREST,
}


class Cutout(torch.nn.Module):
    """Zero ``holes`` squares of side ``length`` around random pixels; the border may cut them (DeVries 2017)."""

    def __init__(self, holes: int, length: int) -> None:
        super().__init__()
        self.holes, self.length = holes, length

    def forward(self, image: Tensor) -> Tensor:
        image = image.clone()  # [3, H, W]
        _, height, width = image.shape
        for _ in range(self.holes):
            y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
            top, left = max(0, y - self.length // 2), max(0, x - self.length // 2)
            image[:, top : y + self.length // 2, left : x + self.length // 2] = 0
        return image

    def extra_repr(self) -> str:
        return f"holes={self.holes}, length={self.length}"


class Crop(torch.nn.Module):
    """One of torchvision's ten crops: of the corners and the centre, then of the mirrored image's."""

    def __init__(self, size: tuple[int, int], number: int) -> None:
        super().__init__()
        self.size, self.number = size, number

    def forward(self, image: Image.Image) -> Image.Image:
        image = F.hflip(image) if self.number >= 5 else image
        return F.five_crop(image, self.size)[self.number % 5]

    def extra_repr(self) -> str:
        return f"size={self.size}, number={self.number}"


class InstanceNorm(torch.nn.Module):
    """Each channel of an image to mean 0 and standard deviation 1."""

    def forward(self, image: Tensor) -> Tensor:
        mean, std = image.mean((1, 2), keepdim=True), image.std((1, 2), keepdim=True)
        return (image - mean) / (std + 1e-8)


def _translation(cfg, size) -> Callable:
    larger = tuple(round(1.125 * side) for side in size)
    return T.RandomApply([T.Resize(larger), T.RandomCrop(size)], p=0.5)


# Dassl's names, in the order in which they are applied: on the image, and on its tensor in [0, 1].
# None: a transform of Dassl's API, which `unskew.dassl.transforms` adds.
ON_IMAGE: dict[str, Callable | None] = {
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

_BEFORE_NORMALIZE: dict[str, Callable] = {"cutout": lambda i: Cutout(i.CUTOUT_N, i.CUTOUT_LEN)}

_AFTER_NORMALIZE: dict[str, Callable] = {
    "gaussian_noise": lambda i: T.RandomApply([v2.GaussianNoise(i.GN_MEAN, i.GN_STD, clip=False)], p=0.5),
    "instance_norm": lambda i: InstanceNorm(),
}

TRANSFORMS = (*ON_IMAGE, "center_crop", *_BEFORE_NORMALIZE, "normalize", *_AFTER_NORMALIZE)


def interpolation(node) -> T.InterpolationMode:
    if node.INTERPOLATION not in INTERPOLATION_MODES:
        raise ValueError(unknown_name("INPUT.INTERPOLATION", node.INTERPOLATION, INTERPOLATION_MODES))
    return INTERPOLATION_MODES[node.INTERPOLATION]


def pair(size) -> tuple[int, int]:
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
    cfg, backbone=None, train: bool = True, choices: Sequence[str] | None = None, crop: int | None = None
) -> Callable | None:
    """PIL image -> tensor [3, H, W].

    For training the names in ``cfg.INPUT.TRANSFORMS``, in Dassl's order whatever their own; for testing:
    resize the shorter side, crop the centre, normalise. A backbone decides size, mean and standard
    deviation, its images are always normalised and resized by bicubic interpolation for testing.

    Args:
        backbone: anything with ``.size .mean .std``; without one they come from ``cfg.INPUT``.
        choices: names in place of ``cfg.INPUT.TRANSFORMS``.
        crop: for testing, this one of the ten crops of the image resized to 8/7 of the size, in place of the centre.

    Returns:
        The transform; its ``repr`` says all that decides its output. ``None`` with ``cfg.INPUT.NO_TRANSFORM``.

    Raises:
        ValueError: an unknown transform or interpolation; the near names are listed.
    """
    node = cfg.INPUT
    choices = list(node.TRANSFORMS if choices is None else choices)
    _check_transforms(choices)
    if node.NO_TRANSFORM:
        return None
    size = pair(backbone.size if backbone is not None else node.SIZE)
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


def _train_steps(node, size, choices) -> list:
    steps = []
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        if "center_crop" in choices:
            steps = [T.Resize(max(size), interpolation(node)), T.CenterCrop(size)]
        else:
            steps = [T.Resize(size, interpolation(node))]
    return steps + [make(node, size) for name, make in ON_IMAGE.items() if make is not None and name in choices]


def _test_steps(node, size, backbone, crop) -> list:
    mode = interpolation(node) if backbone is None else T.InterpolationMode.BICUBIC
    squash = getattr(backbone, "resize_mode", "shortest") == "squash"  # SigLIP's and CLIPA's weights
    if crop is not None:
        larger = tuple(round(side * 8 / 7) for side in size)
        return [T.Resize(larger if squash else max(larger), mode), Crop(size, crop)]
    return [T.Resize(size, mode)] if squash else [T.Resize(max(size), mode), T.CenterCrop(size)]


def build_crops(cfg, backbone=None) -> list[Callable | None]:
    """The transforms of ``cfg.TEST.CROPS`` views of a test image, over which logits are averaged.

    Raises:
        ValueError: it is not 1 (the transform for testing as it is), 5 or 10 (those of torchvision's `TenCrop`).
    """
    count = cfg.TEST.CROPS
    if count not in (1, 5, 10):
        raise ValueError(f"TEST.CROPS must be 1, 5 or 10, got {count}")
    return [build_transform(cfg, backbone, False, crop=None if count == 1 else crop) for crop in range(count)]
