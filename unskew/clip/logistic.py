"""Multinomial logistic regression with an L2 penalty, for a sequence of regularisation strengths.

The objective is scikit-learn's: C times the sum of the cross entropies plus half the squared norm of the weights;
biases are not penalised. With a centre, such as a text classifier, the penalty is half the squared distance of the
weights from the centre, plus half the squared norm of the biases. The solver divides the objective by C, so that 1 / C
multiplies the penalty.
"""

import logging
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unskew.clip._logistic_solver import STEPS, Solver

logger = logging.getLogger("unskew")

DOUBLE = 2**20  # most logits [N, C] of a problem that is solved in float64; larger ones take float32


def logistic_path(
    features: Tensor, labels: Tensor, num_classes: int, strengths: Sequence[float], centre: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the weights [C, D] and biases [C] for each C; each solution is the start of the next.

    The solver converges for every C and every size by one criterion: the weights are within a relative distance of
    1e-5 of the solution, or of 1e-2 for more than 2^20 logits, which are computed in float32. Where rounding allows no
    more, as at a large C for classes that overlap, ten times this distance is accepted.

    Without a centre, a class without samples has weights of 0 and a bias 10 below the lowest, and for two classes the
    weights are half of scikit-learn's binary solution with either sign, so that softmax gives its probabilities. With a
    centre, the objective is the same for any number of classes, and those without samples take part in it.

    Args:
        features: [N, D].
        labels: [N].
        num_classes: number of classes, some of which may have no samples.
        strengths: inverse regularisation strengths C, ascending.
        centre: [C, D], weights; the penalty then pulls the weights to them, and the biases to 0.
    """
    if centre is None:
        solutions = _around_zero(features, labels, num_classes, strengths)
    else:
        solutions = _around(centre, features, labels, strengths)
    failed = []
    for strength, (weight, bias, converged) in zip(strengths, solutions, strict=True):
        if not converged:
            failed.append(f"{strength:g}")
        yield weight, bias
    if failed:
        logger.warning(f"the logistic regression did not converge in {STEPS} steps at C = {', '.join(failed)}")


_Solutions = Iterator[tuple[Tensor, Tensor, bool]]  # weights, biases, and whether the solver converged


def _around_zero(features: Tensor, labels: Tensor, num_classes: int, strengths: Sequence[float]) -> _Solutions:
    classes, targets = labels.unique(return_inverse=True)
    rows, basis, mean = reduced(features.to(_precision(len(labels), len(classes))))
    solver = Solver(rows, targets, len(classes))
    for strength in strengths:
        # The binary solution w has the penalty |w|^2 / 2; half of it with either sign has |w|^2 / 4.
        theta, converged = solver.solve((2 if len(classes) == 2 else 1) / strength)
        weight, bias = features.new_zeros(num_classes, features.shape[1]), features.new_zeros(num_classes)
        fitted = theta[:, :-1] @ basis.T
        biases = theta[:, -1] - fitted @ mean
        biases = biases - biases.mean()
        weight[classes], bias[:] = fitted.to(weight), biases.min() - 10
        bias[classes] = biases.to(bias)
        yield weight, bias, converged


def _around(centre: Tensor, features: Tensor, labels: Tensor, strengths: Sequence[float]) -> _Solutions:
    """Yield solutions whose bias is the weight of a feature that is 1 everywhere."""
    extended = F.pad(features.to(_precision(len(labels), len(centre))), (0, 1), value=1.0)
    offsets = extended[:, :-1] @ centre.T.to(extended)
    rows, basis, _ = reduced(extended, torch.zeros_like(extended[0]))
    solver = Solver(rows, labels, len(centre), offsets)
    for strength in strengths:
        theta, converged = solver.solve(1 / strength)
        fitted = (theta[:, :-1] @ basis.T).to(features)
        yield centre.to(features) + fitted[:, :-1], fitted[:, -1].contiguous(), converged


def _precision(samples: int, classes: int) -> torch.dtype:
    return torch.float64 if samples * classes <= DOUBLE else torch.float32


def reduced(features: Tensor, origin: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return features [N, R] relative to an origin on their principal axes, the axes [D, R] and the origin [D].

    R is min(N, D). The solution is a combination of the samples, and a rotation leaves the norm of the weights
    unchanged. Without a penalty of the biases, the samples may have any origin.

    Args:
        features: [N, D].
        origin: [D]; their mean by default.
    """
    mean = features.mean(0) if origin is None else origin
    centred, axes = features - mean, None
    if len(features) < features.shape[1]:
        axes, lower = torch.linalg.qr(centred.T)
        centred = lower.T
    rotation = torch.linalg.eigh((centred.T @ centred).double()).eigenvectors.to(features)
    return centred @ rotation, rotation if axes is None else axes @ rotation, mean
