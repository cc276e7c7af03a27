"""CLIP-Adapter: a bottleneck blended with the image feature (Gao et al., IJCV 2024, arXiv 2110.04544)."""

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from unskew.clip.adapters import initialise_linear
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.trainer import TRAINER_REGISTRY


def build_adapter(width: int, reduction: int, generator: torch.Generator) -> nn.Sequential:
    """Return a bottleneck [B, D] -> [B, D] without biases, so that its output scales with its input.

    Args:
        width: D, width of the features.
        reduction: D divided by the width of the bottleneck.
        generator: generator of the initial weights.
    """
    hidden = max(1, width // reduction)
    down = initialise_linear(nn.Linear(width, hidden, bias=False), generator)
    up = initialise_linear(nn.Linear(hidden, width, bias=False), generator)
    return nn.Sequential(down, nn.ReLU(), up, nn.ReLU())


@TRAINER_REGISTRY.register()
class CLIPAdapter(CLIPTrainer):
    """f' = ratio * A(f) + (1 - ratio) * f, then the cosine with the zero-shot text features (paper, section 3.2)."""

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        node = self.node
        if not 0 <= node.RATIO <= 1:
            raise ValueError(f"TRAINER.{self.node_name}.RATIO must be in [0, 1] (got {node.RATIO})")
        if node.REDUCTION < 1:
            raise ValueError(f"TRAINER.{self.node_name}.REDUCTION must be 1 or more (got {node.REDUCTION})")

    def build_model(self) -> None:
        width = self.zeroshot_weights.shape[1]
        self.adapter = build_adapter(width, self.node.REDUCTION, self.generator)
        self.register_for_training("adapter", self.adapter)

    def logits(self, image_features: Tensor) -> Tensor:
        ratio = self.node.RATIO
        adapted = ratio * self.adapter(image_features) + (1 - ratio) * image_features  # [B, D]
        return self.cosine_logits(adapted, self.zeroshot_weights)
