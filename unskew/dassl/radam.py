"""`dassl.optim.radam`: optimizers that scripts import from there."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["AdamW", "PlainRAdam", "RAdam"]


class _Adaptive(Optimizer):
    """An optimizer with the moving averages of Adam (arXiv 1412.6980, algorithm 1) and decoupled weight decay."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        **defaults,
    ) -> None:
        if lr < 0 or eps < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"lr and eps must be 0 or more, and betas in [0, 1); got {lr}, {eps} and {betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, **defaults})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters, and return the loss of ``closure``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        if parameter.grad is None or parameter.grad.is_sparse:
            raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
        gradient, state = parameter.grad.float(), self.state[parameter]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(gradient), exp_avg_sq=torch.zeros_like(gradient))
        beta1, beta2 = group["betas"]
        state["step"] += 1
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
        rate, rescaled = self._rate(group, state["step"])
        if not rate:
            return
        value = parameter.float()
        if group["weight_decay"]:
            value.add_(value, alpha=-group["weight_decay"] * self._decay_rate(group, state["step"]))
        if rescaled:
            value.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(group["eps"]), value=-rate)
        else:
            value.add_(state["exp_avg"], alpha=-rate)
        parameter.copy_(value)

    def _rate(self, group: dict[str, Any], step: int) -> tuple[float, bool]:
        """Return the rate of a step, and whether the step is divided by the root of the second moment."""
        raise NotImplementedError

    def _decay_rate(self, group: dict[str, Any], step: int) -> float:
        return group["lr"]


class RAdam(_Adaptive):
    """Rectified Adam (arXiv 1908.03265, algorithm 2); steps with a length of the average below 5 are not adaptive.

    Args:
        params: parameters, or groups of them.
        lr: the learning rate.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay.
        degenerated_to_sgd: the steps that are not adaptive are those of SGD with momentum; otherwise they are skipped.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        degenerated_to_sgd: bool = True,
    ) -> None:
        self.degenerated_to_sgd = degenerated_to_sgd
        super().__init__(params, lr, betas, eps, weight_decay)

    def _rate(self, group: dict[str, Any], step: int) -> tuple[float, bool]:
        beta1, beta2 = group["betas"]
        power = beta2**step
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * step * power / (1 - power)
        unbiased = group["lr"] / (1 - beta1**step)
        if length < 5:
            return (unbiased if self.degenerated_to_sgd else 0.0), False
        variance = (length - 4) / (longest - 4) * (length - 2) / length * longest / (longest - 2)
        return unbiased * math.sqrt((1 - power) * variance), True


class PlainRAdam(RAdam):
    """The same as `RAdam`; its name in the authors' simpler implementation."""


class AdamW(_Adaptive):
    """Adam with decoupled weight decay (arXiv 1711.05101) and a linear warm-up.

    Args:
        params: parameters, or groups of them.
        lr: the learning rate.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay.
        warmup: the number of steps of the warm-up.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        warmup: int = 0,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, warmup=warmup)

    def _decay_rate(self, group: dict[str, Any], step: int) -> float:
        return 1e-8 + step * group["lr"] / group["warmup"] if group["warmup"] > step else group["lr"]

    def _rate(self, group: dict[str, Any], step: int) -> tuple[float, bool]:
        beta1, beta2 = group["betas"]
        return self._decay_rate(group, step) * math.sqrt(1 - beta2**step) / (1 - beta1**step), True
