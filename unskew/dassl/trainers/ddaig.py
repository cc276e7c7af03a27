"""Deep domain-adversarial image generation (Zhou et al., arXiv 2003.06054)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unskew.dassl.engine import TrainerX
from unskew.dassl.modeling import build_network
from unskew.dassl.trainers._shared import build_part, feature_network, finish_batch, numbers
from unskew.engine.trainer import TRAINER_REGISTRY


@TRAINER_REGISTRY.register()
class DDAIG(TrainerX):
    """A generator ``G`` moves images to unseen domains; ``F`` classifies labels, ``D`` domains.

    ``TRAINER.DDAIG.G_ARCH`` names the generator, such as fcn_3x32_gctx.
    """

    F: nn.Module
    D: nn.Module
    G: nn.Module

    def build_model(self) -> None:
        """Build ``F``, ``D`` and ``G``."""
        build_part(self, "F", feature_network(self, self.num_classes))
        build_part(self, "D", feature_network(self, self.num_source_domains))
        build_part(self, "G", lambda: build_network(self.node.G_ARCH, verbose=self.cfg.VERBOSE))

    def generate(self, images: Tensor) -> Tensor:
        """Return ``images + LMDA * G(images)``, clamped with ``CLAMP``."""
        moved = self.G(images, lmda=self.node.LMDA)
        return moved.clamp(self.node.CLAMP_MIN, self.node.CLAMP_MAX) if self.node.CLAMP else moved

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        """Take one step with each network."""
        images, labels, domains = self.parse_batch_train(batch)
        node = self.node

        # G keeps the label and hides the domain (DoTNet, the paper's domain transformation network).
        moved = self.generate(images)
        loss_g = F.cross_entropy(self.F(moved), labels) - F.cross_entropy(self.D(moved), domains)
        self.model_backward_and_update(loss_g, "G")
        with torch.no_grad():
            moved = self.generate(images)

        # F learns both kinds of images.
        loss_f = F.cross_entropy(self.F(images), labels)
        if self.epoch + 1 > node.WARMUP:
            loss_f = (1 - node.ALPHA) * loss_f + node.ALPHA * F.cross_entropy(self.F(moved), labels)
        self.model_backward_and_update(loss_f, "F")

        # D learns the domains of the images.
        loss_d = F.cross_entropy(self.D(images), domains)
        self.model_backward_and_update(loss_d, "D")
        finish_batch(self)
        return numbers(loss_g=loss_g, loss_f=loss_f, loss_d=loss_d)

    def model_inference(self, input: Tensor) -> Tensor:
        """Return the logits [B, C] of ``F``."""
        return self.F(input)
