"""`dassl.metrics`: top-k accuracy and distances between two sets of features."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unskew.debias.metrics import compute_accuracy
from unskew.utils.registry import unknown_name

__all__ = ["compute_accuracy", "compute_distance_matrix", "cosine_distance", "euclidean_squared_distance"]


def euclidean_squared_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """Return ``||x - y||^2``: [M, D], [N, D] -> [M, N]."""
    squares = input1.square().sum(1, keepdim=True) + input2.square().sum(1)
    return torch.addmm(squares, input1, input2.T, alpha=-2)


def cosine_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """Return ``1 - cos(x, y)`` in [0, 2]: [M, D], [N, D] -> [M, N]."""
    return 1 - normalize(input1, dim=1) @ normalize(input2, dim=1).T


_METRICS = {"euclidean": euclidean_squared_distance, "cosine": cosine_distance}


def compute_distance_matrix(input1: Tensor, input2: Tensor, metric: str = "euclidean") -> Tensor:
    """Return distances between two sets of features: [M, D], [N, D] -> [M, N]; "euclidean" distances are squared.

    Raises:
        ValueError: the shapes do not match, or ``metric`` is neither "euclidean" nor "cosine".
    """
    if metric not in _METRICS:
        raise ValueError(unknown_name("metric", metric, _METRICS))
    shapes = [list(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__ for x in (input1, input2)]
    if any(isinstance(shape, str) or len(shape) != 2 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"the features must be of shapes [M, D] and [N, D], got {shapes[0]} and {shapes[1]}")
    return _METRICS[metric](input1, input2)
