"""Small pictures of the user's own test images, of the classes that a correction changed most."""

import base64
import io
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unskew import config
from unskew.engine.run_dir import RunDir
from unskew.runs.report.blocks import Note, Pictures
from unskew.utils.errors import DAMAGE, format_error
from unskew.utils.files import expand

if TYPE_CHECKING:
    from unskew.runs.report.arrays import Predictions
    from unskew.runs.report.bias import Bias
    from unskew.runs.report.gather import ReportRun

_SIZE = 72  # pixels
_CLASSES = 4  # that gained, and as many that lost
_IMAGES = 5  # of each class


def changed(bias: "Bias") -> Pictures | Note:
    """Return images of the classes that gained and lost most, or a line on why there are none."""
    try:
        paths, found = _test_images(bias.run)
        rows = [_row(bias, found, label, gained, paths) for label, gained in _classes(bias)]
    except DAMAGE as error:
        return Note(f"No example images: {format_error(error)}.")
    before, *_, after = bias.accuracies
    caption = (
        f"Test images of the classes that gained and lost most from {before} to {after}; {bias.run.label}. "
        "Images whose prediction became right (gained) or wrong (lost) come first; ✓ and ✗ tell whether the last "
        "prediction is right."
    )
    return Pictures([row for row in rows if row[1]], caption, bias.run.path)


def _test_images(run: "ReportRun") -> "tuple[list[str], Predictions]":
    """Return the paths of the test images in the order of the predictions, and the predictions.

    Raises:
        ValueError: the data have changed since, or are not there; another exception of `DAMAGE`.
    """
    cfg = config.restore(RunDir(run.path).config)
    from unskew.data.dataset import DATASET_REGISTRY, build_dataset

    dataset_class = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    root = expand(cfg.DATASET.ROOT) / dataset_class.dataset_dir
    if not root.exists():  # some datasets would write their images
        raise ValueError(f"there is no '{root}', the images of '{run.path}'")
    items = build_dataset(cfg).test
    if run.predictions is None or [item.label for item in items] != run.predictions.labels.tolist():
        raise ValueError(f"the test images in '{root}' are not those of '{run.path}' any more")
    return [item.impath for item in items], run.predictions


def _classes(bias: "Bias") -> list[tuple[int, bool]]:
    """Return (label, whether it gained) of the classes that changed most; the ones that gained come first."""
    before, *_, after = bias.accuracies
    gain = np.nan_to_num(bias.mean(after) - bias.mean(before))
    order = np.argsort(-gain, kind="stable").tolist()
    gained = [(label, True) for label in order[:_CLASSES] if gain[label] > 0]
    lost = [(label, False) for label in order[::-1][:_CLASSES] if gain[label] < 0]
    return gained + lost


def _row(
    bias: "Bias", found: "Predictions", label: int, gained: bool, paths: list[str]
) -> tuple[str, list[tuple[str, str]]]:
    """Return the title of a class, and its images with their predictions."""
    before, *_, after = bias.accuracies
    first, last = found.correct("zs"), found.correct()
    wanted = (last & ~first) if gained else (first & ~last)
    of_class = np.flatnonzero(found.labels == label)
    order = of_class[np.argsort(~wanted[of_class], kind="stable")].tolist()
    names = bias.run.classnames
    pictures = (
        (uri, f"{'✓' if last[index] else '✗'} {names[found.predicted()[index]]}")
        for index in order
        if (uri := thumbnail(paths[index]))
    )
    change = bias.mean(after)[label] - bias.mean(before)[label]
    signed = f"{change:+.1f}".replace("-", "−")
    return f"{names[label]} ({signed} points)", list(itertools.islice(pictures, _IMAGES))


def thumbnail(path: str) -> str:
    """Return a small JPEG of an image as a data URI; "" if the image cannot be read."""
    from PIL import Image, ImageOps

    try:
        with Image.open(Path(path)) as image:
            image.draft("RGB", (2 * _SIZE, 2 * _SIZE))
            small = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (_SIZE, _SIZE))
    except DAMAGE:
        return ""
    file = io.BytesIO()
    small.save(file, "JPEG", quality=72)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
