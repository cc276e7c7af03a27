"""Predictions of trainers that combine several models."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """Logits of a trainer and, by name, the logits that a composite trainer reports beside them.

    Attributes:
        logits: the trainer's prediction, [N, C].
        parts: further logits [N, C] of the same images. A composite trainer lists its combination here too, so that
            its accuracy is reported under the combination's name.
    """

    logits: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
