"""Entropy minimisation (Grandvalet and Bengio, NIPS 2004)."""

from typing import Any

from torch.nn import functional as F

from unskew.dassl.engine import TrainerXU
from unskew.dassl.metrics import compute_accuracy
from unskew.dassl.trainers._shared import cross_entropy_of, finish_batch, numbers
from unskew.engine.trainer import TRAINER_REGISTRY


@TRAINER_REGISTRY.register()
class EntMin(TrainerXU):
    """Cross-entropy of labelled images plus ``LMDA`` times the entropy of predictions of unlabelled ones."""

    def forward_backward(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> dict[str, float]:  # type: ignore[override]
        """Take one step on the criterion of minimum entropy."""
        images, labels, unlabelled = self.parse_batch_train(batch_x, batch_u)
        logits = self.model(images)
        loss_x = F.cross_entropy(logits, labels)
        probabilities = self.model(unlabelled).softmax(1)
        loss_u = cross_entropy_of(probabilities, probabilities).mean()
        self.model_backward_and_update(loss_x + loss_u * self.node.LMDA)
        finish_batch(self)
        return numbers(loss_x=loss_x, acc_x=compute_accuracy(logits, labels)[0], loss_u=loss_u)
