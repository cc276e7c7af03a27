"""`dassl.evaluation`: an evaluator with Dassl's attributes, which subclasses read and write."""

import logging
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from yacs.config import CfgNode

from unskew.dassl.config import complete
from unskew.engine import evaluator
from unskew.engine.evaluator import EVALUATOR_REGISTRY, EvaluatorBase

__all__ = ["EVALUATOR_REGISTRY", "Classification", "EvaluatorBase", "build_evaluator"]

logger = logging.getLogger("unskew")


class Classification(evaluator.Classification):
    """Our evaluator with Dassl's attributes. A subclass may override any method and use only these attributes.

    Attributes:
        _y_true, _y_pred: labels and predicted classes of all images.
        _correct, _total: counts of images.
        _per_class_res: list of 1 (correct) and 0 per label; ``None`` without ``TEST.PER_CLASS_RESULT``.
    """

    def __init__(self, cfg: CfgNode, lab2cname: Mapping[int, str] | None = None, **kwargs: Any) -> None:
        # Before super().__init__, because reset() of a subclass reads it.
        self._per_class_res: defaultdict[int, list[int]] | None = (
            defaultdict(list) if complete(cfg).TEST.PER_CLASS_RESULT else None
        )
        super().__init__(cfg, lab2cname, **kwargs)

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._correct, self._total = 0, 0
        self._y_true: list[int] = []
        self._y_pred: list[int] = []
        if self._per_class_res is not None:
            self._per_class_res = defaultdict(list)

    def process(self, mo: Tensor, gt: Tensor, extra: Mapping[str, Tensor] | None = None) -> None:
        """Add a batch of logits [B, C] and labels [B]."""
        if not self._total:
            super().reset()  # reset() of a subclass may not call it
        super().process(mo, gt, extra)
        labels, predicted = gt.tolist(), mo.argmax(1).tolist()
        matches = [int(label == guess) for label, guess in zip(labels, predicted, strict=True)]
        self._correct += sum(matches)
        self._total += len(labels)
        self._y_true += labels
        self._y_pred += predicted
        if self._per_class_res is not None:
            for label, match in zip(labels, matches, strict=True):
                self._per_class_res[label].append(match)

    def evaluate(self) -> OrderedDict:
        """Return our metrics, or accuracy, error and F1 if a subclass's ``process`` kept only the predicted classes.

        Raises:
            ValueError: no images were processed.
        """
        if not self._total or sum(map(len, getattr(self, "_labels", []))) == self._total:
            return super().evaluate()
        from sklearn.metrics import f1_score

        accuracy = 100 * self._correct / self._total
        macro_f1 = 100 * f1_score(self._y_true, self._y_pred, average="macro", labels=sorted(set(self._y_true)))
        for line in (
            "=> result",
            f"* total: {self._total:,}",
            f"* correct: {self._correct:,}",
            f"* accuracy: {accuracy:.1f}%",
            f"* error: {100 - accuracy:.1f}%",
            f"* macro_f1: {macro_f1:.1f}%",
        ):
            logger.info(line)
        return OrderedDict(accuracy=accuracy, error_rate=100 - accuracy, macro_f1=macro_f1)


def build_evaluator(cfg: CfgNode, **kwargs: Any) -> EvaluatorBase:
    """Build the evaluator that ``cfg.TEST.EVALUATOR`` names; "Classification" has Dassl's attributes."""
    kind = EVALUATOR_REGISTRY.get(complete(cfg).TEST.EVALUATOR)
    if cfg.VERBOSE:
        logger.info(f"Loading evaluator: {cfg.TEST.EVALUATOR}")
    return (Classification if kind is evaluator.Classification else kind)(cfg, **kwargs)
