"""The cosine head of long-tailed recognition and its initialisations."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STARTS = ("text", "class_mean", "linear_probe", "random")


class CosineHead(nn.Module):
    """A head scale * cos(feature, row): [B, D] -> [B, C], in float32; the length of a row has no effect.

    Args:
        rows: [C, D], the initial rows; they are normalised.
        scale: factor of the cosine.
    """

    def __init__(self, rows: Tensor, scale: float = 25.0) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(F.normalize(rows.detach().float(), dim=-1).clone()), scale

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, C] of features [B, D]."""
        with torch.autocast(features.device.type, enabled=False):  # low precision would lose half of the digits
            return self.scale * F.normalize(features.float(), dim=-1) @ F.normalize(self.weight, dim=-1).T


def class_means(features: Tensor, labels: Tensor, fallback: Tensor) -> Tensor:
    """Return the normalised mean [C, D] of each class's normalised features.

    Args:
        features: [N, D].
        labels: [N].
        fallback: [C, D], rows of the classes without images.
    """
    sums = torch.zeros_like(fallback).index_add_(0, labels, F.normalize(features, dim=-1).to(fallback))
    absent = torch.bincount(labels, minlength=len(fallback)) == 0
    return F.normalize(torch.where(absent[:, None], fallback, sums), dim=-1)


def linear_probe(
    features: Tensor, labels: Tensor, start: Tensor, loss: Callable[[Tensor, Tensor], Tensor], scale: float = 25.0
) -> Tensor:
    """Return rows [C, D] of the cosine head that minimises ``loss`` on fixed features, by L-BFGS.

    Cosines are bounded, so a minimum exists for all features. L-BFGS finds a local one.

    Args:
        features: [N, D].
        labels: [N].
        start: [C, D], the initial rows.
        loss: function of logits [N, C] and labels [N].
        scale: factor of the cosine.
    """
    head = CosineHead(start, scale)
    search = torch.optim.LBFGS(head.parameters(), max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        search.zero_grad()
        value = loss(head(features), labels)
        value.backward()
        return value

    search.step(objective)
    return F.normalize(head.weight.detach(), dim=-1)
