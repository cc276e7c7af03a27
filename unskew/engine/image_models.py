"""Predictions of trainers as modules, for export: crops of images in, logits out.

The crops are RGB in [0, 1], resized and cropped as for the trainer. The modules normalise them, so that models with
different normalisations read the same crops.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import transforms as T

from unskew.debias.affine import AffineForm
from unskew.debias.mixture import mix

if TYPE_CHECKING:
    from unskew.engine.trainer import SimpleTrainer


def linear_logits(weights: Tensor, bias: Tensor, image_features: Tensor) -> Tensor:
    """Return the logits [B, C] of a linear head on normalised features; the features [B, D] need not be normalised."""
    return F.linear(F.normalize(image_features, dim=-1), weights, bias)


def check_not_transductive(trainer: "SimpleTrainer") -> None:
    """Raise ``ValueError`` if the prediction of an image depends on the other images of a call."""
    if trainer.transductive:
        raise ValueError(
            f"{trainer.cfg.TRAINER.NAME} predicts an image from all images of a call, so it cannot be exported: choose "
            "another trainer, or other values of PRIOR unlabelled and COMBINE otter where it has these keys"
        )


class ImageModel(nn.Module):
    """A trainer's logits [B, C] of crops [B, V, 3, H, W], averaged over the V crops.

    Args:
        trainer: the trainer.
        function: function of normalised images [B, 3, H, W] that returns logits [B, C].
        modules: the modules with the weights that the function uses.

    Attributes:
        crops: the resizing and cropping of each crop, as text.
        prepare: functions of a PIL image that return the crops [3, H, W] in [0, 1].

    Raises:
        ValueError: the prediction of an image depends on the other images, or the crops are not only normalised.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, trainer: "SimpleTrainer", function: Callable[[Tensor], Tensor], modules: Iterable[nn.Module]
    ) -> None:
        super().__init__()
        check_not_transductive(trainer)
        trainer.set_model_mode("eval")
        self.function, self.models = function, nn.ModuleList(modules)
        steps = [list(getattr(transform, "transforms", ())) for transform in trainer.dm.tfm_crops]
        if any([type(step) for step in crop[-2:]] != [T.ToTensor, T.Normalize] for crop in steps):
            raise ValueError(
                "only crops that end with a normalisation can be exported: remove the others from INPUT.TRANSFORMS "
                f"(got {list(trainer.cfg.INPUT.TRANSFORMS)})"
            )
        self.crops = tuple(f"{crop[:-2]}, upright {trainer.cfg.DATASET.UPRIGHT}" for crop in steps)
        self.prepare = [T.Compose(crop[:-1]) for crop in steps]
        for name in ("mean", "std"):
            numbers = torch.tensor(getattr(steps[0][-1], name), device=trainer.device)
            self.register_buffer(name, numbers[:, None, None])

    def forward(self, crops: Tensor) -> Tensor:
        """Return logits [B, C]."""
        logits = self.function((crops.flatten(0, 1) - self.mean) / self.std)
        return logits.unflatten(0, (-1, len(self.crops))).mean(1)


class SumModel(nn.Module):
    """The affine function of the logits of a zero-shot and a fine-tuned model."""

    bias: Tensor

    def __init__(self, form: AffineForm, zeroshot: nn.Module, finetuned: nn.Module) -> None:
        super().__init__()
        self.zeroshot, self.finetuned = zeroshot, finetuned
        self.zs_factor, self.ft_factor = form.zs_factor, form.ft_factor
        self.register_buffer("bias", form.bias.float())

    def forward(self, crops: Tensor) -> Tensor:
        """Return logits [B, C] of crops [B, V, 3, H, W]."""
        return self.ft_factor * self.finetuned(crops) + self.zs_factor * self.zeroshot(crops) + self.bias


class MixtureModel(nn.Module):
    """The combination of members' calibrated logits, see `unskew.debias.combine_members`.

    Args:
        members: the members' models.
        temperatures: [M], of the members.
        weights: [M], P(m).
        combine: ``logits`` or ``probs``.
        temperature: of the combination.
    """

    temperatures: Tensor
    weights: Tensor
    temperature: Tensor

    def __init__(
        self, members: Sequence[nn.Module], temperatures: Tensor, weights: Tensor, combine: str, temperature: Tensor
    ) -> None:
        super().__init__()
        self.members, self.combine = nn.ModuleList(members), combine
        for name, value in (("temperatures", temperatures), ("weights", weights), ("temperature", temperature)):
            self.register_buffer(name, value.detach().clone())

    def forward(self, crops: Tensor) -> Tensor:
        """Return logits [B, C] of crops [B, V, 3, H, W]."""
        logits = torch.stack([member(crops) for member in self.members]) / self.temperatures[:, None, None]
        return mix(logits, self.weights, self.combine) / self.temperature
