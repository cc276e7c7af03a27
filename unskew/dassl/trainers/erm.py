"""Empirical risk minimisation on labelled images: `Vanilla`, `SourceOnly` and `SupBaseline`.

They are the baselines of domain generalisation, domain adaptation and semi-supervised learning.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from unskew.dassl.engine import SimpleTrainer, TrainerX, TrainerXU
from unskew.dassl.metrics import compute_accuracy
from unskew.dassl.trainers._shared import finish_batch, numbers
from unskew.engine.trainer import TRAINER_REGISTRY


def _images_and_labels(trainer: SimpleTrainer, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return batch["img"].to(trainer.device), batch["label"].to(trainer.device)


def _step(trainer: SimpleTrainer, images: Tensor, labels: Tensor) -> dict[str, float]:
    logits = trainer.model(images)
    loss = F.cross_entropy(logits, labels)
    trainer.model_backward_and_update(loss)
    finish_batch(trainer)
    return numbers(loss=loss, acc=compute_accuracy(logits, labels)[0])


@TRAINER_REGISTRY.register()
class Vanilla(TrainerX):
    """Training on the images of all source domains with cross-entropy."""

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        """Take one step."""
        return _step(self, *self.parse_batch_train(batch))

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return images and labels on the device."""
        return _images_and_labels(self, batch)


class _Supervised(TrainerXU):
    """Training on the labelled images only, in a loop over labelled and unlabelled batches."""

    def forward_backward(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> dict[str, float]:  # type: ignore[override]
        """Take one step on the labelled batch."""
        return _step(self, *self.parse_batch_train(batch_x, batch_u))

    def parse_batch_train(  # type: ignore[override]  # Dassl's signature
        self, batch_x: dict[str, Any], batch_u: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Return labelled images and their labels on the device."""
        return _images_and_labels(self, batch_x)


@TRAINER_REGISTRY.register()
class SourceOnly(_Supervised):
    """The baseline of domain adaptation: training on the source domains only."""


@TRAINER_REGISTRY.register()
class SupBaseline(_Supervised):
    """The baseline of semi-supervised learning: training on the labelled images only."""
