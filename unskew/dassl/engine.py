"""`dassl.engine`: the trainers of our engine, with the behaviour that scripts written for Dassl rely on."""

import importlib
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from yacs.config import CfgNode

from unskew.dassl.config import complete
from unskew.dassl.data import DataManager
from unskew.dassl.evaluation import EvaluatorBase, build_evaluator
from unskew.dassl.modeling import build_backbone, build_head
from unskew.dassl.optim import build_lr_scheduler, build_optimizer
from unskew.dassl.results import write_files_of
from unskew.dassl.utils import count_num_param, load_pretrained_weights
from unskew.engine import loop, trainer
from unskew.engine.trainer import TRAINER_REGISTRY

__all__ = [
    "TRAINER_REGISTRY",
    "SimpleNet",
    "SimpleTrainer",
    "TrainerBase",
    "TrainerX",
    "TrainerXU",
    "build_trainer",
]

logger = logging.getLogger("unskew")


def build_trainer(cfg: CfgNode) -> loop.TrainerBase:
    """Build the trainer that ``cfg.TRAINER.NAME`` names. Its ``train()`` writes the files of a run, see `results`.

    Raises:
        ValueError: the trainer is not registered.
    """
    if complete(cfg).TRAINER.NAME not in TRAINER_REGISTRY:
        importlib.import_module("unskew.dassl.trainers")  # Dassl's own trainers, which import this module
    trainer_class = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    if cfg.VERBOSE:
        logger.info(f"Loading trainer: {cfg.TRAINER.NAME}")
    built = trainer_class(cfg)
    write_files_of(built, cfg)
    return built


class SimpleNet(nn.Module):
    """A registered backbone, a head if the config has one with hidden layers, and a linear classifier.

    Args:
        cfg: the config.
        model_cfg: the config's ``MODEL`` node.
        num_classes: 0 for no classifier.

    Attributes:
        fdim: width of the classifier's input.
    """

    def __init__(self, cfg: CfgNode, model_cfg: CfgNode, num_classes: int, **kwargs) -> None:
        super().__init__()
        backbone, head = model_cfg.BACKBONE, model_cfg.HEAD
        self.backbone = build_backbone(backbone.NAME, verbose=cfg.VERBOSE, pretrained=backbone.PRETRAINED, **kwargs)
        self.head: nn.Module | None = None
        self.classifier: nn.Module | None = None
        if head.NAME and head.HIDDEN_LAYERS:
            self.head = build_head(
                head.NAME,
                verbose=cfg.VERBOSE,
                in_features=self.backbone.out_features,
                hidden_layers=head.HIDDEN_LAYERS,
                activation=head.ACTIVATION,
                bn=head.BN,
                dropout=head.DROPOUT,
                **kwargs,
            )
        last: Any = self.backbone if self.head is None else self.head
        self.fdim: int = last.out_features
        if num_classes > 0:
            self.classifier = nn.Linear(self.fdim, num_classes)

    def forward(self, x: Tensor, return_feature: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Return logits [B, C], or (logits, features [B, D]) with ``return_feature``; features without a classifier."""
        features = self.backbone(x)
        if self.head is not None:
            features = self.head(features)
        if self.classifier is None:
            return features
        logits = self.classifier(features)
        return (logits, features) if return_feature else logits


class TrainerBase(loop.TrainerBase):
    """The loop over epochs, for a trainer that loads its own data."""

    def init_writer(self, log_dir: Any) -> None:
        """Open the tensorboard writer, once."""
        if self._writer is None:
            logger.info(f"Initialize tensorboard (log_dir={log_dir})")
        super().init_writer(log_dir)

    def model_backward(self, loss: Tensor) -> None:
        """Compute gradients; raise ``FloatingPointError`` at once if the loss is not finite."""
        self.detect_anomaly(loss)
        super().model_backward(loss)

    def prograd_backward_and_update(
        self, loss_a: Tensor, loss_b: Tensor, lambda_: float = 1, names: str | Sequence[str] | None = None
    ) -> None:
        """Take ProGrad's step, a method of the Dassl in ProGrad's repository.

        The step follows the gradient of ``loss_a``. For each parameter where it disagrees with the gradient of
        ``loss_b``, ``lambda_`` times its component along that gradient is subtracted.
        """
        for loss in (loss_a, loss_b):
            self.detect_anomaly(loss)
        names = self.get_model_names(names)
        parameters = [p for name in names for p in self._models[name].parameters() if p.requires_grad]
        self.model_zero_grad(names)
        others = torch.autograd.grad(loss_b, parameters, retain_graph=True, allow_unused=True)
        loss_a.backward()
        pairs = [
            (p, p.grad, g) for p, g in zip(parameters, others, strict=True) if p.grad is not None and g is not None
        ]
        means = self.average_over_processes([gradient for _, *gradients in pairs for gradient in gradients])
        for (parameter, *_), mean, other in zip(pairs, means[::2], means[1::2], strict=True):
            parameter.grad = mean
            unit = other / torch.linalg.norm(other)
            along = torch.dot(parameter.grad.flatten(), unit.flatten())  # NaN if the other gradient is zero
            if along < 0:
                parameter.grad = parameter.grad - lambda_ * along * unit
        self.model_update(names)


class SimpleTrainer(TrainerBase, trainer.SimpleTrainer):
    """A trainer built from a config; a subclass defines ``build_model`` and ``forward_backward``.

    A subclass that builds its own loaders needs ``dm`` only for `predict`. As in Dassl, all random draws come from the
    global generators, so that a seed gives the same run. Checkpoints contain the states of these generators, so that a
    resumed run continues their sequence.
    """

    show_progress = False  # scripts print their own lines
    _build_data: Callable[..., DataManager] = staticmethod(DataManager)
    _build_evaluator: Callable[..., EvaluatorBase] = staticmethod(build_evaluator)

    def __init__(self, cfg: CfgNode, **options: Any) -> None:
        super().__init__(complete(cfg), **options)

    def build_model(self) -> None:
        """Build a `SimpleNet` and its optimizer."""
        cfg = self.cfg
        logger.info("Building model")
        self.model = SimpleNet(cfg, cfg.MODEL, self.num_classes)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        logger.info(f"# params: {count_num_param(self.model):,}")
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("model", self.model, self.optim, self.sched)

    def seed_epoch(self) -> None:
        """Do nothing: the draws of an epoch continue those of the previous epoch."""

    def extra_state(self) -> dict[str, Any]:
        """Return the states of the global generators."""
        numpy_state: Any = np.random.get_state()  # noqa: NPY002 - scripts draw from it
        _, words, *rest = numpy_state
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        numbers = {"python": random.getstate(), "numpy": [words.tolist(), *rest]}
        return {"random_state": {**numbers, "torch": torch.get_rng_state(), "cuda": cuda}}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore the states of the global generators."""
        saved = state.get("random_state")
        if saved is None:  # a checkpoint of Dassl
            return
        random.setstate(saved["python"])
        np.random.set_state(("MT19937", *saved["numpy"]))  # noqa: NPY002
        torch.set_rng_state(saved["torch"])
        if saved["cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(saved["cuda"], self.device)

    def print_frequency(self) -> int:
        """Return ``TRAIN.PRINT_FREQ``, or 1 if an epoch has fewer batches."""
        frequency = self.cfg.TRAIN.PRINT_FREQ
        return 1 if self.num_batches < frequency else max(1, frequency)

    def _items(self, split: str) -> Sequence:
        dataset = _dataset_of(self)
        if dataset is not None:
            return getattr(dataset, split, None) or []
        return getattr(getattr(self, _loader_name(split), None), "dataset", None) or []

    def _is_empty(self, split: str) -> bool:
        # A trainer without this attribute may hold its images under another name.
        return getattr(self, _loader_name(split), ...) is None and not self._items(split)

    def _has_test_classes(self) -> bool:
        return getattr(_dataset_of(self), "test_classes", None) is not None

    def test_names(self) -> dict[int, str]:
        """Return the names of the test classes, by column of the logits."""
        return super().test_names() if self._has_test_classes() else self.lab2cname

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Return the first metric (accuracy in percent) of a split's loader, whose batches have labels.

        Every batch goes through ``parse_batch_test``, ``model_inference`` and ``evaluator.process``, which subclasses
        may override. ``results`` holds all metrics.

        Raises:
            ValueError: the split is unknown or has no images.
        """
        split = split or self.cfg.TEST.SPLIT
        loader = getattr(self, _loader_name(split), None) if split in ("test", "val") else None
        if loader is None or self._has_test_classes() or self.cfg.TEST.CROPS > 1:
            return super().test(split)
        self.set_model_mode("eval")
        self.evaluator.reset()
        logger.info(f"Evaluate on the *{split}* set")
        for batch in tqdm(loader):
            input, label = self.parse_batch_test(batch)
            self.evaluator.process(self.model_inference(input), label)
        self.results = OrderedDict(self.evaluator.evaluate())
        for name, value in self.results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(self.results.values()))


def _dataset_of(trainer: SimpleTrainer) -> Any:
    return getattr(getattr(trainer, "dm", None), "dataset", None)


def _loader_name(split: str) -> str:
    return {"train_x": "train_loader_x"}.get(split, f"{split}_loader")


class TrainerX(SimpleTrainer, trainer.TrainerX):
    """Training on labelled images only."""


class TrainerXU(SimpleTrainer):
    """Training on labelled and unlabelled images; ``forward_backward(batch_x, batch_u)``."""

    train_loader_x: DataLoader
    train_loader_u: DataLoader

    def count_batches(self) -> int:
        """Return the batches of an epoch: as many as ``TRAIN.COUNT_ITER`` says, of train_x, train_u or smaller_one.

        Raises:
            ValueError: there are no unlabelled images, or ``TRAIN.COUNT_ITER`` is unknown.
        """
        if self.train_loader_u is None:
            raise ValueError(
                f"{self.cfg.TRAINER.NAME} needs unlabelled images (train_u), and '{self.cfg.DATASET.NAME}' has none: "
                "choose a dataset for domain adaptation or semi-supervised learning"
            )
        lengths = {"train_x": len(self.train_loader_x), "train_u": len(self.train_loader_u)}
        lengths["smaller_one"] = min(lengths.values())
        count = self.cfg.TRAIN.COUNT_ITER
        if count not in lengths:
            raise ValueError(f"TRAIN.COUNT_ITER must be train_x, train_u or smaller_one, got '{count}'")
        return lengths[count]

    def run_epoch(self) -> None:
        """Train on `count_batches` pairs of batches."""
        self.num_batches = self.count_batches()
        pairs = zip(_endless(self.train_loader_x), _endless(self.train_loader_u), strict=False)
        self._run_batches(pair for _, pair in zip(range(self.num_batches), pairs, strict=False))

    def forward_backward(  # type: ignore[override]  # Dassl's signature
        self, batch_x: dict[str, Any], batch_u: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Take one step on a labelled and an unlabelled batch; return values to log, if any."""
        raise NotImplementedError

    def parse_batch_train(  # type: ignore[override]  # Dassl's signature
        self, batch_x: dict[str, Any], batch_u: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        """Return labelled images, their labels and unlabelled images on the device."""
        images, labels, unlabelled = (
            tensor.to(self.device, non_blocking=True) for tensor in (batch_x["img"], batch_x["label"], batch_u["img"])
        )
        return images, labels, unlabelled


def _endless(loader: DataLoader) -> Iterator[dict[str, Any]]:
    """Iterate forever. The first iterator is created eagerly so that its random draws happen now, as in Dassl."""
    return chain(iter(loader), chain.from_iterable(repeat(loader)))
