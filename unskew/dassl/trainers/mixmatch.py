"""MixMatch (Berthelot et al., arXiv 1905.02249)."""

from typing import Any

import torch
from torch import Tensor

from unskew.dassl.engine import TrainerXU
from unskew.dassl.ops import create_onehot, linear_rampup, mixup, sharpen_prob, shuffle_index
from unskew.dassl.trainers._shared import cross_entropy_of, finish_batch, mean_of, numbers, require
from unskew.engine.trainer import TRAINER_REGISTRY


@TRAINER_REGISTRY.register()
class MixMatch(TrainerXU):
    """Guessed labels from K augmentations, sharpened, and mixup of labelled and unlabelled images."""

    def check_cfg(self, cfg: Any) -> None:
        """Raise ``ValueError`` unless there are several augmentations of each image."""
        count = cfg.DATALOADER.K_TRANSFORMS
        require(count > 1, f"MixMatch averages over augmentations: set DATALOADER.K_TRANSFORMS above 1 (got {count})")

    @torch.no_grad()
    def guess(self, views: list[Tensor]) -> Tensor:
        """Return the sharpened mean probabilities [B, C] of K views [B, 3, H, W] (equations 6 and 7)."""
        mean = mean_of([self.model(view).softmax(1) for view in views])
        return sharpen_prob(mean, self.node.TEMP)

    def forward_backward(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> dict[str, float]:  # type: ignore[override]
        """Take one step on the losses of equations 2 to 5."""
        images, labels, views = self.parse_batch_train(batch_x, batch_u)
        step = self.batch_idx + self.epoch * self.num_batches
        weight = self.node.WEIGHT_U * linear_rampup(step, self.node.RAMPUP)
        labels_u = self.guess(views).repeat(len(views), 1)
        images_u = torch.cat(views)

        # Algorithm 1: mix the labelled images with the first rows of the shuffled union, the others with the rest.
        count, beta = len(images), self.node.MIXUP_BETA
        others, their_labels = shuffle_index(torch.cat([images, images_u]), torch.cat([labels, labels_u]))
        images, labels = mixup(images, others[:count], labels, their_labels[:count], beta, preserve_order=True)
        images_u, labels_u = mixup(images_u, others[count:], labels_u, their_labels[count:], beta, preserve_order=True)

        loss_x = cross_entropy_of(self.model(images).softmax(1), labels).mean()
        loss_u = (labels_u - self.model(images_u).softmax(1)).square().mean()
        self.model_backward_and_update(loss_x + loss_u * weight)
        finish_batch(self)
        return numbers(loss_x=loss_x, loss_u=loss_u)

    def parse_batch_train(  # type: ignore[override]  # Dassl's signature
        self, batch_x: dict[str, Any], batch_u: dict[str, Any]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the first view of the labelled images, their one-hot labels and all views of the unlabelled ones."""
        labels = create_onehot(batch_x["label"], self.num_classes).to(self.device)
        return batch_x["img"][0].to(self.device), labels, [view.to(self.device) for view in batch_u["img"]]
