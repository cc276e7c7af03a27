"""The correctness of finished runs on their test images, and which runs can be compared image by image."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from unskew.engine.run_dir import RunDir
from unskew.utils.blocks import row_blocks
from unskew.utils.errors import DAMAGE, check_regular, format_error

_BLOCK = 2**18  # numbers, 1 MiB: a block stays in the processor's cache


@dataclass(frozen=True)
class Outcomes:
    """The correctness of runs that differ in their seeds, on the same test images.

    Attributes:
        correct: [S, N], whether each prediction is correct.
        seeds: the seed of each row.
        images: a hash of the labels, the class names and the skipped images; equal hashes mean the same test images.
    """

    correct: NDArray
    seeds: tuple[int, ...]
    images: str


def correctness(folder: str | Path, part: str = "logits") -> NDArray:
    """Return whether a finished run classifies each test image correctly, [N].

    Args:
        folder: the run's folder.
        part: the name of the logits in ``predictions.safetensors``; "zs" is the zero-shot model of GLA.

    Raises:
        ValueError: the run has no such predictions, or they are damaged.
    """
    correct, _ = _correctness_and_labels(folder, part)
    return correct


def outcomes(rows: Sequence[Mapping], part: str = "logits") -> Outcomes:
    """Return the correctness of runs of one trainer with several seeds.

    Args:
        rows: the metrics of each run with its ``folder``, as `unskew.runs.tables.collect` returns them.
        part: the name of the logits in ``predictions.safetensors``.

    Raises:
        ValueError: a run has no such predictions, or the runs differ in their test images.
    """
    tables, images = [], []
    for row in rows:
        correct, labels = _correctness_and_labels(row["folder"], part)
        accuracy = row.get("accuracy" if part == "logits" else f"{part}_accuracy")
        # An evaluator of a plugin may count otherwise.
        if isinstance(accuracy, int | float) and abs(100 * correct.mean() - accuracy) > 0.5:
            raise ValueError(f"the accuracy of '{row['folder']}' is not that of its {part} in predictions.safetensors")
        tables.append(correct)
        images.append(_test_images(row, labels))
        if images[-1] != images[0]:
            raise ValueError(f"'{rows[0]['folder']}' and '{row['folder']}' have different test images")
    return Outcomes(np.stack(tables), tuple(row["seed"] for row in rows), images[0])


def _correctness_and_labels(folder: str | Path, part: str) -> tuple[NDArray, NDArray]:
    file = RunDir(folder).predictions
    if not file.is_file():
        raise ValueError(f"'{folder}' has no predictions.safetensors, so its images cannot be compared: run it again")
    try:
        predicted, labels = _predicted_and_labels(file, part)
        if predicted.shape != labels.shape or not len(labels):
            raise ValueError(f"{len(labels)} labels of {len(predicted)} predictions")
        return predicted == labels, labels
    except DAMAGE as error:
        raise ValueError(f"'{file}' has no whole '{part}' ({format_error(error)}): run it again") from error


def _predicted_and_labels(file: Path, part: str) -> tuple[NDArray, NDArray]:
    """Return the predicted classes and the labels, each [N]."""
    check_regular(file)
    with safe_open(file, framework="np") as tensors:
        if part in tensors.keys() and tensors.get_slice(part).get_dtype() != "BF16":  # noqa: SIM118  # no dict
            logits = tensors.get_slice(part)
            images, classes = logits.get_shape()
            blocks = row_blocks(images, classes, _BLOCK)
            return np.concatenate([logits[rows].argmax(1) for rows in blocks]), tensors.get_tensor("labels")
    from unskew.engine import prediction_file  # imports PyTorch, for sums of other tensors and types that NumPy lacks

    whole = prediction_file.read(file)
    return whole[part].argmax(1).numpy(), whole["labels"].numpy()


def _test_images(row: Mapping, labels: NDArray) -> str:
    described = [row.get("classnames"), row.get("unreadable_test_names")]
    return hashlib.sha256(json.dumps(described).encode() + labels.astype(np.int64).tobytes()).hexdigest()
