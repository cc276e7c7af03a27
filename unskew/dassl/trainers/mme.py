"""A classifier by prototypes: `MME` (Saito et al., arXiv 1904.06487) and its adversarial entropy."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from unskew.dassl.engine import SimpleNet, TrainerXU
from unskew.dassl.metrics import compute_accuracy
from unskew.dassl.ops import ReverseGrad
from unskew.dassl.trainers._shared import (
    build_part,
    cross_entropy_of,
    feature_network,
    finish_batch,
    numbers,
    require_one_step_per_batch,
)
from unskew.engine.trainer import TRAINER_REGISTRY


class Prototypes(nn.Module):
    """Logits ``W f / (temp ||f||)`` of features (MME, section 3): [B, D] -> [B, C]."""

    def __init__(self, fdim: int, num_classes: int, temp: float = 0.05) -> None:
        super().__init__()
        self.prototypes = nn.Linear(fdim, num_classes, bias=False)
        self.temp = temp
        self.revgrad = ReverseGrad()

    def forward(self, x: Tensor, reverse: bool = False) -> Tensor:
        """Return the logits; ``reverse`` reverses the gradient of the features."""
        features = self.revgrad(x) if reverse else x
        return self.prototypes(F.normalize(features, dim=1)) / self.temp


@TRAINER_REGISTRY.register()
class MME(TrainerXU):
    """Minimax entropy: the classifier ``C`` maximises the target's entropy, the features ``F`` minimise it."""

    F: SimpleNet
    C: nn.Module

    def check_cfg(self, cfg: Any) -> None:
        """Raise ``ValueError`` for the accumulation of gradients."""
        require_one_step_per_batch(cfg)

    def build_model(self) -> None:
        """Build ``F`` and ``C``."""
        build_part(self, "F", feature_network(self))
        build_part(self, "C", lambda: Prototypes(self.F.fdim, self.num_classes))

    def forward_backward(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> dict[str, float]:  # type: ignore[override]
        """Take a step on the labelled images, then one on the entropy (section 3)."""
        images, labels, images_u = self.parse_batch_train(batch_x, batch_u)
        logits = self.C(self.F(images))
        loss_x = F.cross_entropy(logits, labels)
        self.model_backward_and_update(loss_x)

        probabilities = self.C(self.F(images_u), reverse=True).softmax(1)
        loss_u = -cross_entropy_of(probabilities, probabilities).mean()
        self.model_backward_and_update(loss_u * self.node.LMDA)
        finish_batch(self)
        return numbers(loss_x=loss_x, acc_x=compute_accuracy(logits, labels)[0], loss_u=loss_u)

    def model_inference(self, input: Tensor) -> Tensor:
        """Return the logits [B, C]."""
        return self.C(self.F(input))
