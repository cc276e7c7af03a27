"""Reading of image files."""

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from unskew.data.snapshot import State, file_states, kept
from unskew.utils.errors import DAMAGE, format_error
from unskew.utils.logging import warn_once

# How each EXIF orientation is undone (EXIF 2.3, section 4.6.4 A).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Factors from a PNG's grey values of 2 and 4 bits to Pillow's 8 bits.
_GREY_FACTORS = {"L;2": 85, "L;4": 17}

# Formats whose mode "I" holds 16 bits in older versions of Pillow, and still in PGM files.
_SIXTEEN_BITS = ("PNG", "PPM")

Keys = npt.NDArray[np.int64]

# What Pillow raises for broken files.
_BROKEN = (*DAMAGE, Image.DecompressionBombError)


def read_image(path: str | Path | Image.Image, *, dataset: str = "", upright: bool = False) -> Image.Image:
    """Read an image file, or a PIL image of any mode, as RGB; of an animated image, the first frame.

    Images of 8 bits are read as CoOp reads them, ``Image.open(path).convert("RGB")``. See `to_rgb` for other depths.

    Args:
        path: the image file, or an opened image.
        dataset: name of the dataset, for the error message.
        upright: apply the EXIF orientation, and put transparent images on white.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not an image, is truncated, or is not readable.
    """
    image_name = f"image '{path}'" + (f" of dataset '{dataset}'" if dataset else "")
    try:
        if isinstance(path, Image.Image):
            return to_rgb(path, upright=upright)
        with _open_file(path) as file, Image.open(file) as image:
            return to_rgb(image, upright=upright)
    except FileNotFoundError:
        hint = "check DATASET.ROOT, or prepare the dataset again" if dataset else "check its path"
        raise FileNotFoundError(f"{image_name} is missing; {hint}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{image_name} is not in a known image format; replace the file") from None
    except _BROKEN as error:
        raise ValueError(f"{image_name} cannot be read ({format_error(error)}); replace the file") from error


def _open_file(path: str | Path) -> BinaryIO:
    """Open a regular file; a pipe would be waited for, and a device may have no end."""

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    file = open(path, "rb", opener=without_waiting)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("it is a pipe or a device, not a file")
    return file


def file_keys(paths: Sequence[str]) -> Keys:
    """Return a 64-bit hash [N] of each file's path, size and times; the change time tells a file that replaces another.

    Within a snapshot, see `unskew.data.snapshot`, the key of an image is made once.
    """
    known = kept("file keys")
    new = [path for path in dict.fromkeys(paths) if path not in known]
    states = file_states(new)
    keys = {path: _file_key(path, state) for path, state in zip(new, states, strict=True)}
    # A missing file may exist at the next call: its key must then be another one.
    known.update((path, keys[path]) for path, state in zip(new, states, strict=True) if state)
    return np.fromiter((keys[path] if path in keys else known[path] for path in paths), np.int64, len(paths))


def _file_key(path: str, state: State | None) -> int:
    content = path if state is None else f"{os.path.abspath(path)}\n{state[0]} {state[1]} {state[2]}"
    return int.from_bytes(hashlib.blake2b(os.fsencode(content), digest_size=8).digest(), "little", signed=True)


def to_rgb(image: Image.Image, *, upright: bool = False) -> Image.Image:
    """Convert a PIL image to RGB with 8 bits.

    16-bit greys are scaled by 65,535 and floats within [0, 1] by 1. Other 32-bit images are scaled from their minimum
    to their maximum, with one warning.

    Args:
        image: an image of any mode; it is not changed.
        upright: apply the EXIF orientation, and put transparent images on white.

    Raises:
        ValueError: the image has no pixels.
    """
    tiles = getattr(image, "tile", None)  # cleared by load()
    raw_mode = str(tiles[0][3]) if tiles else ""
    if 0 in image.size:
        raise ValueError("it has no pixels")
    image.load()  # a PNG file may have its EXIF data behind the pixels
    turn = _UPRIGHT.get(orientation(image)) if upright else None
    image = _to_eight_bits(image, upright)
    image = _on_white(image, raw_mode) if upright and image.has_transparency_data else image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none or it is not readable."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data raise errors of many kinds, and the pixels are readable
        return 1
    return value if value in _UPRIGHT else 1


def _to_eight_bits(image: Image.Image, upright: bool) -> Image.Image:
    """Scale a grey image of 16 or 32 bits to 8 bits; return other images unchanged."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float64)  # [H, W]
    low, high = _range(image, values)
    with np.errstate(invalid="ignore"):
        scaled = np.clip((values - low) / max(high - low, np.finfo(float).tiny), 0, 1)
    grey = np.rint(np.nan_to_num(scaled) * 255).astype(np.uint8)
    transparent = image.info.get("transparency") if upright else None
    if isinstance(transparent, int):
        grey[values == transparent] = 255  # white, the background
    return Image.fromarray(grey)


def _range(image: Image.Image, values: np.ndarray) -> tuple[float, float]:
    """Return the values of black and white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS):
        return 0, 65_535
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if image.mode == "F" and low >= 0 and high <= 1:
        return 0, 1
    warn_once("images with 32 bits per pixel are scaled from their minimum to their maximum: save them with 8 or 16")
    return low, high


def _on_white(image: Image.Image, raw_mode: str) -> Image.Image:
    transparent = image.info.get("transparency")
    if raw_mode in _GREY_FACTORS and isinstance(transparent, int):  # a value of the file, which Pillow does not scale
        image = image.copy()
        image.info["transparency"] = transparent * _GREY_FACTORS[raw_mode]
    elif raw_mode == "RGB;16B" and isinstance(transparent, tuple):
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    white = Image.new("RGB", layer.size, "white")
    white.paste(layer.convert("RGB"), mask=layer.getchannel("A"))
    return white
