"""RandAugment (arXiv 1909.13719) and its operations with Dassl's names and its draws.

The signs come from Python's generator, and the places of holes from NumPy's. Each operation takes a PIL image and a
strength, and returns a PIL image.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from unskew.dassl.randaugment import FIXMATCH, OPERATIONS, RANDAUGMENT2

__all__ = [
    "AutoContrast",
    "Brightness",
    "Color",
    "Contrast",
    "Cutout",
    "CutoutAbs",
    "CutoutDefault",
    "Equalize",
    "Flip",
    "Identity",
    "Invert",
    "Lighting",
    "Posterize",
    "RandAugment",
    "RandAugment2",
    "RandAugmentFixMatch",
    "Rotate",
    "SamplePairing",
    "Sharpness",
    "ShearX",
    "ShearY",
    "Solarize",
    "SolarizeAdd",
    "TranslateX",
    "TranslateXabs",
    "TranslateY",
    "TranslateYabs",
    "fixmatch_list",
    "randaugment_list",
    "randaugment_list2",
]

Operation = Callable[[Image.Image, float], Image.Image]


def _within(name: str, v: float, low: float, high: float) -> float:
    if not low <= v <= high:
        raise ValueError(f"{name} takes a strength from {low} to {high}, got {v}")
    return v


def _make(name: str, operation: str, low: float, high: float, signed: bool = False) -> Operation:
    """Return an operation that checks its strength; with ``signed`` its sign is drawn."""

    def apply(img: Image.Image, v: float) -> Image.Image:
        v = _within(name, v, low, high)
        return OPERATIONS[operation](img, -v if signed and random.random() > 0.5 else v)

    apply.__name__ = apply.__qualname__ = name
    apply.__doc__ = f"Apply {operation}; the strength is from {low} to {high}."
    return apply


_ANY = float("inf")

ShearX = _make("ShearX", "shear_x", -0.3, 0.3, signed=True)
ShearY = _make("ShearY", "shear_y", -0.3, 0.3, signed=True)
TranslateX = _make("TranslateX", "translate_x", -0.45, 0.45, signed=True)
TranslateY = _make("TranslateY", "translate_y", -0.45, 0.45, signed=True)
Rotate = _make("Rotate", "rotate", -30, 30, signed=True)
AutoContrast = _make("AutoContrast", "autocontrast", -_ANY, _ANY)
Invert = _make("Invert", "invert", -_ANY, _ANY)
Equalize = _make("Equalize", "equalize", -_ANY, _ANY)
Identity = _make("Identity", "identity", -_ANY, _ANY)
Solarize = _make("Solarize", "solarize", 0, 256)
Posterize = _make("Posterize", "posterize", 4, 8)
Contrast = _make("Contrast", "contrast", 0, 2)
Color = _make("Color", "color", 0, 2)
Brightness = _make("Brightness", "brightness", 0, 2)
Sharpness = _make("Sharpness", "sharpness", 0, 2)


def _shift(img: Image.Image, pixels: float, vertical: bool) -> Image.Image:
    pixels = -pixels if random.random() > 0.5 else pixels
    matrix = (1, 0, 0, 0, 1, pixels) if vertical else (1, 0, pixels, 0, 1, 0)
    return img.transform(img.size, Image.Transform.AFFINE, matrix)


def TranslateXabs(img: Image.Image, v: float) -> Image.Image:
    """Move by ``v`` pixels to the left or right."""
    return _shift(img, _within("TranslateXabs", v, 0, _ANY), vertical=False)


def TranslateYabs(img: Image.Image, v: float) -> Image.Image:
    """Move by ``v`` pixels up or down."""
    return _shift(img, _within("TranslateYabs", v, 0, _ANY), vertical=True)


def Flip(img: Image.Image, _: float) -> Image.Image:
    """Mirror the image."""
    return ImageOps.mirror(img)


def SolarizeAdd(img: Image.Image, addition: float = 0, threshold: int = 128) -> Image.Image:
    """Add to all pixels, and invert those from the threshold on."""
    pixels = np.clip(np.asarray(img).astype(int) + int(addition), 0, 255).astype(np.uint8)
    return ImageOps.solarize(Image.fromarray(pixels), threshold)


def Cutout(img: Image.Image, v: float) -> Image.Image:
    """Fill a square of ``v`` times the width."""
    v = _within("Cutout", v, 0, 0.2)
    return CutoutAbs(img, v * img.size[0]) if v > 0 else img


def CutoutAbs(img: Image.Image, v: float) -> Image.Image:
    """Fill a square of ``v`` pixels around a random pixel."""
    if v < 0:
        return img
    width, height = img.size
    x, y = np.random.uniform(width, 1), np.random.uniform(height, 1)  # noqa: NPY002 - Dassl's draws
    left, top = int(max(0, x - v / 2)), int(max(0, y - v / 2))
    img = img.copy()
    square = (left, top, min(width, left + v), min(height, top + v))
    ImageDraw.Draw(img).rectangle(square, (125, 123, 114))
    return img


def SamplePairing(imgs: Sequence[Any]) -> Operation:
    """Return an operation that blends with a random one of these images (arrays [H, W, 3]), by a share of ``v``."""

    def blend(img1: Image.Image, v: float) -> Image.Image:
        other = imgs[np.random.choice(len(imgs))]  # noqa: NPY002 - Dassl's draws
        return Image.blend(img1, Image.fromarray(other), v)

    return blend


class Augmentation:
    """Base class of transforms whose ``repr`` contains their settings, as that of torchvision's."""

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in vars(self).items() if not isinstance(value, list))
        return f"{type(self).__name__}({settings})"


class Lighting(Augmentation):
    """AlexNet's colour noise of a tensor [3, H, W]: the principal components of colours times random numbers.

    Args:
        alphastd: standard deviation of the random numbers.
        eigval: eigenvalues [3].
        eigvec: eigenvectors [3, 3], in columns.
    """

    def __init__(self, alphastd: float, eigval: Any, eigvec: Any) -> None:
        self.alphastd, self.eigval, self.eigvec = alphastd, torch.Tensor(eigval), torch.Tensor(eigvec)

    def __call__(self, img: Tensor) -> Tensor:
        """Return the image with noise."""
        if self.alphastd == 0:
            return img
        alpha = torch.empty(3, dtype=img.dtype).normal_(0, self.alphastd)
        return img + (self.eigvec.to(img) * alpha * self.eigval.to(img)).sum(1).view(3, 1, 1)


class CutoutDefault(Augmentation):
    """A hole of side ``length`` around a random pixel of a tensor [3, H, W], which is changed in place."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, img: Tensor) -> Tensor:
        """Return the image with the hole."""
        img *= hole_mask(img, 1, self.length)
        return img


def hole_mask(img: Tensor, count: int, length: int) -> Tensor:
    """Return a mask [H, W] of ones with ``count`` square holes, whose centres NumPy's generator draws."""
    height, width = img.shape[1:]
    mask = torch.ones(height, width)
    half = length // 2
    for _ in range(count):
        y, x = np.random.randint(height), np.random.randint(width)  # noqa: NPY002 - Dassl's draws
        mask[max(0, y - half) : y + half, max(0, x - half) : x + half] = 0
    return mask


# --- lists of operations with their lowest and highest strength ----------------------------------------

Ranges = list[tuple[Operation, float, float]]

_BY_NAME: dict[str, Operation] = {
    "autocontrast": AutoContrast,
    "brightness": Brightness,
    "color": Color,
    "contrast": Contrast,
    "equalize": Equalize,
    "identity": Identity,
    "invert": Invert,
    "posterize": Posterize,
    "rotate": Rotate,
    "sharpness": Sharpness,
    "shear_x": ShearX,
    "shear_y": ShearY,
    "solarize": Solarize,
    "translate_x": TranslateX,
    "translate_y": TranslateY,
}


def randaugment_list() -> Ranges:
    """Return the 16 operations of EfficientNet's RandAugment."""
    return [
        *((operation, 0, 1) for operation in (AutoContrast, Equalize, Invert)),
        *((Rotate, 0, 30), (Posterize, 4, 8), (Solarize, 0, 256), (SolarizeAdd, 0, 110)),
        *((operation, 0.1, 1.9) for operation in (Color, Contrast, Brightness, Sharpness)),
        *((ShearX, 0.0, 0.3), (ShearY, 0.0, 0.3), (CutoutAbs, 0, 40)),
        *((TranslateXabs, 0.0, 100), (TranslateYabs, 0.0, 100)),
    ]


def _in_order(ranges: dict[str, tuple[float, float]]) -> Ranges:
    """Return the operations in alphabetical order, as Dassl draws from them; operations without strength ignore it."""
    strengths = {name: (0, 1) if limits == (0, 0) else limits for name, limits in ranges.items()}
    return [(_BY_NAME[name], *strengths[name]) for name in sorted(strengths)]


def randaugment_list2() -> Ranges:
    """Return the 15 operations of Dassl's randaugment2."""
    return _in_order(RANDAUGMENT2)


def fixmatch_list() -> Ranges:
    """Return the 14 operations of FixMatch (arXiv 2001.07685, table 12)."""
    return _in_order(FIXMATCH)


class RandAugment(Augmentation):
    """``n`` random operations at the same magnitude.

    Args:
        n: the number of operations.
        m: the magnitude, 0 to 30.
    """

    def __init__(self, n: int = 2, m: float = 10) -> None:
        self.n, self.m = n, _within("RandAugment", m, 0, 30)
        self.augment_list = randaugment_list()

    def __call__(self, img: Image.Image) -> Image.Image:
        """Return the augmented image."""
        for operation, low, high in random.choices(self.augment_list, k=self.n):
            img = operation(img, self.m / 30 * (high - low) + low)
        return img


class RandAugment2(Augmentation):
    """``n`` random operations, each applied with probability ``p`` at a random strength."""

    def __init__(self, n: int = 2, p: float = 0.6) -> None:
        self.n, self.p = n, p
        self.augment_list = randaugment_list2()

    def __call__(self, img: Image.Image) -> Image.Image:
        """Return the augmented image."""
        for operation, low, high in random.choices(self.augment_list, k=self.n):
            if random.random() <= self.p:
                img = operation(img, random.random() * (high - low) + low)
        return img


class RandAugmentFixMatch(Augmentation):
    """FixMatch's ``n`` random operations at random strengths (arXiv 2001.07685, appendix D)."""

    def __init__(self, n: int = 2) -> None:
        self.n = n
        self.augment_list = fixmatch_list()

    def __call__(self, img: Image.Image) -> Image.Image:
        """Return the augmented image."""
        for operation, low, high in random.choices(self.augment_list, k=self.n):
            img = operation(img, random.random() * (high - low) + low)
        return img
