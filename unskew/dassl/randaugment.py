"""FixMatch's and Dassl's variants of RandAugment, which draw the strength of each operation per image."""

from collections.abc import Callable, Mapping

import torch
from PIL import Image, ImageEnhance, ImageOps


def _enhance(kind: Callable) -> Callable:
    return lambda image, strength: kind(image).enhance(strength)


def _affine(matrix: Callable) -> Callable:
    return lambda image, v: image.transform(image.size, Image.Transform.AFFINE, matrix(v, *image.size))


# (image, strength) -> image. The strength of a shear is its slope, that of a translation a fraction of the side.
OPERATIONS: dict[str, Callable] = {
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "brightness": _enhance(ImageEnhance.Brightness),
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "identity": lambda image, _: image,
    "invert": lambda image, _: ImageOps.invert(image),
    "posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "rotate": lambda image, degrees: image.rotate(degrees),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _affine(lambda v, width, height: (1, v, 0, 0, 1, 0)),
    "shear_y": _affine(lambda v, width, height: (1, 0, 0, v, 1, 0)),
    "solarize": lambda image, threshold: ImageOps.solarize(image, threshold),
    "translate_x": _affine(lambda v, width, height: (1, 0, v * width, 0, 1, 0)),
    "translate_y": _affine(lambda v, width, height: (1, 0, 0, 0, 1, v * height)),
}

_NO_STRENGTH = dict.fromkeys(("autocontrast", "equalize", "identity"), (0, 0))

_GEOMETRY = {"rotate": (-30, 30)} | dict.fromkeys(("shear_x", "shear_y", "translate_x", "translate_y"), (-0.3, 0.3))

_SHARED = {**_NO_STRENGTH, **_GEOMETRY, "posterize": (4, 8), "solarize": (0, 256)}

_COLOURS = ("brightness", "color", "contrast", "sharpness")

# Lowest and highest strength of each operation: table 12 of FixMatch (arXiv 2001.07685), and Dassl's randaugment2.
FIXMATCH = {**_SHARED, **dict.fromkeys(_COLOURS, (0.05, 0.95))}

RANDAUGMENT2 = {**_SHARED, **dict.fromkeys(_COLOURS, (0.1, 1.9)), "invert": (0, 0)}


class RandomOperations(torch.nn.Module):
    """Draw ``n`` operations and apply each with probability ``p`` at a strength drawn from its range.

    Args:
        ranges: lowest and highest strength by operation, such as `FIXMATCH`.
        n: the number of operations.
        p: the probability that a drawn operation is applied.
    """

    def __init__(self, ranges: Mapping[str, tuple[float, float]], n: int, p: float = 1.0) -> None:
        super().__init__()
        self.ranges, self.n, self.p = dict(ranges), n, p

    def forward(self, image: Image.Image) -> Image.Image:
        """Return the augmented image."""
        names = list(self.ranges)
        for number in torch.randint(len(names), (self.n,)).tolist():
            used, place = torch.rand(2).tolist()
            if used < self.p:
                low, high = self.ranges[names[number]]
                image = OPERATIONS[names[number]](image, low + place * (high - low))
        return image

    def extra_repr(self) -> str:
        """Return the settings, which are part of cache keys."""
        return f"{self.ranges}, n={self.n}, p={self.p}"
