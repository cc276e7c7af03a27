"""Predictions of trainers that combine several models."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from unskew.utils.derived_tensors import Sum


@dataclass(frozen=True)
class Prediction:
    """Logits of a trainer and, by name, the logits that a composite trainer reports beside them.

    Attributes:
        logits: the trainer's prediction, [N, C].
        parts: further logits [N, C] of the same images. A composite trainer lists its combination here too, so that
            its accuracy is reported under the combination's name.
        sums: the two terms of parts that are sums to the bit: another part's name, and a name or a tensor [C]. A run's
            file holds the terms instead.
    """

    logits: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    sums: Mapping[str, Sum] = field(default_factory=dict)
