"""GLA, Generalized Logit Adjustment (Zhu et al., NeurIPS 2023, arXiv 2310.08106)."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from yacs.config import CfgNode

from unskew.combination import SUM, Combination, combine, fit_combination
from unskew.engine import TRAINER_REGISTRY
from unskew.prior import read_prior
from unskew.trainers import debiasedzeroshot, ensemble

logger = logging.getLogger("unskew")


def defaults() -> CfgNode:
    return CfgNode(
        {
            **ensemble.defaults(),
            **debiasedzeroshot.defaults(),
            "COMBINE": "fitted",  # rho and both halves' weights are fitted on val; or sum, the paper's
            "TARGET": "uniform",  # label prior of the test images: uniform, train, or a file as for PRIOR
        }
    )


@TRAINER_REGISTRY.register()
class GLA(ensemble.Ensemble):
    """Logits = a (ft/T_ft - log p - rho log q) + b (zs/T_zs - log q) + log target.

    With rho 0 and a = b = 1 it is the paper's f_gla, both halves calibrated; `unskew.combination` says what rho, a and
    b are for.
    """

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        if cfg.TRAINER.GLA.COMBINE not in ("fitted", "sum"):
            raise ValueError(f"TRAINER.GLA.COMBINE must be fitted or sum, got '{cfg.TRAINER.GLA.COMBINE}'")

    def build_terms(self) -> ensemble.Terms:
        log_q, temperature = debiasedzeroshot.pretraining_prior(self)
        return ensemble.Terms(
            zeroshot_temperature=temperature,
            finetuned_temperature=1.0,
            log_q=log_q,  # [C], label prior of the pre-training data
            log_p=self._log_p(),  # [C], label prior that the base has learned from the training images
            log_target=self._log_target(),  # [C], label prior of the test images
            **SUM._asdict(),
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

    def calibrate(self) -> tuple[list[str], Tensor, Tensor]:
        paths, labels, finetuned = super().calibrate()
        if self.node.COMBINE == "fitted":
            t, halves = self.terms, super().parts(paths, finetuned)
            fitted = fit_combination(halves["ft"], halves["zs"], labels, t.log_q, t.log_p)
            for name, value in fitted._asdict().items():
                getattr(t, name).fill_(value)
        return paths, labels, finetuned

    def parts(self, paths: Sequence[str], finetuned: Tensor) -> dict[str, Tensor]:
        t, halves = self.terms, super().parts(paths, finetuned)
        combination = Combination(t.rho, t.ft_weight, t.zs_weight)
        gla = combine(halves["ft"], halves["zs"], t.log_q, combination, t.log_p, t.log_target)
        return {**halves, "debiased": halves["zs"] - t.log_q, "gla": gla}
