"""TaskRes: a residual on the text-based classifier (Yu et al., CVPR 2023, arXiv 2211.10277)."""

import torch
from torch import Tensor, nn

from unskew.clip.prompts import fill
from unskew.clip.text import encode_prompts
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.trainer import TRAINER_REGISTRY


class Residual(nn.Module):
    """t + alpha * x of the text features t, with x from zero (the paper's section 4.2).

    As released, t is not normalised. Only its direction counts in a cosine, so the classifier here is
    ``t/|t| + alpha/|t| * x``: the same function of x, and exactly zero-shot CLIP where x is zero.

    Args:
        weights: t/|t|, [C, D].
        lengths: |t|, [C].
    """

    def __init__(self, weights: Tensor, lengths: Tensor, alpha: float) -> None:
        super().__init__()
        self.residual = nn.Parameter(torch.zeros_like(weights))  # x, [C, D]
        self.register_buffer("weights", weights.clone())
        self.register_buffer("scale", alpha / lengths[:, None])  # [C, 1]

    def forward(self) -> Tensor:
        return self.weights + self.scale * self.residual  # [C, D]


@TRAINER_REGISTRY.register()
class TaskRes(CLIPTrainer):
    """Cross entropy over one vector per class, added to its text feature; neither tower runs in training."""

    def build_model(self) -> None:
        texts = fill(self.dataset.template, self.classnames)
        with torch.no_grad():
            lengths = encode_prompts(self.backbone, texts).float().norm(dim=-1)  # [C]
        self.classifier = Residual(self.zeroshot_weights, lengths, self.node.RESIDUAL_SCALE)
        self.register_for_training("classifier", self.classifier, class_bound=True)

    def logits(self, image_features: Tensor) -> Tensor:
        return self.cosine_logits(image_features, self.classifier())
