"""MixStyle (arXiv 2104.02008) and EFDMix (arXiv 2203.07740): layers that mix the statistics of features of images."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Beta

__all__ = [
    "EFDMix",
    "MixStyle",
    "activate_efdmix",
    "activate_mixstyle",
    "crossdomain_efdmix",
    "crossdomain_mixstyle",
    "deactivate_efdmix",
    "deactivate_mixstyle",
    "random_efdmix",
    "random_mixstyle",
    "run_with_efdmix",
    "run_with_mixstyle",
    "run_without_efdmix",
    "run_without_mixstyle",
]

MIXES = ("random", "crossdomain")


class _Mixing(nn.Module):
    """A layer that mixes each image with another one of the batch, with probability ``p`` in training.

    Args:
        p: the probability that a batch is mixed.
        alpha: the parameter of ``Beta(alpha, alpha)``, from which each image's share is drawn.
        eps: added to variances.
        mix: how the other image is chosen: "random", or "crossdomain", where the first half of the batch is of one
            domain and the second half of another.
    """

    def __init__(self, p: float = 0.5, alpha: float = 0.1, eps: float = 1e-6, mix: str = "random") -> None:
        super().__init__()
        self.p, self.alpha, self.eps, self.mix = p, alpha, eps, mix
        self.beta = Beta(alpha, alpha)
        self._activated = True

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"p={self.p}, alpha={self.alpha}, eps={self.eps}, mix={self.mix}"

    def set_activation_status(self, status: bool = True) -> None:
        """Switch the layer on or off."""
        self._activated = status

    def update_mix_method(self, mix: str = "random") -> None:
        """Choose the other images by "random" or "crossdomain"."""
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, C, H, W]; of a batch that is not mixed, the same."""
        if not self.training or not self._activated or random.random() > self.p:
            return x
        share = self.beta.sample((len(x), 1, 1, 1)).to(x.device)
        return self._mixed(x, share, self._others(len(x)))

    def _others(self, size: int) -> Tensor:
        """Return the index of the other image of each image [B]."""
        if self.mix not in MIXES:
            raise ValueError(f"{type(self).__name__} mixes 'random' or 'crossdomain', got '{self.mix}'")
        if self.mix == "random":
            return torch.randperm(size)
        second, first = torch.arange(size - 1, -1, -1).chunk(2)
        return torch.cat([second[torch.randperm(len(second))], first[torch.randperm(len(first))]])

    def _mixed(self, x: Tensor, share: Tensor, others: Tensor) -> Tensor:
        raise NotImplementedError


class MixStyle(_Mixing):
    """Mix means and standard deviations over space (eq. 1 to 6): ``sigma_mix * (x - mu) / sigma + mu_mix``.

    ``mu_mix = l * mu + (1 - l) * mu'`` for the statistics ``mu'`` of the other image, and ``sigma_mix`` alike. The
    statistics are constants for gradients.
    """

    def _mixed(self, x: Tensor, share: Tensor, others: Tensor) -> Tensor:
        mean = x.mean(dim=(2, 3), keepdim=True).detach()  # [B, C, 1, 1]
        deviation = (x.var(dim=(2, 3), keepdim=True) + self.eps).sqrt().detach()
        mixed_mean = mean * share + mean[others] * (1 - share)
        mixed_deviation = deviation * share + deviation[others] * (1 - share)
        return (x - mean) / deviation * mixed_deviation + mixed_mean


class EFDMix(_Mixing):
    """Mix whole distributions over space (eq. 5): the i-th smallest value moves to the other image's i-th smallest.

    ``x + (1 - l) * (y - x)``, where y are the other image's values in the order of x. For gradients the difference is
    ``y`` of the other image, and x is a constant in it.
    """

    def _mixed(self, x: Tensor, share: Tensor, others: Tensor) -> Tensor:
        values = x.flatten(2)  # [B, C, H * W]
        ordered, order = values.sort(dim=-1)
        matched = ordered[others].gather(-1, order.argsort(-1))
        return (values + (matched - values.detach()) * (1 - share.flatten(2))).view_as(x)


# --- switches: ``model.apply(deactivate_mixstyle)`` ---------------------------------------------------


def _call(module: nn.Module, kind: type[_Mixing], method: str, value: Any) -> None:
    if type(module) is kind:
        getattr(module, method)(value)


def activate_mixstyle(m: nn.Module) -> None:
    """Switch a `MixStyle` on."""
    _call(m, MixStyle, "set_activation_status", True)


def deactivate_mixstyle(m: nn.Module) -> None:
    """Switch a `MixStyle` off."""
    _call(m, MixStyle, "set_activation_status", False)


def random_mixstyle(m: nn.Module) -> None:
    """Let a `MixStyle` choose the other images at random."""
    _call(m, MixStyle, "update_mix_method", "random")


def crossdomain_mixstyle(m: nn.Module) -> None:
    """Let a `MixStyle` choose the other images from the other half of the batch."""
    _call(m, MixStyle, "update_mix_method", "crossdomain")


def activate_efdmix(m: nn.Module) -> None:
    """Switch an `EFDMix` on."""
    _call(m, EFDMix, "set_activation_status", True)


def deactivate_efdmix(m: nn.Module) -> None:
    """Switch an `EFDMix` off."""
    _call(m, EFDMix, "set_activation_status", False)


def random_efdmix(m: nn.Module) -> None:
    """Let an `EFDMix` choose the other images at random."""
    _call(m, EFDMix, "update_mix_method", "random")


def crossdomain_efdmix(m: nn.Module) -> None:
    """Let an `EFDMix` choose the other images from the other half of the batch."""
    _call(m, EFDMix, "update_mix_method", "crossdomain")


@contextmanager
def _switched(model: nn.Module, kind: type[_Mixing], status: bool, mix: str | None = None) -> Iterator[None]:
    """Set the status of all layers of a kind inside the context, and the opposite after it."""
    layers = [module for module in model.modules() if type(module) is kind]
    for layer in layers:
        if mix in MIXES:
            layer.update_mix_method(mix)
        layer.set_activation_status(status)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_activation_status(not status)


@contextmanager
def run_with_mixstyle(model: nn.Module, mix: str | None = None) -> Iterator[None]:
    """Switch all `MixStyle` layers on inside the context and off after it; ``mix`` chooses the other images."""
    with _switched(model, MixStyle, True, mix):
        yield


@contextmanager
def run_without_mixstyle(model: nn.Module) -> Iterator[None]:
    """Switch all `MixStyle` layers off inside the context and on after it."""
    with _switched(model, MixStyle, False):
        yield


@contextmanager
def run_with_efdmix(model: nn.Module, mix: str | None = None) -> Iterator[None]:
    """Switch all `EFDMix` layers on inside the context and off after it; ``mix`` chooses the other images."""
    with _switched(model, EFDMix, True, mix):
        yield


@contextmanager
def run_without_efdmix(model: nn.Module) -> Iterator[None]:
    """Switch all `EFDMix` layers off inside the context and on after it."""
    with _switched(model, EFDMix, False):
        yield
