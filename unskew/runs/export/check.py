"""Comparison of an exported file with the run's predictions of a few random images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from unskew.engine.trainer import SimpleTrainer

# Widths and heights; three images are another batch than that of the export.
SIZES = ((300, 400), (400, 300), (257, 257))

# Largest differences of log probabilities. Towers of low precision, and GPUs, have fewer digits than a float32 graph.
CLOSE, ROUGH = (1e-3, 1e-2), (0.05, 0.5)  # relative, absolute


def pictures() -> list[Image.Image]:
    """Return a few random images."""
    rng = np.random.default_rng(0)
    coarse = (Image.fromarray(rng.integers(256, size=(4, 4, 3), dtype=np.uint8)) for _ in SIZES)
    return [image.resize(size, Image.Resampling.BICUBIC) for image, size in zip(coarse, SIZES, strict=True)]


def predicted(trainer: "SimpleTrainer", images: Sequence[Image.Image], tested: Sequence[int] | None) -> Tensor:
    """Return the trainer's logits [N, C] of images, among the tested classes, on the CPU."""
    logits = trainer.predict_parts(cast("Sequence[str]", images)).logits.cpu()  # the loaders read PIL images too
    return logits if tested is None else logits[:, tested]


def features_of(trainer: "SimpleTrainer", images: Sequence[Image.Image]) -> Tensor:
    """Return the features [N, D] that the trainer's linear head reads, on the CPU."""
    from unskew.engine.clip_trainer import CLIPTrainer

    if not isinstance(trainer, CLIPTrainer):
        raise ValueError(f"{trainer.cfg.TRAINER.NAME} has a linear head, but no backbone of CLIP: subclass CLIPTrainer")
    return trainer.mean_features(cast("Sequence[str]", images)).cpu()


def compare(logits: Tensor, expected: Tensor, trainer: "SimpleTrainer", exact: bool = True) -> None:
    """Raise ``ValueError`` unless exported logits [N, C] give the probabilities of the expected ones.

    Args:
        logits: those of the exported file.
        expected: those of the trainer.
        trainer: for the error message.
        exact: False if the trainer computes in another precision.
    """
    ours, theirs = logits.double().log_softmax(1), expected.double().log_softmax(1)
    relative, absolute = CLOSE if exact else ROUGH
    if not torch.allclose(ours, theirs, relative, absolute):
        name, difference = trainer.cfg.TRAINER.NAME, float((ours - theirs).nan_to_num().abs().max())
        raise ValueError(
            f"the export of {name} differs from its predictions by {difference:.3g} nats, so no file was written: "
            "a trainer that changes logits() must change linear_head() or image_model() too"
        )
