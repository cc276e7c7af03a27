"""Mixture of several models' logits, sum_m P(Y | X, m) P(m), and the fit of P(m) (Chen et al., arXiv 2501.15955).

M models, N images, C classes; weights are P(m), ``[M]``, at least 0 with sum 1.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from unskew.debias._validation import Array, check_finite, check_logits, to_kind, to_logits, uses_numpy

COMBINE = ("logits", "probs")

_TOLERANCE = 1e-8  # of the objectives, in nats

_MAX_STEPS = 10_000


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

    Example:
        >>> import numpy as np
        >>> from unskew.debias import combine_members
        >>> combine_members(np.array([[[2.0, 0.0]], [[0.0, 1.0]]]), np.array([0.5, 0.5]))
        array([[1. , 0.5]])
    """
    _check_combine(combine)
    numpy = uses_numpy(logits=logits, weights=weights)
    members, shares = to_logits(logits), to_logits(weights)
    if not len(members) or members.ndim != 3 or shares.shape != members.shape[:1]:
        raise ValueError(
            f"logits must be [M, N, C] and weights [M], with M of at least 1 "
            f"(got {list(members.shape)} and {list(shares.shape)})"
        )
    if not ((shares >= 0).all() and abs(float(shares.double().sum()) - 1) < 1e-3):
        raise ValueError(f"weights must be at least 0 and sum to 1 (got {[round(w, 4) for w in shares.tolist()]})")
    check_finite(members.flatten(0, 1))
    shares = shares.to(members)
    if combine == "logits":
        return to_kind(torch.tensordot(shares, members, 1), numpy)
    return to_kind((members.log_softmax(-1) + shares.log()[:, None, None]).logsumexp(0), numpy)


def fit_member_weights(logits: Array, labels: Array | Sequence[int], combine: str = "logits") -> Array:
    """Fit P(m) ``[M]`` of least cross entropy of the combined logits, from logits ``[M, N, C]`` and labels ``[N]``.

    Each class that occurs has the same weight, independent of its number of images. For ``probs`` this is the
    maximum likelihood of a mixture, by expectation-maximisation, to 1e-8 nats. For ``logits`` the scale of the sum is
    fitted too and then dropped: no prediction depends on the scale, and an average of agreeing models is
    underconfident, which would move the weights to the most confident model. Both objectives are convex, so the result
    depends only on the data.

    Raises:
        ValueError: An unknown ``combine``; shapes or labels out of range; logits that are not finite; mixed kinds
            of arrays.
    """
    _check_combine(combine)
    numpy = uses_numpy(logits=logits, labels=labels)
    members = to_logits(logits)
    if members.ndim != 3:
        raise ValueError(f"logits must be [M, N, C] (got {list(members.shape)})")
    checked = [check_logits(member, labels) for member in members]
    members, targets = torch.stack([member for member, _ in checked]), checked[0][1]  # [M, N, C], [N]
    counts = torch.bincount(targets)
    shares = 1 / (counts[targets] * (counts > 0).sum())  # [N], weight of each image in the objective; their sum is 1
    fit = _fit_product if combine == "logits" else _fit_mixture
    return to_kind(fit(members, targets, shares.to(members)).float(), numpy)


def _check_combine(combine: str) -> None:
    if combine not in COMBINE:
        raise ValueError(f"unknown combination '{combine}'; choose {' or '.join(COMBINE)}")


def _fit_mixture(members: Tensor, labels: Tensor, shares: Tensor) -> Tensor:
    label_scores = members.log_softmax(-1)[:, torch.arange(len(labels)), labels]  # [M, N]
    likelihoods = (label_scores - label_scores.amax(0)).exp()  # a factor per image cancels
    weights = members.new_full((len(members),), 1 / len(members))
    for _ in range(_MAX_STEPS):
        ratios = (likelihoods / (weights @ likelihoods)) @ shares  # [M]
        if ratios.max() - 1 < _TOLERANCE:  # a bound on the distance of the objective from its optimum
            break
        weights = weights * ratios
    return weights / weights.sum()


def _fit_product(members: Tensor, labels: Tensor, shares: Tensor) -> Tensor:
    label_scores = members[:, torch.arange(len(labels)), labels] @ shares  # [M]
    # Tensors are passed as `args` because SciPy keeps closures alive. The bound is reached if all images are right.
    start, bounds = np.full(len(members), 1 / len(members)), [(0.0, 100.0)] * len(members)
    result = minimize(_loss, start, (members, label_scores, shares), jac=True, bounds=bounds, options={"ftol": 1e-14})
    weights = torch.from_numpy(result.x)
    return weights / weights.sum() if weights.sum() > 0 else torch.from_numpy(start)


def _loss(scales: np.ndarray, members: Tensor, label_scores: Tensor, shares: Tensor) -> tuple[float, np.ndarray]:
    """Return the cross entropy of sum_m v_m f_m and its gradient by v."""
    v = torch.from_numpy(scales).to(members)
    scores = torch.tensordot(v, members, 1)  # [N, C]
    expected = torch.linalg.vecdot(members, scores.softmax(1)) @ shares  # [M]
    return float(scores.logsumexp(1) @ shares - v @ label_scores), (expected - label_scores).cpu().numpy()
