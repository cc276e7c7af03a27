"""GLA, Generalized Logit Adjustment (Zhu et al., NeurIPS 2023, arXiv 2310.08106)."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from yacs.config import CfgNode

from unskew.calibration import remaining_bias
from unskew.engine import TRAINER_REGISTRY
from unskew.prior import adjust, read_prior
from unskew.trainers import debiasedzeroshot, ensemble

logger = logging.getLogger("unskew")


def defaults() -> CfgNode:
    return CfgNode(
        {
            **ensemble.defaults(),
            **debiasedzeroshot.defaults(),
            "RHO": "val",  # share of log q that fine-tuning has left: fitted on val, or a number; 0 in the paper
            "TARGET": "uniform",  # label prior of the test images: uniform, train, or a file as for PRIOR
        }
    )


@TRAINER_REGISTRY.register()
class GLA(ensemble.Ensemble):
    """Logits = ft/T_ft + zs/T_zs - (1 + rho) log q - log p + log target.

    With rho 0 it is the paper's f_gla, both halves calibrated: right if the fine-tuned model has lost the bias of its
    pre-training. After a few shots it has not, and rho is the share that it has kept.
    """

    def build_terms(self) -> ensemble.Terms:
        log_q, temperature = debiasedzeroshot.pretraining_prior(self)
        return ensemble.Terms(
            zeroshot_temperature=temperature,
            finetuned_temperature=1.0,
            log_q=log_q,  # [C], label prior of the pre-training data
            log_p=self._log_p(),  # [C], label prior that the base has learned from the training images
            log_target=self._log_target(),  # [C], label prior of the test images
            rho=self._rho(),
        )

    def _log_train_frequencies(self) -> Tensor:
        """[C]; zero for balanced shots, where it would cancel."""
        labels = torch.tensor([item.label for item in self.dataset.train_x])
        counts = torch.bincount(labels, minlength=self.num_classes).clamp_min(1)
        return torch.zeros(self.num_classes) if len(counts.unique()) == 1 else (counts / counts.sum()).log()

    def _log_p(self) -> Tensor:
        return torch.zeros(self.num_classes) if self.base.logit_adjusted else self._log_train_frequencies()

    def _log_target(self) -> Tensor:
        if self.node.TARGET == "uniform":
            return torch.zeros(self.num_classes)
        if self.node.TARGET == "train":
            return self._log_train_frequencies()
        return read_prior(self.node.TARGET, self.classnames)

    def _rho(self) -> float:
        """The number that the config gives; where it is to be fitted, 0 until then."""
        if self.node.RHO == "val":
            return 0.0
        try:
            rho = float(self.node.RHO)
        except ValueError:
            rho = -1.0
        if not 0 <= rho <= 1:
            raise ValueError(f"TRAINER.GLA.RHO must be val or a number in [0, 1], got '{self.node.RHO}'")
        return rho

    def calibrate(self) -> tuple[list[str], Tensor, Tensor]:
        paths, labels, finetuned = super().calibrate()
        if self.node.RHO == "val":
            balanced = finetuned / self.terms.finetuned_temperature - self.terms.log_p
            self.terms.rho.fill_(remaining_bias(balanced, labels, self.terms.log_q))
        return paths, labels, finetuned

    def parts(self, paths: Sequence[str], finetuned: Tensor) -> dict[str, Tensor]:
        t = self.terms
        parts = super().parts(paths, finetuned)
        debiased = parts["ft"] - t.rho * t.log_q  # what fine-tuning has left, if rho is fitted
        gla = adjust(debiased, parts["zs"], t.log_q, t.log_p, t.log_target)
        return {**parts, "debiased": parts["zs"] - t.log_q, "gla": gla}
