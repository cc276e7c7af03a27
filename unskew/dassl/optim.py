"""`dassl.optim`: staged learning rates, and warm-up schedulers that a script puts before a PyTorch scheduler."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode

from unskew.dassl.radam import RAdam
from unskew.engine.optim import AVAI_OPTIMS, AVAI_SCHEDS, build_lr_scheduler, make_optimizer
from unskew.engine.optim import build_optimizer as build_unstaged
from unskew.utils.registry import unknown_name

__all__ = [
    "AVAI_OPTIMS",
    "AVAI_SCHEDS",
    "ConstantWarmupScheduler",
    "LinearWarmupScheduler",
    "build_lr_scheduler",
    "build_optimizer",
]


logger = logging.getLogger("unskew")


def build_optimizer(
    model: nn.Module | Iterable[nn.Parameter] | None, optim_cfg: CfgNode, param_groups: Iterable[Any] | None = None
) -> Optimizer:
    """Build the optimizer that ``optim_cfg.NAME`` names.

    With ``STAGED_LR`` the children of ``model`` named in ``NEW_LAYERS`` learn at ``LR`` and all other parameters at
    ``LR * BASE_LR_MULT``.

    Args:
        model: a module, or an iterable of parameters.
        optim_cfg: the config's ``OPTIM`` node.
        param_groups: parameter groups to optimize instead of ``model``.

    Raises:
        ValueError: an unknown optimizer or layer, or ``STAGED_LR`` without a module.
    """
    if not optim_cfg.STAGED_LR:
        optimizer = build_unstaged(model, optim_cfg, param_groups)
    elif param_groups is not None:
        logger.warning("OPTIM.STAGED_LR is ignored: the trainer gave its own parameter groups")
        optimizer = make_optimizer(param_groups, optim_cfg)
    else:
        optimizer = make_optimizer(_staged_groups(model, optim_cfg), optim_cfg)
    return optimizer if optim_cfg.NAME != "radam" else _dassls_radam(optimizer)


def _dassls_radam(optimizer: Optimizer) -> RAdam:
    """Return Dassl's `RAdam` with the groups of PyTorch's, from which it differs by rounding."""
    keys = ("params", "lr", "betas", "eps", "weight_decay")
    return RAdam([{key: group[key] for key in keys} for group in optimizer.param_groups], optimizer.defaults["lr"])


def _staged_groups(model: nn.Module | Iterable[nn.Parameter] | None, optim_cfg: CfgNode) -> list[dict[str, Any]]:
    if not isinstance(model, nn.Module):
        raise ValueError(f"OPTIM.STAGED_LR needs a module, to look up its layers; got {type(model).__name__}")
    module: nn.Module = model.module if isinstance(model, nn.DataParallel) else model
    new_layers = optim_cfg.NEW_LAYERS
    new_layers = [new_layers] if isinstance(new_layers, str) else list(new_layers)
    children = [name for name, _ in module.named_children()]
    for layer in new_layers:
        if layer not in children:
            raise ValueError(unknown_name("layer in OPTIM.NEW_LAYERS", layer, children))
    base: list[torch.Tensor] = []
    new: list[torch.Tensor] = []
    for name, parameter in module.named_parameters():
        (new if name.split(".")[0] in new_layers else base).append(parameter)
    return [{"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT}, {"params": new}]


class _BaseWarmupScheduler(LRScheduler):
    """A schedule with its own rates for ``warmup_epoch`` epochs, then those of ``successor`` from the beginning."""

    def __init__(self, optimizer: Optimizer, successor: LRScheduler, warmup_epoch: int, last_epoch: int = -1) -> None:
        self.successor, self.warmup_epoch = successor, warmup_epoch
        super().__init__(optimizer, last_epoch)

    def _warmup_lr(self, base_lr: float) -> float:
        raise NotImplementedError

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the learning rate of each parameter group."""
        if self.last_epoch >= self.warmup_epoch:
            return self.successor.get_last_lr()
        return [self._warmup_lr(float(base_lr)) for base_lr in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        """Step this schedule during the warm-up, ``successor`` after it."""
        if self.last_epoch < self.warmup_epoch:
            super().step(epoch)
        else:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """Return plain values, including the successor's state, so that a checkpoint loads without running code."""
        return {**super().state_dict(), "successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of both schedules."""
        self.successor.load_state_dict(state_dict["successor"])
        super().load_state_dict({**state_dict, "successor": self.successor})


class ConstantWarmupScheduler(_BaseWarmupScheduler):
    """Warm-up at ``cons_lr``. ``verbose`` has no effect: PyTorch's schedulers no longer print."""

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        cons_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def _warmup_lr(self, base_lr: float) -> float:
        return self.cons_lr


class LinearWarmupScheduler(_BaseWarmupScheduler):
    """Warm-up at ``min_lr`` in the first epoch, then linear in the epoch. ``verbose`` has no effect."""

    def __init__(
        self,
        optimizer: Optimizer,
        successor: LRScheduler,
        warmup_epoch: int,
        min_lr: float,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch)

    def _warmup_lr(self, base_lr: float) -> float:
        return base_lr * self.last_epoch / self.warmup_epoch if self.last_epoch else self.min_lr
