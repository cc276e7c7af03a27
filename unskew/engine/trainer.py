"""Dassl's trainers on accelerate: `TrainerBase`, `SimpleTrainer`, `TrainerX`.

A new trainer subclasses `TrainerX`, registers itself in `TRAINER_REGISTRY`, and defines ``build_model`` and
``forward_backward``.
"""

import datetime
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

from unskew.data.loaders import DataManager, SharedLoader, seed_loader
from unskew.data.samplers import SHARE
from unskew.engine import checkpoint, testing
from unskew.engine.accelerator import broadcast_states, build_accelerator
from unskew.engine.evaluator import build_evaluator
from unskew.engine.image_models import ImageModel
from unskew.engine.loop import Names
from unskew.engine.meters import AverageMeter, MetricMeter
from unskew.engine.method import TRAINER_REGISTRY, Method
from unskew.engine.prediction import Prediction
from unskew.engine.saving import CheckpointSchedule
from unskew.utils.files import unwritable
from unskew.utils.logging import warn_once
from unskew.utils.processes import together
from unskew.utils.seeds import derive_seed, set_random_seed

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("unskew")

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


class SimpleTrainer(Method):
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
        self._check_undeclared()
        self.evaluator = self._build_evaluator(cfg, lab2cname=self.test_names())
        self._share_among_processes()

    def build_data_loader(self) -> None:
        """Build ``dm``, and set the loaders, ``num_classes`` and ``lab2cname`` from it."""
        dm = self.dm = self._build_data(self.cfg)
        self.train_loader_x, self.train_loader_u = dm.train_loader_x, dm.train_loader_u
        self.val_loader, self.test_loader = dm.val_loader, dm.test_loader
        self.num_classes, self.num_source_domains = dm.num_classes, dm.num_source_domains
        self.lab2cname = dm.lab2cname

    def build_model(self) -> None:
        """Build the model, move it to ``self.device`` and register it with its optimizer and schedule."""
        raise NotImplementedError(f"{type(self).__name__} must define build_model()")

    def _share_among_processes(self) -> None:
        """Give each process its part of every training batch, and the main process's weights."""
        if self.accelerator.num_processes == 1:
            return
        for name in ("train_loader_x", "train_loader_u"):
            loader = getattr(self, name, None)
            if isinstance(loader, torch.utils.data.DataLoader) and loader.batch_sampler is not None:
                setattr(self, name, SharedLoader(loader))
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
        with together():
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
        self.accelerator.wait_for_everyone()  # all have read the checkpoints before the main process writes new ones
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
            missing = "DATASET.NUM_VAL_SHOTS above 0 (with all images, set DATASET.HOLDOUT to 0.05)"
            other = "DATASET.TRAIN_ON_VAL to False" if self.cfg.DATASET.TRAIN_ON_VAL else missing
            raise ValueError(
                f"TEST.FINAL_MODEL is best_val, but '{name}' has no val split: set {other}, or TEST.FINAL_MODEL to "
                "last_step"
            )

    def seed_epoch(self) -> None:
        """Seed the loaders and the global generators by the seed and the epoch, equally in all processes."""
        seed = self.cfg.SEED
        for name in ("train_loader_x", "train_loader_u"):
            seed_loader(getattr(self, name, None), seed, self.epoch)
        if seed >= 0:
            set_random_seed(derive_seed(seed, self.epoch, 0))  # dropout

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
            self.batch_share = batch[0].get(SHARE) if isinstance(batch[0], dict) else None
            losses.update(self.forward_backward(*batch), self._weight)
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
        return losses.gather(lambda numbers: self.accelerator.reduce(numbers.to(self.device), "mean"))

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
