"""Reading of image files."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError


def read_image(path: str | Path, dataset: str = "") -> Image.Image:
    """Read an image file as RGB.

    Args:
        path: the image file.
        dataset: name of the dataset, for the error message.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not an image, is truncated, or is not readable.
    """
    image_name = f"image '{path}'" + (f" of dataset '{dataset}'" if dataset else "")
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        hint = "check DATASET.ROOT, or prepare the dataset again"
        raise FileNotFoundError(f"{image_name} is missing; {hint}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{image_name} is not in a known image format; replace the file") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's errors for broken files
        raise ValueError(f"{image_name} cannot be read ({error}); replace the file") from error
