"""The label prior that a trainer has estimated, and its table ``prior.csv`` in the folder of a run."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from unskew.engine.evaluator import labels_of
from unskew.utils.files import write_atomically

if TYPE_CHECKING:
    from unskew.engine.trainer import SimpleTrainer


class LabelPrior(NamedTuple):
    """A label prior of a foundation model's pre-training data."""

    log_q: Tensor  # [C], log probabilities
    deviation: Tensor | None  # [C], standard deviation of log q, if the estimate has one


def write_prior(path: Path, trainer: "SimpleTrainer") -> None:
    """Write class, log q, its standard deviation and the training images of each class, if the trainer has a prior.

    Args:
        path: the file.
        trainer: a trainer after its training; that of a plugin may lack `SimpleTrainer.label_prior`.
    """
    prior = trainer.label_prior() if hasattr(trainer, "label_prior") else None
    if prior is None:
        return
    classes = len(prior.log_q)
    counts = torch.bincount(labels_of(trainer.dm.dataset.train_x or []), minlength=classes)
    deviation = [""] * classes if prior.deviation is None else prior.deviation.tolist()
    names = [trainer.lab2cname[label] for label in range(classes)]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["class", "log_q", "log_q_deviation", "count"])
    table.writerows(zip(names, prior.log_q.tolist(), deviation, counts.tolist(), strict=True))
    write_atomically(path, text.getvalue())
