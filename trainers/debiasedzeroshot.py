"""Debiased zero-shot CLIP: the label prior of the pre-training data is taken out, nothing is trained.

The zero-shot half of GLA alone (Zhu et al., NeurIPS 2023, arXiv 2310.08106).
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from yacs.config import CfgNode

from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.debiasing import FittedTerms, check_prior, pretraining_prior
from unskew.engine.trainer import TRAINER_REGISTRY

logger = logging.getLogger("unskew")


@TRAINER_REGISTRY.register()
class DebiasedZeroshot(CLIPTrainer):
    """Logits = zs/T_zs - log q."""

    logit_adjusted = True  # it has never seen the label frequencies of the training images

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        check_prior(cfg, "DEBIASEDZEROSHOT")

    def build_model(self) -> None:
        self.terms = FittedTerms(self.classnames, log_q=torch.zeros(self.num_classes), temperature=1.0).to(self.device)
        self.register_model("prior", self.terms)

    def fit_terms(self) -> None:
        log_q, temperature = pretraining_prior(self)
        self.terms.fill(log_q=log_q, temperature=temperature)

    def train(self) -> None:
        self.before_train()
        self.fit_terms()  # never resumed: it costs nothing, and the prior's file may have changed
        self.save_model(0, self.output_dir)
        self.after_train()

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        if self.terms.matches_classes(Path(directory) / "prior"):
            super().load_model(directory, epoch)
        else:
            logger.warning(f"'{directory}' is of other classes: the prior is fitted again, for these")
            self.fit_terms()

    def scores(self, paths: Sequence[str]) -> dict[str, Tensor]:
        """Logits [N, C] of zero-shot CLIP, calibrated, and without its prior; the last is `predict`'s."""
        zs = self.zeroshot_logits(paths) / self.terms.temperature
        return {"zs": zs, "debiased": zs - self.terms.log_q}

    def predict(self, paths: Sequence[str]) -> Tensor:
        return self.scores(paths)["debiased"]
