"""Bias-corrected temperature scaling of the zero-shot half, for the trainers that GLA is compared with."""

import logging

import torch

from unskew.data.saved_run import check_can_fit
from unskew.debias.rivals import DEVIATION, fit_bcts
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.debiasing import SavedGLA, fitting_items

logger = logging.getLogger("unskew")


def fit_zeroshot_bcts(trainer: CLIPTrainer, gla: SavedGLA, deviation: float = DEVIATION) -> None:
    """Set the estimator's zero-shot half to BCTS, fitted on the images that GLA fits it on; the bias replaces log q."""
    check_can_fit(trainer.dataset)
    paths, labels = trainer.labelled(fitting_items(trainer))
    fit = fit_bcts(trainer.zeroshot_logits(paths), labels, deviation=deviation)
    gla.keep(zs_temperature=fit.temperature, log_q=torch.as_tensor(fit.bias))
    logger.info(
        f"BCTS on {len(labels):,} images: temperature {fit.temperature:.3g}, bias from {float(fit.bias.min()):.3g} to "
        f"{float(fit.bias.max()):.3g}"
    )
