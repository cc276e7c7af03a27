"""Mixture of several models' logits, sum_m P(Y | X, m) P(m), and the fit of P(m) (Chen et al., arXiv 2501.15955).

M models, N images, C classes; weights are P(m), ``[M]``, at least 0 with sum 1.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unskew.debias._validation import Array, as_logits, check_finite, check_logits, to_kind, to_logits, uses_numpy
from unskew.debias.temperature import fit_temperature

COMBINE = ("logits", "probs")

# Pseudo-samples of each model: the weights have the prior Dirichlet(PSEUDO_SAMPLES + 1, ...).
PSEUDO_SAMPLES = 3.0


def combine_members(logits: Array, weights: Array, combine: str = "logits") -> Array:
    """Return the weighted combination ``[N, C]`` of logits ``[M, N, C]``.

    ``logits`` is sum_m w_m f_m, the released code's average of logits. Up to a constant for each image it is
    log prod_m softmax(f_m)^w_m, a product of experts (Hinton, Neural Computation 14, 2002): a single model can rule
    a class out. ``probs`` is log sum_m w_m softmax(f_m), the paper's Eq. 7, a mixture: a single model can support a
    class.

    Args:
        logits: ``[M, N, C]``, NumPy or torch.
        weights: ``[M]``, P(m).
        combine: ``logits`` or ``probs``.

    Raises:
        ValueError: An unknown ``combine``; shapes that do not fit; logits that are not finite; weights that are
            negative or do not sum to 1; mixed kinds of arrays.

    Examples:
        >>> import numpy as np
        >>> from unskew.debias import combine_members
        >>> combine_members(np.array([[[2.0, 0.0]], [[0.0, 1.0]]]), np.array([0.5, 0.5]))
        array([[1. , 0.5]])
    """
    _check_combine(combine)
    numpy = uses_numpy(logits=logits, weights=weights)
    (members,), shares = as_logits(logits=logits), to_logits(weights)
    if not len(members) or members.ndim != 3 or shares.shape != members.shape[:1]:
        raise ValueError(
            f"logits must be [M, N, C] and weights [M], with M of at least 1 "
            f"(got {list(members.shape)} and {list(shares.shape)})"
        )
    if not ((shares >= 0).all() and abs(float(shares.double().sum()) - 1) < 1e-3):
        raise ValueError(f"weights must be at least 0 and sum to 1 (got {[round(w, 4) for w in shares.tolist()]})")
    check_finite(members.flatten(0, 1))
    return to_kind(mix(members, shares.to(members), combine), numpy)


def mix(members: Tensor, shares: Tensor, combine: str) -> Tensor:
    """Run `combine_members` on checked tensors."""
    if combine == "logits":
        return torch.tensordot(shares, members, 1)
    return (members.log_softmax(-1) + shares.log()[:, None, None]).logsumexp(0)


def fit_member_weights(
    logits: Array, labels: Array | Sequence[int], combine: str = "logits", *, pseudo_samples: float = PSEUDO_SAMPLES
) -> Array:
    """Fit P(m) ``[M]`` by cross entropy of the combined logits, from logits ``[M, N, C]`` and labels ``[N]``.

    The scale s of the combination is fitted too and then dropped. No prediction depends on s, and without it the
    weights would correct the confidence: an average of models is underconfident. With v_m = s P(m), F the combination
    of weights P(m) and s_0 the best scale at uniform weights, the fit minimises

        n sum_i a_i CE(s F_i, y_i)  +  k sum_m (x_m - 1 - log x_m),     x_m = v_m M / s_0

    Each class that occurs has the same weight in a_i, independent of its number of images, as the combination is for
    balanced classes. n = 1 / sum_i a_i^2 is the effective number of images (Kish, Survey Sampling, 1965), N if the
    classes are balanced. The penalty is a gamma prior on each v_m with its mode at uniform weights. Independent gamma
    variables of one rate, divided by their sum, follow a Dirichlet distribution, independent of the sum (Lukacs, Ann.
    Math. Statist. 26, 1955). So P(m) has a Dirichlet prior with k pseudo-samples of each model: few images leave the
    weights near uniform, and none becomes 0. For ``logits`` the objective is convex, and the scale of the logits does
    not matter.

    Args:
        logits: ``[M, N, C]``, NumPy or torch; calibrated for ``probs``.
        labels: ``[N]``, integers in 0..C-1.
        combine: ``logits`` or ``probs``.
        pseudo_samples: k, above 0.

    Raises:
        ValueError: An unknown ``combine``; pseudo-samples that are not above 0; shapes or labels out of range; logits
            that are not finite; mixed kinds of arrays.
    """
    _check_combine(combine)
    if not 0 < pseudo_samples < math.inf:
        raise ValueError(f"pseudo_samples must be a number above 0 (got {pseudo_samples})")
    numpy = uses_numpy(logits=logits, labels=labels)
    (members,) = as_logits(logits=logits)
    if members.ndim != 3:
        raise ValueError(f"logits must be [M, N, C] (got {list(members.shape)})")
    checked = [check_logits(member, labels) for member in members]
    members, targets = torch.stack([member.double() for member, _ in checked]), checked[0][1]  # [M, N, C], [N]
    counts = torch.bincount(targets)
    shares = 1 / (counts[targets] * (counts > 0).sum()).double()  # [N], a_i; their sum is 1
    uniform = members.new_full((len(members),), 1 / len(members))
    start = uniform / fit_temperature(combine_members(members, uniform, combine), targets, method="nll")
    if combine == "probs":
        members = members.log_softmax(-1)
    arguments = (start, members, targets, shares, pseudo_samples, combine)
    from scipy.optimize import minimize  # half a second that predictions save

    # Tensors are passed as `args` because SciPy keeps closures alive.
    bounds = [(1e-9, None)] * len(members)
    result = minimize(_objective, np.ones(len(members)), arguments, jac=True, bounds=bounds, options={"ftol": 1e-14})
    v = start * torch.from_numpy(result.x).to(start)
    return to_kind((v / v.sum()).float(), numpy)


def _check_combine(combine: str) -> None:
    if combine not in COMBINE:
        raise ValueError(f"unknown combination '{combine}'; choose {' or '.join(COMBINE)}")


def _objective(
    ratios: np.ndarray,
    start: Tensor,
    members: Tensor,
    labels: Tensor,
    shares: Tensor,
    pseudo_samples: float,
    combine: str,
) -> tuple[float, np.ndarray]:
    """Return the objective of `fit_member_weights` and its gradient by ``ratios`` x = v / start."""
    v = start * torch.from_numpy(ratios).to(start)
    mixture = None
    if combine == "logits":
        scores = torch.tensordot(v, members, 1)  # [N, C]
    else:
        mixture = (members + (v / v.sum()).log()[:, None, None]).logsumexp(0)  # [N, C], log sum_m P(m) p_m
        scores = v.sum() * mixture
    size, rows = 1 / float(shares.square().sum()), torch.arange(len(labels), device=labels.device)
    probs, losses = scores.softmax(1), scores.logsumexp(1) - scores[rows, labels]
    slopes = []
    for member in members:  # the derivative of the scores by v_m; a constant of each image cancels
        by_v = member if mixture is None else mixture + (member - mixture).exp()
        slopes.append(float((torch.linalg.vecdot(probs, by_v) - by_v[rows, labels]) @ shares))
    penalty = pseudo_samples * (ratios - 1 - np.log(ratios)).sum()
    gradient = size * start.cpu().numpy() * np.array(slopes) + pseudo_samples * (1 - 1 / ratios)
    return size * float(losses @ shares) + penalty, gradient
