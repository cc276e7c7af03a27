"""Dassl's trainers on accelerate: `TrainerBase`, `SimpleTrainer`, `TrainerX`.

A new trainer subclasses `TrainerX`, registers itself in `TRAINER_REGISTRY`, and defines ``build_model`` and
``forward_backward``.
"""

import datetime
import functools
import inspect
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from unskew.data.dataset import Datum
from unskew.data.loaders import DataManager, seed_loader
from unskew.data.transfer import OTHER_CLASSES
from unskew.debias.metrics import training_groups
from unskew.engine import checkpoint, testing
from unskew.engine.accelerator import broadcast_states, build_accelerator
from unskew.engine.evaluator import build_evaluator, labels_of
from unskew.engine.image_models import ImageModel
from unskew.engine.label_prior import LabelPrior
from unskew.engine.loop import Names, TrainerBase
from unskew.engine.meters import AverageMeter, MetricMeter
from unskew.engine.prediction import Prediction
from unskew.engine.saving import CheckpointSchedule
from unskew.utils.files import unwritable
from unskew.utils.logging import warn_once
from unskew.utils.registry import Registry
from unskew.utils.seeds import derive_seed, set_random_seed

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("unskew")

TRAINER_REGISTRY: Registry[type["SimpleTrainer"]] = Registry("TRAINER", "unskew.trainers")

# Columns of history.csv by the names that Dassl's trainers give these numbers.
_COLUMNS = {"loss": "loss", "accuracy": "acc"}


def build_trainer(cfg: CfgNode, class_name: str = "", validate: Callable[[], float] | None = None) -> "SimpleTrainer":
    """Build the trainer of a config.

    Args:
        cfg: the frozen config.
        class_name: the registered class; by default ``TRAINER.CLASS`` or, if that is empty, ``TRAINER.NAME``.
        validate: returns the score by which "best_val" selects an epoch; by default the trainer's own ``validate``.
    """
    trainer_class = TRAINER_REGISTRY.get(class_name or cfg.TRAINER.get("CLASS") or cfg.TRAINER.NAME)
    if validate is None:
        return trainer_class(cfg)
    try:
        inspect.signature(trainer_class).bind(cfg, validate=validate)
    except TypeError:  # Dassl's trainers take the config alone
        trainer = trainer_class(cfg)
        trainer._validate_epoch = validate
        return trainer
    return trainer_class(cfg, validate=validate)


class SimpleTrainer(TrainerBase):
    """A trainer built from a frozen config. A method defines ``build_model`` and ``forward_backward``.

    Args:
        cfg: the frozen config.
        validate: returns the score by which "best_val" selects an epoch; by default the trainer's own ``validate``.

    Attributes:
        accelerator: devices, precision and processes; run forward passes under ``accelerator.autocast()``.
        device: where the model and its inputs are.
        generator: a CPU generator for initial weights, seeded with ``cfg.SEED``.
        dm: the `DataManager`, the source of ``num_classes``, ``lab2cname`` and the loaders.
        results: the metrics of the last ``test``.

    Raises:
        ValueError: the config does not suit the trainer.
    """

    accelerator: "Accelerator"
    model: nn.Module

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
    # `fit` sets it to False: a trainer inside another one is not tested.
    _tests_after_training = True
    _build_data: Callable[..., Any] = staticmethod(DataManager)
    _build_evaluator: Callable[..., Any] = staticmethod(build_evaluator)

    def __init__(self, cfg: CfgNode, validate: Callable[[], float] | None = None) -> None:
        super().__init__()
        self.cfg = cfg
        self.check_cfg(cfg)
        self._validate_epoch = validate
        self.accelerator = build_accelerator(cfg.TRAINER.get("PREC", "fp32"), cfg.USE_CUDA)
        self.device = self.accelerator.device
        if self.accelerator.num_processes > 1 and cfg.SEED < 0:
            raise ValueError("several processes must draw the same order of images: set SEED to 0 or more")
        if cfg.TRAIN.ACCUMULATE < 1:
            raise ValueError(f"TRAIN.ACCUMULATE, a number of batches, must be at least 1 (got {cfg.TRAIN.ACCUMULATE})")
        self.checkpoints = CheckpointSchedule(cfg.TRAIN)
        self._mixed_precision = self.accelerator.mixed_precision
        self.generator = torch.Generator().manual_seed(derive_seed(cfg.SEED))
        self.start_epoch = self.epoch = self.batch_idx = 0
        self.num_batches = 1
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.best_result = -math.inf
        self.results: dict[str, float] = {}
        self.build_data_loader()
        self._check_classes()
        self.build_model()
        self.evaluator = self._build_evaluator(cfg, lab2cname=self.test_names())
        self._share_among_processes()

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

    # True if the prediction of an image depends on the other images, as in transductive methods; tables say so.
    transductive: bool = False

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

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise ``ValueError`` for a config that does not suit the method (optional)."""

    def build_data_loader(self) -> None:
        """Build ``dm``, and set the loaders, ``num_classes`` and ``lab2cname`` from it."""
        dm = self.dm = self._build_data(self.cfg)
        self.train_loader_x, self.train_loader_u = dm.train_loader_x, dm.train_loader_u
        self.val_loader, self.test_loader = dm.val_loader, dm.test_loader
        self.num_classes, self.num_source_domains = dm.num_classes, dm.num_source_domains
        self.lab2cname = dm.lab2cname

    def test_names(self) -> dict[int, str]:
        """Return the names of the test classes, by column of the logits."""
        classes = getattr(self.dm.dataset, "test_classes", None)
        return self.lab2cname if classes is None else dict(enumerate(self.lab2cname[label] for label in classes))

    def foundation_models(self) -> list[dict[str, Any]]:
        """Return the descriptions of the pre-trained models of a prediction, see `unskew.clip.description`."""
        from unskew.clip.description import describe  # open_clip's companions, which a Dassl trainer does not need

        return [describe(self.cfg)]

    def build_model(self) -> None:
        """Build the model, move it to ``self.device`` and register it with its optimizer and schedule."""
        raise NotImplementedError(f"{type(self).__name__} must define build_model()")

    def _share_among_processes(self) -> None:
        """Give each process its part of every training epoch, and the main process's weights."""
        if self.accelerator.num_processes == 1:
            return
        for name in ("train_loader_x", "train_loader_u"):
            loader = getattr(self, name, None)
            if isinstance(loader, torch.utils.data.DataLoader):
                setattr(self, name, self.accelerator.prepare_data_loader(loader, device_placement=False))
        broadcast_states(self.accelerator, self._models.values())

    # --- training -----------------------------------------------------------------------------------

    def train(self) -> None:  # type: ignore[override]  # Dassl's signatures
        """Train, then test; resume if the output folder holds checkpoints."""
        self._use_own_precision()
        super().train(self.start_epoch, self.max_epoch)

    def fit(self) -> None:
        """Train without the final test, as a part of another trainer."""
        self._tests_after_training = False
        self.train()

    def _use_own_precision(self) -> None:
        # accelerate's autocast reads the precision of the trainer that this process built last.
        self.accelerator.state._mixed_precision = self._mixed_precision

    def before_train(self) -> None:
        """Create the output folder, resume from ``RESUME`` or the folder, open the tensorboard writer.

        Raises:
            ValueError: the folder cannot be written, there are no training images, or "best_val" is set without a val
                split.
        """
        self._check_splits()
        if self.max_epoch == 0 and any(self._optims.values()):
            warn_once("OPTIM.MAX_EPOCH is 0: the model is tested as it is before training")
        if problem := unwritable(self.output_dir):
            raise ValueError(f"'{self.output_dir}' cannot be written ({problem}): choose another OUTPUT_DIR")
        Path(self.output_dir).mkdir(parents=True, exist_ok=True)
        if self.accelerator.is_main_process:
            self.init_writer(Path(self.output_dir) / "tensorboard")
        directory = Path(self.cfg.RESUME or self.output_dir)
        self.start_epoch = self.resume_model_if_exist(directory)
        if self._selects_best_val and self.start_epoch:
            self.best_result = checkpoint.best_result(directory / next(iter(self._models)))
            if self.accelerator.is_main_process:  # no later epoch may beat the best one of the resumed run
                for name in self._models:
                    checkpoint.copy_best(directory / name, Path(self.output_dir) / name)
        self.time_start = time.time()

    @property
    def _selects_best_val(self) -> bool:
        return self.cfg.TEST.FINAL_MODEL == "best_val"

    def _check_splits(self) -> None:
        """Raise ``ValueError`` if there are no images to train on, or none to select by."""
        name = self.cfg.DATASET.NAME
        if self._models and self._is_empty("train_x"):
            raise ValueError(
                f"'{name}' has only test images: train on the dataset that it belongs to, then test that run with "
                "--eval-only --model-dir"
            )
        if self._selects_best_val and self._is_empty("val"):
            raise ValueError(
                f"TEST.FINAL_MODEL is best_val, but '{name}' has no val split: set DATASET.NUM_VAL_SHOTS above 0 (with "
                "all images, set DATASET.HOLDOUT to 0.05), or TEST.FINAL_MODEL to last_step"
            )

    def seed_epoch(self) -> None:
        """Seed the loaders and the global generators by the seed, the epoch and the process."""
        seed, rank = self.cfg.SEED, self.accelerator.process_index
        for name in ("train_loader_x", "train_loader_u"):
            seed_loader(getattr(self, name, None), seed, self.epoch)
        if seed >= 0:
            set_random_seed(derive_seed(seed, self.epoch, rank))  # augmentation, dropout

    def after_epoch(self) -> None:
        """Validate and keep the best epoch with "best_val"; save at ``CHECKPOINT_FREQ``, by time and at the end."""
        broadcast_states(self.accelerator, self._models.values())
        if self._selects_best_val:
            result = (self._validate_epoch or self.validate)()
            self._record(val_score=result)
            self.write_scalar("val/score", result, self.epoch)
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=checkpoint.BEST)
        if self.checkpoints.is_due(self.epoch + 1, self.max_epoch):
            self.checkpoints.save(self, self.epoch, self.output_dir)

    def after_train(self) -> None:
        """Load the best epoch with "best_val", test unless ``NO_TEST`` is set, close the writer."""
        if self._tests_after_training:
            logger.info("Finish training")
        self.accelerator.wait_for_everyone()
        if self._selects_best_val and self.best_result > -math.inf:
            logger.info("Deploy the model with the best val performance")
            self.load_model(self.output_dir)
        else:
            logger.info("Deploy the last-epoch model")
        if self._tests_after_training and not self.cfg.TEST.NO_TEST:
            accuracy = self.test()
            if not self.results and accuracy is not None:  # a method may override test()
                self.results = {"accuracy": float(accuracy)}
        elapsed = datetime.timedelta(seconds=round(time.time() - self.time_start))
        logger.info(f"Elapsed: {elapsed}")
        self.close_writer()

    def validate(self) -> float:
        """Return the score by which "best_val" selects (higher is better): the accuracy on val in percent."""
        results = self.results
        try:
            return self.test(split="val")
        finally:
            self.results = results  # `results` are those of the last test

    def _run_batches(self, batches: Iterable[tuple]) -> None:
        """Train on each batch of the epoch; log Dassl's line every ``PRINT_FREQ`` batches."""
        self.set_model_mode("train")
        losses, batch_time, data_time = MetricMeter(), AverageMeter(), AverageMeter()
        frequency = self.print_frequency()
        end = time.time()
        for self.batch_idx, batch in enumerate(batches):
            data_time.update(time.time() - end)
            losses.update(self.forward_backward(*batch))
            batch_time.update(time.time() - end)
            if (self.batch_idx + 1) % frequency == 0:
                self._log_batch(losses, batch_time, data_time)
            end = time.time()
        means = self._gather(losses)
        self._record(**{column: means[name][1] for column, name in _COLUMNS.items() if name in means})

    def print_frequency(self) -> int:
        """Return the number of batches per line of the log; every epoch has at least one line."""
        return max(1, min(self.cfg.TRAIN.PRINT_FREQ, self.num_batches))

    def model_backward_and_update(self, loss: Tensor, names: Names = None) -> None:
        """Take a step, or with ``TRAIN.ACCUMULATE`` n a step with the mean gradient of every n batches.

        Raises:
            ValueError: the trainer's own loop does not count its batches, which accumulation needs.
        """
        n = self.cfg.TRAIN.ACCUMULATE
        if n == 1:
            return super().model_backward_and_update(loss, names)
        if self.batch_idx >= self.num_batches:
            raise ValueError(
                f"{type(self).__name__} is at batch {self.batch_idx + 1} of {self.num_batches} and cannot accumulate: "
                "set num_batches in its run_epoch, or set TRAIN.ACCUMULATE to 1"
            )
        place, first = self.batch_idx % n, self.batch_idx - self.batch_idx % n
        size = min(n, self.num_batches - first)  # the last step of an epoch has fewer batches
        if place == 0:
            self.model_zero_grad(names)
        self.model_backward(loss / size)
        if place == size - 1:
            super().model_update(names)

    def model_update(self, names: Names = None) -> None:
        """Take a step with each optimizer.

        Raises:
            ValueError: ``TRAIN.ACCUMULATE`` is above 1, which needs ``model_backward_and_update``.
        """
        if self.cfg.TRAIN.ACCUMULATE > 1:
            raise ValueError(
                f"{type(self).__name__} calls model_update() and cannot accumulate: set TRAIN.ACCUMULATE to 1"
            )
        super().model_update(names)

    def _gather(self, losses: MetricMeter) -> dict[str, tuple[float, float]]:
        """Return the last value and the mean of each number, averaged over processes."""
        return losses.gather(lambda numbers: self.accelerator.reduce(numbers, "mean"))

    def _log_batch(self, losses: MetricMeter, batch_time: AverageMeter, data_time: AverageMeter) -> None:
        self._raise_if_anomalous()
        values = self._gather(losses)
        remaining = self.num_batches - self.batch_idx - 1 + (self.max_epoch - self.epoch - 1) * self.num_batches
        logger.info(
            f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{self.batch_idx + 1}/{self.num_batches}] "
            f"time {batch_time.val:.3f} ({batch_time.avg:.3f}) data {data_time.val:.3f} ({data_time.avg:.3f}) "
            f"{losses.format(values)} lr {self.get_current_lr():.4e} "
            f"eta {datetime.timedelta(seconds=int(batch_time.avg * remaining))}"
        )
        step = self.epoch * self.num_batches + self.batch_idx
        for name, (_, mean) in values.items():
            self.write_scalar(f"train/{name}", mean, step)
        self.write_scalar("train/lr", self.get_current_lr(), step)

    # --- testing ------------------------------------------------------------------------------------

    def _items(self, split: str) -> Sequence[Datum]:
        return getattr(self.dm.dataset, split) or []

    def _is_empty(self, split: str) -> bool:
        return not self._items(split)

    def labelled_items(self) -> Sequence[Datum]:
        """Return the images whose labels the trainer uses: those of train and, if it uses val, those of val."""
        uses_val = self.uses_val or self._selects_best_val
        return [*self._items("train_x"), *(self._items("val") if uses_val else ())]

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Return the accuracy in percent on ``split``, "test" or "val" (by default ``TEST.SPLIT``).

        The trainer predicts from the paths alone; the evaluator adds the labels. ``results`` holds all metrics.

        Raises:
            ValueError: the split is unknown or has no images.
        """
        split = split or self.cfg.TEST.SPLIT
        self.results = testing.evaluate(self, split)
        for name, value in self.results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(self.results.values()))

    def class_groups(self) -> dict[str, Tensor]:
        """Return the class indices of each group by name; the test reports the accuracy of each group."""
        return training_groups(self.training_counts())

    def assumed_log_prior(self) -> Tensor:
        """Return the log class frequencies [C] that the logits assume: those of the training images, or uniform ones.

        They are uniform, up to a constant, if the trainer is ``logit_adjusted``.
        """
        if self.logit_adjusted:
            return torch.zeros(self.num_classes, dtype=torch.double)
        counts = self.training_counts().clamp_min(1).double()
        return (counts / counts.sum()).log()

    def training_counts(self) -> Tensor:
        """Return the number of training images of each class, [C]."""
        return torch.bincount(labels_of(self.dm.dataset.train_x or []), minlength=self.num_classes)

    def label_prior(self) -> LabelPrior | None:
        """Return the label prior of the foundation model that the trainer has estimated, if its method has one."""
        return None

    def predict_parts(self, paths: Sequence[str]) -> Prediction:
        """Return `predict`'s logits and those of a composite trainer's parts, which are evaluated too."""
        return Prediction(self.predict(paths))

    @torch.no_grad()
    def predict(self, paths: Sequence[str]) -> Tensor:
        """Return the logits [N, C], float32, of images without augmentation.

        Raises:
            FileNotFoundError: an image is missing; the message names it.
            ValueError: an image cannot be read, or ``paths`` is empty.
        """
        self.set_model_mode("eval")
        self._use_own_precision()
        return testing.predict_images(self, paths)

    def model_inference(self, input: Tensor) -> Tensor:
        """Return the logits [B, C] of preprocessed images."""
        return self.model(input)

    def linear_head(self) -> tuple[Tensor, Tensor] | None:
        """Return A [C, D] and c [C] of the logits A x + c of a normalised image feature x; ``None`` for other logits.

        With several ``TEST.CROPS``, x is the mean of the crops' normalised features.
        """
        return None

    def image_model(self) -> nn.Module:
        """Return the prediction as a module: crops [B, V, 3, H, W] in [0, 1] -> logits [B, C].

        Raises:
            ValueError: the prediction of an image depends on the other images.
        """
        return ImageModel(self, self.model_inference, self._models.values())

    def parse_batch_test(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Return images and labels on the device; in `predict` all labels are -1."""
        return batch["img"].to(self.device, non_blocking=True), batch["label"].to(self.device, non_blocking=True)


class TrainerX(SimpleTrainer):
    """Training on labelled images only."""

    def run_epoch(self) -> None:
        """Train on each batch of labelled images once."""
        self.num_batches = len(self.train_loader_x)
        self._run_batches((batch,) for batch in self.train_loader_x)

    def parse_batch_train(self, batch: dict) -> tuple[Tensor, ...]:
        """Return images, labels and domains on the device."""
        return tuple(batch[key].to(self.device, non_blocking=True) for key in ("img", "label", "domain"))
