"""Two classifiers that disagree on the target: `MCD` (Saito et al., arXiv 1712.02560)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unskew.dassl.engine import SimpleNet, TrainerXU
from unskew.dassl.trainers._shared import build_part, feature_network, finish_batch, numbers, require_one_step_per_batch
from unskew.engine.trainer import TRAINER_REGISTRY


def discrepancy(logits1: Tensor, logits2: Tensor) -> Tensor:
    """Return the mean absolute difference of two classifiers' probabilities [B, C] (MCD, section 3)."""
    return (logits1.softmax(1) - logits2.softmax(1)).abs().mean()


@TRAINER_REGISTRY.register()
class MCD(TrainerXU):
    """Maximum classifier discrepancy: ``C1`` and ``C2`` learn to disagree on the target, ``F`` to make them agree."""

    F: SimpleNet
    C1: nn.Module
    C2: nn.Module

    def check_cfg(self, cfg: Any) -> None:
        """Raise ``ValueError`` for the accumulation of gradients."""
        require_one_step_per_batch(cfg)

    def build_model(self) -> None:
        """Build features ``F`` and the classifiers ``C1`` and ``C2``."""
        build_part(self, "F", feature_network(self))
        for name in ("C1", "C2"):
            build_part(self, name, lambda: nn.Linear(self.F.fdim, self.num_classes))

    def _source_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.C1(features), labels) + F.cross_entropy(self.C2(features), labels)

    def _discrepancy(self, features: Tensor) -> Tensor:
        return discrepancy(self.C1(features), self.C2(features))

    def forward_backward(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> dict[str, float]:  # type: ignore[override]
        """Take the steps A, B and C of the paper; step C ``N_STEP_F`` times."""
        images, labels, images_u = self.parse_batch_train(batch_x, batch_u)
        loss_a = self._source_loss(self.F(images), labels)
        self.model_backward_and_update(loss_a)

        with torch.no_grad():
            features, features_u = self.F(images), self.F(images_u)
        loss_b = self._source_loss(features, labels) - self._discrepancy(features_u)
        self.model_backward_and_update(loss_b, ["C1", "C2"])

        for _ in range(self.node.N_STEP_F):
            loss_c = self._discrepancy(self.F(images_u))
            self.model_backward_and_update(loss_c, "F")
        finish_batch(self)
        return numbers(loss_step_A=loss_a, loss_step_B=loss_b, loss_step_C=loss_c)

    def model_inference(self, input: Tensor) -> Tensor:
        """Return the logits [B, C] of ``C1``."""
        return self.C1(self.F(input))
