"""The description of a method: its config, its classes, the labels that it uses, its prior and its head.

The evaluation, tables, `unskew predict` and `unskew export` ask these questions; a trainer overrides the answers that
differ for its method.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from unskew.data.dataset import Datum
from unskew.data.transfer import OTHER_CLASSES
from unskew.debias.metrics import training_groups
from unskew.engine.evaluator import labels_of
from unskew.engine.label_prior import LabelPrior
from unskew.engine.loop import TrainerBase
from unskew.utils.registry import Registry

TRAINER_REGISTRY: Registry[Any] = Registry("TRAINER", "unskew.trainers")


class Method(TrainerBase):
    """The description of a method, as class attributes and hooks, which `SimpleTrainer` inherits."""

    cfg: CfgNode
    dm: Any
    num_classes: int
    lab2cname: dict[int, str]

    # Whether the logits are free of log p, the label frequencies of the training images.
    logit_adjusted = False
    # Whether labels of val change the model in other ways than the selection of an epoch ("best_val").
    uses_val = False
    # Whether the weights belong to single classes, so that the trainer cannot classify other classes.
    class_bound: bool = False
    # Whether a checkpoint holds numbers of which a part does not suit other classes, such as a label prior.
    has_fitted_terms = False
    # Whether the softmax of the logits gives calibrated probabilities, because the trainer calibrates them itself.
    calibrated = False
    # The reason why the trainer cannot be the base of GLA, Ensemble or Stacking; empty if it can.
    not_a_base = ""
    # True if the prediction of an image depends on the other images, as in transductive methods; tables say so.
    transductive: bool = False

    # --- its config ---------------------------------------------------------------------------------

    @functools.cached_property
    def node_name(self) -> str:
        """The name of the trainer's node below ``cfg.TRAINER``, see `node_name_in`."""
        return self.node_name_in(self.cfg)

    @classmethod
    def node_name_in(cls, cfg: CfgNode) -> str:
        """Return the name of the node below ``cfg.TRAINER``: the name under which the class is registered.

        A subclass without a node of its own reads the node of its base class.
        """
        for trainer_class in cls.__mro__:
            for name in TRAINER_REGISTRY.names_of(trainer_class):
                if isinstance(cfg.TRAINER.get(name.upper()), CfgNode):
                    return name.upper()
        raise ValueError(f"the config has no node TRAINER.{cls.__name__.upper()}")

    @functools.cached_property
    def node(self) -> CfgNode:
        """The trainer's node of the config."""
        return self.cfg.TRAINER[self.node_name]

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise ``ValueError`` for a config that does not suit the method (optional)."""

    # --- its classes --------------------------------------------------------------------------------

    @classmethod
    def is_class_bound(cls, cfg: CfgNode) -> bool:
        """Return whether the weights of a config's trainer belong to single classes."""
        return cls.class_bound

    def _check_classes(self) -> None:
        """Raise ``ValueError`` in the evaluation of weights of single classes on other classes."""
        if self._matched == OTHER_CLASSES and self.is_class_bound(self.cfg):
            raise ValueError(
                f"'{self.cfg.DATASET.NAME}' has classes on which '{self.cfg.TEST.MODEL_DIR}' was not trained, and "
                f"{self.cfg.TRAINER.NAME} has weights of single classes: evaluate a trainer that shares its weights "
                "between classes, such as CoOp"
            )

    def _check_undeclared(self) -> None:
        """Raise ``ValueError`` for the evaluation on other classes of a plugin's weights that may be of single classes.

        Weights of as many other classes load without an error, and the accuracy means nothing.
        """
        own = [vars(kind) for kind in type(self).__mro__ if kind is not Method]
        is_declared = any("class_bound" in names or "is_class_bound" in names for names in own)
        if self._matched != OTHER_CLASSES or is_declared or type(self).__module__.startswith("unskew."):
            return
        for model in self._models.values():
            for name, parameter in model.named_parameters():
                if self.num_classes in parameter.shape:
                    raise ValueError(
                        f"'{self.cfg.DATASET.NAME}' has classes on which '{self.cfg.TEST.MODEL_DIR}' was not trained, "
                        f"and '{name}' of {self.cfg.TRAINER.NAME} has a row for each class: leave it out, or add "
                        "class_bound = False to the trainer's class if these weights suit any classes"
                    )

    @property
    def _matched(self) -> str:
        """How the classes of an evaluation match those of the trained run, see `unskew.data.transfer`."""
        return getattr(getattr(getattr(self, "dm", None), "dataset", None), "transfer", "")

    @property
    def transfer(self) -> str:
        """How the evaluation of a run on other images uses the numbers that the run has fitted; "" if it has none.

        "by class name": all of them. On other classes "zero-shot": there is no class bias; "unlabelled": it is
        estimated on the images to predict.
        """
        if self._matched == OTHER_CLASSES:
            return ("unlabelled" if self.transductive else "zero-shot") if self.has_fitted_terms else ""
        return self._matched

    def test_names(self) -> dict[int, str]:
        """Return the names of the test classes, by column of the logits."""
        classes = getattr(self.dm.dataset, "test_classes", None)
        return self.lab2cname if classes is None else dict(enumerate(self.lab2cname[label] for label in classes))

    def training_counts(self) -> Tensor:
        """Return the number of training images of each class, [C]."""
        return torch.bincount(labels_of(self.dm.dataset.train_x or []), minlength=self.num_classes)

    def class_groups(self) -> dict[str, Tensor]:
        """Return the class indices of each group by name; the test reports the accuracy of each group."""
        return training_groups(self.training_counts())

    # --- the labels that it uses, and its prior -----------------------------------------------------

    def _items(self, split: str) -> Sequence[Datum]:
        return getattr(self.dm.dataset, split) or []

    def _is_empty(self, split: str) -> bool:
        return not self._items(split)

    def labelled_items(self) -> Sequence[Datum]:
        """Return the images whose labels the trainer uses: those of train and, if it uses val, those of val."""
        uses_val = self.uses_val or self.cfg.TEST.FINAL_MODEL == "best_val"
        return [*self._items("train_x"), *(self._items("val") if uses_val else ())]

    def assumed_log_prior(self) -> Tensor:
        """Return the log class frequencies [C] that the logits assume: those of the training images, or uniform ones.

        They are uniform, up to a constant, if the trainer is ``logit_adjusted``.
        """
        if self.logit_adjusted:
            return torch.zeros(self.num_classes, dtype=torch.double)
        counts = self.training_counts().clamp_min(1).double()
        return (counts / counts.sum()).log()

    def label_prior(self) -> LabelPrior | None:
        """Return the label prior of the foundation model that the trainer has estimated, if its method has one."""
        return None

    # --- its models ---------------------------------------------------------------------------------

    def foundation_models(self) -> list[dict[str, Any]]:
        """Return the descriptions of the pre-trained models of a prediction, see `unskew.clip.description`."""
        from unskew.clip.description import describe  # open_clip's companions, which a Dassl trainer does not need

        return [describe(self.cfg)]

    def linear_head(self) -> tuple[Tensor, Tensor] | None:
        """Return A [C, D] and c [C] of the logits A x + c of a normalised image feature x; ``None`` for other logits.

        With several ``TEST.CROPS``, x is the mean of the crops' normalised features.
        """
        return None
