"""The embedded worlds: images, captions and models with a known label prior of the pre-training data."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def true_log_prior(backbone: str, dataset: str) -> "Tensor":
    """Return the true log prior [C] of an embedded model; see `unskew.micro.weights.true_log_prior`."""
    from unskew.micro.weights import true_log_prior

    return true_log_prior(backbone, dataset)
