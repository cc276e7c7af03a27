"""Debiased zero-shot CLIP: zero-shot logits minus the label prior of the pre-training data, without training.

The method is the zero-shot half of GLA (Zhu et al., NeurIPS 2023, arXiv 2310.08106).
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from yacs.config import CfgNode

from unskew.data.dataset import Datum
from unskew.debias.affine import affine_form
from unskew.debias.prior import METHODS
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.debiasing import (
    SavedGLA,
    check_choice,
    check_prior,
    check_transductive,
    fit_zeroshot_prior,
    fitted_prior,
    fitting_items,
    prior_options,
    use_of_terms,
)
from unskew.engine.label_prior import LabelPrior
from unskew.engine.prediction import Prediction
from unskew.engine.trainer import TRAINER_REGISTRY
from unskew.engine.transfer import Use

logger = logging.getLogger("unskew")


@TRAINER_REGISTRY.register()
class DebiasedZeroshot(CLIPTrainer):
    """Logits = zs/T_zs - log q, or with ``COMBINE otter`` zs/T_zs minus the offset of its optimal transport."""

    logit_adjusted = True  # the zero-shot model was not trained on the training images
    calibrated = True
    has_fitted_terms = True

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        check_prior(cfg, self.node_name)
        check_choice(cfg, f"{self.node_name}.COMBINE", ("prior", "otter"))

    @property
    def transductive(self) -> bool:
        return self.gla.transductive

    def labelled_items(self) -> Sequence[Datum]:
        needs_labels = self.node.PRIOR in METHODS and self.node.PRIOR != "unlabelled"
        return fitting_items(self) if needs_labels else []

    def build_model(self) -> None:
        keys = {"log_q": "log_q_", "temperature": "zs_temperature_"}
        options = {**prior_options(self.node), "combine": "otter" if self.node.COMBINE == "otter" else "sum"}
        self.gla = SavedGLA(self.classnames, keys, self.node, **options).to(self.device)
        check_transductive(self, self.gla)
        self.register_model("prior", self.gla)

    def fit_zeroshot(self) -> None:
        """Fit the temperature and the prior."""
        fit_zeroshot_prior(self, self.gla, self.node.PRIOR)

    def label_prior(self) -> LabelPrior:
        return fitted_prior(self.gla)

    def train(self) -> None:
        self.before_train()
        self.fit_zeroshot()  # never resumed: the fit is fast, and the file of the prior may have changed
        self.save_model(0, self.output_dir)
        self.after_train()

    def load_model(self, directory: str | Path, epoch: int | None = None) -> None:
        use = use_of_terms(self, self.gla, "prior", directory)
        if use is Use.LOAD:
            super().load_model(directory, epoch)
        elif use is Use.FIT:
            logger.warning(f"'{directory}' was fitted with other settings; fitting the prior again")
            self.fit_zeroshot()

    def linear_head(self) -> tuple[Tensor, Tensor] | None:
        if self.transductive:
            return None
        return affine_form(self.gla, zs_only=True).of_heads(self.cosine_head(self.zeroshot_weights))

    def predict_parts(self, paths: Sequence[str]) -> Prediction:
        """Return the debiased logits, with the calibrated zero-shot logits as a part."""
        parts = self.gla.parts(self.zeroshot_logits(paths))
        return Prediction(parts["debiased"], parts)

    def predict(self, paths: Sequence[str]) -> Tensor:
        return self.predict_parts(paths).logits
