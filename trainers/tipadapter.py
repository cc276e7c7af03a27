"""Tip-Adapter: a cache of the training images added to zero-shot CLIP (Zhang et al., ECCV 2022, arXiv 2111.03930)."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from unskew.debias.losses import cross_entropy
from unskew.engine.checkpoint import bind_to_classes
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.trainer import TRAINER_REGISTRY

logger = logging.getLogger("unskew")


class Cache(nn.Module):
    """The logits alpha * exp(-beta (1 - f K^T)) L, with keys K and one-hot labels L (the paper's section 3.1).

    alpha and beta are buffers, so that a checkpoint holds the values that the search found.

    Args:
        labels: [S], labels of the S training images.
        num_classes: C.
        width: D, width of the features.
        alpha: weight of the cache.
        beta: sharpness of the affinities.

    Attributes:
        keys: [S, D], zero until the trainer fills them.
        values: [S, C], one-hot labels.
    """

    values: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, labels: Tensor, num_classes: int, width: int, alpha: float, beta: float) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.zeros(len(labels), width))
        self.register_buffer("values", F.one_hot(labels, num_classes).float())
        self.register_buffer("alpha", torch.tensor(alpha))
        self.register_buffer("beta", torch.tensor(beta))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load a cache of any size into an empty one, which datasets with only test images have."""
        if not len(self.keys) and f"{prefix}keys" in state_dict:
            count = len(state_dict[f"{prefix}keys"])
            self.keys.data = self.keys.new_zeros(count, self.keys.shape[1])
            self.values = self.values.new_zeros(count, self.values.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, image_features: Tensor) -> Tensor:
        """Return the cache's logits [B, C] of normalised features [B, D]."""
        return self.alpha * cache_logits(image_features @ self.keys.T, self.values, self.beta)


def cache_logits(cosines: Tensor, values: Tensor, beta: float | Tensor) -> Tensor:
    """Return exp(-beta (1 - cosines)) values, [B, C], of cosines [B, S] and values [S, C]."""
    return (beta * (cosines - 1)).exp() @ values


def search_scales(
    zeroshot: Tensor, cosines: Tensor, values: Tensor, labels: Tensor, alphas: Sequence[float], betas: Sequence[float]
) -> tuple[float, float]:
    """Return the (alpha, beta) with the highest accuracy of ``zeroshot + alpha * cache_logits(...)``.

    A few-shot val split is small, so many pairs have the same accuracy; of these, the lowest cross entropy wins.

    Args:
        zeroshot: [N, C], zero-shot logits.
        cosines: [N, S], cosines of the images and the keys.
        values: [S, C], one-hot labels of the keys.
        labels: [N].
        alphas: candidates for alpha.
        betas: candidates for beta.
    """
    best, best_correct, best_loss = (alphas[0], betas[0]), -1, torch.inf
    for beta in betas:
        cache = cache_logits(cosines, values, beta)
        for alpha in alphas:
            logits = zeroshot + alpha * cache  # [N, C]
            correct = int((logits.argmax(1) == labels).sum())
            if correct < best_correct:
                continue
            loss = cross_entropy(logits, labels).item()
            if correct > best_correct or loss < best_loss:
                best, best_correct, best_loss = (alpha, beta), correct, loss
    return best


@TRAINER_REGISTRY.register()
class TipAdapter(CLIPTrainer):
    """Logits = zero-shot + cache, without training; the keys are training features averaged over the views."""

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        tops, steps = self.node.SEARCH_SCALE, self.node.SEARCH_STEP
        if len(tops) != 2 or len(steps) != 2 or min(steps) < 1:
            raise ValueError(
                f"TRAINER.{self.node_name}.SEARCH_SCALE and SEARCH_STEP must each be [for beta, for alpha], with steps "
                f"of at least 1 (got {tops} and {steps})"
            )

    def build_model(self) -> None:
        self.cache = self.build_cache().requires_grad_(False)
        self.register_model("cache", self.cache)

    def build_cache(self) -> Cache:
        """Return a cache of the training labels, with keys of zero."""
        _, labels = self.labelled(self.dataset.train_x)
        width = self.zeroshot_weights.shape[1]
        cache = Cache(labels.cpu(), self.num_classes, width, self.node.ALPHA, self.node.BETA)
        bind_to_classes(cache, self.classnames)
        return cache.to(self.device)

    def logits(self, image_features: Tensor) -> Tensor:
        zeroshot = self.cosine_logits(image_features, self.zeroshot_weights)
        return zeroshot + self.cache(F.normalize(image_features, dim=-1))

    def train(self) -> None:
        self.before_train()
        self.fill_cache()
        self.search()
        self.save_model(0, self.output_dir)
        self.after_train()

    @torch.no_grad()
    def fill_cache(self) -> None:
        """Set the keys to the mean feature of each image's views; with ``INPUT.VIEWS`` 0, to its feature."""
        paths, _ = self.labelled(self.dataset.train_x)
        views = self.cfg.INPUT.VIEWS
        rows = self._encode_views(paths, range(views)).sum(1) if views else self.encode(paths)
        self.cache.keys.copy_(F.normalize(rows, dim=-1))

    @torch.no_grad()
    def search(self) -> None:
        """Choose alpha and beta on val; without val, keep those of the config."""
        if not self.dataset.val:
            return
        paths, labels = self.labelled(self.dataset.val)
        image_features = F.normalize(self.encode(paths), dim=-1)
        zeroshot = self.cosine_logits(image_features, self.zeroshot_weights)
        betas, alphas = (
            [0.1 + i * (top - 0.1) / steps for i in range(steps)]
            for top, steps in zip(self.node.SEARCH_SCALE, self.node.SEARCH_STEP, strict=True)
        )
        cosines = image_features @ self.cache.keys.T
        alpha, beta = search_scales(zeroshot, cosines, self.cache.values, labels, alphas, betas)
        logger.info(f"{type(self).__name__}: alpha {alpha:.3g} and beta {beta:.3g} are the best on val")
        self.cache.alpha.fill_(alpha)
        self.cache.beta.fill_(beta)
