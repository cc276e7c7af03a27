"""Adversarial discriminative domain adaptation (Tzeng et al., arXiv 1702.05464)."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from unskew.dassl.engine import SimpleNet, TrainerXU
from unskew.dassl.trainers._shared import build_critic, finish_batch, numbers, require_source_weights
from unskew.dassl.utils import open_specified_layers
from unskew.engine.trainer import TRAINER_REGISTRY


@TRAINER_REGISTRY.register()
class ADDA(TrainerXU):
    """The target's network learns features that a critic takes for those of the frozen source network.

    ``MODEL.INIT_WEIGHTS`` is a checkpoint of the source network. The classifier stays as it is.
    """

    model: SimpleNet
    critic: nn.Module

    def check_cfg(self, cfg: Any) -> None:
        """Raise ``ValueError`` without the weights of a source network."""
        require_source_weights(cfg)

    def build_model(self) -> None:
        """Build the model, its frozen copy and the critic."""
        super().build_model()
        self.open_layers = ["backbone"] if self.model.head is None else ["backbone", "head"]
        self.source_model = copy.deepcopy(self.model).eval().requires_grad_(False)
        build_critic(self, self.model.fdim, [self.model.fdim, self.model.fdim // 2])

    def forward_backward(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> dict[str, float]:  # type: ignore[override]
        """Take one step with the critic, then one with the target's network (equation 9)."""
        open_specified_layers(self.model, self.open_layers)
        images, _, images_u = self.parse_batch_train(batch_x, batch_u)
        _, features = self.source_model(images, return_feature=True)
        _, features_u = self.model(images_u, return_feature=True)

        logits, logits_u = self.critic(features), self.critic(features_u.detach())
        loss_critic = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
        loss_critic = loss_critic + F.binary_cross_entropy_with_logits(logits_u, torch.zeros_like(logits_u))
        self.model_backward_and_update(loss_critic, "critic")

        logits_u = self.critic(features_u)
        loss_model = F.binary_cross_entropy_with_logits(logits_u, torch.ones_like(logits_u))
        self.model_backward_and_update(loss_model, "model")
        finish_batch(self)
        return numbers(loss_critic=loss_critic, loss_model=loss_model)
