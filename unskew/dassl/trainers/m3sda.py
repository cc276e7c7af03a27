"""Moment matching for multi-source domain adaptation (Peng et al., arXiv 1812.01754)."""

from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unskew.dassl.engine import SimpleNet, TrainerXU
from unskew.dassl.trainers._shared import (
    build_part,
    by_domain,
    feature_network,
    finish_batch,
    mean_of,
    numbers,
    require_domain_batches,
    require_one_step_per_batch,
    require_own_unlabelled_loader,
)
from unskew.dassl.trainers.mcd import discrepancy
from unskew.engine.trainer import TRAINER_REGISTRY


class PairClassifiers(nn.Module):
    """Two linear classifiers: features [B, D] -> two logits [B, C] in training, else those of the first."""

    def __init__(self, fdim: int, num_classes: int) -> None:
        super().__init__()
        self.c1 = nn.Linear(fdim, num_classes)
        self.c2 = nn.Linear(fdim, num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the logits."""
        return (self.c1(x), self.c2(x)) if self.training else self.c1(x)


def moment_distance(sources: list[Tensor], target: Tensor) -> Tensor:
    """Return the mean of `_mean_distance` for the means and for the variances of features [B, D] (equation 1).

    As in Dassl, the second moment is the variance, and distances are averaged over the pairs.
    """
    domains = [*sources, target]
    means = _mean_distance([features.mean(0) for features in domains])
    return (means + _mean_distance([features.var(0) for features in domains])) / 2


def _mean_distance(vectors: list[Tensor]) -> Tensor:
    """Return the mean Euclidean distance over the pairs of vectors [D], the last one's pairs first."""
    *sources, target = vectors
    pairs = [*((source, target) for source in sources), *combinations(sources, 2)]
    distances = [(first - second).square().sum().sqrt() for first, second in pairs]
    return mean_of(distances)


@TRAINER_REGISTRY.register()
class M3SDA(TrainerXU):
    """Features ``F`` with equal moments in all domains, and a pair of classifiers per source domain in ``C``."""

    F: SimpleNet
    C: nn.ModuleList

    def check_cfg(self, cfg: Any) -> None:
        """Raise ``ValueError`` for a config that does not suit the method."""
        require_domain_batches(cfg)
        require_own_unlabelled_loader(cfg)
        require_one_step_per_batch(cfg)

    def build_model(self) -> None:
        """Build ``F`` and ``C``."""
        build_part(self, "F", feature_network(self))
        sizes, domains = (self.F.fdim, self.num_classes), range(self.num_source_domains)
        build_part(self, "C", lambda: nn.ModuleList([PairClassifiers(*sizes) for _ in domains]))

    def _source_loss(self, parts: list[tuple], features: list[Tensor]) -> Tensor:
        """Return the mean over the domains of both classifiers' losses."""
        losses = []
        for (domain, _, labels), rows in zip(parts, features, strict=True):
            first, second = self.C[domain](rows)
            losses.append(F.cross_entropy(first, labels) + F.cross_entropy(second, labels))
        return mean_of(losses)

    def _discrepancy(self, parts: list[tuple], features: Tensor) -> Tensor:
        """Return the mean discrepancy of each domain's pair on the target's features."""
        return mean_of([discrepancy(*self.C[domain](features)) for domain, *_ in parts])

    def forward_backward(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> dict[str, float]:  # type: ignore[override]
        """Take the three steps of M3SDA-beta; the last one ``N_STEP_F`` times."""
        images, labels, domains, images_u = self.parse_batch_train(batch_x, batch_u)
        parts = list(by_domain(domains, images, labels))
        features = [self.F(x) for _, x, _ in parts]
        loss_a = self._source_loss(parts, features) + moment_distance(features, self.F(images_u)) * self.node.LMDA
        self.model_backward_and_update(loss_a)

        with torch.no_grad():
            features_u = self.F(images_u)
            features = [self.F(x) for _, x, _ in parts]
        loss_b = self._source_loss(parts, features) - self._discrepancy(parts, features_u)
        self.model_backward_and_update(loss_b, "C")

        for _ in range(self.node.N_STEP_F):
            loss_c = self._discrepancy(parts, self.F(images_u))
            self.model_backward_and_update(loss_c, "F")
        finish_batch(self)
        return numbers(loss_step_A=loss_a, loss_step_B=loss_b, loss_step_C=loss_c)

    def parse_batch_train(  # type: ignore[override]  # Dassl's signature
        self, batch_x: dict[str, Any], batch_u: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return labelled images, their labels, their domains and unlabelled images."""
        images, labels, images_u = super().parse_batch_train(batch_x, batch_u)
        return images, labels, batch_x["domain"], images_u

    def model_inference(self, input: Tensor) -> Tensor:
        """Return the mean probabilities [B, C] of the source domains' first classifiers."""
        features = self.F(input)
        return mean_of([pair(features).softmax(1) for pair in self.C])
