"""What trainers share that fit something on the untouched zero-shot model."""

import logging
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from yacs.config import CfgNode

from unskew.data.sampling import sample_up_to
from unskew.debias.io import read_prior
from unskew.debias.prior import METHODS, estimate_log_prior
from unskew.debias.temperature import fit_temperature
from unskew.engine import checkpoint
from unskew.engine.checkpoint import digest
from unskew.engine.clip_trainer import CLIPTrainer

logger = logging.getLogger("unskew")

# With this many val images per class the training images need not be encoded for the prior as well.
ENOUGH_VAL = 20

# Images times classes: a gigabyte of logits.
MOST_LOGITS = 2**28


class FittedTerms(torch.nn.Module):
    """Fitted numbers, as buffers that a checkpoint holds, and a hash of the classes that they are of."""

    def __init__(self, classnames: Sequence[str], **values: Tensor | float) -> None:
        super().__init__()
        self.register_buffer("classes", digest(classnames))
        for name, value in values.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))

    @torch.no_grad()
    def fill(self, **values: Tensor | float) -> None:
        for name, value in values.items():
            getattr(self, name).copy_(torch.as_tensor(value))

    def matches_classes(self, folder: Path) -> bool:
        """Whether the last checkpoint in a folder is of these classes; a log prior of others must not be used."""
        path = checkpoint.last_checkpoint(folder)
        return path is None or torch.equal(
            checkpoint.load_checkpoint(path)["state_dict"]["classes"], self.classes.cpu()
        )


def fitting_items(trainer: CLIPTrainer) -> list:
    """Images for what is fitted on the untouched model: val if it is large, else train and val; it saw neither.

    Of very many, as iNaturalist's, as many of each class as `MOST_LOGITS` leaves room for.
    """
    train, val, classes = trainer.dataset.train_x, trainer.dataset.val or [], trainer.num_classes
    items = val if len(val) >= ENOUGH_VAL * classes else [*train, *val]
    if len(items) * classes <= MOST_LOGITS:
        return items
    return sample_up_to(items, max(1, MOST_LOGITS // classes**2), random.Random(0))


def pretraining_prior(trainer: CLIPTrainer) -> tuple[Tensor, float]:
    """log q [C] of the untouched model's pre-training and its temperature, as the trainer's own node says."""
    node = trainer.cfg.TRAINER[type(trainer).__name__.upper()]
    paths, labels = trainer.labelled(fitting_items(trainer))
    zeroshot = trainer.zeroshot_logits(paths)
    temperature = fit_temperature(zeroshot, labels, method=node.TEMPERATURE)
    if node.PRIOR in METHODS:
        strength = node.STRENGTH if node.STRENGTH == "cv" else float(node.STRENGTH)
        estimate = estimate_log_prior(zeroshot / temperature, labels, method=node.PRIOR, strength=strength)
        if not estimate.converged:
            logger.warning(f"the prior by '{node.PRIOR}' has not converged to its optimum")
        log_q, source = estimate.log_q.float(), f"{node.PRIOR} on {len(labels):,} images"
    else:
        log_q, source = read_prior(node.PRIOR, trainer.classnames), f"'{node.PRIOR}'"
    order = [trainer.classnames[label] for label in log_q.argsort(descending=True).tolist()]
    logger.info(
        f"pre-training prior ({source}): max/min {float((log_q.max() - log_q.min()).exp()):.1f}, "
        f"most frequent {', '.join(order[:3])}, least {', '.join(order[:-4:-1])}"
    )
    return log_q, temperature


# --- the keys of the config -------------------------------------------------------------------------


def check_choice(cfg: CfgNode, key: str, words: Sequence[str], file: bool = False) -> None:
    """``ValueError`` unless the key (``"GLA.PRIOR"``) is one of the words or, with ``file``, a file that exists."""
    trainer, _, name = key.partition(".")
    value = cfg.TRAINER[trainer][name]
    if value in words or (file and Path(value).is_file()):
        return
    choices = f"{', '.join(words)}{' or a file' if file else ''}"
    missing = f"; there is no file '{value}'" if file and Path(value).suffix else ""
    raise ValueError(f"TRAINER.{key} must be {choices}, got '{value}'{missing}")


def check_prior(cfg: CfgNode, trainer: str) -> None:
    """Raise ``ValueError`` unless PRIOR, STRENGTH and TEMPERATURE make sense in the trainer's node."""
    check_choice(cfg, f"{trainer}.TEMPERATURE", ("confidence", "nll"))
    check_choice(cfg, f"{trainer}.PRIOR", tuple(METHODS), file=True)
    strength = cfg.TRAINER[trainer].STRENGTH
    try:
        good = strength == "cv" or 0 <= float(strength) < float("inf")
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"TRAINER.{trainer}.STRENGTH must be a number of 0 or more, or cv; got '{strength}'")
