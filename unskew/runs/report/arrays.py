"""A run's predictions in NumPy, one part and one block of rows at a time, without PyTorch."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import safe_open

from unskew.utils.errors import check_regular

ECE_BINS = 15  # as in `unskew.debias.metrics`

_TYPES = ("F16", "F32", "F64")  # of logits; NumPy lacks bfloat16, which a plugin may write

_BLOCK = 4_000_000  # numbers of logits in memory at a time


class Predictions:
    """The file ``predictions.safetensors`` of a run; a part of it is read when it is first used.

    Args:
        path: the file.

    Attributes:
        labels: ``[N]``, int64.
        classes: C.

    Raises:
        ValueError: labels and logits do not fit; other exceptions of a damaged file are in `DAMAGE`.
    """

    def __init__(self, path: Path) -> None:
        check_regular(path)
        self.path = path
        self._predicted: dict[str, np.ndarray] = {}
        self._confidence: dict[str, np.ndarray] = {}
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no dict
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items() if part.get_dtype() in _TYPES}
            self._formulas = {name: text.split(" + ") for name, text in (file.metadata() or {}).items()}
            self.labels = file.get_tensor("labels").astype(np.int64, casting="same_kind")
        shape = shapes.get("logits", ())
        count = len(self.labels) if self.labels.ndim == 1 else -1
        if len(shape) != 2 or shape[0] != count or not count or not shape[1]:
            raise ValueError(f"'{path}' has no logits for its labels {list(self.labels.shape)}: run again")
        self.classes = int(shape[1])
        self._tables = {name for name, found in shapes.items() if found == shape}
        self._held = self._tables | {name for name, found in shapes.items() if found == shape[1:]}
        if self.labels.min() < 0 or self.labels.max() >= self.classes:
            raise ValueError(f"'{path}' has labels beyond its {self.classes} classes: run again")

    def has(self, part: str) -> bool:
        """Return whether the file gives logits of a part that fit the labels: "zs", "ft", "ensemble", ..."""
        first, *others = self._terms(part)
        return first in self._tables and self._held.issuperset(others)

    def predicted(self, part: str = "logits") -> np.ndarray:
        """Return the predicted class of each image, ``[N]``."""
        if part not in self._predicted:
            self._predicted[part] = np.concatenate([block.argmax(1) for block in self._blocks(part)])
        return self._predicted[part]

    def confidence(self, part: str = "logits") -> np.ndarray:
        """Return the probability of the predicted class of each image, ``[N]``."""
        if part not in self._confidence:
            self._confidence[part] = np.concatenate([_largest_probability(block) for block in self._blocks(part)])
        return self._confidence[part]

    def correct(self, part: str = "logits") -> np.ndarray:
        """Return whether each prediction is correct, ``[N]``, bool."""
        return self.predicted(part) == self.labels

    def class_accuracy(self, part: str = "logits") -> np.ndarray:
        """Return the accuracy of each class in percent, ``[C]``; NaN for a class without images."""
        right = np.bincount(self.labels[self.correct(part)], minlength=self.classes)
        with np.errstate(invalid="ignore"):
            return 100 * right / np.bincount(self.labels, minlength=self.classes)

    def log_q(self) -> np.ndarray | None:
        """Return log q ``[C]`` that the part "debiased" subtracts from "zs"; ``None`` if the file has none."""
        if self._formulas.get("debiased") != ["zs", "debiased.term"] or "debiased.term" not in self._held:
            return None
        with safe_open(self.path, framework="np") as file:
            return -file.get_tensor("debiased.term").astype(np.float64)

    def _terms(self, part: str) -> list[str]:
        """Return the names of the tensors whose sum is a part; see `unskew.utils.derived_tensors`."""
        if part in self._held:
            return [part]
        return [name for term in self._formulas.get(part, [part]) for name in self._resolved(term)]

    def _resolved(self, term: str) -> list[str]:
        alias = self._formulas.get(term, [])
        return alias if term not in self._held and len(alias) == 1 else [term]

    def _blocks(self, part: str) -> Iterator[np.ndarray]:
        """Yield the logits of a part, ``[n, C]`` in float32, block by block."""
        with safe_open(self.path, framework="np") as file:
            terms = [file.get_slice(name) for name in self._terms(part)]
            rows = max(1, _BLOCK // self.classes)
            for start in range(0, len(self.labels), rows):
                stop = min(start + rows, len(self.labels))
                block, *others = [
                    (term[start:stop] if len(term.get_shape()) == 2 else term[:]).astype(np.float32) for term in terms
                ]
                for other in others:
                    block = block + other
                yield block


def _largest_probability(logits: np.ndarray) -> np.ndarray:
    """Return the largest softmax probability of each row: 1 / sum exp(logit - largest logit)."""
    with np.errstate(invalid="ignore"):  # infinite logits have none
        return 1 / np.exp(logits - logits.max(1, keepdims=True)).sum(1)


def reliability(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the number of images, the accuracy and the mean confidence of each bin, ``[16]`` each; NaN in empty bins.

    The bins are those of `unskew.debias.classification_metrics`: 15 of equal width, and one for a confidence of 1.
    """
    edges = np.linspace(0, 1, ECE_BINS + 1, dtype=np.float32)
    bins = np.searchsorted(edges, confidence.astype(np.float32), side="right") - 1
    images = np.bincount(bins, minlength=len(edges))
    with np.errstate(invalid="ignore"):
        accuracy = np.bincount(bins, correct, len(edges)) / images
        return images, accuracy, np.bincount(bins, confidence, len(edges)) / images


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the expected calibration error in percent (Guo et al. 2017, Eq. 3)."""
    images, accuracy, mean = reliability(confidence, correct)
    return float(100 * (images / images.sum() * np.nan_to_num(np.abs(accuracy - mean))).sum())
