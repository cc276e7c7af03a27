"""The output ensemble: the sum of a fine-tuned and the zero-shot model's calibrated logits.

The method is GLA without its priors (Zhu et al., NeurIPS 2023, arXiv 2310.08106), and GLA's closest competitor.
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from unskew import config
from unskew.data.saved_run import SAVED_RUN, check_can_fit
from unskew.data.transfer import read_source
from unskew.debias import temperature
from unskew.debias.affine import AffineForm, affine_form
from unskew.debias.metrics import selection_score
from unskew.engine import fingerprint
from unskew.engine.clip_trainer import CLIPTrainer
from unskew.engine.debiasing import SavedGLA, check_choice, check_transductive, fit_zeroshot, use_of_terms
from unskew.engine.image_models import SumModel
from unskew.engine.label_prior import LabelPrior
from unskew.engine.prediction import Prediction
from unskew.engine.run_dir import RunDir
from unskew.engine.trainer import TRAINER_REGISTRY, build_trainer
from unskew.engine.transfer import Use, may_fit

logger = logging.getLogger("unskew")

# Keys that decide the images of a split; with equal values val is held out for the base too.
_SAME_IMAGES = (
    "SEED",
    "DATASET.NAME",
    "DATASET.ROOT",
    "DATASET.SEED",
    "DATASET.NUM_SHOTS",
    "DATASET.NUM_VAL_SHOTS",
    "DATASET.HOLDOUT",
    "DATASET.TRAIN_ON_VAL",
    "DATASET.SUBSAMPLE_CLASSES",
    "DATASET.IMBALANCE",
    "DATASET.CLASSNAMES",
)


@TRAINER_REGISTRY.register()
class Ensemble(CLIPTrainer):
    """Logits = ft/T_ft + zs/T_zs.

    The base trains itself; this trainer only selects the epoch to keep, by the ensemble's accuracy on val.

    Attributes:
        base: the trainer of the fine-tuned half.
        gla: the estimator, with both temperatures.
        part_names: names of the reported logits; the last is the prediction.
    """

    part_names: tuple[str, ...] = ("zs", "ft", "ensemble")
    calibrated = True
    uses_val = True
    has_fitted_terms = True

    @classmethod
    def is_class_bound(cls, cfg: CfgNode) -> bool:
        node = cfg.TRAINER[cls.node_name_in(cfg)]
        base = base_config(cfg, node) if node.BASE_DIR else cfg
        return TRAINER_REGISTRY.get(config.class_name(node.BASE)).is_class_bound(base)

    @property
    def logit_adjusted(self) -> bool:
        return self.base.logit_adjusted

    @property
    def transductive(self) -> bool:
        return self.gla.transductive or self.base.transductive

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        check_choice(cfg, f"{self.node_name}.TEMPERATURE", temperature.METHODS)
        if reason := getattr(TRAINER_REGISTRY.get(config.class_name(self.node.BASE)), "not_a_base", ""):
            raise ValueError(
                f"TRAINER.{self.node_name}.BASE cannot be {self.node.BASE}, {reason}: choose the trainer of a "
                "fine-tuned model, such as LinearProbe"
            )
        if cfg.SEED < 0:
            raise ValueError(f"{type(self).__name__} and its base must draw the same images: set SEED to 0 or more")

    def build_model(self) -> None:
        cfg = base_config(self.cfg, self.node) if self.node.BASE_DIR else self.cfg
        cfg = config.derive(cfg, {"VERBOSE": False})  # the summary of the dataset is in the log already
        self.base = build_trainer(cfg, config.class_name(self.node.BASE), validate=self.validate)
        self.gla = self.build_gla().to(self.device)
        check_transductive(self, self.gla)
        self.register_model(type(self).__name__.lower(), self.gla)

    def foundation_models(self) -> list[dict[str, Any]]:
        own = super().foundation_models()
        return [*own, *(model for model in self.base.foundation_models() if model not in own)]

    def build_gla(self) -> SavedGLA:
        """Build the estimator; a checkpoint holds the numbers in its keys."""
        keys = {"zeroshot_temperature": "zs_temperature_", "finetuned_temperature": "ft_temperature_"}
        no_prior = torch.zeros(self.num_classes)
        options = {"prior": no_prior, "combine": "sum", "temperature": self.node.TEMPERATURE}
        return SavedGLA(self.classnames, keys, self.node, **options)

    def fit_zeroshot(self) -> None:
        """Fit the zero-shot half, which does not depend on the base."""
        fit_zeroshot(self, self.gla)

    def log_train_frequencies(self) -> Tensor:
        """Return the log frequencies ``[C]`` of the training labels; zeros for balanced shots, where they cancel."""
        labels = torch.tensor([item.label for item in self.dataset.train_x])
        counts = torch.bincount(labels, minlength=self.num_classes).clamp_min(1)
        return torch.zeros(self.num_classes) if len(counts.unique()) == 1 else (counts / counts.sum()).log()

    def label_prior(self) -> LabelPrior | None:
        return self.base.label_prior()

    def trained_parameters(self) -> int:
        return self.base.trained_parameters()

    # --- training -----------------------------------------------------------------------------------

    def train(self) -> None:
        if self.node.BASE_DIR:
            _check_same_images(self.cfg, self.node)
        self.before_train()
        self.fit_zeroshot()  # never resumed: the fit is fast, and the file of the prior may have changed
        if self.node.BASE_DIR:
            self.base.load_model(self.node.BASE_DIR)
        else:
            self.base.fit()
        self.calibrate()
        logger.info(f"Fitted: {', '.join(f'{name} {value:.3g}' for name, value in self.gla.numbers().items())}")
        self.save_model(0, self.output_dir)
        self.after_train()

    @functools.cached_property
    def val(self) -> tuple[list[str], Tensor, Tensor]:
        """Paths, labels ``[N]`` and zero-shot logits ``[N, C]`` of val."""
        paths, labels = self.labelled(self.dataset.val)
        return paths, labels, self.zeroshot_logits(paths)

    def calibrate(self) -> None:
        """Fit the fine-tuned half on val; without val, keep a temperature of 1."""
        check_can_fit(self.dataset)
        if self.dataset.val:
            self._fit_finetuned()
        else:
            logger.warning(f"{type(self).__name__} has no val to calibrate its base on; using T_ft = 1")

    def _fit_finetuned(self) -> Tensor:
        """Fit the fine-tuned half on val; return the base's logits ``[N, C]``."""
        paths, labels, zeroshot = self.val
        finetuned = self.base.predict(paths)
        self.gla.fit_finetuned(zeroshot, finetuned, labels)
        return finetuned

    def validate(self) -> float:
        """Calibrate on val and return the score that selects the base's epoch."""
        finetuned = self._fit_finetuned()
        _, labels, zeroshot = self.val
        return selection_score(self.selection_logits(zeroshot, finetuned), labels)

    def selection_logits(self, zeroshot: Tensor, finetuned: Tensor) -> Tensor:
        """Return the logits ``[N, C]`` that select the epoch on val."""
        return self.combine(zeroshot, finetuned).logits

    # --- prediction ---------------------------------------------------------------------------------

    def combine(self, zeroshot: Tensor, finetuned: Tensor) -> Prediction:
        """Combine both models' logits, ``[N, C]`` each."""
        parts = self.gla.parts(zeroshot, finetuned, log_target=self.gla.log_target, names=self.part_names)
        *others, last = self.part_names
        sums = {name: terms for name, terms in self.gla.sums().items() if name in others}
        return Prediction(parts[last], parts, sums)

    def predict_parts(self, paths: Sequence[str]) -> Prediction:
        return self.combine(self.zeroshot_logits(paths), self.base.predict(paths))

    def predict(self, paths: Sequence[str]) -> Tensor:
        return self.predict_parts(paths).logits

    def linear_head(self) -> tuple[Tensor, Tensor] | None:
        finetuned = self.base.linear_head() if self.reads_features_of(self.base) else None
        if finetuned is None or self.transductive:
            return None
        return self._affine_form().of_heads(self.cosine_head(self.zeroshot_weights), finetuned)

    def image_model(self) -> nn.Module:
        if self.linear_head() is not None:
            return super().image_model()
        zeroshot = self.feature_model(lambda features: self.cosine_logits(features, self.zeroshot_weights))
        return SumModel(self._affine_form(), zeroshot, self.base.image_model())

    def _affine_form(self) -> AffineForm:
        return affine_form(self.gla, self.gla.log_target)

    # --- checkpoints --------------------------------------------------------------------------------

    def load_model(self, directory: str | Path, epoch: int | None = None) -> None:
        self.base.load_model(self.node.BASE_DIR or directory, epoch)
        use = use_of_terms(self, self.gla, type(self).__name__.lower(), directory)
        if use is Use.LOAD:
            super().load_model(directory)
        elif use is Use.FIT:
            logger.warning(f"'{directory}' was fitted with other settings; fitting again")
            self.fit_zeroshot()
            self.calibrate()
        if epoch is None or use is Use.FIT:
            return
        if may_fit(self, directory):  # the saved numbers belong to the epoch that was kept
            self.calibrate()
        else:
            logger.info(f"Weights and temperatures are those of the epoch that '{directory}' keeps")

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {**self.base.state_dict(), **super().state_dict()}

    def load_state_dict(self, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        names = set(self.get_model_names())
        super().load_state_dict({name: state for name, state in states.items() if name in names})
        self.base.load_state_dict({name: state for name, state in states.items() if name not in names})


def base_config(cfg: CfgNode, node: CfgNode) -> CfgNode:
    """Return the frozen config of the finished run in ``node.BASE_DIR``, to build its trainer for the images of a run.

    Raises:
        FileNotFoundError: the folder holds no finished run.
        ValueError: the run has another trainer.
    """
    base = _finished_config(cfg, node)
    if base.TRAINER.NAME != node.BASE:
        raise ValueError(
            f"BASE_DIR '{node.BASE_DIR}' holds a run of {base.TRAINER.NAME}, but BASE is {node.BASE}: change one of "
            "them"
        )
    current = dict(config.flatten(cfg))
    values = {key: current[key] for key in (*fingerprint.NOT_IDENTITY, *_SAME_IMAGES)}
    if cfg.TEST.MODEL_DIR and read_source(node.BASE_DIR) is not None:
        values["TEST.MODEL_DIR"] = node.BASE_DIR  # other prompts than those of this run
    if cfg.DATASET.NAME == SAVED_RUN and base.DATASET.TEMPLATE != cfg.DATASET.TEMPLATE:
        values["DATASET.ROOT"] = node.BASE_DIR  # other prompts than those of this run
    return config.derive(base, values)


def _finished_config(cfg: CfgNode, node: CfgNode) -> CfgNode:
    folder = RunDir(node.BASE_DIR)
    if not folder.is_finished:
        reason = folder.damage() or "no file 'done'"
        raise FileNotFoundError(
            f"BASE_DIR '{folder.path}' of {cfg.TRAINER.NAME} holds no finished run ({reason}): set it to the folder of "
            "a finished run"
        )
    return config.restore(folder.config)


def _check_same_images(cfg: CfgNode, node: CfgNode) -> None:
    """Raise a ``ValueError`` if the run in ``node.BASE_DIR`` was trained on other images; prediction may use any."""
    base = _finished_config(cfg, node)
    theirs, ours = fingerprint.identity(base), fingerprint.identity(cfg)
    different = [key for key in _SAME_IMAGES if theirs.get(key) != ours.get(key)]
    if different:
        key = different[0]
        value, expected = (dict(config.flatten(tree))[key] for tree in (base, cfg))
        raise ValueError(
            f"BASE_DIR '{node.BASE_DIR}' was trained on other images ({key} is {value} there and {expected} here): "
            "train the base on the same images, so that val is held out for both"
        )
