"""Evaluators of a run's predictions; no other code reads test labels."""

import logging
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from unskew.data.dataset import Datum
from unskew.debias.metrics import class_accuracies, group_accuracies, metrics_of
from unskew.debias.targets import target_accuracies
from unskew.utils.derived_tensors import Sum, memory_of
from unskew.utils.files import write_atomically
from unskew.utils.registry import Registry

logger = logging.getLogger("unskew")

EVALUATOR_REGISTRY: Registry[type["EvaluatorBase"]] = Registry("EVALUATOR")


def labels_of(items: Sequence[Datum]) -> Tensor:
    """Return the labels [N] of a split's items."""
    return torch.tensor([item.label for item in items], dtype=torch.long)


def _whole(batches: list[Tensor]) -> Tensor:
    """Join batches to one, in their list too, so that no later call copies them."""
    if len(batches) > 1:
        batches[:] = [torch.cat(batches)]
    return batches[0]


def build_evaluator(cfg: CfgNode, lab2cname: Mapping[int, str] | None = None, **kwargs: Any) -> "EvaluatorBase":
    """Build the evaluator that ``cfg.TEST.EVALUATOR`` names."""
    return EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)(cfg, lab2cname=lab2cname, **kwargs)


class EvaluatorBase:
    """The base of evaluators: ``reset()``, then ``process(mo, gt)`` for each batch, then ``evaluate()``.

    Attributes:
        groups: class indices [G] by name; the accuracy of each group is reported too.
        targets: log class frequencies [C] of other test sets by name; the accuracy expected on each is reported too.
        log_prior: the log class frequencies [C] that the logits assume; needed with ``targets``.
        sums: the terms of further logits that are sums, by name, see `unskew.engine.prediction.Prediction`.
    """

    groups: Mapping[str, Tensor] = {}
    targets: Mapping[str, Tensor] = {}
    log_prior: Tensor
    sums: Mapping[str, Sum] = {}

    def __init__(self, cfg: CfgNode, lab2cname: Mapping[int, str] | None = None, **kwargs: Any) -> None:
        self.cfg = cfg

    def reset(self) -> None:
        """Forget all batches."""
        raise NotImplementedError

    def process(self, mo: Tensor, gt: Tensor, extra: Mapping[str, Tensor] | None = None) -> None:
        """Add a batch.

        Args:
            mo: the model's output, logits [B, C].
            gt: the ground truth, labels [B].
            extra: further logits [B, C] of the same images by name. It is passed only if there are any, so an
                evaluator of Dassl may lack it.
        """
        raise NotImplementedError

    def evaluate(self) -> OrderedDict[str, float]:
        """Return the metrics of all batches by name, the main one first."""
        raise NotImplementedError

    def predictions(self) -> dict[str, Tensor]:
        """Return ``logits`` [N, C], ``labels`` [N] and further logits by name; nothing if the batches were not kept."""
        return {}

    def per_class_accuracy(self) -> list[float | None]:
        """Return the accuracy of each class in percent, by label; ``None`` for a class without images."""
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """The `classification_metrics` of all batches, logged in the lines that CoOp's scripts read."""

    def __init__(self, cfg: CfgNode, lab2cname: Mapping[int, str] | None = None, **kwargs: Any) -> None:
        super().__init__(cfg)
        if cfg.TEST.PER_CLASS_RESULT and lab2cname is None:
            raise ValueError("TEST.PER_CLASS_RESULT needs the class names: pass lab2cname")
        self._lab2cname = lab2cname or {}
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._extra: dict[str, list[Tensor]] = {}
        self._predicted: Tensor | None = None

    def process(self, mo: Tensor, gt: Tensor, extra: Mapping[str, Tensor] | None = None) -> None:
        """Add a batch.

        Args:
            mo: logits [B, C].
            gt: labels [B].
            extra: further logits [B, C] of the same images by name; each gives ``<name>_accuracy``.
        """
        self._predicted = None
        self._logits.append(mo.detach())
        self._labels.append(gt.detach())
        for name, scores in (extra or {}).items():
            self._extra.setdefault(name, []).append(scores.detach())

    def predictions(self) -> dict[str, Tensor]:
        """Return ``logits`` [N, C], ``labels`` [N] and further logits by name, on the CPU.

        Names of the same tensor keep sharing it.
        """
        if not getattr(self, "_logits", None):  # a subclass replaced `process` and keeps only counts
            return {}
        batches = {"logits": self._logits, "labels": self._labels, **self._extra}
        tensors = {name: _whole(rows) for name, rows in batches.items()}
        distinct = {memory_of(tensor): tensor for tensor in tensors.values()}
        distinct = {key: tensor.cpu().contiguous() for key, tensor in distinct.items()}
        return {name: distinct[memory_of(tensor)] for name, tensor in tensors.items()}

    def per_class_accuracy(self) -> list[float | None]:
        """Return the accuracy of each class in percent, by label; ``None`` for a class without images."""
        logits, labels = _whole(self._logits), _whole(self._labels)
        accuracies = 100 * class_accuracies(self._predictions() == labels, labels, logits.shape[1])
        return [None if math.isnan(value) else value for value in accuracies.tolist()]

    def evaluate(self) -> OrderedDict[str, float]:
        """Log and return all metrics in percent, ``accuracy`` first; a group's accuracy has the group's name.

        Raises:
            ValueError: there is no batch.
        """
        if not self._labels:
            raise ValueError("no predictions to evaluate: the split is empty")
        logits, labels = _whole(self._logits), _whole(self._labels)  # [N, C], [N]
        predicted = self._predictions()
        results = OrderedDict(metrics_of(logits, labels, predicted))
        total = len(labels)
        lines = [
            "=> result",
            f"* total: {total:,}",
            f"* correct: {round(results['accuracy'] * total / 100):,}",
            f"* accuracy: {results['accuracy']:.1f}%",
            f"* error: {results['error_rate']:.1f}%",
            f"* macro_f1: {results['macro_f1']:.1f}%",
            f"* balanced_accuracy: {results['balanced_accuracy']:.1f}%",
            f"* ece: {results['ece']:.1f}%",
        ]
        for name, parts in self._extra.items():
            scores = _whole(parts)
            highest = predicted if memory_of(scores) == memory_of(logits) else scores.argmax(1)
            accuracy = 100 * (highest == labels).double().mean().item()
            results[f"{name}_accuracy"] = accuracy
            lines.append(f"* {name} accuracy: {accuracy:.1f}%")
        if self.groups:
            accuracies = group_accuracies(predicted == labels, labels, self.groups)
            results |= accuracies
            lines += [f"* {name}: {accuracy:.1f}%" for name, accuracy in accuracies.items()]
        if self.targets:
            accuracies = target_accuracies(logits, labels, self.targets, self.log_prior)
            results |= accuracies
            lines += [f"* {name}: {accuracy:.1f}%" for name, accuracy in accuracies.items()]
        for line in lines:
            logger.info(line)
        if self.cfg.TEST.PER_CLASS_RESULT:
            self._log_classes(labels, results["balanced_accuracy"])
            results["perclass_accuracy"] = results["balanced_accuracy"]  # Dassl's name for it
        if self.cfg.TEST.COMPUTE_CMAT:
            self._save_confusion(predicted, labels, logits.shape[1])
        return results

    def _predictions(self) -> Tensor:
        """Return the predicted labels [N]; each pass over large logits takes time."""
        if self._predicted is None:
            self._predicted = _whole(self._logits).argmax(1)
        return self._predicted

    def _log_classes(self, labels: Tensor, mean: float) -> None:
        accuracies = self.per_class_accuracy()
        totals = torch.bincount(labels, minlength=len(accuracies)).tolist()
        logger.info("=> per-class result")
        for label, (accuracy, total) in enumerate(zip(accuracies, totals, strict=True)):
            if accuracy is not None:
                logger.info(
                    f"* class: {label} ({self._lab2cname[label]})\ttotal: {total:,}\t"
                    f"correct: {round(accuracy * total / 100):,}\tacc: {accuracy:.1f}%"
                )
        logger.info(f"* average: {mean:.1f}%")

    def _save_confusion(self, predicted: Tensor, labels: Tensor, num_classes: int) -> None:
        """Save cmat.pt, [C, C]: rows are true classes and sum to one (zero for a class without images)."""
        cells = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
        matrix = cells.view(num_classes, num_classes).double()
        matrix = matrix / matrix.sum(1, keepdim=True).clamp_min(1)
        path = Path(self.cfg.OUTPUT_DIR) / "cmat.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: torch.save(matrix.cpu(), file))
        logger.info(f"Confusion matrix saved to {path}")
