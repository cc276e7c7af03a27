"""Reading of image files."""

from PIL import Image, UnidentifiedImageError


def read_image(path: str, dataset: str = "") -> Image.Image:
    """An image file as RGB.

    Args:
        dataset: the dataset's name, for the error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an image, is cut short, or may not be read.
    """
    of = f" of dataset '{dataset}'" if dataset else ""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        hint = "check DATASET.ROOT, or prepare the dataset again"
        raise FileNotFoundError(f"image '{path}'{of} is missing; {hint}") from None
    except UnidentifiedImageError:
        raise ValueError(f"'{path}'{of} is not an image that can be read; replace the file") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's errors for broken files
        raise ValueError(f"image '{path}'{of} cannot be read ({error}); replace the file") from error
