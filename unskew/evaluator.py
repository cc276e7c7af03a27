"""Metrics, and the only code that reads test labels."""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from unskew.files import write_atomically
from unskew.registry import Registry

logger = logging.getLogger("unskew")

EVALUATOR_REGISTRY = Registry("EVALUATOR")
ECE_BINS = 15


def labels_of(items: Sequence) -> Tensor:
    """Labels [N] of a split's items; predictions are joined with them here, never before."""
    return torch.tensor([item.label for item in items], dtype=torch.long)


# --- pure functions ----------------------------------------------------------------------------------


def compute_accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    """Top-k accuracies in percent of logits [B, C] (or a tuple that starts with them), each a tensor [1]."""
    if isinstance(output, tuple | list):
        output = output[0]
    ranked = output.topk(max(topk), dim=1).indices  # [B, K]
    hits = ranked == target.view(-1, 1)
    return [hits[:, :k].any(1).float().mean(0, keepdim=True) * 100 for k in topk]


def _counts(predicted: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Per class [C], float64: images that are right, that are of the class, that are called so."""
    right = torch.bincount(labels[predicted == labels], minlength=num_classes)
    true = torch.bincount(labels, minlength=num_classes)
    called = torch.bincount(predicted, minlength=num_classes)
    return right.double(), true.double(), called.double()


def _calibration_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Expected calibration error in [0, 1] (Guo et al. 2017): mean of |accuracy - confidence| over the bins."""
    if logits.shape[1] == 1:  # one class: always right, with confidence 1
        return logits.new_zeros(())
    from torchmetrics.functional.classification import multiclass_calibration_error

    probabilities = logits.float().softmax(1)
    return multiclass_calibration_error(probabilities, labels, logits.shape[1], n_bins=ECE_BINS, norm="l1")


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics in percent, of logits [N, C] and labels [N].

    Macro F1 and balanced accuracy are means over the classes that ``labels`` contains; ``ece`` is the expected
    calibration error of softmax(logits) over 15 bins.

    Raises:
        ValueError: shapes that do not fit, no images, a label out of range, or NaN logits.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(f"expected logits [N, C] and labels [N], got {list(logits.shape)} and {list(labels.shape)}")
    num_classes = logits.shape[1]
    bad = torch.stack([logits.isnan().any(), (labels < 0).any() | (labels >= num_classes).any()])
    if bad.any():
        problem = "the logits hold NaN" if bad[0] else f"labels must be 0..{num_classes - 1}, the number of logits"
        raise ValueError(f"no metrics: {problem}")
    right, true, called = _counts(logits.argmax(1), labels, num_classes)
    present = true > 0
    accuracy = right.sum() / true.sum()
    f1 = (2 * right / (true + called))[present].mean()
    balanced = (right / true)[present].mean()
    ece = _calibration_error(logits, labels).double()
    values = (100 * torch.stack([accuracy, 1 - accuracy, f1, balanced, ece])).tolist()  # the one synchronisation
    return dict(zip(("accuracy", "error_rate", "macro_f1", "balanced_accuracy", "ece"), values, strict=True))


def group_accuracies(correct: Tensor, labels: Tensor, groups: Mapping[str, Tensor]) -> dict[str, float]:
    """Accuracy in percent of groups of classes: the mean over a group's classes of the class's own accuracy.

    Args:
        correct: [N] bool. labels: [N].
        groups: class indices by name. A group without images is left out.
    """
    num_classes = 1 + max([int(labels.max()), *(int(classes.max()) for classes in groups.values() if len(classes))])
    right = torch.bincount(labels[correct.bool()], minlength=num_classes).double()
    true = torch.bincount(labels, minlength=num_classes).double()
    result = {}
    for name, classes in groups.items():
        classes = classes.to(labels.device).long()
        classes = classes[true[classes] > 0]
        if len(classes):
            result[name] = 100 * (right[classes] / true[classes]).mean().item()
    return result


# --- evaluators --------------------------------------------------------------------------------------


def build_evaluator(cfg, lab2cname: Mapping[int, str] | None = None, **kwargs):
    """The evaluator that ``cfg.TEST.EVALUATOR`` names."""
    return EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)(cfg, lab2cname=lab2cname, **kwargs)


class EvaluatorBase:
    """``reset()``, then ``process(mo, gt)`` for each batch, then ``evaluate()``."""

    def __init__(self, cfg) -> None:
        self.cfg = cfg

    def reset(self) -> None:
        raise NotImplementedError

    def process(self, mo: Tensor, gt: Tensor) -> None:
        raise NotImplementedError

    def evaluate(self) -> OrderedDict:
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """`classification_metrics` of everything processed, logged in the lines that CoOp's scripts read."""

    def __init__(self, cfg, lab2cname: Mapping[int, str] | None = None, **kwargs) -> None:
        super().__init__(cfg)
        if cfg.TEST.PER_CLASS_RESULT and lab2cname is None:
            raise ValueError("TEST.PER_CLASS_RESULT needs the class names (lab2cname)")
        self._lab2cname = lab2cname
        self.reset()

    def reset(self) -> None:
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._extra: dict[str, list[Tensor]] = {}

    def process(self, mo: Tensor, gt: Tensor, extra: Mapping[str, Tensor] | None = None) -> None:
        """Take a batch.

        Args:
            mo: logits [B, C]. gt: labels [B].
            extra: other logits [B, C] for the same images by name; each gives ``<name>_accuracy``.
        """
        self._logits.append(mo.detach())
        self._labels.append(gt.detach())
        for name, scores in (extra or {}).items():
            self._extra.setdefault(name, []).append(scores.detach())

    def predictions(self) -> dict[str, Tensor]:
        """What was processed: ``logits`` [N, C], ``labels`` [N], and the extra logits by name."""
        parts = {"logits": self._logits, "labels": self._labels, **self._extra}
        return {name: torch.cat(tensors).cpu().contiguous() for name, tensors in parts.items()}

    def evaluate(self) -> OrderedDict:
        """All metrics in percent, ``accuracy`` first.

        Raises:
            ValueError: nothing was processed.
        """
        if not self._labels:
            raise ValueError("nothing to evaluate: the split is empty")
        logits, labels = torch.cat(self._logits), torch.cat(self._labels)  # [N, C], [N]
        results = OrderedDict(classification_metrics(logits, labels))
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
            accuracy = 100 * (torch.cat(parts).argmax(1) == labels).double().mean().item()
            results[f"{name}_accuracy"] = accuracy
            lines.append(f"* {name} accuracy: {accuracy:.1f}%")
        for line in lines:
            logger.info(line)
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._log_classes(logits.argmax(1), labels, logits.shape[1])
        if self.cfg.TEST.COMPUTE_CMAT:
            self._save_confusion(logits.argmax(1), labels, logits.shape[1])
        return results

    def _log_classes(self, predicted: Tensor, labels: Tensor, num_classes: int) -> float:
        right, true, _ = _counts(predicted, labels, num_classes)
        rows = torch.stack([right, true], 1).tolist()
        logger.info("=> per-class result")
        accuracies = []
        for label, (correct, total) in enumerate(rows):
            if total:
                accuracies.append(100 * correct / total)
                logger.info(
                    f"* class: {label} ({self._lab2cname[label]})\ttotal: {total:,.0f}\t"
                    f"correct: {correct:,.0f}\tacc: {accuracies[-1]:.1f}%"
                )
        mean = sum(accuracies) / len(accuracies)
        logger.info(f"* average: {mean:.1f}%")
        return mean

    def _save_confusion(self, predicted: Tensor, labels: Tensor, num_classes: int) -> None:
        """cmat.pt: [C, C], rows are true classes and sum to one (zero for a class without images)."""
        cells = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
        matrix = cells.view(num_classes, num_classes).double()
        matrix = matrix / matrix.sum(1, keepdim=True).clamp_min(1)
        path = Path(self.cfg.OUTPUT_DIR) / "cmat.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: torch.save(matrix.cpu(), file))
        logger.info(f"Confusion matrix is saved to {path}")
