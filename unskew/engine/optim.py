"""Optimizers and learning-rate schedules from the config's ``OPTIM`` node, as in Dassl."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode

from unskew import config

# Dassl's names of the lists.
AVAI_OPTIMS, AVAI_SCHEDS = config.OPTIMIZERS, config.SCHEDULERS


def build_optimizer(
    model: nn.Module | Iterable[nn.Parameter] | None, optim_cfg: CfgNode, param_groups: Iterable[Any] | None = None
) -> torch.optim.Optimizer:
    """Build the optimizer that ``optim_cfg.NAME`` names.

    Args:
        model: a module, or an iterable of parameters.
        optim_cfg: the config's ``OPTIM`` node.
        param_groups: parameters or groups of parameters to optimize instead of ``model``.

    Raises:
        ValueError: the optimizer is unknown, or ``STAGED_LR`` is set, which only `unskew.dassl.optim` supports.
    """
    if optim_cfg.STAGED_LR:
        raise ValueError("OPTIM.STAGED_LR is a key of Dassl's API: build the optimizer with `dassl.optim`, or unset it")
    parameters = model.parameters() if isinstance(model, nn.Module) else model
    return make_optimizer(parameters if param_groups is None else param_groups, optim_cfg)


def make_optimizer(param_groups: Any, optim_cfg: CfgNode) -> torch.optim.Optimizer:
    """Build the optimizer that ``optim_cfg.NAME`` names, for parameters or groups of parameters.

    Raises:
        ValueError: the optimizer is unknown, or its keys do not fit it.
    """
    name, lr = optim_cfg.NAME, optim_cfg.LR
    config.check_optimizer(optim_cfg)
    common = {"lr": lr, "weight_decay": optim_cfg.WEIGHT_DECAY}
    betas = (optim_cfg.ADAM_BETA1, optim_cfg.ADAM_BETA2)
    match name:
        case "sgd":
            momentum = {"momentum": optim_cfg.MOMENTUM, "dampening": optim_cfg.SGD_DAMPNING}
            return torch.optim.SGD(param_groups, **common, **momentum, nesterov=optim_cfg.SGD_NESTEROV)
        case "rmsprop":
            settings = {"momentum": optim_cfg.MOMENTUM, "alpha": optim_cfg.RMSPROP_ALPHA}
            return torch.optim.RMSprop(param_groups, **common, **settings)
        case "radam":
            # Dassl's RAdam is the authors' implementation, with the weight decay of AdamW.
            return torch.optim.RAdam(param_groups, **common, betas=betas, decoupled_weight_decay=True)
        case "adamw":
            return torch.optim.AdamW(param_groups, **common, betas=betas)
        case _:
            return torch.optim.Adam(param_groups, **common, betas=betas, amsgrad=name == "amsgrad")


def _decay(optim_cfg: CfgNode, count: int) -> float:
    """Return the main schedule after ``count`` steps, as a factor of the base rate."""
    stepsize, max_epoch = optim_cfg.STEPSIZE, optim_cfg.MAX_EPOCH
    match optim_cfg.LR_SCHEDULER:
        case "cosine":
            return (1 + math.cos(math.pi * count / max(1, max_epoch))) / 2
        case "multi_step":
            return optim_cfg.GAMMA ** sum(0 < milestone <= count for milestone in stepsize)
        case _:
            step = stepsize[-1] if isinstance(stepsize, list | tuple) else stepsize
            return optim_cfg.GAMMA ** (count // (step if step > 0 else max(1, max_epoch)))


def learning_rate(optim_cfg: CfgNode, epoch: int, base_lr: float) -> float:
    """Return the learning rate of ``epoch`` (from 0), in closed form.

    The first ``WARMUP_EPOCH`` epochs run at ``WARMUP_CONS_LR`` (constant), or at ``WARMUP_MIN_LR`` and then
    ``base_lr * epoch / WARMUP_EPOCH`` (linear). After them the main schedule starts from ``base_lr``. With
    ``WARMUP_RECOUNT`` it counts from 0, so that cosine over MAX_EPOCH does not reach zero. Without, it counts from
    ``WARMUP_EPOCH`` and is divided by its value there, as if Dassl's schedulers were stepped.
    """
    warmup = max(0, optim_cfg.WARMUP_EPOCH)
    if epoch < warmup:
        if optim_cfg.WARMUP_TYPE == "constant":
            return optim_cfg.WARMUP_CONS_LR
        return base_lr * epoch / warmup if epoch else optim_cfg.WARMUP_MIN_LR
    if optim_cfg.WARMUP_RECOUNT:
        return base_lr * _decay(optim_cfg, epoch - warmup)
    return base_lr * _decay(optim_cfg, epoch) / (_decay(optim_cfg, warmup) or 1.0)


class EpochSchedule(LRScheduler):
    """`learning_rate` as a PyTorch scheduler, stepped once per epoch; its state is plain numbers."""

    def __init__(self, optimizer: torch.optim.Optimizer, optim_cfg: CfgNode) -> None:
        self.optim_cfg = optim_cfg
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the learning rate of each parameter group."""
        return [learning_rate(self.optim_cfg, self.last_epoch, float(base_lr)) for base_lr in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the state without the config."""
        return {key: value for key, value in super().state_dict().items() if key != "optim_cfg"}


def build_lr_scheduler(optimizer: torch.optim.Optimizer, optim_cfg: CfgNode) -> EpochSchedule:
    """Build the schedule that ``optim_cfg.LR_SCHEDULER`` names, with warm-up; its rates equal Dassl's.

    Raises:
        ValueError: the schedule or the warm-up is unknown, or ``STEPSIZE`` does not fit the schedule.
    """
    config.check_schedule(optim_cfg)
    return EpochSchedule(optimizer, optim_cfg)
