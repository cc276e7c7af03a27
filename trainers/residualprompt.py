"""The fine-tuned half of GLA: hand-made prompts plus a learned residual for each class.

The class-specific prompt of Zhu et al. 2023 (arXiv 2310.08106, few-shot experiments).
"""

from torch import Tensor

from unskew.clip.prompts import ResidualContext, fill
from unskew.clip.text import encode_prompts
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.trainer import TRAINER_REGISTRY


@TRAINER_REGISTRY.register()
class ResidualPrompt(CLIPTrainer):
    """Token embeddings of the hand-made prompt + a residual that starts at zero, so at zero-shot CLIP."""

    def build_model(self) -> None:
        self.prompt_learner = ResidualContext(self.backbone, fill(self.dataset.context_init, self.classnames))
        self.register_for_training("prompt_learner", self.prompt_learner, class_bound=True)

    def logits(self, image_features: Tensor) -> Tensor:
        return self.cosine_logits(image_features, encode_prompts(self.backbone, self.prompt_learner()))
