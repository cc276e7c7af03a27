"""`dassl.evaluation`: the evaluator whose subclasses read and fill Dassl's own attributes."""

import logging
from collections import OrderedDict, defaultdict

from torch import Tensor

from unskew.engine import evaluator
from unskew.engine.evaluator import EVALUATOR_REGISTRY, EvaluatorBase

__all__ = ["EVALUATOR_REGISTRY", "Classification", "EvaluatorBase", "build_evaluator"]

logger = logging.getLogger("unskew")


class Classification(evaluator.Classification):
    """Ours, with Dassl's attributes. A subclass may replace any method by one that knows of these alone.

    Attributes:
        _y_true, _y_pred: labels and predicted classes of all images.
        _correct, _total: counts of images.
        _per_class_res: by label a list of 1 (right) and 0; ``None`` without ``TEST.PER_CLASS_RESULT``.
    """

    def __init__(self, cfg, lab2cname=None, **kwargs) -> None:
        self._per_class_res = defaultdict(list) if cfg.TEST.PER_CLASS_RESULT else None  # a subclass's reset() asks
        super().__init__(cfg, lab2cname, **kwargs)

    def reset(self) -> None:
        super().reset()
        self._correct, self._total = 0, 0
        self._y_true: list[int] = []
        self._y_pred: list[int] = []
        if self._per_class_res is not None:
            self._per_class_res = defaultdict(list)

    def process(self, mo: Tensor, gt: Tensor, extra=None) -> None:
        if not self._total:
            super().reset()  # a subclass's reset() need not
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
        """Our metrics; where a subclass's ``process`` kept the predicted classes alone, those that these have.

        Raises:
            ValueError: nothing was processed.
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


def build_evaluator(cfg, **kwargs):
    """The evaluator that ``cfg.TEST.EVALUATOR`` names; "Classification" is the one with Dassl's attributes."""
    found = EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)
    if cfg.VERBOSE:
        logger.info(f"Loading evaluator: {cfg.TEST.EVALUATOR}")
    return (Classification if found is evaluator.Classification else found)(cfg, **kwargs)
