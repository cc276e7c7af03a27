"""FixMatch (Sohn et al., arXiv 2001.07685)."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unskew.dassl.engine import TrainerXU
from unskew.dassl.metrics import compute_accuracy
from unskew.dassl.trainers._shared import (
    build_weak_and_strong_loaders,
    finish_batch,
    numbers,
    pseudo_label_quality,
    require_strong_transforms,
)
from unskew.engine.trainer import TRAINER_REGISTRY


@TRAINER_REGISTRY.register()
class FixMatch(TrainerXU):
    """Confident predictions of weakly augmented images are the labels of their strong augmentations."""

    def check_cfg(self, cfg: Any) -> None:
        """Raise ``ValueError`` without a strong augmentation."""
        require_strong_transforms(self)

    def build_data_loader(self) -> None:
        """Build loaders of two augmentations per image."""
        build_weak_and_strong_loaders(self, self.node.STRONG_TRANSFORMS)

    def forward_backward(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> dict[str, float]:  # type: ignore[override]
        """Take one step on the losses of equations 3 and 4. Labelled images are among the unlabelled ones, too."""
        weak_x, strong_x, labels, weak_u, strong_u, labels_u = self.parse_batch_train(batch_x, batch_u)
        count = len(weak_x)
        with torch.no_grad():
            confidence, guessed = self.model(torch.cat([weak_x, weak_u])).softmax(1).max(1)
            mask = (confidence >= self.node.CONF_THRE).float()
            raw, kept, share = pseudo_label_quality(guessed[count:], labels_u, mask[count:])
        logits = self.model(weak_x)
        loss_x = F.cross_entropy(logits, labels)
        loss_u = F.cross_entropy(self.model(torch.cat([strong_x, strong_u])), guessed, reduction="none")
        loss_u = (loss_u * mask).mean()
        self.model_backward_and_update(loss_x + loss_u * self.node.WEIGHT_U)
        finish_batch(self)
        quality = numbers(y_u_pred_acc_raw=raw, y_u_pred_acc_thre=kept, y_u_pred_keep=share)
        return numbers(loss_x=loss_x, acc_x=compute_accuracy(logits, labels)[0], loss_u=loss_u) | quality

    def parse_batch_train(  # type: ignore[override]  # Dassl's signature
        self, batch_x: dict[str, Any], batch_u: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        """Return weak views, strong views and labels, then the same of the unlabelled images.

        The labels of unlabelled images serve only to measure the pseudo-labels.
        """
        names = ("img", "img2", "label")
        return tuple(batch[name].to(self.device) for batch in (batch_x, batch_u) for name in names)
