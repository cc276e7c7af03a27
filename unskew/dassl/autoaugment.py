"""AutoAugment's policies (arXiv 1805.09501) with Dassl's names and its draws, from Python's generator."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

__all__ = ["CIFAR10Policy", "ImageNetPolicy", "SVHNPolicy", "SubPolicy"]

Colour = Sequence[int]
Operation = Callable[[Image.Image, Any, Colour], Image.Image]


def _signed(value: float) -> float:
    return value * random.choice([-1, 1])


def _shear(matrix: Callable[[float], Sequence[float]]) -> Operation:
    return lambda image, v, fill: image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix(_signed(v)),
        Image.Resampling.BICUBIC,
        fillcolor=tuple(fill),
    )


def _translate(axis: int) -> Operation:
    def apply(image: Image.Image, v: float, fill: Colour) -> Image.Image:
        shift = [0.0, 0.0]
        shift[axis] = _signed(v * image.size[axis])
        matrix = (1, 0, shift[0], 0, 1, shift[1])
        return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=tuple(fill))

    return apply


def _enhance(kind: Callable) -> Operation:
    return lambda image, v, fill: kind(image).enhance(1 + _signed(v))


def _rotate(image: Image.Image, degrees: float, fill: Colour) -> Image.Image:
    """Rotate by ``degrees``; the corners become grey, whatever the fill."""
    rotated = image.convert("RGBA").rotate(degrees)
    grey = Image.new("RGBA", rotated.size, (128,) * 4)
    return Image.composite(rotated, grey, rotated).convert(image.mode)


_OPERATIONS: dict[str, Operation] = {
    "shearX": _shear(lambda v: (1, v, 0, 0, 1, 0)),
    "shearY": _shear(lambda v: (1, 0, 0, v, 1, 0)),
    "translateX": _translate(0),
    "translateY": _translate(1),
    "rotate": _rotate,
    "color": _enhance(ImageEnhance.Color),
    "posterize": lambda image, v, fill: ImageOps.posterize(image, int(v)),
    "solarize": lambda image, v, fill: ImageOps.solarize(image, v),
    "contrast": _enhance(ImageEnhance.Contrast),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "brightness": _enhance(ImageEnhance.Brightness),
    "autocontrast": lambda image, v, fill: ImageOps.autocontrast(image),
    "equalize": lambda image, v, fill: ImageOps.equalize(image),
    "invert": lambda image, v, fill: ImageOps.invert(image),
}

# The strengths of the magnitudes 0 to 9 lie between these.
_RANGES = {
    **dict.fromkeys(("shearX", "shearY"), (0, 0.3)),
    **dict.fromkeys(("translateX", "translateY"), (0, 150 / 331)),
    **dict.fromkeys(("color", "contrast", "sharpness", "brightness"), (0, 0.9)),
    **{"rotate": (0, 30), "posterize": (8, 4), "solarize": (256, 0)},
}


def _strength(operation: str, magnitude: int) -> float:
    strength = float(np.linspace(*_RANGES.get(operation, (0, 0)), 10)[magnitude])
    return round(strength) if operation == "posterize" else strength


class SubPolicy:
    """Two operations, each with its probability.

    Args:
        p1: probability of the first operation.
        operation1: its name, such as "shearX".
        magnitude_idx1: its magnitude, 0 to 9.
        p2: probability of the second operation.
        operation2: its name.
        magnitude_idx2: its magnitude.
        fillcolor: colour of pixels from outside the image.
    """

    def __init__(
        self,
        p1: float,
        operation1: str,
        magnitude_idx1: int,
        p2: float,
        operation2: str,
        magnitude_idx2: int,
        fillcolor: Colour = (128, 128, 128),
    ) -> None:
        self.p1, self.p2 = p1, p2
        self.operation1, self.magnitude1 = operation1, _strength(operation1, magnitude_idx1)
        self.operation2, self.magnitude2 = operation2, _strength(operation2, magnitude_idx2)
        self.fillcolor = fillcolor

    def __call__(self, img: Image.Image) -> Image.Image:
        """Return the augmented image."""
        for p, name, strength in (
            (self.p1, self.operation1, self.magnitude1),
            (self.p2, self.operation2, self.magnitude2),
        ):
            if random.random() < p:
                img = _OPERATIONS[name](img, strength, self.fillcolor)
        return img


def _sub_policy(
    first: tuple[str, float, int | None], second: tuple[str, float, int | None], fillcolor: Colour
) -> SubPolicy:
    """Return a `SubPolicy` of two of torchvision's triples (name, probability, magnitude)."""
    (name1, p1, magnitude1), (name2, p2, magnitude2) = first, second
    return SubPolicy(p1, _ours(name1), magnitude1 or 0, p2, _ours(name2), magnitude2 or 0, fillcolor)


def _ours(name: str) -> str:
    """Return our name of torchvision's operation: "shearX" for "ShearX", "autocontrast" for "AutoContrast"."""
    camel = name[0].lower() + name[1:]
    return camel if camel in _OPERATIONS else name.lower()


class _Policy:
    """A random one of 25 sub-policies.

    Args:
        fillcolor: colour of pixels from outside the image.
    """

    _table: AutoAugmentPolicy

    def __init__(self, fillcolor: Colour = (128, 128, 128)) -> None:
        self.policies = [_sub_policy(first, second, fillcolor) for first, second in AutoAugment(self._table).policies]

    def __call__(self, img: Image.Image) -> Image.Image:
        """Return the augmented image."""
        return self.policies[random.randint(0, len(self.policies) - 1)](img)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class ImageNetPolicy(_Policy):
    """The policy found on ImageNet."""

    _table = AutoAugmentPolicy.IMAGENET


class CIFAR10Policy(_Policy):
    """The policy found on CIFAR-10."""

    _table = AutoAugmentPolicy.CIFAR10


class SVHNPolicy(_Policy):
    """The policy found on SVHN."""

    _table = AutoAugmentPolicy.SVHN
