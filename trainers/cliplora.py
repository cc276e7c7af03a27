"""CLIP-LoRA: low-rank adaptation of both towers (Zanella and Ben Ayed, CVPR 2024 workshops, arXiv 2405.18541)."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from unskew import config
from unskew.clip import adapters, dropout, lora
from unskew.clip.prompts import fill
from unskew.clip.text import encode_prompts
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.image_models import ImageModel
from unskew.engine.optim import build_lr_scheduler, build_optimizer
from unskew.engine.trainer import TRAINER_REGISTRY
from unskew.utils.logging import warn_once


@TRAINER_REGISTRY.register()
class CLIPLoRA(CLIPTrainer):
    """Cosine logits of both towers, whose attention has LoRA for queries, keys and values; it trains on images.

    The number of steps is ``ITERATIONS`` per shot, at most ``OPTIM.MAX_EPOCH`` epochs; the schedule counts steps, not
    epochs. An image tower without CLIP's attention blocks (a ResNet) stays frozen, and the text tower alone is trained,
    on cached features.

    Attributes:
        tuned: the backbone with LoRA in its towers, which shares the frozen weights.
        low_rank: the LoRA modules, which the checkpoints hold.
        steps: number of training steps.
    """

    _text_features: Tensor | None = None  # those of a prediction, computed once for all its batches

    @property
    def needs_images(self) -> bool:
        return adapters.is_transformer(self.backbone.visual)

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        node = self.node
        if node.RANK < 1 or not 0 <= node.DROPOUT < 1 or node.ITERATIONS < 1:
            raise ValueError(
                f"TRAINER.{self.node_name}.RANK and ITERATIONS must be at least 1, and DROPOUT from 0 to below 1 (got "
                f"{node.RANK}, {node.ITERATIONS} and {node.DROPOUT})"
            )

    def build_model(self) -> None:
        node = self.node
        if not self.needs_images:
            warn_once(
                f"the image tower of backbone '{self.backbone.name}' has no attention blocks: CLIPLoRA adapts the text "
                "tower alone; the published method needs a vision transformer, such as ViT-B/16"
            )
        options = {"parts": "qkv", "scale": node.ALPHA / math.sqrt(node.RANK), "dropout": node.DROPOUT}
        self.tuned, self.low_rank = lora.with_low_rank(
            self.backbone, lambda width: adapters.LowRank(width, node.RANK, self.generator, **options)
        )
        self.texts = fill(node.TEMPLATE or self.dataset.templates[0], self.classnames)
        self._plan_steps()
        optimizer = build_optimizer(self.low_rank, self.cfg.OPTIM)
        counted = config.derive(self.cfg, {"OPTIM.MAX_EPOCH": self.steps}).OPTIM
        self.register_model("lora", self.low_rank, optimizer, build_lr_scheduler(optimizer, counted))

    # --- steps --------------------------------------------------------------------------------------

    def _plan_steps(self) -> None:
        """Set the numbers of steps and epochs."""
        images = len(self.dataset.train_x or [])
        batches = len(self.train_loader_x) if images else 0
        shots = self.cfg.DATASET.NUM_SHOTS
        shots = shots if shots > 0 else max(1, round(images / self.num_classes))
        self.steps = min(self.node.ITERATIONS * shots, self.cfg.OPTIM.MAX_EPOCH * batches)
        self.max_epoch = -(-self.steps // batches) if images else 0

    def run_epoch(self) -> None:
        """Train on each batch once; the last epoch ends with the last step."""
        batches = len(self.train_loader_x)
        self.num_batches = min(batches, self.steps - self.epoch * batches)
        self._run_batches((batch,) for batch in itertools.islice(self.train_loader_x, self.num_batches))

    def forward_backward(self, batch: dict) -> dict[str, Tensor]:
        numbers = super().forward_backward(batch)
        self.update_lr()
        return numbers

    # --- prediction ---------------------------------------------------------------------------------

    def text_features(self) -> Tensor:
        """Return the text features [C, D] of the adapted text tower."""
        return encode_prompts(self.tuned, self.texts)

    def logits(self, inputs: Tensor) -> Tensor:
        """Return the logits [B, C] of images [B, 3, H, W] or, if the image tower is frozen, of features [B, D]."""
        with dropout.of_batch(self.batch_share):
            features = self.tuned.encode_image(inputs) if self.needs_images else inputs
        text = self.text_features() if self._text_features is None else self._text_features
        return self.cosine_logits(features.float(), text)

    @torch.no_grad()
    def predict(self, paths: Sequence[str]) -> Tensor:
        self.set_model_mode("eval")
        with self.accelerator.autocast():
            self._text_features = self.text_features()
        try:
            return super().predict(paths)
        finally:
            self._text_features = None

    @torch.no_grad()
    def linear_head(self) -> tuple[Tensor, Tensor] | None:
        if self.needs_images:
            return None
        self.set_model_mode("eval")
        return self.cosine_head(self.text_features())

    @torch.no_grad()
    def image_model(self) -> nn.Module:
        if not self.needs_images:
            return super().image_model()
        self.set_model_mode("eval")
        text = self.text_features()
        function = lambda images: self.cosine_logits(self.tuned.encode_image(images).float(), text)  # noqa: E731
        return ImageModel(self, function, [self.tuned.visual])
