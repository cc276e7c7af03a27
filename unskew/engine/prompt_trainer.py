"""The base of the trainers that learn prompts."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from unskew.clip.prompts import POSITIONS, LearnableContext
from unskew.clip.text import encode_prompts
from unskew.engine.checkpoint import bind_to_shape
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.utils.registry import unknown_name


class PromptTrainer(CLIPTrainer):
    """A trainer whose classifier is the text features of learned prompts; both towers stay frozen.

    A method defines ``build_prompts``, which returns a module that gives the prompts of all classes.

    Attributes:
        prompt_learner: the module that ``build_prompts`` returned.
    """

    prompt_learner: nn.Module

    def check_context(self) -> None:
        """Raise ``ValueError`` for an unknown place of the class name, or a context without tokens."""
        node = self.node
        if node.CLASS_TOKEN_POSITION not in POSITIONS:
            key = f"TRAINER.{self.node_name}.CLASS_TOKEN_POSITION"
            raise ValueError(unknown_name(key, node.CLASS_TOKEN_POSITION, POSITIONS))
        if node.get("N_CTX", 1) < 1 and not node.CTX_INIT:
            raise ValueError(f"TRAINER.{self.node_name}.N_CTX must be 1 or more (got {node.N_CTX})")

    def build_prompts(self) -> nn.Module:
        """Return the module that gives the prompts of all classes."""
        raise NotImplementedError(f"{type(self).__name__} must define build_prompts()")

    def build_context(self, **options: Any) -> LearnableContext:
        """Return a context with the keys CSC and CLASS_TOKEN_POSITION of the trainer's node.

        Args:
            **options: further arguments of `LearnableContext`.
        """
        node: Mapping[str, Any] = self.node
        context = LearnableContext(
            self.backbone,
            self.classnames,
            csc=node["CSC"],
            position=node["CLASS_TOKEN_POSITION"],
            generator=self.generator,
            **options,
        )
        keys = [f"TRAINER.{self.node_name}.{key}" for key in ("N_CTX", "CTX_INIT", "CSC") if key in node]
        bind_to_shape(context, "ctx", ", ".join(keys))
        return context

    @classmethod
    def is_class_bound(cls, cfg: CfgNode) -> bool:
        """Return True for a context per class, whose weights belong to the classes."""
        return cls.class_bound or bool(cfg.TRAINER[cls.node_name_in(cfg)].get("CSC"))

    def build_model(self) -> None:
        """Build the prompts and register them for training."""
        self.prompt_learner = self.build_prompts()
        self.register_for_training("prompt_learner", self.prompt_learner, class_bound=self.is_class_bound(self.cfg))

    def text_features(self) -> Tensor:
        """Return the text features [C, D] of the current prompts."""
        return encode_prompts(self.backbone, self.prompt_learner())

    def logits(self, image_features: Tensor) -> Tensor:
        """Return the cosine logits [B, C] of image features [B, D]."""
        return self.cosine_logits(image_features, self.text_features())

    @torch.no_grad()
    def linear_head(self) -> tuple[Tensor, Tensor]:
        """Return the head of the current prompts, which need no text tower after training."""
        return self.cosine_head(self.text_features())
