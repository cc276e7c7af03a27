"""CoOp: learn the words around the class name (Zhou et al. 2022, arXiv 2109.01134)."""

from torch import Tensor

from unskew.clip.prompts import LearnableContext
from unskew.clip.text import encode_prompts
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.trainer import TRAINER_REGISTRY


@TRAINER_REGISTRY.register()
class CoOp(CLIPTrainer):
    """Cross entropy over the context's token embeddings; both towers stay frozen."""

    def build_model(self) -> None:
        node = self.cfg.TRAINER.COOP
        self.prompt_learner = LearnableContext(
            self.backbone,
            self.classnames,
            n_ctx=node.N_CTX,
            ctx_init=node.CTX_INIT,
            csc=node.CSC,
            position=node.CLASS_TOKEN_POSITION,
            generator=self.generator,
        )
        self.register_for_training("prompt_learner", self.prompt_learner, class_bound=node.CSC)

    def logits(self, image_features: Tensor) -> Tensor:
        return self.cosine_logits(image_features, encode_prompts(self.backbone, self.prompt_learner()))
