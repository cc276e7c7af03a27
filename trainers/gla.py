"""GLA, Generalized Logit Adjustment (Zhu et al., NeurIPS 2023, arXiv 2310.08106)."""

import torch
from torch import Tensor
from yacs.config import CfgNode

from unskew.debias.combination import SUM, Combination, combine, fit_combination
from unskew.debias.io import read_prior
from unskew.engine.debiasing import FittedTerms, check_choice, check_prior, pretraining_prior
from unskew.engine.trainer import TRAINER_REGISTRY
from unskew.trainers import ensemble


@TRAINER_REGISTRY.register()
class GLA(ensemble.Ensemble):
    """Logits = a (ft/T_ft - log p - rho log q) + b (zs/T_zs - log q) + log target.

    With rho 0 and a = b = 1 it is the paper's f_gla, both halves calibrated; `unskew.debias.gla` says what rho, a and
    b are for.
    """

    logit_adjusted = True  # log p is out of its logits, whatever its base has learned

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        check_prior(cfg, "GLA")
        check_choice(cfg, "GLA.COMBINE", ("fitted", "sum"))
        check_choice(cfg, "GLA.TARGET", ("uniform", "train"), file=True)

    def build_terms(self) -> FittedTerms:
        return FittedTerms(
            self.classnames,
            zeroshot_temperature=1.0,
            finetuned_temperature=1.0,
            log_q=torch.zeros(self.num_classes),  # [C], label prior of the pre-training data
            log_p=torch.zeros(self.num_classes),  # [C], label prior that the base has learned from the training images
            log_target=torch.zeros(self.num_classes),  # [C], label prior of the test images
            **SUM._asdict(),
        )

    def fit_terms(self) -> None:
        log_q, temperature = pretraining_prior(self)
        log_p = torch.zeros(self.num_classes) if self.base.logit_adjusted else self._log_train_frequencies()
        self.terms.fill(zeroshot_temperature=temperature, log_q=log_q, log_p=log_p, log_target=self._log_target())

    def _log_train_frequencies(self) -> Tensor:
        """[C]; zero for balanced shots, where it would cancel."""
        labels = torch.tensor([item.label for item in self.dataset.train_x])
        counts = torch.bincount(labels, minlength=self.num_classes).clamp_min(1)
        return torch.zeros(self.num_classes) if len(counts.unique()) == 1 else (counts / counts.sum()).log()

    def _log_target(self) -> Tensor:
        if self.node.TARGET == "uniform":
            return torch.zeros(self.num_classes)
        if self.node.TARGET == "train":
            return self._log_train_frequencies()
        return read_prior(self.node.TARGET, self.classnames)

    def calibrate(self) -> Tensor | None:
        finetuned = super().calibrate()
        if finetuned is not None and self.node.COMBINE == "fitted":
            _, labels, zeroshot = self.val
            t, halves = self.terms, super().parts(zeroshot, finetuned)
            t.fill(**fit_combination(halves["zs"], halves["ft"], labels, t.log_q, t.log_p)._asdict())
        return finetuned

    def balanced(self, zeroshot: Tensor, finetuned: Tensor) -> Tensor:
        return super().balanced(zeroshot, finetuned) - self.terms.log_target  # val need not be as the test images are

    def parts(self, zeroshot: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        t = self.terms
        halves = super().parts(zeroshot, finetuned)
        combination = Combination(t.rho, t.ft_weight, t.zs_weight)
        gla = combine(halves["zs"], halves["ft"], t.log_q, combination, t.log_p, t.log_target)
        return {**halves, "debiased": halves["zs"] - t.log_q, "gla": gla}
