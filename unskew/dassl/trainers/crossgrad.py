"""Cross-gradient training (Shankar et al., arXiv 1804.10745)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unskew.dassl.engine import TrainerX
from unskew.dassl.trainers._shared import build_part, feature_network, finish_batch, numbers
from unskew.engine.trainer import TRAINER_REGISTRY


def _perturbed(images: Tensor, loss: Tensor, size: float) -> Tensor:
    """Return images moved by ``size`` times the gradient of a loss, clipped to [-0.1, 0.1]."""
    (gradient,) = torch.autograd.grad(loss, images)
    return images.detach() + size * gradient.clamp(-0.1, 0.1)


@TRAINER_REGISTRY.register()
class CrossGrad(TrainerX):
    """A classifier of labels ``F`` and one of domains ``D``; each learns images that the other's gradient moved."""

    F: nn.Module
    D: nn.Module

    def build_model(self) -> None:
        """Build ``F`` and ``D``."""
        build_part(self, "F", feature_network(self, self.num_classes))
        build_part(self, "D", feature_network(self, self.num_source_domains))

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        """Take one step of algorithm 1 with each classifier."""
        images, labels, domains = self.parse_batch_train(batch)
        node = self.node
        images.requires_grad_()
        of_domain = _perturbed(images, F.cross_entropy(self.D(images), domains), node.EPS_F)
        of_label = _perturbed(images, F.cross_entropy(self.F(images), labels), node.EPS_D)
        images = images.detach()

        plain, moved = F.cross_entropy(self.F(images), labels), F.cross_entropy(self.F(of_domain), labels)
        loss_f = (1 - node.ALPHA_F) * plain + node.ALPHA_F * moved
        self.model_backward_and_update(loss_f, "F")

        plain, moved = F.cross_entropy(self.D(images), domains), F.cross_entropy(self.D(of_label), domains)
        loss_d = (1 - node.ALPHA_D) * plain + node.ALPHA_D * moved
        self.model_backward_and_update(loss_d, "D")
        finish_batch(self)
        return numbers(loss_f=loss_f, loss_d=loss_d)

    def model_inference(self, input: Tensor) -> Tensor:
        """Return the logits [B, C] of ``F``."""
        return self.F(input)
