"""Image files for tests: the embedded world's digits in other formats, and noise."""

from functools import cache

import numpy as np
from PIL import Image

from unskew.micro import downstream

TEMPLATE = "a photo of the digit {}."
EACH = 12  # images per digit

# How an upright image is stored with each EXIF orientation.
STORED = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}


@cache
def digits():
    """Return ``[(class name, number, picture)]`` of test images."""
    names = downstream.classnames("digits")
    pictures, labels = downstream.splits("digits")["test"]
    chosen = np.concatenate([np.flatnonzero(labels == label)[:EACH] for label in range(10)])
    return [(names[labels[i]], int(i), Image.fromarray(pictures[i])) for i in chosen]


def write(root, save, splits=("test",)):
    """Write the digits to ``root/SPLIT/CLASS`` with the function ``save(picture, path without suffix, number)``."""
    for place, (name, number, picture) in enumerate(digits()):
        folder = root / splits[place % len(splits)] / name
        folder.mkdir(parents=True, exist_ok=True)
        save(picture, folder / f"{number:05d}", place)
    return root


def turned(suffix, first=1, **options):
    """Return a function for `write` that stores images with the EXIF orientations from ``first`` to 8 in turn."""

    def save(picture, path, place):
        exif, orientation = Image.Exif(), first + place % (9 - first)
        exif[0x0112] = orientation
        STORED[orientation](picture).save(path.with_suffix(suffix), exif=exif, **options)

    return save


def noise(folder, count, side, suffix):
    """Write images of random pixels; return their paths."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    paths = [str(folder / f"{number}{suffix}") for number in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(256, size=(side, side, 3), dtype=np.uint8)).save(path)
    return paths
