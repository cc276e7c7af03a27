"""Bias-corrected temperature scaling of zero-shot CLIP (Alexandari et al., ICML 2020, arXiv 1901.06852)."""

from collections.abc import Sequence

import torch
from yacs.config import CfgNode

from unskew.data.dataset import Datum
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.debiasing import SavedGLA, fitting_items
from unskew.engine.rivals import fit_zeroshot_bcts
from unskew.engine.trainer import TRAINER_REGISTRY
from unskew.trainers import debiasedzeroshot


@TRAINER_REGISTRY.register()
class BCTS(debiasedzeroshot.DebiasedZeroshot):
    """Logits = zs/T - bias, with T and a bias per class fitted on the images of GLA's zero-shot half.

    The fit ignores that the images per class are chosen and not drawn, and it does not weigh the model without a bias.
    Both are the differences from DebiasedZeroshot, whose log q the bias replaces.
    """

    not_a_base = "which adjusts the zero-shot half alone"
    transductive = False

    def check_cfg(self, cfg: CfgNode) -> None:
        CLIPTrainer.check_cfg(self, cfg)  # there is no PRIOR to check
        if not self.node.DEVIATION > 0:
            raise ValueError(f"TRAINER.{self.node_name}.DEVIATION must be above 0 (got {self.node.DEVIATION})")

    def build_model(self) -> None:
        keys = {"bias": "log_q_", "temperature": "zs_temperature_"}
        options = {"prior": torch.zeros(self.num_classes), "combine": "sum"}
        self.gla = SavedGLA(self.classnames, keys, self.node, **options).to(self.device)
        self.register_model("prior", self.gla)

    def fit_zeroshot(self) -> None:
        """Fit the temperature and the bias."""
        fit_zeroshot_bcts(self, self.gla, self.node.DEVIATION)

    def labelled_items(self) -> Sequence[Datum]:
        return fitting_items(self)

    def label_prior(self) -> None:
        """Return ``None``: the bias is not normalised to a prior."""
