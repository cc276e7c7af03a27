"""Parts of the trainers that use the zero-shot model: the GLA estimator in checkpoints, its images, its config keys."""

import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from unskew.data.dataset import Datum
from unskew.data.sampling import sample_for_logits
from unskew.data.saved_run import SAVED_RUN, check_can_fit
from unskew.debias import temperature
from unskew.debias.gla import ENOUGH_HELD_OUT, GLA
from unskew.debias.io import read_prior
from unskew.debias.prior import JOINT, METHODS
from unskew.engine.checkpoint import class_fingerprint
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.label_prior import LabelPrior
from unskew.engine.transfer import Use, saved_state, use_of
from unskew.utils.derived_tensors import Sum

logger = logging.getLogger("unskew")


# --- fitted numbers in checkpoints ------------------------------------------------------------------


class FittedTerms(torch.nn.Module):
    """Fitted numbers as buffers for a checkpoint, with a fingerprint of their classes."""

    classes: Tensor

    def __init__(self, classnames: Sequence[str], **values: Tensor | float) -> None:
        super().__init__()
        self.register_buffer("classes", class_fingerprint(classnames))
        for name, value in values.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))

    @torch.no_grad()
    def fill(self, **values: Tensor | float) -> None:
        """Set the numbers."""
        for name, value in values.items():
            getattr(self, name).copy_(torch.as_tensor(value))


# Keys of a trainer's node that decide the numbers of its estimator.
_SETTINGS = ("PRIOR", "STRENGTH", "COMBINE", "TEMPERATURE", "TARGET")


class SavedGLA(GLA):
    """A GLA estimator in float32 for a checkpoint, with a fingerprint of its classes and settings.

    Attributes:
        log_target: ``[C]``, log prior of the test images; zeros for uniform.
    """

    classes: Tensor
    log_target: Tensor

    def __init__(self, classnames: Sequence[str], keys: Mapping[str, str], node: CfgNode, **options: Any) -> None:
        """Create an estimator without bias.

        Args:
            classnames: Names of the C classes.
            keys: Buffer by key of the checkpoint; the other buffers are not saved.
            node: The trainer's node, whose settings of the estimator belong to the fingerprint.
            **options: Arguments of `GLA`.
        """
        super().__init__(**options)
        self.keys = {"classes": "classes", **keys}
        self.classnames = list(classnames)
        self.register_buffer("classes", class_fingerprint(self.identity(node)))
        for name in ("log_q_", "log_p_", "offset_", "log_target"):
            self.register_buffer(name, torch.zeros(len(classnames)))
        self.float()

    def identity(self, node: Mapping[str, Any]) -> list[str]:
        """Return the texts of the fingerprint: the classes, and the settings in a trainer's node."""
        return [*self.classnames, *(f"{key} {node[key]}" for key in _SETTINGS if key in node)]

    def carry_over(self, state: Mapping[str, Any]) -> None:
        """Take the temperatures and weights in the state of other classes; there is no prior, offset or target.

        Raises:
            ValueError: a number is missing.
        """
        for key, name in self.keys.items():
            buffer = getattr(self, name)
            if buffer.dim():
                setattr(self, name, torch.zeros_like(buffer))
            elif key not in state:
                raise ValueError(f"its checkpoint has no {key}: train again")
            elif key != "classes":
                self._store(name, state[key])

    def numbers(self) -> dict[str, float]:
        """Return the saved scalars by key of the checkpoint."""
        values = {key: getattr(self, name) for key, name in self.keys.items() if key != "classes"}
        return {key: float(value) for key, value in values.items() if value.dim() == 0}

    def keep(self, **values: Tensor | float) -> None:
        """Set fitted numbers by the name of their buffer without the underscore at its end."""
        for name, value in values.items():
            self._store(f"{name}_", value)

    def sums(self) -> dict[str, Sum]:
        """Return the terms of the parts that are sums, see `Prediction`."""
        ensemble: dict[str, Sum] = {"ensemble": ("ft", "zs")}
        return ensemble if self.transductive else {**ensemble, "debiased": ("zs", -self.log_q_)}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for key, name in self.keys.items():
            destination[prefix + key] = getattr(self, name).detach()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        *rest: Any,
    ) -> None:
        state = {prefix + name: buffer for name, buffer in self.named_buffers()}
        for key, name in self.keys.items():
            if prefix + key in state_dict:
                state[prefix + name] = state_dict[prefix + key]
            elif name == "offset_":  # older checkpoints have none
                state[prefix + name] = torch.zeros_like(self.offset_)
            else:
                missing.append(prefix + key)
        unexpected += [key for key in state_dict if key.startswith(prefix) and key[len(prefix) :] not in self.keys]
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, unexpected, *rest)


def use_of_terms(trainer: CLIPTrainer, gla: SavedGLA, name: str, directory: str | Path) -> Use:
    """Decide on the use of the estimator in a run's folder; on other classes, carry its common numbers over.

    On other classes ``PRIOR`` may differ from the run's. There is no class bias: log q is 0, or with ``unlabelled`` an
    estimate on the images to predict. The temperature of the zero-shot logits is 1, where ``map`` expects it; that of
    the other priors and of the paper's sum, which has no weights, remains.

    Raises:
        ValueError: the settings need a fit, or a file names a prior for the classes of the run.
    """
    use = use_of(trainer, name, _SETTINGS, gla.identity, directory, free=("PRIOR", "STRENGTH", "TARGET"))
    if use is not Use.CARRY:
        return use
    node = trainer.node
    for key, words in (("PRIOR", METHODS), ("TARGET", ("uniform", "train"))):
        if key in node and node[key] not in words:
            raise ValueError(
                f"TRAINER.{trainer.node_name}.{key} '{node[key]}' is for the classes of '{directory}', and "
                f"'{trainer.cfg.DATASET.NAME}' has others: set it to {'map' if key == 'PRIOR' else 'uniform'}"
            )
    gla.carry_over(saved_state(directory, name) or {})
    prior = node.get("PRIOR")
    if prior == "unlabelled" or (prior == "map" and node.get("COMBINE") != "sum"):
        gla._store("zs_temperature_", 1.0)
    logger.info(
        f"'{directory}' was fitted on other classes: weights and temperatures carry over, log q and log p do not"
    )
    return use


# --- the zero-shot half -----------------------------------------------------------------------------


def fitting_items(trainer: CLIPTrainer) -> Sequence[Datum]:
    """Return the images that fit the zero-shot half: val if it is large, else train and val; the model saw neither.

    Of very large datasets, such as iNaturalist, return a part; see `sample_for_logits`.
    """
    train, val, classes = trainer.dataset.train_x, trainer.dataset.val or [], trainer.num_classes
    items = val if len(val) >= ENOUGH_HELD_OUT * classes else [*train, *val]
    return sample_for_logits(items, classes, random.Random(0))


def fit_zeroshot(trainer: CLIPTrainer, gla: GLA) -> int:
    """Fit the estimator's zero-shot half; return the number of images."""
    check_can_fit(trainer.dataset)
    paths, labels = trainer.labelled(fitting_items(trainer))
    gla.fit_zeroshot(trainer.zeroshot_logits(paths), labels)
    return len(labels)


def fit_zeroshot_prior(trainer: CLIPTrainer, gla: GLA, prior: str) -> None:
    """Fit the estimator's zero-shot half with a prior method or a file, and log the prior."""
    gla.prior = prior if prior in METHODS else read_prior(prior, trainer.classnames)
    images = fit_zeroshot(trainer, gla)
    if not gla.converged_:
        logger.warning(f"the prior by '{prior}' has not converged to its optimum")
    if gla.assumes_uniform_:
        logger.info("q is estimated without labels, assuming a uniform class frequency; predictions estimate it again")
    source = f"{prior} on {images:,} images" if prior in METHODS else f"'{prior}'"
    order = _names_by(trainer, gla.log_q_)
    logger.info(
        f"class bias ({source}): {gla.bias_summary()}; most frequent {', '.join(order[:3])}, "
        f"least {', '.join(order[:-4:-1])}"
    )
    if gla.log_q_deviation_ is not None:
        unsure = _names_by(trainer, gla.log_q_deviation_)[:3]
        logger.info(f"least sure of {', '.join(unsure)} (standard deviation {float(gla.log_q_deviation_.max()):.2f})")


def _names_by(trainer: CLIPTrainer, values: Tensor) -> list[str]:
    return [trainer.classnames[label] for label in values.argsort(descending=True).tolist()]


def prior_options(node: CfgNode) -> dict[str, Any]:
    """Return the arguments of `GLA` in a trainer's node; `fit_zeroshot_prior` reads the prior of a file."""
    options = {"temperature": node.TEMPERATURE}
    if node.PRIOR not in METHODS:
        return options
    strength = {"": None, "cv": "cv"}[node.STRENGTH] if node.STRENGTH in ("", "cv") else float(node.STRENGTH)
    return {**options, "prior": node.PRIOR, "strength": strength}


def pretraining_prior(trainer: CLIPTrainer, node: CfgNode) -> LabelPrior:
    """Return the label prior of the zero-shot model's pre-training data."""
    gla = GLA(**prior_options(node))
    fit_zeroshot_prior(trainer, gla, node.PRIOR)
    return fitted_prior(gla)


def fitted_prior(gla: GLA) -> LabelPrior:
    """Return the estimator's label prior; with ``unlabelled``, that of the images of its last prediction."""
    last = gla.prediction_prior_
    if last is not None:
        return LabelPrior(last.log_q, last.deviation)
    return LabelPrior(gla.log_q_, gla.log_q_deviation_)


# --- the keys of the config -------------------------------------------------------------------------


def check_choice(cfg: CfgNode, key: str, words: Sequence[str], file: bool = False) -> None:
    """Raise a ``ValueError`` unless the key (``"GLA.PRIOR"``) has one of the values or, with ``file``, names a file."""
    trainer, _, name = key.partition(".")
    value = cfg.TRAINER[trainer][name]
    saved = cfg.DATASET.NAME == SAVED_RUN  # the checkpoint holds the numbers of the file
    if value in words or (file and (saved or Path(value).is_file())):
        return
    choices = f"{', '.join(words)}{' or a file' if file else ''}"
    missing = "; no such file" if file and Path(value).suffix else ""
    raise ValueError(f"TRAINER.{key} must be {choices} (got '{value}'{missing})")


def check_transductive(trainer: CLIPTrainer, gla: GLA) -> None:
    """Raise a ``ValueError`` if a prediction assumes a class frequency that the test images cannot have."""
    if gla.transductive and getattr(trainer.dataset, "test_classes", None) is not None:
        raise ValueError(
            f"the test images of '{trainer.cfg.DATASET.NAME}' have a part of its classes: PRIOR unlabelled and COMBINE "
            "otter assume all classes; choose other values"
        )


def check_prior(cfg: CfgNode, trainer: str) -> None:
    """Raise a ``ValueError`` unless PRIOR, STRENGTH and TEMPERATURE are valid in the trainer's node."""
    check_choice(cfg, f"{trainer}.TEMPERATURE", temperature.METHODS)
    check_choice(cfg, f"{trainer}.PRIOR", tuple(METHODS), file=True)
    strength = cfg.TRAINER[trainer].STRENGTH
    prior = cfg.TRAINER[trainer].PRIOR
    if (prior in JOINT or prior not in METHODS) and strength != "":
        kind = prior if prior in METHODS else "from a file"
        raise ValueError(
            f"TRAINER.{trainer}.PRIOR {kind} has no STRENGTH (got '{strength}'): omit it, or set PRIOR convex"
        )
    try:
        valid = strength in ("", "cv") or 0 <= float(strength) < float("inf")
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f"TRAINER.{trainer}.STRENGTH must be a number of 0 or more, or cv (got '{strength}')")
