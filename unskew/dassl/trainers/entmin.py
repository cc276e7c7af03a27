"""Entropy minimisation (Grandvalet and Bengio, NIPS 2004)."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from unskew.dassl.engine import TrainerXU
from unskew.dassl.metrics import compute_accuracy
from unskew.dassl.trainers._shared import cross_entropy_of, finish_batch
from unskew.engine.trainer import TRAINER_REGISTRY


@TRAINER_REGISTRY.register()
class EntMin(TrainerXU):
    """Cross-entropy of labelled images plus ``LMDA`` times the entropy of predictions of unlabelled ones."""

    def forward_backward(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> dict[str, Tensor]:  # type: ignore[override]
        """Take one step on the minimum entropy criterion (equation 6)."""
        images, labels, unlabelled = self.parse_batch_train(batch_x, batch_u)
        logits = self.model(images)
        loss_x = F.cross_entropy(logits, labels)
        probabilities = self.model(unlabelled).softmax(1)
        loss_u = cross_entropy_of(probabilities, probabilities).mean()
        self.model_backward_and_update(loss_x + loss_u * self.node.LMDA)
        finish_batch(self)
        accuracy = compute_accuracy(logits, labels)[0]
        return {"loss_x": loss_x.detach(), "acc_x": accuracy, "loss_u": loss_u.detach()}
