"""Several models' logits as one, sum_m P(Y | X, m) P(m), and how P(m) is fitted (Chen et al., arXiv 2501.15955).

M models, N images, C classes; weights are P(m), [M], at least 0 with sum 1.
"""

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from unskew.debias._validation import check_logits

_TOLERANCE = 1e-8  # of the objectives, in nats

_MOST_STEPS = 10_000


def combine_logits(logits: Tensor, weights: Tensor) -> Tensor:
    """sum_m w_m f_m, [M, N, C] -> [N, C]: the released code's average of logits.

    Up to a constant for each image it is log prod_m softmax(f_m)^w_m, a product of experts (Hinton, Neural
    Computation 14, 2002): one model that rules a class out is enough.
    """
    return torch.tensordot(weights.to(logits), logits, 1)


def combine_probs(logits: Tensor, weights: Tensor) -> Tensor:
    """log sum_m w_m softmax(f_m), [M, N, C] -> [N, C]: the paper's Eq. 7, a mixture; one model for it is enough."""
    return (logits.log_softmax(-1) + weights.to(logits).log()[:, None, None]).logsumexp(0)


COMBINE = {"logits": combine_logits, "probs": combine_probs}


def fit_member_weights(logits, labels, combine: str = "logits") -> Tensor:
    """P(m) ``[M]`` of least cross entropy of the combined logits, from logits ``[M, N, C]`` and labels ``[N]``.

    Each class that occurs counts the same, however many images it has. With "probs" it is the maximum likelihood
    of a mixture, by expectation-maximisation, to 1e-8 nats. With "logits" the scale of the sum is fitted too and then
    dropped: no prediction depends on it, and an average of agreeing models is too unsure, which would move the weights
    to the boldest of them. Both are convex, so the result depends on nothing but the data.

    Raises:
        ValueError: an unknown ``combine``; shapes or labels out of range; logits that are not finite.
    """
    if combine not in COMBINE:
        raise ValueError(f"unknown combination '{combine}'; choose {' or '.join(COMBINE)}")
    checked = [check_logits(part, labels) for part in logits]
    parts, labels = torch.stack([part for part, _ in checked]), checked[0][1]  # [M, N, C], [N]
    counts = torch.bincount(labels)
    shares = 1 / (counts[labels] * (counts > 0).sum())  # [N], of each image in the objective; they sum to 1
    fit = _fit_product if combine == "logits" else _fit_mixture
    return fit(parts, labels, shares.to(parts)).float()


def _fit_mixture(parts: Tensor, labels: Tensor, shares: Tensor) -> Tensor:
    own = parts.log_softmax(-1)[:, torch.arange(len(labels)), labels]  # [M, N]
    likelihoods = (own - own.amax(0)).exp()  # a factor for each image cancels
    weights = parts.new_full((len(parts),), 1 / len(parts))
    for _ in range(_MOST_STEPS):
        ratios = (likelihoods / (weights @ likelihoods)) @ shares  # [M]
        if ratios.max() - 1 < _TOLERANCE:  # a bound on how far the objective is from its optimum
            break
        weights = weights * ratios
    return weights / weights.sum()


def _fit_product(parts: Tensor, labels: Tensor, shares: Tensor) -> Tensor:
    own = parts[:, torch.arange(len(labels)), labels] @ shares  # [M]
    # Tensors as `args`: SciPy keeps closures alive for long. The bound is for a val on which all is right.
    start, bounds = np.full(len(parts), 1 / len(parts)), [(0.0, 100.0)] * len(parts)
    found = minimize(_loss, start, (parts, own, shares), jac=True, bounds=bounds, options={"ftol": 1e-14})
    weights = torch.from_numpy(found.x)
    return weights / weights.sum() if weights.sum() > 0 else torch.from_numpy(start)


def _loss(scales: np.ndarray, parts: Tensor, own: Tensor, shares: Tensor) -> tuple[float, np.ndarray]:
    """Cross entropy of sum_m v_m f_m, and its gradient by v."""
    v = torch.from_numpy(scales).to(parts)
    scores = torch.tensordot(v, parts, 1)  # [N, C]
    expected = torch.linalg.vecdot(parts, scores.softmax(1)) @ shares  # [M]
    return float(scores.logsumexp(1) @ shares - v @ own), (expected - own).cpu().numpy()
