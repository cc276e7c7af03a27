"""CoOp: learned context tokens around the class name (Zhou et al. 2022, arXiv 2109.01134)."""

from yacs.config import CfgNode

from unskew.clip.prompts import LearnableContext
from unskew.engine.prompt_trainer import PromptTrainer
from unskew.engine.trainer import TRAINER_REGISTRY


@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    """Train the context's token embeddings by cross entropy."""

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        self.check_context()

    def build_prompts(self) -> LearnableContext:
        return self.build_context(n_ctx=self.node.N_CTX, ctx_init=self.node.CTX_INIT)
