"""Tip-Adapter: a cache of the training images added to zero-shot CLIP (Zhang et al., ECCV 2022, arXiv 2111.03930)."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from unskew.engine.checkpoint import bind_to_classes
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.trainer import TRAINER_REGISTRY
from unskew.utils.blocks import row_blocks

logger = logging.getLogger("unskew")

BLOCK = 2**21  # affinities of a block of images, so that they stay in a processor's cache

DEVICE_BLOCK = 2**27  # the same on an accelerator


class Cache(nn.Module):
    """The logits alpha * exp(-beta (1 - f K^T)) L, with keys K and one-hot labels L (the paper's section 3.1).

    The product with L is a sum over the keys of each class, so L itself is never built. alpha and beta are buffers, so
    that a checkpoint holds the values that the search found.

    Args:
        labels: [S], labels of the S training images.
        num_classes: C.
        width: D, width of the features.
        alpha: weight of the cache.
        beta: sharpness of the affinities.

    Attributes:
        keys: [S, D], zero until the trainer fills them.
        labels: [S].
    """

    labels: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, labels: Tensor, num_classes: int, width: int, alpha: float, beta: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.keys = nn.Parameter(torch.zeros(len(labels), width))
        self.register_buffer("labels", labels)
        self.register_buffer("alpha", torch.tensor(alpha))
        self.register_buffer("beta", torch.tensor(beta))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict, strict: bool, missing_keys: list[str],
        unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Load a cache of any size into an empty one, which datasets with only test images have.

        Older checkpoints hold the one-hot labels [S, C] as ``values``.
        """
        values = state_dict.get(f"{prefix}values")
        if values is not None and values.shape[1:] == (self.num_classes,):
            state_dict[f"{prefix}labels"] = state_dict.pop(f"{prefix}values").argmax(1)
        labels = state_dict.get(f"{prefix}labels", self.labels)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            error_msgs.append(f"labels must be from 0 to {self.num_classes - 1}")
        if not len(self.keys) and f"{prefix}keys" in state_dict:
            count = len(state_dict[f"{prefix}keys"])
            self.keys.data = self.keys.new_zeros(count, self.keys.shape[1])
            self.labels = self.labels.new_zeros(count)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def forward(self, image_features: Tensor) -> Tensor:
        """Return the cache's logits [B, C] of normalised features [B, D]."""
        logits = image_features.new_zeros(image_features.shape[0], self.num_classes, dtype=torch.float32)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():  # an export has no number of images
            return self.alpha * logits.index_add(1, self.labels, self._affinities(image_features))
        for rows in image_blocks(len(logits), self.keys):
            logits[rows].index_add_(1, self.labels, self._affinities(image_features[rows]))
        return logits.mul_(self.alpha)

    def _affinities(self, image_features: Tensor) -> Tensor:
        """Return exp(-beta (1 - cosine)) of images and keys, [B, S]."""
        return (self.beta * (image_features @ self.keys.T - 1)).exp().float()


def image_blocks(count: int, keys: Tensor) -> list[slice]:
    """Return the images whose affinities with the keys [S, D] are computed at once, as slices."""
    return row_blocks(count, len(keys), BLOCK if keys.device.type == "cpu" else DEVICE_BLOCK)


# --- the search -------------------------------------------------------------------------------------


class Block(NamedTuple):
    """Some of the images of val."""

    zeroshot: Tensor  # [B, C], zero-shot logits
    cosines: Tensor  # [S, B], of the keys and the images
    labels: Tensor  # [B]

    def caches(self, support: Tensor, betas: Sequence[float]) -> Iterator[Tensor]:
        """Yield the cache's logits [B, C] for alpha = 1 and each beta, from the labels [S] of the keys."""
        shifted, affinities = self.cosines - 1, torch.empty_like(self.cosines)
        sums = self.zeroshot.new_empty(self.zeroshot.shape[::-1])  # [C, B]; rows are faster to add than columns
        for beta in betas:
            torch.mul(shifted, beta, out=affinities).exp_()
            yield sums.zero_().index_add_(0, support, affinities).T.contiguous()


def search_scales(
    blocks: Callable[[], Iterable[Block]], support: Tensor, alphas: Sequence[float], betas: Sequence[float]
) -> tuple[float, float]:
    """Return the (alpha, beta) with the highest accuracy of the zero-shot logits + alpha * the cache's logits.

    A few-shot val split is small, so many pairs have the same accuracy; of these, the lowest cross entropy wins, and
    then the first, with the alphas in the inner loop.

    Args:
        blocks: a function that yields the images, of which one block is in memory at a time.
        support: [S], labels of the keys.
        alphas: candidates for alpha.
        betas: candidates for beta.
    """
    correct = torch.zeros(len(betas), len(alphas), dtype=torch.long)
    for block in blocks():
        for counts, cache in zip(correct, block.caches(support, betas), strict=True):
            counts += correct_by_alpha(block.zeroshot, cache, block.labels, alphas)
    tied = (correct == correct.max()).nonzero().tolist()
    losses = mean_losses(blocks, support, [(betas[b], alphas[a]) for b, a in tied]) if len(tied) > 1 else [0.0]
    best, alpha = tied[losses.index(min(losses))]
    return alphas[alpha], betas[best]


def correct_by_alpha(zeroshot: Tensor, cache: Tensor, labels: Tensor, alphas: Sequence[float]) -> Tensor:
    """Return the number of correct predictions [A] of ``zeroshot + alpha * cache`` for each alpha.

    The logits are linear in alpha, so a class that wins at two alphas wins at all between them: only images whose
    prediction differs at the ends of an interval of alphas are predicted inside it.

    Args:
        zeroshot: [B, C].
        cache: [B, C].
        labels: [B].
        alphas: [A], in any order.
    """
    order = sorted(range(len(alphas)), key=alphas.__getitem__)
    counts = torch.zeros(len(alphas), dtype=torch.long)

    def predict(place: int, zeroshot: Tensor, cache: Tensor, labels: Tensor) -> Tensor:
        """Return the predictions and count the correct ones."""
        predicted = (zeroshot + alphas[order[place]] * cache).argmax(1)
        counts[order[place]] += int((predicted == labels).sum())
        return predicted

    data, last = (zeroshot, cache, labels), len(order) - 1
    low = predict(0, *data)
    intervals = [(0, last, data, low, predict(last, *data))] if last else []
    while intervals:
        first, last, data, low, high = intervals.pop()
        if last - first < 2:
            continue
        changed = low != high
        counts[order[first + 1 : last]] += int(((low == data[2]) & ~changed).sum())
        rows = changed.nonzero()[:, 0]
        if len(rows):
            data, low, high = (data[0][rows], data[1][rows], data[2][rows]), low[rows], high[rows]
            middle = (first + last) // 2
            between = predict(middle, *data)
            intervals += [(first, middle, data, low, between), (middle, last, data, between, high)]
    return counts


def mean_losses(
    blocks: Callable[[], Iterable[Block]], support: Tensor, pairs: Sequence[tuple[float, float]]
) -> list[float]:
    """Return the cross entropy, in float32, of each pair (beta, alpha); equal betas follow each other."""
    by_beta = {beta: [place for place, pair in enumerate(pairs) if pair[0] == beta] for beta, _ in pairs}
    totals, count = [0.0] * len(pairs), 0
    for block in blocks():
        count += len(block.labels)
        for places, cache in zip(by_beta.values(), block.caches(support, list(by_beta)), strict=True):
            for place in places:
                logits = block.zeroshot + pairs[place][1] * cache
                totals[place] += F.cross_entropy(logits, block.labels, reduction="sum").item()
    return torch.tensor([total / count for total in totals]).tolist()


@TRAINER_REGISTRY.register()
class TipAdapter(CLIPTrainer):
    """Logits = zero-shot + cache, without training; the keys are training features averaged over the views."""

    uses_val = True
    class_bound = True

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
        betas, alphas = (
            [0.1 + i * (top - 0.1) / steps for i in range(steps)]
            for top, steps in zip(self.node.SEARCH_SCALE, self.node.SEARCH_STEP, strict=True)
        )
        alpha, beta = search_scales(self._val_blocks, self.cache.labels, alphas, betas)
        logger.info(f"{type(self).__name__}: alpha {alpha:.3g} and beta {beta:.3g} are the best on val")
        self.cache.alpha.fill_(alpha)
        self.cache.beta.fill_(beta)

    def _val_blocks(self) -> Iterator[Block]:
        paths, labels = self.labelled(self.dataset.val)
        encoded = self.encode(paths)
        for rows in image_blocks(len(paths), self.cache.keys):
            features = F.normalize(encoded[rows], dim=-1)
            zeroshot = self.cosine_logits(features, self.zeroshot_weights)
            yield Block(zeroshot, self.cache.keys @ features.T, labels[rows])
