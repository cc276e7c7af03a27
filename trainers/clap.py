"""CLAP: a class-adaptive linear probe (Silva-Rodriguez et al., CVPR 2024, arXiv 2312.12730)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from unskew.clip.prompts import fill
from unskew.clip.text import encode_prompts
from unskew.debias import losses
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.feature_loader import FeatureLoader
from unskew.engine.trainer import TRAINER_REGISTRY
from unskew.utils.blocks import row_blocks
from unskew.utils.seeds import derive_seed


class PooledViews(FeatureLoader):
    """Batches from all views of all images; an epoch has as many as one view of each image would fill."""

    _pool: Tensor | None = None  # [N * V, D]

    def pool(self) -> tuple[Tensor, Tensor]:
        """Return features [N * V, D] and labels [N * V]; with 0 views, those of a new view each epoch."""
        if not self.views:
            return self._view(), self.labels
        if self._pool is None:
            self._pool = self.encode(self.paths, range(self.views), True).flatten(0, 1)
        return self._pool, self.labels.repeat_interleave(self.views)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        features, labels = self.pool()
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        order = torch.randperm(len(labels), generator=generator)
        for places, share in self.batches(len(order)):
            chosen = order[places]
            yield {"features": features[chosen.to(features.device)], "label": labels[chosen], **share}


@TRAINER_REGISTRY.register()
class CLAP(CLIPTrainer):
    """A cosine classifier that starts at the text features, with a penalty for each class's distance from them.

    The penalty is mean_c(lambda_c |w_c - t_c|^2). lambda_c is fixed: the mean zero-shot probability of class c for its
    own training images. A class without images has 1, the largest value.
    """

    class_bound = True

    def build_data_loader(self) -> None:
        super().build_data_loader()
        loader, views = self.train_loader_x, self.cfg.INPUT.VIEWS
        self.train_loader_x = PooledViews(
            self.dataset.train_x, loader.encode, loader.batch_size, views, loader.seed, loader.rank, loader.world
        )

    def build_model(self) -> None:
        texts = fill(self.dataset.template, self.classnames)
        with torch.no_grad():
            lengths = encode_prompts(self.backbone, texts).float().norm(dim=-1, keepdim=True)  # [C, 1]
        self.texts = lengths * self.zeroshot_weights  # [C, D], not normalised, as released
        self.head = nn.Linear(self.texts.shape[1], self.num_classes, bias=False)
        self.head.weight.data = self.texts.clone()
        self.register_for_training("head", self.head, class_bound=True)

    def before_train(self) -> None:
        super().before_train()
        self.multipliers = self.initial_multipliers()

    @torch.no_grad()
    def initial_multipliers(self) -> Tensor:
        """Return lambda [C] over all views of the training images."""
        features, labels = self.train_loader_x.pool()
        labels = labels.to(self.device)
        sums = torch.zeros(self.num_classes, device=self.device)
        for rows in row_blocks(len(labels), self.num_classes):
            p = self.cosine_logits(features[rows], self.zeroshot_weights).softmax(1)
            sums.index_add_(0, labels[rows], p.gather(1, labels[rows, None])[:, 0])
        counts = labels.bincount(minlength=self.num_classes)
        return torch.where(counts > 0, sums / counts.clamp_min(1), 1.0)

    def logits(self, image_features: Tensor) -> Tensor:
        return self.cosine_logits(image_features, self.head.weight)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy and the penalty of the present weights."""
        distances = (self.head.weight - self.texts).square().sum(1)  # [C]
        return losses.cross_entropy(logits, labels) + (self.multipliers * distances).mean()

    def linear_head(self) -> tuple[Tensor, Tensor]:
        return self.cosine_head(self.head.weight)
