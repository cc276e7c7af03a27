"""Domain-adversarial neural networks (Ganin et al., arXiv 1505.07818)."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from unskew.dassl.engine import SimpleNet, TrainerXU
from unskew.dassl.metrics import compute_accuracy
from unskew.dassl.ops import ReverseGrad
from unskew.dassl.trainers._shared import build_critic, finish_batch, numbers
from unskew.engine.trainer import TRAINER_REGISTRY


@TRAINER_REGISTRY.register()
class DANN(TrainerXU):
    """A critic tells source from target features; its reversed gradient makes them equal."""

    model: SimpleNet
    critic: nn.Module

    def build_model(self) -> None:
        """Build the model and its critic."""
        super().build_model()
        build_critic(self, self.model.fdim, [self.model.fdim, self.model.fdim])
        self.revgrad = ReverseGrad()

    def forward_backward(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> dict[str, float]:  # type: ignore[override]
        """Take one step of equations 13 to 15, with the weight of the reversed gradient of section 5.2.2."""
        images, labels, images_u = self.parse_batch_train(batch_x, batch_u)
        progress = (self.batch_idx + self.epoch * self.num_batches) / (self.max_epoch * self.num_batches)
        weight = 2 / (1 + math.exp(-10 * progress)) - 1
        logits, features = self.model(images, return_feature=True)
        _, features_u = self.model(images_u, return_feature=True)
        loss_x = F.cross_entropy(logits, labels)
        source = self.critic(self.revgrad(features, grad_scaling=weight))
        target = self.critic(self.revgrad(features_u, grad_scaling=weight))
        loss_d = F.binary_cross_entropy_with_logits(source, torch.ones_like(source))
        loss_d = loss_d + F.binary_cross_entropy_with_logits(target, torch.zeros_like(target))
        self.model_backward_and_update(loss_x + loss_d)
        finish_batch(self)
        return numbers(loss_x=loss_x, acc_x=compute_accuracy(logits, labels)[0], loss_d=loss_d)
