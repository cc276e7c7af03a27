"""Parts of Dassl's trainers: networks with their optimizers, two augmentations per image, losses of probabilities."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode

from unskew.dassl.data import DataManager
from unskew.dassl.engine import SimpleNet, SimpleTrainer
from unskew.dassl.modeling import build_head
from unskew.dassl.optim import build_lr_scheduler, build_optimizer
from unskew.dassl.transforms import build_transform
from unskew.dassl.utils import count_num_param

logger = logging.getLogger("unskew")


def require(condition: bool, message: str) -> None:
    """Raise ``ValueError`` unless a config suits a trainer."""
    if not condition:
        raise ValueError(message)


def require_one_step_per_batch(cfg: CfgNode) -> None:
    """Raise ``ValueError`` for ``TRAIN.ACCUMULATE``: the trainer takes several steps on each batch."""
    count = cfg.TRAIN.get("ACCUMULATE", 1)
    require(
        count == 1,
        f"{cfg.TRAINER.NAME} takes several steps on each batch: set TRAIN.ACCUMULATE to 1 (got {count})",
    )


def require_strong_transforms(trainer: SimpleTrainer) -> None:
    """Raise ``ValueError`` if the trainer's node names no strong augmentation."""
    name = trainer.cfg.TRAINER.NAME
    require(
        len(trainer.node.STRONG_TRANSFORMS) > 0,
        f"{name} needs a second augmentation: set TRAINER.{trainer.node_name}.STRONG_TRANSFORMS, such as "
        '["randaugment2", "normalize"]',
    )


def require_domain_batches(cfg: CfgNode) -> None:
    """Raise ``ValueError`` unless each batch has equal numbers of images of several domains."""
    sampler = cfg.DATALOADER.TRAIN_X.SAMPLER
    require(
        sampler == "RandomDomainSampler",
        f"{cfg.TRAINER.NAME} needs DATALOADER.TRAIN_X.SAMPLER RandomDomainSampler (got {sampler})",
    )


def require_own_unlabelled_loader(cfg: CfgNode) -> None:
    """Raise ``ValueError`` if the loader of unlabelled images copies the settings of the labelled one."""
    require(
        not cfg.DATALOADER.TRAIN_U.SAME_AS_X,
        f"{cfg.TRAINER.NAME} needs DATALOADER.TRAIN_U.SAME_AS_X False: the target has one domain",
    )


def require_source_weights(cfg: CfgNode) -> None:
    """Raise ``ValueError`` without a checkpoint of a network that was trained on the source domains."""
    weights = cfg.MODEL.INIT_WEIGHTS
    require(
        os.path.isfile(weights),
        f"{cfg.TRAINER.NAME} starts from a trained network: set MODEL.INIT_WEIGHTS to its checkpoint, such as one of a "
        f"SourceOnly run (got '{weights}')",
    )


def build_part(
    trainer: SimpleTrainer,
    name: str,
    make: Callable[[], nn.Module],
    title: str = "",
    suffix: str = "",
    make_schedule: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
) -> None:
    """Build a network with its optimizer and schedule, and register it.

    Args:
        trainer: gets the attributes ``<name>``, ``optim_<suffix>`` and ``sched_<suffix>``.
        name: the name of the registered model, such as "F".
        make: returns the network.
        title: the name in the log; default ``name``.
        suffix: default ``name``.
        make_schedule: builds the schedule; by default the config's.
    """
    cfg, suffix = trainer.cfg, suffix or name
    logger.info(f"Building {title or name}")
    part = make()
    part.to(trainer.device)
    logger.info(f"# params: {count_num_param(part):,}")
    optim = build_optimizer(part, cfg.OPTIM)
    sched = make_schedule(optim) if make_schedule else build_lr_scheduler(optim, cfg.OPTIM)
    for attribute, value in ((name, part), (f"optim_{suffix}", optim), (f"sched_{suffix}", sched)):
        setattr(trainer, attribute, value)
    trainer.register_model(name, part, optim, sched)


def feature_network(trainer: SimpleTrainer, num_classes: int = 0) -> Callable[[], SimpleNet]:
    """Return a function that builds the config's network, for `build_part`; without a classifier for 0 classes."""
    return lambda: SimpleNet(trainer.cfg, trainer.cfg.MODEL, num_classes)


def build_critic(trainer: SimpleTrainer, fdim: int, widths: Sequence[int]) -> None:
    """Build a domain classifier of features as the part "critic": [B, D] -> logits [B, 1].

    Args:
        trainer: gets the part.
        fdim: the width of the features.
        widths: widths of the hidden layers.
    """

    def make() -> nn.Module:
        body = build_head(
            "mlp",
            verbose=trainer.cfg.VERBOSE,
            in_features=fdim,
            hidden_layers=list(widths),
            activation="leaky_relu",
        )
        return nn.Sequential(body, nn.Linear(widths[-1], 1))

    build_part(trainer, "critic", make, title="critic network", suffix="c")


def build_weak_and_strong_loaders(trainer: SimpleTrainer, strong: Sequence[str]) -> None:
    """Build loaders whose batches hold two augmentations of each image.

    ``img`` has the augmentation of ``INPUT.TRANSFORMS``, ``img2`` that of ``strong``.
    """
    cfg = trainer.cfg
    transforms: Any = [build_transform(cfg, is_train=True), build_transform(cfg, is_train=True, choices=strong)]
    dm = trainer.dm = DataManager(cfg, custom_tfm_train=transforms)
    trainer.train_loader_x, trainer.train_loader_u = dm.train_loader_x, dm.train_loader_u
    trainer.val_loader, trainer.test_loader = dm.val_loader, dm.test_loader
    trainer.num_classes, trainer.num_source_domains = dm.num_classes, dm.num_source_domains
    trainer.lab2cname = dm.lab2cname


def numbers(**values: Tensor | float) -> dict[str, float]:
    """Return losses and accuracies as floats, whose means then equal Dassl's to the last digit."""
    return {name: value.item() if isinstance(value, Tensor) else value for name, value in values.items()}


def finish_batch(trainer: SimpleTrainer) -> None:
    """Step the schedules after the last batch of an epoch."""
    if trainer.batch_idx + 1 == trainer.num_batches:
        trainer.update_lr()


def by_domain(domain: Tensor, *tensors: Tensor) -> Iterator[tuple]:
    """Yield (domain, rows of each tensor) for the domains [B] of a batch, in order of their first image."""
    domain = domain.cpu()
    for value in dict.fromkeys(domain.tolist()):
        rows = (domain == value).nonzero().flatten()
        yield (value, *(tensor[rows.to(tensor.device)] for tensor in tensors))


def mean_of(values: Sequence[Tensor]) -> Tensor:
    """Return the mean of one tensor per domain or view, added in order as in Dassl."""
    return sum(values[1:], values[0]) / len(values)


def cross_entropy_of(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Return ``-sum_c t_c log(p_c + 1e-5)`` per row [B]; the entropy if both are the same."""
    return -(targets * torch.log(probabilities + 1e-5)).sum(1)


def pseudo_label_quality(predicted: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the accuracy of all pseudo-labels [B], that of the kept ones, and the share of kept ones (mask 1)."""
    right = (predicted == labels).float()
    return right.mean(), (right * mask).sum() / (mask.sum() + 1e-5), mask.mean()
