"""Domain adaptive ensemble learning (Zhou et al., arXiv 2003.07325): `DAEL`, and `DAELDG` without a target."""

from typing import Any

import torch
from torch import Tensor, nn

from unskew.dassl.engine import SimpleNet, SimpleTrainer, TrainerX, TrainerXU
from unskew.dassl.metrics import compute_accuracy
from unskew.dassl.ops import create_onehot
from unskew.dassl.trainers._shared import (
    build_part,
    build_weak_and_strong_loaders,
    by_domain,
    cross_entropy_of,
    feature_network,
    finish_batch,
    mean_of,
    numbers,
    require,
    require_domain_batches,
    require_own_unlabelled_loader,
    require_strong_transforms,
)
from unskew.engine.trainer import TRAINER_REGISTRY


class Experts(nn.Module):
    """A linear classifier per source domain: ``experts(i, features [B, D])`` -> probabilities [B, C] of expert i."""

    def __init__(self, n_source: int, fdim: int, num_classes: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList([nn.Linear(fdim, num_classes) for _ in range(n_source)])

    def forward(self, i: int, x: Tensor) -> Tensor:
        """Return the probabilities [B, C] of expert ``i``."""
        return self.linears[i](x).softmax(1)


class _Ensemble(SimpleTrainer):
    """Features ``F``, experts ``E``, two augmentations per image; the mean of the experts predicts."""

    F: SimpleNet
    E: Experts

    def check_cfg(self, cfg: Any) -> None:
        """Raise ``ValueError`` for a config without batches of several domains or without a strong augmentation."""
        require_domain_batches(cfg)
        require_strong_transforms(self)
        count = cfg.DATALOADER.TRAIN_X.N_DOMAIN
        require(
            count > 1 or (count <= 0 and len(cfg.DATASET.SOURCE_DOMAINS) > 1),
            f"{cfg.TRAINER.NAME} needs at least two source domains per batch: set DATASET.SOURCE_DOMAINS, and "
            "DATALOADER.TRAIN_X.N_DOMAIN to 0 (all) or above 1",
        )

    def build_data_loader(self) -> None:
        """Build loaders of two augmentations per image."""
        build_weak_and_strong_loaders(self, self.node.STRONG_TRANSFORMS)

    def build_model(self) -> None:
        """Build ``F`` and ``E``."""
        build_part(self, "F", feature_network(self))
        build_part(self, "E", lambda: Experts(self.num_source_domains, self.F.fdim, self.num_classes))

    def all_experts(self, features: Tensor) -> Tensor:
        """Return the probabilities [B, K, C] of all K experts for features [B, D]."""
        return torch.stack([self.E(k, features) for k in range(self.num_source_domains)], 1)

    def source_losses(self, batch: list[tuple[int, Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the experts' loss, their accuracy and the consistency loss, as means over the domains.

        Each expert learns the weakly augmented images of its domain. The mean of the other experts on
        strongly augmented images follows the prediction of the domain's expert.

        Args:
            batch: (domain, features of weak views [B, D], features of strong views [B, D], one-hot labels [B, C]).
        """
        domains = [domain for domain, *_ in batch]
        losses, accuracies, consistencies = [], [], []
        for domain, weak, strong, labels in batch:
            expert = self.E(domain, weak)
            losses.append(cross_entropy_of(expert, labels).mean())
            accuracies.append(compute_accuracy(expert.detach(), labels.argmax(1))[0])
            others = torch.stack([self.E(other, strong) for other in domains if other != domain], 1).mean(1)
            consistencies.append((others - expert.detach()).square().sum(1).mean())
        return mean_of(losses), mean_of(accuracies), mean_of(consistencies)

    def source_features(
        self, weak: Tensor, strong: Tensor, labels: Tensor, domains: Tensor
    ) -> list[tuple[int, Tensor, Tensor, Tensor]]:
        """Return `source_losses`'s batch of images [B, 3, H, W]. ``F`` sees one domain at a time."""
        parts = list(by_domain(domains, weak, strong, labels))
        features = [self.F(images) for _, images, _, _ in parts]
        strong_features = [self.F(images) for _, _, images, _ in parts]
        return [(part[0], f, g, part[3]) for part, f, g in zip(parts, features, strong_features, strict=True)]

    def model_inference(self, input: Tensor) -> Tensor:
        """Return the mean probabilities [B, C] of the experts."""
        return self.all_experts(self.F(input)).mean(1)


def _source_parts(trainer: _Ensemble, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return weak views, strong views, one-hot labels and domains."""
    labels = create_onehot(batch["label"], trainer.num_classes).to(trainer.device)
    return batch["img"].to(trainer.device), batch["img2"].to(trainer.device), labels, batch["domain"]


@TRAINER_REGISTRY.register()
class DAELDG(_Ensemble, TrainerX):
    """Domain adaptive ensemble learning for domain generalisation, without target images."""

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        """Take one step."""
        loss_x, accuracy, loss_cr = self.source_losses(self.source_features(*self.parse_batch_train(batch)))
        self.model_backward_and_update(loss_x + loss_cr)
        finish_batch(self)
        return numbers(loss_x=loss_x, acc=accuracy, loss_cr=loss_cr)

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return weak views, strong views, one-hot labels and domains."""
        return _source_parts(self, batch)


@TRAINER_REGISTRY.register()
class DAEL(_Ensemble, TrainerXU):
    """Domain adaptive ensemble learning for the adaptation of several source domains to a target."""

    def check_cfg(self, cfg: Any) -> None:
        """Raise ``ValueError`` for a config that does not suit the method."""
        super().check_cfg(cfg)
        require_own_unlabelled_loader(cfg)

    @torch.no_grad()
    def pseudo_labels(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return one-hot labels [B, C] of the most confident expert, and whether it reaches ``CONF_THRE`` [B]."""
        confidence, labels = self.all_experts(self.F(images)).max(2)  # [B, K]
        confidence, expert = confidence.max(1)  # [B]
        labels = labels.gather(1, expert[:, None])[:, 0]
        return create_onehot(labels, self.num_classes), (confidence >= self.node.CONF_THRE).float()

    def forward_backward(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> dict[str, float]:  # type: ignore[override]
        """Take one step on the source losses and on the ensemble's cross-entropy with pseudo-labels of the target."""
        weak, strong, labels, domains, weak_u, strong_u = self.parse_batch_train(batch_x, batch_u)
        labels_u, mask = self.pseudo_labels(weak_u)
        source = self.source_features(weak, strong, labels, domains)
        features_u = self.F(strong_u)
        loss_x, accuracy, loss_cr = self.source_losses(source)
        loss_u = (cross_entropy_of(self.all_experts(features_u).mean(1), labels_u) * mask).mean()
        self.model_backward_and_update(loss_x + loss_cr + loss_u * self.node.WEIGHT_U)
        finish_batch(self)
        return numbers(loss_x=loss_x, acc_x=accuracy, loss_cr=loss_cr, loss_u=loss_u)

    def parse_batch_train(  # type: ignore[override]  # Dassl's signature
        self, batch_x: dict[str, Any], batch_u: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        """Return weak views, strong views, one-hot labels and domains, then the target's weak and strong views."""
        unlabelled = (batch_u[name].to(self.device) for name in ("img", "img2"))
        return (*_source_parts(self, batch_x), *unlabelled)
