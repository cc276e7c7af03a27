"""Debiased zero-shot CLIP: the label prior of the pre-training data is taken out, nothing is trained.

The zero-shot half of GLA alone (Zhu et al., NeurIPS 2023, arXiv 2310.08106).
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from yacs.config import CfgNode

from unskew.calibration import fit_temperature
from unskew.clip_trainer import CLIPTrainer
from unskew.engine import TRAINER_REGISTRY
from unskew.prior import METHODS, estimate_log_prior, read_prior

logger = logging.getLogger("unskew")

# From this many shots on, the val images alone are enough to fit the prior and the zero-shot temperature.
ENOUGH_SHOTS = 20


def defaults() -> CfgNode:
    return CfgNode(
        {
            "PRIOR": "convex",  # convex, eigen, em, released, or a file of probabilities or counts in class order
            "STRENGTH": "1.0",  # kappa: pseudo-samples of the uniform prior; or cv
            "TEMPERATURE": "confidence",  # how logits are calibrated: confidence or nll
        }
    )


def pretraining_prior(trainer: CLIPTrainer) -> tuple[Tensor, float]:
    """log q [C] of the untouched model's pre-training and its temperature.

    Both are fitted on images that this model has never seen: train and val below 20 shots, else val.

    The trainer's own config node has `defaults`' keys.

    Raises:
        ValueError, FileNotFoundError: a key's value makes no sense, or the prior's file does not.
    """
    name = type(trainer).__name__.upper()
    node = trainer.cfg.TRAINER[name]
    paths, labels = trainer.labelled(_fitting_items(trainer))
    zeroshot = trainer.zeroshot_logits(paths)
    temperature = fit_temperature(zeroshot, labels, method=node.TEMPERATURE)
    if node.PRIOR not in METHODS:
        if not Path(node.PRIOR).suffix:
            raise ValueError(f"TRAINER.{name}.PRIOR must be {', '.join(METHODS)} or a file, got '{node.PRIOR}'")
        log_q = read_prior(node.PRIOR, trainer.classnames)
        _log(log_q, trainer.classnames, f"'{node.PRIOR}'")
        return log_q, temperature
    strength = _strength(node.STRENGTH, f"TRAINER.{name}.STRENGTH")
    estimate = estimate_log_prior(zeroshot / temperature, labels, method=node.PRIOR, strength=strength)
    if not estimate.converged:
        logger.warning(f"the prior by '{node.PRIOR}' has not converged to its optimum")
    _log(estimate.log_q, trainer.classnames, f"{node.PRIOR} on {len(labels):,} images")
    return estimate.log_q.float(), temperature


def _log(log_q: Tensor, classnames: Sequence[str], source: str) -> None:
    order = [classnames[label] for label in log_q.argsort(descending=True).tolist()]
    spread = float((log_q.max() - log_q.min()).exp())
    logger.info(
        f"pre-training prior ({source}): max/min {spread:.1f}, "
        f"most frequent {', '.join(order[:3])}, least {', '.join(order[:-4:-1])}"
    )


def _strength(text: str, key: str) -> float | str:
    if text == "cv":
        return text
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{key} must be a number of 0 or more, or cv; got '{text}'") from None


def _fitting_items(trainer: CLIPTrainer) -> list:
    train, val = trainer.dataset.train_x, trainer.dataset.val or []
    few = 0 < trainer.cfg.DATASET.NUM_SHOTS < ENOUGH_SHOTS
    return [*train, *val] if few or not val else val


class _Prior(torch.nn.Module):
    """What was fitted, as buffers that a checkpoint holds."""

    def __init__(self, log_q: Tensor, temperature: float) -> None:
        super().__init__()
        self.register_buffer("log_q", log_q)  # [C], label prior of the pre-training data
        self.register_buffer("temperature", torch.tensor(temperature))


@TRAINER_REGISTRY.register()
class DebiasedZeroshot(CLIPTrainer):
    """Logits = zs/T_zs - log q."""

    def build_model(self) -> None:
        self.prior = _Prior(*pretraining_prior(self)).to(self.device)
        self.register_model("prior", self.prior)

    def train(self) -> None:
        self.before_train()
        self.save_model(0, self.output_dir)
        self.after_train()

    def scores(self, paths: Sequence[str]) -> dict[str, Tensor]:
        """Logits [N, C] of zero-shot CLIP, calibrated, and without its prior; the last is `predict`'s."""
        zs = self.zeroshot_logits(paths) / self.prior.temperature
        return {"zs": zs, "debiased": zs - self.prior.log_q}

    def predict(self, paths: Sequence[str]) -> Tensor:
        return self.scores(paths)["debiased"]
