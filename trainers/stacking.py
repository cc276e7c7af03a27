"""Stacking of a fine-tuned and the zero-shot model (Wolpert, Neural Networks 5, 1992), with a bias per class."""

import dataclasses

import torch
from torch import Tensor

from unskew.debias.rivals import fit_stacking
from unskew.debias.temperature import fit_temperature
from unskew.engine.debiasing import SavedGLA
from unskew.engine.prediction import Prediction
from unskew.engine.rivals import fit_zeroshot_bcts
from unskew.engine.trainer import TRAINER_REGISTRY
from unskew.trainers import ensemble

# Buffers of the estimator by their key in a checkpoint.
_SAVED = {
    "zeroshot_temperature": "zs_temperature_",
    "finetuned_temperature": "ft_temperature_",
    "zeroshot_bias": "log_q_",
    "log_p": "log_p_",
    "ft_weight": "ft_weight_",
    "zs_weight": "zs_weight_",
    "bias": "offset_",
}


@TRAINER_REGISTRY.register()
class Stacking(ensemble.Ensemble):
    """Logits = a (ft/T_ft - log p) + b (zs/T_zs - bias) - d.

    T_zs and the bias are those of BCTS. The weights a and b and the offset d of each class are fitted on val with
    GLA's normal priors. The label prior q of GLA, with its deviations and its share rho, does not occur.
    """

    logit_adjusted = True  # log p is subtracted unless the base has none
    not_a_base = "which adds the zero-shot half itself"
    part_names = ("zs", "ft", "ensemble", "debiased", "gla")

    def build_gla(self) -> SavedGLA:
        return SavedGLA(self.classnames, _SAVED, self.node, prior=torch.zeros(self.num_classes))

    def fit_zeroshot(self) -> None:
        """Fit the temperature and the bias of the zero-shot half; until val is seen, the weights are their means."""
        super().fit_zeroshot()
        fit_zeroshot_bcts(self, self.gla)
        log_p = torch.zeros(self.num_classes) if self.base.logit_adjusted else self.log_train_frequencies()
        self.gla.keep(log_p=log_p, offset=torch.zeros(self.num_classes))

    def _fit_finetuned(self) -> Tensor:
        paths, labels, zeroshot = self.val
        finetuned = self.base.predict(paths)
        temperature = fit_temperature(finetuned, labels, method=self.node.TEMPERATURE)
        self.gla.keep(ft_temperature=temperature)
        parts = self.gla.parts(zeroshot, finetuned, names=("debiased", "ft"))
        fit = fit_stacking(parts["debiased"], parts["ft"] - self.gla.log_p_, labels)
        self.gla.keep(ft_weight=fit.ft_weight, zs_weight=fit.zs_weight, offset=torch.as_tensor(fit.bias))
        return finetuned

    def combine(self, zeroshot: Tensor, finetuned: Tensor) -> Prediction:
        """Combine both models' logits, ``[N, C]`` each; the part ``debiased`` is the prediction of BCTS."""
        prediction = super().combine(zeroshot, finetuned)
        parts = {"stacking" if name == "gla" else name: logits for name, logits in prediction.parts.items()}
        return dataclasses.replace(prediction, parts=parts)
