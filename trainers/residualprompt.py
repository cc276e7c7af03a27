"""ResidualPrompt: a hand-made prompt plus a learned residual for each class.

The class-specific prompt of Zhu et al. 2023 (arXiv 2310.08106, few-shot experiments), the default base of GLA.
"""

from unskew.clip.prompts import ResidualContext, fill
from unskew.engine.prompt_trainer import PromptTrainer
from unskew.engine.trainer import TRAINER_REGISTRY


@TRAINER_REGISTRY.register()
class ResidualPrompt(PromptTrainer):
    """Train a residual on the token embeddings of the hand-made prompt. It starts at zero: zero-shot CLIP."""

    class_bound = True  # each class has its own residual

    def build_prompts(self) -> ResidualContext:
        return ResidualContext(self.backbone, fill(self.dataset.context_init, self.classnames))
