"""CLIP-Adapter: a bottleneck on the image feature, blended in (Gao et al., IJCV 2024, arXiv 2110.04544)."""

import math

import torch
from torch import Tensor, nn

from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.trainer import TRAINER_REGISTRY


def build_adapter(width: int, reduction: int, generator: torch.Generator) -> nn.Sequential:
    """[B, D] -> [B, D]; two layers without bias, so that scaling a feature scales what comes out."""
    hidden = max(1, width // reduction)
    adapter = nn.Sequential(
        nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width, bias=False), nn.ReLU()
    )
    with torch.no_grad():
        for layer in (adapter[0], adapter[2]):
            bound = 1 / math.sqrt(layer.in_features)  # PyTorch's own, drawn from the generator
            layer.weight.uniform_(-bound, bound, generator=generator)
    return adapter


@TRAINER_REGISTRY.register()
class CLIPAdapter(CLIPTrainer):
    """f' = ratio * A(f) + (1 - ratio) * f, then cosine to the zero-shot text features (the paper's section 3.2)."""

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        node = self.node
        if not 0 <= node.RATIO <= 1:
            raise ValueError(f"TRAINER.{self.node_name}.RATIO must be in [0, 1], got {node.RATIO}")
        if node.REDUCTION < 1:
            raise ValueError(f"TRAINER.{self.node_name}.REDUCTION must be 1 or more, got {node.REDUCTION}")

    def build_model(self) -> None:
        width = self.zeroshot_weights.shape[1]
        self.adapter = build_adapter(width, self.node.REDUCTION, self.generator)
        self.register_for_training("adapter", self.adapter)

    def logits(self, image_features: Tensor) -> Tensor:
        ratio = self.node.RATIO
        adapted = ratio * self.adapter(image_features) + (1 - ratio) * image_features  # [B, D]
        return self.cosine_logits(adapted, self.zeroshot_weights)
