"""Predictions of a finished run for any images: files, PIL images, tensors and arrays."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as F

from unskew.data.images import read_image
from unskew.data.readable import open_all
from unskew.data.saved_run import read_model
from unskew.engine.prediction import Prediction
from unskew.engine.testing import among
from unskew.runs import libraries
from unskew.runs.model import load_trainer
from unskew.runs.run import number_of_threads
from unskew.utils import threads
from unskew.utils.derived_tensors import memory_of
from unskew.utils.errors import DAMAGE, format_error

# Images of one call of the trainer. From 1,024 on, worker processes decode them.
BATCH = 2048

Images = str | Path | Image.Image | Tensor | np.ndarray | Sequence[str | Path | Image.Image | Tensor | np.ndarray]


@dataclass(frozen=True)
class Predictions:
    """The predicted classes of N images.

    Attributes:
        labels: [N], integers in 0..C-1.
        names: [N], the names of these classes.
        classes: the names of all C classes.
    """

    labels: npt.NDArray[np.int64]
    names: npt.NDArray[np.str_]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Probabilities:
    """The calibrated class probabilities of N images.

    Attributes:
        probabilities: [N, C], float32; each row sums to one.
        classes: the names of all C classes.
    """

    probabilities: npt.NDArray[np.float32]
    classes: tuple[str, ...]


class Scores(NamedTuple):
    """The scores of N images.

    Attributes:
        logits: [N, C], divided by the temperature: their softmax gives the probabilities.
        parts: the terms [N, C] of a composite trainer's logits by name, see `explained`.
    """

    logits: Tensor
    parts: dict[str, Tensor]


class Batch(NamedTuple):
    """Some images, the scores of the readable ones, and the problems of the others by their place."""

    images: Sequence[str | Image.Image]
    scores: Scores | None
    problems: dict[int, str]


class Predictor:
    """The model of a finished run, loaded once.

    Args:
        folder: the run's folder.

    Attributes:
        classes: the names of the C classes.

    Raises:
        FileNotFoundError: the folder holds no finished run, or weights are missing.
        ValueError: see `unskew.runs.model.load_trainer`.
    """

    def __init__(self, folder: str | Path) -> None:
        libraries.freeze()
        self.folder = Path(folder)
        self.trainer = load_trainer(self.folder)
        model = read_model(self.folder)
        self._threads = number_of_threads(self.trainer.cfg)
        self._transductive = bool(model.get("transductive"))
        self._temperature = float(model["temperature"])
        self._tested: list[int] | None = model.get("test_classes")
        names = model["classes"]
        self.classes = tuple(names if self._tested is None else (names[label] for label in self._tested))

    # --- images that can be read --------------------------------------------------------------------

    def predict(self, images: Images) -> Predictions:
        """Return the predicted classes, see `unskew.Run.predict`."""
        labels = self._logits(images).argmax(1).numpy()
        return Predictions(labels, np.array(self.classes)[labels], self.classes)

    def predict_proba(self, images: Images) -> Probabilities:
        """Return the class probabilities, see `unskew.Run.predict_proba`."""
        return Probabilities(self._logits(images).softmax(1).numpy(), self.classes)

    def _logits(self, images: Images) -> Tensor:
        batches = list(self.batches(as_images(images)))
        problems = [problem for batch in batches for problem in batch.problems.values()]
        if problems:
            more = f" (and {len(problems) - 1} more cannot be read)" if len(problems) > 1 else ""
            raise ValueError(f"{problems[0]}{more}")
        return torch.cat([batch.scores.logits for batch in batches if batch.scores is not None])

    # --- any images ---------------------------------------------------------------------------------

    def batches(self, images: Sequence[str | Image.Image]) -> Iterator[Batch]:
        """Yield the scores of images in their order, batch by batch; unreadable ones do not stop the others.

        If a prediction depends on the other images (``PRIOR unlabelled``, ``COMBINE otter``), all are one batch.
        """
        size = len(images) if self._transductive else BATCH
        for first in range(0, len(images), size):
            yield self._batch(images[first : first + size])

    def _batch(self, images: Sequence[str | Image.Image]) -> Batch:
        try:
            return Batch(images, self._scores(images), {})
        except (ValueError, OSError):
            problems = _problems(images)
            if not problems:  # the error has another cause
                raise
        rest = [image for place, image in enumerate(images) if place not in problems]
        return Batch(images, self._scores(rest) if rest else None, problems)

    @torch.no_grad()
    def _scores(self, images: Sequence[str | Image.Image]) -> Scores:
        with threads.limit(self._threads), torch.random.fork_rng(devices=[]):  # members draw weights to replace
            # The loaders read PIL images like files.
            prediction = self.trainer.predict_parts(cast("Sequence[str]", images))
        prediction = prediction if self._tested is None else among(prediction, self._tested)
        logits = prediction.logits.float() / self._temperature
        if not logits.softmax(1).isfinite().all():  # a target of zero gives -inf
            raise ValueError(f"the model in '{self.folder}' gives values that are not finite: run again")
        return Scores(logits.cpu(), explained(prediction))


def explained(prediction: Prediction) -> dict[str, Tensor]:
    """Return the terms [N, C] of a composite trainer's prediction by name.

    They are ``zero_shot``, ``fine_tuned`` and ``log_q``, or one term per member. Combinations of them are left out.
    """
    parts, names = prediction.parts, {"zs": "zero_shot", "ft": "fine_tuned"}
    combined = {*prediction.sums, "debiased"}
    combined |= {name for name, part in parts.items() if memory_of(part) == memory_of(prediction.logits)}
    terms = {names.get(name, name): part.cpu() for name, part in parts.items() if name not in combined}
    if {"zs", "debiased"} <= parts.keys():
        terms["log_q"] = (parts["zs"] - parts["debiased"]).cpu()
    return terms


def as_images(images: Images) -> list[str | Image.Image]:
    """Return images as paths and PIL images.

    Args:
        images: one or several paths, PIL images, tensors [3, H, W] or arrays [H, W, 3], or a tensor [N, 3, H, W] or
            array [N, H, W, 3]; bytes, or floats in [0, 1], not normalised.

    Raises:
        ValueError: there is no image, or one of another kind.
    """
    given = [images] if _is_one(images) else list(images)  # type: ignore[arg-type]
    if not given:
        raise ValueError("there are no images to predict: give at least one")
    return [_as_image(image) for image in given]


def _is_one(images: object) -> bool:
    """Return whether this is no sequence of images; arrays of paths are one."""
    if isinstance(images, Tensor) or (isinstance(images, np.ndarray) and images.dtype.kind not in "OUS"):
        return images.ndim != 4
    return isinstance(images, str | bytes | Image.Image) or not isinstance(images, Iterable)


def _as_image(image: object) -> str | Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, str | os.PathLike):
        return os.fsdecode(image)
    if isinstance(image, np.ndarray):
        return F.to_pil_image(_pixels(_from_array(image)))
    if not isinstance(image, Tensor):
        raise ValueError(
            f"an image must be a path, a PIL image, a tensor [3, H, W] or an array [H, W, 3] "
            f"(got {type(image).__name__})"
        )
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"the tensor of an image must be [3, H, W] (got {list(image.shape)})")
    try:
        return F.to_pil_image(_pixels(image))
    except RuntimeError as error:  # sparse tensors and others without values to compare
        raise ValueError(
            f"the tensor of an image cannot be read ({format_error(error)[:80]}): give a dense one"
        ) from error


def _from_array(image: np.ndarray) -> Tensor:
    """Return an array [H, W, 3] as a tensor [3, H, W]."""
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(f"the array of an image must be [H, W, 3] (got {list(image.shape)})")
    if image.dtype.kind != "f" and image.dtype != np.uint8:
        raise ValueError(f"the array of an image must be uint8, or floats in [0, 1] (got {image.dtype})")
    values = np.array(image, np.float32 if image.dtype.kind == "f" else np.uint8, order="C")
    return torch.from_numpy(values).permute(2, 0, 1)


def _pixels(image: Tensor) -> Tensor:
    """Return the bytes [3, H, W] of an image."""
    if image.is_floating_point():
        image = image.detach().float()
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise ValueError("the floats of an image must be in [0, 1]: give the image before normalisation")
        image = (image * 255).round().byte()
    if image.dtype != torch.uint8:
        raise ValueError(f"the tensor of an image must be uint8, or floats in [0, 1] (got {image.dtype})")
    return image.cpu()


def _problems(images: Sequence[str | Image.Image]) -> dict[int, str]:
    """Return the error messages of the images that cannot be read, by their place."""
    messages = (message for _, message in open_all(cast("Sequence[str]", images), _problem))
    return {place: message for place, message in enumerate(messages) if message}


def _problem(image: str | Image.Image) -> str:
    try:
        read_image(image)
    except DAMAGE as error:
        return format_error(error)
    return ""
