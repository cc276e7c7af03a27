"""Cross-domain adaptive clustering (Li et al., arXiv 2104.09415)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from unskew.dassl.engine import SimpleNet, TrainerXU
from unskew.dassl.metrics import compute_accuracy
from unskew.dassl.ops import sigmoid_rampup
from unskew.dassl.trainers._shared import (
    build_part,
    build_weak_and_strong_loaders,
    feature_network,
    numbers,
    pseudo_label_quality,
    require,
    require_one_step_per_batch,
    require_strong_transforms,
)
from unskew.dassl.trainers.mme import Prototypes
from unskew.engine.trainer import TRAINER_REGISTRY


def custom_scheduler(
    iter: int, max_iter: int | None = None, alpha: float = 10, beta: float = 0.75, init_lr: float = 0.001
) -> float:
    """Return DANN's factor ``(1 + alpha iter / max_iter) ** -beta`` of the learning rate (arXiv 1409.7495).

    Without ``max_iter`` it returns ``init_lr``.
    """
    return init_lr if max_iter is None else (1 + alpha * iter / max_iter) ** -beta


class AAC(nn.Module):
    """The binary cross-entropy of pairwise similarities (equation 3): similarity [B, B], probabilities [B, C] twice."""

    def forward(self, sim_mat: Tensor, prob_u: Tensor, prob_us: Tensor) -> Tensor:
        """Return the loss; a pair's probability of one class is the inner product of its rows."""
        same = prob_u @ prob_us.T
        return -(sim_mat * torch.log(same + 1e-7) + (1 - sim_mat) * torch.log(1 - same + 1e-7)).mean()


def similarity(features: Tensor, topk: int) -> Tensor:
    """Return 1 for pairs of rows [B, D] whose ``topk`` largest features are at the same places, else 0: [B, B]."""
    places = features.detach().argsort(dim=1, descending=True)[:, :topk].sort(1).values
    return (places[:, None] == places[None]).all(2).to(features.dtype)


@TRAINER_REGISTRY.register()
class CDAC(TrainerXU):
    """Adversarial clustering of the target's images, pseudo-labels and consistency of two strong augmentations."""

    F: SimpleNet
    C: nn.Module
    max_iter: int

    def check_cfg(self, cfg: Any) -> None:
        """Raise ``ValueError`` for a config that does not suit the method."""
        require_strong_transforms(self)
        require_one_step_per_batch(cfg)
        count = cfg.DATALOADER.K_TRANSFORMS
        require(count == 2, f"CDAC compares two strong augmentations: set DATALOADER.K_TRANSFORMS to 2 (got {count})")

    def build_data_loader(self) -> None:
        """Build loaders of weak and strong augmentations, two of each."""
        build_weak_and_strong_loaders(self, self.node.STRONG_TRANSFORMS)

    def build_model(self) -> None:
        """Build ``F`` and ``C``, whose learning rate is ``CLASS_LR_MULTI`` times that of ``F``."""
        self.max_iter = self.max_epoch * self.count_batches()
        build_part(self, "F", feature_network(self), make_schedule=self._schedule)
        classifier = lambda: Prototypes(self.F.fdim, self.num_classes)  # noqa: E731
        build_part(self, "C", classifier, make_schedule=lambda optim: self._schedule(optim, self.node.CLASS_LR_MULTI))

    def _schedule(self, optim: Optimizer, factor: float = 1) -> LambdaLR:
        """Return the schedule `custom_scheduler`, which steps after each batch."""
        for group in optim.param_groups:
            group["lr"] *= factor
        return LambdaLR(optim, lambda step: custom_scheduler(step, self.max_iter))

    def forward_backward(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> dict[str, float]:  # type: ignore[override]
        """Take a step on the labelled images (equation 2), then one on the three losses of the unlabelled ones."""
        images, labels, weak, strong, strong2, labels_u = self.parse_batch_train(batch_x, batch_u)
        node = self.node
        logits = self.C(self.F(images))
        loss_x = F.cross_entropy(logits, labels)
        self.model_backward_and_update(loss_x)

        features, strong_features, strong_features2 = self.F(weak), self.F(strong), self.F(strong2)
        probabilities, strong_probabilities = (
            self.C(rows, reverse=True).softmax(1) for rows in (features, strong_features)
        )
        loss_aac = -AAC()(similarity(features, node.TOPK_MATCH), probabilities, strong_probabilities)

        logits_s, logits_s2 = self.C(strong_features), self.C(strong_features2)
        confidence, guessed = self.C(features).softmax(1).detach().max(1)
        mask = (confidence >= node.P_THRESH).float()
        loss_pl = (F.cross_entropy(logits_s2, guessed, reduction="none") * mask).mean()  # equation 4

        step = self.batch_idx + self.epoch * self.num_batches
        weight = node.RAMPUP_COEF * (sigmoid_rampup(step, node.RAMPUP_ITRS) if node.RAMPUP_ITRS else 1)
        loss_cons = weight * F.mse_loss(logits_s.softmax(1), logits_s2.softmax(1))  # equation 8
        loss_u = loss_aac + loss_pl + loss_cons
        self.model_backward_and_update(loss_u)
        self.update_lr()
        raw, kept, share = pseudo_label_quality(guessed, labels_u, mask)
        losses = numbers(aac_loss=loss_aac, pl_loss=loss_pl, cons_loss=loss_cons)
        quality = numbers(p_u_pred_acc=raw, p_u_pred_acc_thre=kept, p_u_pred_keep=share)
        accuracy = compute_accuracy(logits, labels)[0]
        return numbers(loss_x=loss_x, acc_x=accuracy, loss_u=loss_u) | losses | quality

    def parse_batch_train(  # type: ignore[override]  # Dassl's signature
        self, batch_x: dict[str, Any], batch_u: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        """Return labelled images, labels, a weak and two strong views of unlabelled images, and their labels.

        The labels of unlabelled images serve only to measure the pseudo-labels.
        """
        parts = (batch_x["img"][0], batch_x["label"], batch_u["img"][0], *batch_u["img2"], batch_u["label"])
        return tuple(part.to(self.device) for part in parts)

    def model_inference(self, input: Tensor) -> Tensor:
        """Return the logits [B, C]."""
        return self.C(self.F(input))
