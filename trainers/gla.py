"""GLA, Generalized Logit Adjustment (Zhu et al., NeurIPS 2023, arXiv 2310.08106)."""

import torch
from torch import Tensor
from yacs.config import CfgNode

from unskew.debias.io import read_prior
from unskew.engine.debiasing import (
    SavedGLA,
    check_choice,
    check_prior,
    fit_zeroshot_prior,
    fitted_prior,
    prior_options,
)
from unskew.engine.label_prior import LabelPrior
from unskew.engine.trainer import TRAINER_REGISTRY
from unskew.trainers import ensemble

# Buffers of the estimator by their key in a checkpoint.
_SAVED = {
    "zeroshot_temperature": "zs_temperature_",
    "finetuned_temperature": "ft_temperature_",
    "log_q": "log_q_",
    "log_p": "log_p_",
    "log_target": "log_target",
    "rho": "rho_",
    "ft_weight": "ft_weight_",
    "zs_weight": "zs_weight_",
    "offset": "offset_",
}


@TRAINER_REGISTRY.register()
class GLA(ensemble.Ensemble):
    """Logits = a (ft/T_ft - log p - rho log q) + b (zs/T_zs - log q) + log target.

    With rho 0 and a = b = 1 this is the paper's f_gla with both halves calibrated. With ``PRIOR unlabelled`` q is
    estimated on the images to predict, and with ``COMBINE otter`` they are assigned by optimal transport; see
    `unskew.debias.GLA`.
    """

    logit_adjusted = True  # log p is subtracted unless the base has none
    part_names = ("zs", "ft", "ensemble", "debiased", "gla")

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        check_prior(cfg, self.node_name)
        check_choice(cfg, f"{self.node_name}.COMBINE", ("map", "fitted", "sum", "otter"))
        check_choice(cfg, f"{self.node_name}.TARGET", ("uniform", "train"), file=True)

    def build_gla(self) -> SavedGLA:
        return SavedGLA(self.classnames, _SAVED, self.node, combine=self.node.COMBINE, **prior_options(self.node))

    def fit_zeroshot(self) -> None:
        log_target = self._log_target()  # a wrong file is an error before any image is encoded
        fit_zeroshot_prior(self, self.gla, self.node.PRIOR)
        no_prior = torch.zeros(self.num_classes)
        log_p = no_prior if self.base.logit_adjusted else self.log_train_frequencies()
        self.gla.log_p_, self.gla.log_target = log_p.to(self.device), log_target.to(self.device)

    def label_prior(self) -> LabelPrior:
        return fitted_prior(self.gla)

    def assumed_log_prior(self) -> Tensor:
        return self._log_target().double()

    def _log_target(self) -> Tensor:
        if self.node.TARGET == "uniform":
            return torch.zeros(self.num_classes)
        if self.node.TARGET == "train":
            return self.log_train_frequencies()
        return read_prior(self.node.TARGET, self.classnames)

    def selection_logits(self, zeroshot: Tensor, finetuned: Tensor) -> Tensor:
        """Return the logits ``[N, C]`` without the target prior: val need not have the label frequencies of test."""
        return self.gla.fitted_logits(zeroshot, finetuned)
