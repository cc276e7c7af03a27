"""Dassl's trainers on accelerate: `TrainerBase`, `SimpleTrainer`, `TrainerX`.

A trainer of one's own subclasses `TrainerX`, registers itself in `TRAINER_REGISTRY` and gives
``build_model`` and ``forward_backward``.
"""

import datetime
import functools
import inspect
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from yacs.config import CfgNode

from unskew.data.loaders import DataManager, seed_loader
from unskew.debias.metrics import training_groups
from unskew.engine import checkpoint
from unskew.engine.accelerator import build_accelerator, collect_env_info
from unskew.engine.evaluator import build_evaluator, labels_of
from unskew.engine.loop import TrainerBase
from unskew.engine.meters import AverageMeter, MetricMeter
from unskew.engine.prediction import Prediction
from unskew.utils.files import write_atomically
from unskew.utils.logging import setup_logger
from unskew.utils.registry import Registry
from unskew.utils.seeds import derive_seed, set_random_seed

__all__ = [
    "TRAINER_REGISTRY",
    "AverageMeter",
    "MetricMeter",
    "SimpleTrainer",
    "TrainerBase",
    "TrainerX",
    "build_trainer",
    "collect_env_info",
    "set_random_seed",
    "setup_logger",
]

logger = logging.getLogger("unskew")

TRAINER_REGISTRY = Registry("TRAINER", "unskew.trainers")


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
    """A trainer built from a frozen config. A method gives ``build_model`` and ``forward_backward``.

    Attributes:
        accelerator, device: the forward pass belongs under ``accelerator.autocast()``.
        generator: a CPU generator for initial weights, seeded with ``cfg.SEED``.
        dm: the `DataManager`; ``num_classes``, ``lab2cname`` and the loaders are its.
        results: the metrics of the last ``test``.
    """

    # Whether log p, the label frequencies of the training images, is out of the logits: by the loss, or never learned.
    logit_adjusted = False
    # `fit` switches it off: a trainer inside another one is not tested.
    _tests_after_training = True
    # What the data and the evaluator are built by, from the config.
    _build_data, _build_evaluator = staticmethod(DataManager), staticmethod(build_evaluator)

    def __init__(self, cfg: CfgNode, validate: Callable[[], float] | None = None) -> None:
        super().__init__()
        self.cfg = cfg
        self.check_cfg(cfg)
        self._validate_epoch = validate
        self.accelerator = build_accelerator(cfg.TRAINER.get("PREC", "fp32"), cfg.USE_CUDA)
        self.device = self.accelerator.device
        if self.accelerator.num_processes > 1 and cfg.SEED < 0:
            raise ValueError("several processes have to draw the same order of images: set SEED to 0 or more")
        if cfg.TRAIN.ACCUMULATE < 1:
            raise ValueError(
                f"TRAIN.ACCUMULATE is a number of batches and must be 1 or more, got {cfg.TRAIN.ACCUMULATE}"
            )
        self._mixed_precision = self.accelerator.mixed_precision
        self.generator = torch.Generator().manual_seed(derive_seed(cfg.SEED))
        self.start_epoch = self.epoch = self.batch_idx = 0
        self.num_batches = 1
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.best_result = -math.inf
        self.results: dict[str, float] = {}
        self.build_data_loader()
        self.build_model()
        self.evaluator = self._build_evaluator(cfg, lab2cname=self._test_names())
        self._share_among_processes()

    @functools.cached_property
    def node_name(self) -> str:
        """The name of the trainer's node below ``cfg.TRAINER``: the name under which its class is registered.

        A subclass without a node of its own reads the node of its base class.
        """
        for trainer_class in type(self).__mro__:
            for name in TRAINER_REGISTRY.names_of(trainer_class):
                if isinstance(self.cfg.TRAINER.get(name.upper()), CfgNode):
                    return name.upper()
        raise ValueError(f"the config has no node TRAINER.{type(self).__name__.upper()}")

    @functools.cached_property
    def node(self) -> CfgNode:
        """The trainer's own part of the config."""
        return self.cfg.TRAINER[self.node_name]

    def check_cfg(self, cfg) -> None:
        """Raise ``ValueError`` for a config that the method cannot work with (optional)."""

    def build_data_loader(self) -> None:
        """Make ``dm`` and what is taken from it: the loaders, ``num_classes``, ``lab2cname``."""
        dm = self.dm = self._build_data(self.cfg)
        self.train_loader_x, self.train_loader_u = dm.train_loader_x, dm.train_loader_u
        self.val_loader, self.test_loader = dm.val_loader, dm.test_loader
        self.num_classes, self.num_source_domains = dm.num_classes, dm.num_source_domains
        self.lab2cname = dm.lab2cname

    def _test_names(self) -> dict[int, str]:
        """The names of the classes that test images are classified among, by column of the logits."""
        classes = getattr(self.dm.dataset, "test_classes", None)
        return self.lab2cname if classes is None else dict(enumerate(self.lab2cname[label] for label in classes))

    def build_model(self) -> None:
        """Build the model, put it on ``self.device`` and register it with its optimiser and schedule."""
        raise NotImplementedError(f"{type(self).__name__} has to define build_model()")

    def _share_among_processes(self) -> None:
        """Each process gets its part of every training epoch and the first one's weights."""
        if self.accelerator.num_processes == 1:
            return
        for name in ("train_loader_x", "train_loader_u"):
            loader = getattr(self, name, None)
            if isinstance(loader, torch.utils.data.DataLoader):
                setattr(self, name, self.accelerator.prepare_data_loader(loader, device_placement=False))
        self._synchronise_models()

    def _synchronise_models(self) -> None:
        """The first process's weights and buffers (batch norm sees other images in each) for all."""
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast

            for model in self._models.values():
                for tensor in model.state_dict().values():
                    tensor.copy_(broadcast(tensor.detach().clone()))

    # --- training -----------------------------------------------------------------------------------

    def train(self) -> None:
        self._use_own_precision()
        super().train(self.start_epoch, self.max_epoch)

    def fit(self) -> None:
        """`train` without the test at its end, for a trainer that works inside another one."""
        self._tests_after_training = False
        self.train()

    def _use_own_precision(self) -> None:
        # accelerate's autocast reads a state that the process shares; the last trainer built left its own there.
        self.accelerator.state._mixed_precision = self._mixed_precision

    def before_train(self) -> None:
        """Make the output folder, resume from ``RESUME`` or from it, open the tensorboard writer.

        Raises:
            ValueError: the folder cannot be written, or "best_val" without a val split.
        """
        if self._models and self._is_empty("train_x"):
            name = self.cfg.DATASET.NAME
            raise ValueError(
                f"'{name}' has test images only: train on the dataset that it belongs to, then test with --eval-only "
                f"--model-dir and that run's folder"
            )
        selects = self.cfg.TEST.FINAL_MODEL == "best_val"
        if selects and self._is_empty("val"):
            raise ValueError(
                f"TEST.FINAL_MODEL is best_val, but '{self.cfg.DATASET.NAME}' has no val split and the test split "
                "never selects; set DATASET.NUM_VAL_SHOTS above 0, for all images DATASET.HOLDOUT to 0.05 (of classes "
                "with 20 or more), or TEST.FINAL_MODEL to last_step"
            )
        writer_dir = Path(self.output_dir) / "tensorboard"
        try:
            writer_dir.mkdir(parents=True, exist_ok=True)
            if self.accelerator.is_main_process:
                self.init_writer(writer_dir)
        except OSError as error:
            raise ValueError(
                f"the output folder '{self.output_dir}' cannot be written ({error.strerror}); choose another OUTPUT_DIR"
            ) from error
        directory = self.cfg.RESUME or self.output_dir
        self.start_epoch = self.resume_model_if_exist(directory)
        if selects and self.start_epoch:
            self.best_result = self._saved_best(directory)
            self._keep_best(directory)
        self.time_start = time.time()

    def _saved_best(self, directory) -> float:
        """The val result of the best checkpoint so far; a resumed run must beat it."""
        path = Path(directory) / next(iter(self._models)) / checkpoint.BEST
        result = checkpoint.load_checkpoint(path).get("val_result") if path.is_file() else None
        return -math.inf if result is None else result

    def _keep_best(self, directory) -> None:
        """A run resumed from another folder may never beat its best epoch, which is deployed from this one."""
        for name in self._models:
            source, target = (Path(where) / name / checkpoint.BEST for where in (directory, self.output_dir))
            if source.is_file() and source.resolve() != target.resolve() and self.accelerator.is_main_process:
                target.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(target, source.read_bytes())

    def seed_epoch(self) -> None:
        seed, rank = self.cfg.SEED, self.accelerator.process_index
        for name in ("train_loader_x", "train_loader_u"):
            seed_loader(getattr(self, name, None), seed, self.epoch)
        if seed >= 0:
            set_random_seed(derive_seed(seed, self.epoch, rank))  # augmentation, dropout

    def after_epoch(self) -> None:
        """Validate and keep the best epoch with "best_val"; save at ``CHECKPOINT_FREQ`` and at the end."""
        self._synchronise_models()
        frequency, done = self.cfg.TRAIN.CHECKPOINT_FREQ, self.epoch + 1
        if self.cfg.TEST.FINAL_MODEL == "best_val":
            result = (self._validate_epoch or self.validate)()
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=checkpoint.BEST)
        if done == self.max_epoch or (frequency > 0 and done % frequency == 0):
            self.save_model(self.epoch, self.output_dir)

    def after_train(self) -> None:
        """Load the best epoch with "best_val", test unless ``NO_TEST``, close the writer."""
        if self._tests_after_training:
            logger.info("Finish training")
        self.accelerator.wait_for_everyone()
        if self.cfg.TEST.FINAL_MODEL == "best_val" and self.best_result > -math.inf:
            logger.info("Deploy the model with the best val performance")
            self.load_model(self.output_dir)
        else:
            logger.info("Deploy the last-epoch model")
        if self._tests_after_training and not self.cfg.TEST.NO_TEST:
            accuracy = self.test()
            if not self.results and accuracy is not None:  # a test() of a method's own
                self.results = {"accuracy": float(accuracy)}
        elapsed = datetime.timedelta(seconds=round(time.time() - self.time_start))
        logger.info(f"Elapsed: {elapsed}")
        self.close_writer()

    def validate(self) -> float:
        """The score by which "best_val" selects, higher is better: the accuracy on val in percent."""
        results = self.results
        try:
            return self.test(split="val")
        finally:
            self.results = results  # they are those of the last test, not of a validation

    def _run_batches(self, batches: Iterable[tuple]) -> None:
        """Train on each of the epoch's batches and log at ``PRINT_FREQ``, in Dassl's line."""
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

    def print_frequency(self) -> int:
        """How many batches there are between two lines of the log; an epoch has one at least."""
        return max(1, min(self.cfg.TRAIN.PRINT_FREQ, self.num_batches))

    def model_backward_and_update(self, loss: Tensor, names=None) -> None:
        """One step; with ``TRAIN.ACCUMULATE`` n, one after every n batches, along the mean of their gradients."""
        n = self.cfg.TRAIN.ACCUMULATE
        if n == 1:  # whatever batch a method's own loop says that it is at
            return super().model_backward_and_update(loss, names)
        if self.batch_idx >= self.num_batches:
            raise ValueError(
                f"{type(self).__name__} is at batch {self.batch_idx + 1} of {self.num_batches} and cannot accumulate: "
                "set num_batches in its run_epoch, or TRAIN.ACCUMULATE 1"
            )
        place, first = self.batch_idx % n, self.batch_idx - self.batch_idx % n
        size = min(n, self.num_batches - first)  # an epoch's last step has what remains
        if place == 0:
            self.model_zero_grad(names)
        self.model_backward(loss / size)
        if place == size - 1:
            super().model_update(names)

    def model_update(self, names=None) -> None:
        if self.cfg.TRAIN.ACCUMULATE > 1:
            raise ValueError(
                f"{type(self).__name__} takes its steps itself and cannot accumulate: set TRAIN.ACCUMULATE 1"
            )
        super().model_update(names)

    def _log_batch(self, losses: MetricMeter, batch_time: AverageMeter, data_time: AverageMeter) -> None:
        self._raise_if_anomalous()
        values = losses.gather(lambda numbers: self.accelerator.reduce(numbers, "mean"))
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

    def _items(self, split: str) -> Sequence:
        return getattr(self.dm.dataset, split) or []

    def _is_empty(self, split: str) -> bool:
        return not self._items(split)

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Accuracy in percent on ``split`` ("test" or "val"; ``TEST.SPLIT`` unless given).

        The trainer predicts from the paths alone; the evaluator joins the labels. All metrics are kept in
        ``results``.

        Raises:
            ValueError: the split is unknown or has no images.
        """
        split = split or self.cfg.TEST.SPLIT
        if split not in ("test", "val"):
            raise ValueError(f"a model is tested on 'test' or 'val', got '{split}'")
        items = self._items(split)
        if not items:
            raise ValueError(f"'{self.cfg.DATASET.NAME}' has no {split} split to test on")
        logger.info(f"Evaluate on the *{split}* set")
        prediction = self.predict_parts([item.impath for item in items])
        logits, parts = prediction.logits, prediction.parts
        labels = labels_of(items)  # [N]
        classes = getattr(self.dm.dataset, "test_classes", None) if split == "test" else None
        if classes is not None:
            labels = torch.searchsorted(torch.tensor(classes), labels)
            logits, parts = logits[:, classes], {name: part[:, classes] for name, part in parts.items()}
        labels = labels.to(logits.device)
        self.evaluator.reset()
        self.evaluator.groups = self.class_groups() if split == "test" else {}
        if parts:
            self.evaluator.process(logits, labels, extra=parts)
        else:
            self.evaluator.process(logits, labels)
        self.results = dict(self.evaluator.evaluate())
        for name, value in self.results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(self.results.values()))

    def class_groups(self) -> dict[str, Tensor]:
        """Class indices by name; the accuracy of each group is reported on the test set."""
        counts = torch.bincount(labels_of(self.dm.dataset.train_x or []), minlength=self.num_classes)
        return training_groups(counts)

    def predict_parts(self, paths: Sequence[str]) -> Prediction:
        """Return `predict`'s logits and those of a composite trainer's parts, which are evaluated too."""
        return Prediction(self.predict(paths))

    @torch.no_grad()
    def predict(self, paths: Sequence[str]) -> Tensor:
        """Logits [N, C], float32, of the images ``paths`` without augmentation.

        Raises:
            FileNotFoundError, ValueError: an image is missing or cannot be read; it is named.
        """
        paths, world, rank = list(paths), self.accelerator.num_processes, self.accelerator.process_index
        if not paths:
            raise ValueError("no images to predict")
        share = [paths[(start + rank) % len(paths)] for start in range(0, len(paths), world)]
        self.set_model_mode("eval")
        self._use_own_precision()
        logits, count = [], len(self.dm.tfm_crops)
        names = ["img", *(f"img{number}" for number in range(2, count + 1))]
        for batch in tqdm(self.dm.path_loader(share), desc="predict", delay=2, leave=False, disable=None):
            inputs = (self.parse_batch_test({**batch, "img": batch[name]})[0] for name in names)
            with self.accelerator.autocast():
                logits.append(sum(self.model_inference(input) for input in inputs) / count)
        logits = torch.cat(logits).float()
        if world > 1:  # [world * share, C] -> image order
            logits = self.accelerator.gather(logits).unflatten(0, (world, -1)).transpose(0, 1).flatten(0, 1)
        return logits[: len(paths)]

    def model_inference(self, input: Tensor) -> Tensor:
        return self.model(input)

    def parse_batch_test(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Images and labels on the device; in `predict` the labels are all -1."""
        return batch["img"].to(self.device, non_blocking=True), batch["label"].to(self.device, non_blocking=True)


class TrainerX(SimpleTrainer):
    """Training on labelled images only."""

    def run_epoch(self) -> None:
        self.num_batches = len(self.train_loader_x)
        self._run_batches((batch,) for batch in self.train_loader_x)

    def parse_batch_train(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and domains on the device."""
        return tuple(batch[key].to(self.device, non_blocking=True) for key in ("img", "label", "domain"))
