"""File names and bytes of imported images. Stored files are never encoded again."""

import io
import os
from pathlib import Path

from PIL import Image

from unskew.data.image_folders import EXTENSIONS
from unskew.data.importing.source import Stored
from unskew.utils.errors import DAMAGE, check_regular

# Extensions of Pillow's formats. A file of another format, or of none, gets the first one: readers look at the content.
_SUFFIXES = {
    **{"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"},
    **{"PPM": ".ppm", "AVIF": ".avif", "JPEG2000": ".jp2", "TGA": ".tga"},
}

# Modes that PNG does not have; TIFF stores them without loss.
_TIFF_MODES = ("F", "I", "CMYK", "YCbCr", "LAB", "HSV", "RGBX", "RGBa", "La", "PA")


def file_bytes(stored: Stored) -> tuple[str, bytes] | None:
    """Return the extension and the bytes of an image; ``None`` if the source has no image there.

    Raises:
        ValueError: the source names a file that is not an image by its extension, or no regular file.
        OSError: the file cannot be read.
    """
    content, name = stored
    if isinstance(content, Image.Image):
        return _encoded(content)
    if isinstance(content, Path):
        if not name.lower().endswith(EXTENSIONS):
            raise ValueError(
                f"'{content}' is not an image by its name: its extension must be one of {EXTENSIONS[0]} .."
            )
        check_regular(content)
        content = content.read_bytes()
    if not content:
        return None
    suffix = os.path.splitext(name)[1].lower()
    return (suffix if suffix in EXTENSIONS else _suffix(content)), content


def _suffix(content: bytes) -> str:
    """Return the extension for the content of an image file."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return _SUFFIXES.get(image.format or "", ".jpg")
    except (*DAMAGE, Image.DecompressionBombError):
        return ".jpg"


def _encoded(image: Image.Image) -> tuple[str, bytes]:
    """Return pixels that have no file as PNG, or as TIFF if their mode is not one of PNG's."""
    file = io.BytesIO()
    if image.mode in _TIFF_MODES:
        image.save(file, "TIFF")
        return ".tif", file.getvalue()
    image.save(file, "PNG", compress_level=1)
    return ".png", file.getvalue()
