"""`dassl.optim`: ours, and the warm-up schedulers that are put before a PyTorch scheduler by hand."""

from torch.optim.lr_scheduler import LRScheduler

from unskew.engine.optim import AVAI_OPTIMS, AVAI_SCHEDS, build_lr_scheduler, build_optimizer

__all__ = [
    "AVAI_OPTIMS",
    "AVAI_SCHEDS",
    "ConstantWarmupScheduler",
    "LinearWarmupScheduler",
    "build_lr_scheduler",
    "build_optimizer",
]


class _WarmupScheduler(LRScheduler):
    """Rates of its own for ``warmup_epoch`` epochs, then those of ``successor``, from its beginning.

    Args:
        verbose: without effect; PyTorch's schedulers no longer print.
    """

    def __init__(self, optimizer, successor, warmup_epoch, last_epoch=-1, verbose=False) -> None:
        self.successor, self.warmup_epoch = successor, warmup_epoch
        super().__init__(optimizer, last_epoch)

    def _warmup_lr(self, base_lr: float) -> float:
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        if self.last_epoch >= self.warmup_epoch:
            return self.successor.get_last_lr()
        return [self._warmup_lr(base_lr) for base_lr in self.base_lrs]

    def step(self, epoch=None) -> None:
        if self.last_epoch < self.warmup_epoch:
            super().step(epoch)
        else:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()

    def state_dict(self) -> dict:
        """Plain values, the successor's state among them: a checkpoint that loads without running anything."""
        return {**super().state_dict(), "successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        self.successor.load_state_dict(state_dict["successor"])
        super().load_state_dict({**state_dict, "successor": self.successor})


class ConstantWarmupScheduler(_WarmupScheduler):
    """Warm-up at ``cons_lr``."""

    def __init__(self, optimizer, successor, warmup_epoch, cons_lr, last_epoch=-1, verbose=False) -> None:
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch, verbose)

    def _warmup_lr(self, base_lr: float) -> float:
        return self.cons_lr


class LinearWarmupScheduler(_WarmupScheduler):
    """Warm-up at ``min_lr`` in the first epoch, then at the part of the base rate that epochs have passed."""

    def __init__(self, optimizer, successor, warmup_epoch, min_lr, last_epoch=-1, verbose=False) -> None:
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch, last_epoch, verbose)

    def _warmup_lr(self, base_lr: float) -> float:
        return base_lr * self.last_epoch / self.warmup_epoch if self.last_epoch else self.min_lr
