"""`dassl.data.transforms`: `build_transform` with Dassl's signature, log lines and random draws."""

import logging
import random
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import functional as F
from yacs.config import CfgNode

from unskew.dassl.autoaugment import CIFAR10Policy, ImageNetPolicy, SVHNPolicy
from unskew.dassl.config import complete
from unskew.dassl.image_operations import Augmentation, RandAugment, RandAugment2, RandAugmentFixMatch, hole_mask
from unskew.dassl.randaugment import FIXMATCH, RANDAUGMENT2, RandomOperations
from unskew.data import transforms
from unskew.data.transforms import INTERPOLATION_MODES, Size, interpolation, pair
from unskew.utils.registry import unknown_name

__all__ = [
    "AVAI_CHOICES",
    "INTERPOLATION_MODES",
    "Cutout",
    "GaussianNoise",
    "InstanceNormalization",
    "Random2DTranslation",
    "build_transform",
]

logger = logging.getLogger("unskew")

# For `unskew train` with plugins, whose augmentation is drawn from PyTorch's generator.
transforms.ON_IMAGE.update(
    randaugment_fixmatch=lambda node, size: RandomOperations(FIXMATCH, node.RANDAUGMENT_N),
    randaugment2=lambda node, size: RandomOperations(RANDAUGMENT2, node.RANDAUGMENT_N, p=0.6),
)


class Random2DTranslation(Augmentation):
    """Resize an image, with probability ``p`` by 1.125 times more and then crop it at a random place.

    Args:
        height: height of the result.
        width: width of the result.
        p: the probability of the crop.
        interpolation: the interpolation of the resizing.
    """

    def __init__(
        self, height: int, width: int, p: float = 0.5, interpolation: T.InterpolationMode = T.InterpolationMode.BILINEAR
    ) -> None:
        self.height, self.width, self.p, self.interpolation = height, width, p, interpolation

    def __call__(self, img: Image.Image) -> Image.Image:
        """Return the image of ``height`` and ``width``."""
        if random.uniform(0, 1) > self.p:
            return F.resize(img, [self.height, self.width], self.interpolation)
        larger = [round(1.125 * self.height), round(1.125 * self.width)]
        left = round(random.uniform(0, larger[1] - self.width))
        top = round(random.uniform(0, larger[0] - self.height))
        return F.crop(F.resize(img, larger, self.interpolation), top, left, self.height, self.width)


class InstanceNormalization(transforms.InstanceNorm):
    """Normalise each channel of an image to mean 0 and standard deviation 1; ``eps`` is added to the deviation."""

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, image: Tensor) -> Tensor:
        """Return the normalised image [3, H, W]."""
        mean, std = image.mean((1, 2), keepdim=True), image.std((1, 2), keepdim=True)
        return (image - mean) / (std + self.eps)

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"eps={self.eps}"


class Cutout(Augmentation):
    """Zero ``n_holes`` squares of side ``length`` around random pixels (arXiv 1708.04552)."""

    def __init__(self, n_holes: int = 1, length: int = 16) -> None:
        self.n_holes, self.length = n_holes, length

    def __call__(self, img: Tensor) -> Tensor:
        """Return a copy of the image [3, H, W] with holes."""
        return img * hole_mask(img, self.n_holes, self.length)


class GaussianNoise(Augmentation):
    """Add normal noise with probability ``p``."""

    def __init__(self, mean: float = 0, std: float = 0.15, p: float = 0.5) -> None:
        self.mean, self.std, self.p = mean, std, p

    def __call__(self, img: Tensor) -> Tensor:
        """Return the image [3, H, W], with or without noise."""
        if random.uniform(0, 1) > self.p:
            return img
        return img + (torch.randn(img.shape) * self.std + self.mean)


# Transforms in the order of application: (INPUT node, size) -> transform. They draw from the generators that Dassl's
# draw from: PyTorch's, or Python's and NumPy's.
_ON_IMAGE: dict[str, Callable[[CfgNode, Size], Callable]] = {
    "random_translation": lambda i, size: Random2DTranslation(*size),
    "random_crop": lambda i, size: T.RandomCrop(size, padding=i.CROP_PADDING),
    "random_resized_crop": lambda i, size: T.RandomResizedCrop(size, i.RRCROP_SCALE, interpolation=interpolation(i)),
    "random_flip": lambda i, size: T.RandomHorizontalFlip(),
    "imagenet_policy": lambda i, size: ImageNetPolicy(),
    "cifar10_policy": lambda i, size: CIFAR10Policy(),
    "svhn_policy": lambda i, size: SVHNPolicy(),
    "autoaugment": lambda i, size: T.AutoAugment(T.AutoAugmentPolicy.IMAGENET),
    "randaugment": lambda i, size: RandAugment(i.RANDAUGMENT_N, i.RANDAUGMENT_M),
    "randaugment_fixmatch": lambda i, size: RandAugmentFixMatch(i.RANDAUGMENT_N),
    "randaugment2": lambda i, size: RandAugment2(i.RANDAUGMENT_N),
    "colorjitter": lambda i, size: T.ColorJitter(i.COLORJITTER_B, i.COLORJITTER_C, i.COLORJITTER_S, i.COLORJITTER_H),
    "randomgrayscale": lambda i, size: T.RandomGrayscale(i.RGS_P),
    "gaussian_blur": lambda i, size: T.RandomApply([T.GaussianBlur(i.GB_K)], p=i.GB_P),
}
_ON_TENSOR: dict[str, Callable[[CfgNode], Callable]] = {
    "cutout": lambda i: Cutout(i.CUTOUT_N, i.CUTOUT_LEN),
    "normalize": lambda i: T.Normalize(i.PIXEL_MEAN, i.PIXEL_STD),
    "gaussian_noise": lambda i: GaussianNoise(i.GN_MEAN, i.GN_STD),
    "instance_norm": lambda i: InstanceNormalization(),
}

AVAI_CHOICES = [*_ON_IMAGE, *_ON_TENSOR, "center_crop"]

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


def build_transform(cfg: CfgNode, is_train: bool = True, choices: Sequence[str] | None = None) -> T.Compose | None:
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
    complete(cfg)
    choices = list(cfg.INPUT.TRANSFORMS if choices is None else choices)
    for choice in choices:
        if choice not in AVAI_CHOICES:
            raise ValueError(unknown_name("transform in INPUT.TRANSFORMS", choice, AVAI_CHOICES))
    if cfg.INPUT.NO_TRANSFORM:
        logger.info("Note: no transform is applied!")
        return None
    return (_build_transform_train if is_train else _build_transform_test)(cfg, choices)


def _build_transform_train(cfg: CfgNode, choices: Sequence[str], *unused) -> T.Compose:
    """Build the transform for training; Dassl's other arguments (the size as text, the normalisation) are ignored."""
    node, size = cfg.INPUT, pair(cfg.INPUT.SIZE)
    cropped = {"random_crop", "random_resized_crop"} & set(choices)
    steps: list[Callable] = [] if cropped else [T.Resize(size, interpolation(node))]
    steps += [make(node, size) for name, make in _ON_IMAGE.items() if name in choices]
    steps += [T.ToTensor(), *(make(node) for name, make in _ON_TENSOR.items() if name in choices)]
    _log(node, True, choices)
    return T.Compose(steps)


def _build_transform_test(cfg: CfgNode, choices: Sequence[str], *unused) -> T.Compose:
    """Build the transform for testing; Dassl's other arguments (the size as text, the normalisation) are ignored."""
    node, size = cfg.INPUT, pair(cfg.INPUT.SIZE)
    steps = [T.Resize(max(size), interpolation(node)), T.CenterCrop(size), T.ToTensor()]
    steps += [_ON_TENSOR[name](node) for name in ("normalize", "instance_norm") if name in choices]
    _log(node, False, choices)
    return T.Compose(steps)


def _log(node: CfgNode, is_train: bool, choices: Sequence[str]) -> None:
    for line in _log_lines(node, is_train, choices):
        logger.info(line)


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
