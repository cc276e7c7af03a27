"""Prediction of images and evaluation of a split. The trainer sees paths; only the evaluator sees labels."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from unskew.debias.targets import long_tailed_targets
from unskew.engine.evaluator import labels_of
from unskew.engine.prediction import Prediction
from unskew.utils import processes
from unskew.utils.derived_tensors import memory_of

if TYPE_CHECKING:
    from unskew.engine.trainer import SimpleTrainer

logger = logging.getLogger("unskew")


def predict_images(trainer: "SimpleTrainer", paths: Sequence[str]) -> Tensor:
    """Return the logits [N, C], float32, of images: the mean over ``TEST.CROPS`` views of each.

    Several processes share the images; each returns all logits.

    Raises:
        FileNotFoundError: an image is missing; the message names it.
        ValueError: an image cannot be read, or ``paths`` is empty.
    """
    paths = list(paths)
    if not paths:
        raise ValueError("there are no images to predict: give at least one path")
    count = len(trainer.dm.tfm_crops)
    names = ["img", *(f"img{number}" for number in range(2, count + 1))]
    share, logits, done = processes.share(paths), None, 0
    with processes.together():
        loader = trainer.dm.path_loader(share) if share else []
        for batch in tqdm(loader, desc="predict", delay=2, leave=False, disable=None):
            crops = (trainer.parse_batch_test({**batch, "img": batch[name]})[0] for name in names)
            with trainer.accelerator.autocast():
                mean: Tensor = sum(map(trainer.model_inference, crops)) / count  # type: ignore[assignment]  # [B, C]
            if logits is None:
                logits = torch.empty(len(share), *mean.shape[1:], device=mean.device)
            logits[done : done + len(mean)] = mean
            done += len(mean)
    gathered = processes.gather(logits, len(paths))
    return gathered if logits is not None else gathered.to(trainer.device)


def evaluate(trainer: "SimpleTrainer", split: str) -> dict[str, float]:
    """Return the metrics of a trainer on a split; accuracies of groups and parts are reported for the test split.

    A dataset with ``test_classes`` is classified among these alone, and so are the val images of an evaluation.

    Raises:
        ValueError: the split is unknown or has no images.
    """
    if split not in ("test", "val"):
        raise ValueError(f"TEST.SPLIT must be 'test' or 'val' (got '{split}')")
    items = trainer._items(split)
    if not items:
        name = trainer.cfg.DATASET.NAME
        raise ValueError(f"'{name}' has no images in its {split} split: choose another TEST.SPLIT")
    logger.info(f"Evaluate on the *{split}* set")
    groups = trainer.class_groups() if split == "test" else {}  # needs its memory before the logits need theirs
    prediction = trainer.predict_parts([item.impath for item in items])
    labels = labels_of(items)  # [N]
    classes = _tested_classes(trainer, split, labels)
    if classes is not None:
        labels = torch.searchsorted(torch.tensor(classes), labels)
        prediction = among(prediction, classes)
    logits, parts = prediction.logits, prediction.parts
    evaluator = trainer.evaluator
    evaluator.reset()
    evaluator.groups, evaluator.sums = groups, prediction.sums
    evaluator.targets = _targets(trainer) if split == "test" else {}
    if evaluator.targets:
        evaluator.log_prior = trainer.assumed_log_prior()
    # Dassl's evaluators take no further logits
    evaluator.process(logits, labels.to(logits.device), **({"extra": parts} if parts else {}))
    return dict(evaluator.evaluate())


def _tested_classes(trainer: "SimpleTrainer", split: str, labels: Tensor) -> Sequence[int] | None:
    """Return the labels among which the images of a split are classified; ``None`` for all.

    The val images of a trained run are of all classes, but those of an evaluation are of its ``test_classes``.
    """
    dataset = trainer.dm.dataset
    classes = getattr(dataset, "test_classes", None)
    if split == "test" or classes is None:
        return classes
    return classes if getattr(dataset, "transfer", "") and {*labels.tolist()} <= {*classes} else None


def _targets(trainer: "SimpleTrainer") -> dict[str, Tensor]:
    """Return the log class frequencies [C] of LADE's test sets by name if the training images are long-tailed."""
    dataset = trainer.cfg.DATASET
    if not (dataset.LONGTAIL and dataset.NUM_SHOTS < 1 and trainer.dm.dataset.train_x):
        return {}
    return long_tailed_targets(trainer.training_counts())


def among(prediction: Prediction, classes: Sequence[int]) -> Prediction:
    """Return a prediction among some of the classes; parts that are the same tensor stay so."""
    distinct = {memory_of(logits): logits for logits in (prediction.logits, *prediction.parts.values())}
    chosen = {key: logits[:, classes] for key, logits in distinct.items()}
    parts = {name: chosen[memory_of(part)] for name, part in prediction.parts.items()}
    sums = {
        name: (first, second[classes] if isinstance(second, Tensor) else second)
        for name, (first, second) in prediction.sums.items()
    }
    return Prediction(chosen[memory_of(prediction.logits)], parts, sums)
