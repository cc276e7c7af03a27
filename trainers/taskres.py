"""TaskRes: a residual on the text-based classifier (Yu et al., CVPR 2023, arXiv 2211.10277)."""

import torch
from torch import Tensor, nn

from unskew.clip.prompts import fill
from unskew.clip.text import encode_prompts
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.trainer import TRAINER_REGISTRY


class Residual(nn.Module):
    """The classifier t + alpha * x of the text features t, with x initialised to zero (the paper's section 4.2).

    In the release, t is not normalised. A cosine depends only on directions, so this module returns
    ``t/|t| + alpha/|t| * x``: the same function of x, and exactly zero-shot CLIP at x = 0.

    Args:
        weights: [C, D], t/|t|.
        lengths: [C], |t|.
        alpha: scale of the residual.
    """

    weights: Tensor
    scale: Tensor

    def __init__(self, weights: Tensor, lengths: Tensor, alpha: float) -> None:
        super().__init__()
        self.residual = nn.Parameter(torch.zeros_like(weights))  # x, [C, D]
        self.register_buffer("weights", weights.clone())
        self.register_buffer("scale", alpha / lengths[:, None])  # [C, 1]

    def forward(self) -> Tensor:
        """Return the classifier [C, D], not normalised."""
        return self.weights + self.scale * self.residual


@TRAINER_REGISTRY.register()
class TaskRes(CLIPTrainer):
    """Train one vector per class, added to its text feature, by cross entropy; neither tower runs in training."""

    class_bound = True

    def build_model(self) -> None:
        texts = fill(self.dataset.template, self.classnames)
        with torch.no_grad():
            lengths = encode_prompts(self.backbone, texts).float().norm(dim=-1)  # [C]
        self.classifier = Residual(self.zeroshot_weights, lengths, self.node.RESIDUAL_SCALE)
        self.register_for_training("classifier", self.classifier, class_bound=True)

    def logits(self, image_features: Tensor) -> Tensor:
        return self.cosine_logits(image_features, self.classifier())

    def linear_head(self) -> tuple[Tensor, Tensor]:
        return self.cosine_head(self.classifier())
