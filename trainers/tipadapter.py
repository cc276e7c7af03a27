"""Tip-Adapter: the few training images as a cache beside zero-shot CLIP (Zhang et al., ECCV 2022, arXiv 2111.03930)."""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unskew.debias.losses import cross_entropy
from unskew.engine.checkpoint import bind_to_classes
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.trainer import TRAINER_REGISTRY

logger = logging.getLogger("unskew")


class Cache(nn.Module):
    """alpha * exp(-beta (1 - f K^T)) L, with keys K and one-hot labels L (the paper's section 3.1).

    The keys are zero until they are filled; alpha and beta are buffers, so that a checkpoint holds what was chosen.
    """

    def __init__(self, labels: Tensor, num_classes: int, width: int, alpha: float, beta: float) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.zeros(len(labels), width))  # [S, D] of S training images
        self.register_buffer("values", F.one_hot(labels, num_classes).float())  # [S, C]
        self.register_buffer("alpha", torch.tensor(alpha))
        self.register_buffer("beta", torch.tensor(beta))

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """On a set that has test images only there are no keys: as many as the checkpoint's are made for them."""
        if not len(self.keys) and f"{prefix}keys" in state_dict:
            count = len(state_dict[f"{prefix}keys"])
            self.keys.data = self.keys.new_zeros(count, self.keys.shape[1])
            self.values = self.values.new_zeros(count, self.values.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, image_features: Tensor) -> Tensor:
        """[B, D], rows of norm one -> [B, C]."""
        return self.alpha * recall(image_features @ self.keys.T, self.values, self.beta)


def recall(cosines: Tensor, values: Tensor, beta: float | Tensor) -> Tensor:
    """exp(-beta (1 - cosines)) values: [B, S], [S, C] -> [B, C]."""
    return (beta * (cosines - 1)).exp() @ values


def search_scales(
    zeroshot: Tensor, cosines: Tensor, values: Tensor, labels: Tensor, alphas: list[float], betas: list[float]
) -> tuple[float, float]:
    """The (alpha, beta) of highest accuracy of ``zeroshot + alpha * recall``.

    A few shots' val has few images, so that many pairs tie: then the one of lower cross entropy is better.

    Args:
        zeroshot: logits [N, C].
        cosines: [N, S], of the images to the keys.
        values: one-hot labels of the keys, [S, C].
        labels: [N].
    """
    chosen, most, least = (alphas[0], betas[0]), -1, torch.inf
    for beta in betas:
        cache = recall(cosines, values, beta)
        for alpha in alphas:
            logits = zeroshot + alpha * cache  # [N, C]
            correct = (logits.argmax(1) == labels).sum().item()
            if correct < most:
                continue
            loss = cross_entropy(logits, labels).item()
            if correct > most or loss < least:
                chosen, most, least = (alpha, beta), correct, loss
    return chosen


@TRAINER_REGISTRY.register()
class TipAdapter(CLIPTrainer):
    """Logits = zero-shot + cache; the keys are training features, averaged over the views. Nothing is trained."""

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        tops, steps = self.node.SEARCH_SCALE, self.node.SEARCH_STEP
        if len(tops) != 2 or len(steps) != 2 or min(steps) < 1:
            raise ValueError(
                f"TRAINER.{self.node_name}.SEARCH_SCALE and SEARCH_STEP take a value for beta and one for alpha, steps "
                f"of at least 1; got {tops} and {steps}"
            )

    def build_model(self) -> None:
        self.cache = self.build_cache().requires_grad_(False)
        self.register_model("cache", self.cache)

    def build_cache(self) -> Cache:
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
        """Keys from the mean over the kept views, of the images as they are with ``INPUT.VIEWS`` 0."""
        paths, _ = self.labelled(self.dataset.train_x)
        views = self.cfg.INPUT.VIEWS
        rows = self._encode_views(paths, range(views)).sum(1) if views else self.encode(paths)
        self.cache.keys.copy_(F.normalize(rows, dim=-1))

    @torch.no_grad()
    def search(self) -> None:
        """Choose alpha and beta on val; without it they stay as the config has them."""
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
