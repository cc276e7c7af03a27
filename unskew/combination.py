"""How GLA's two halves are put together: what is fitted on val beyond their temperatures.

The paper's sum trusts both halves alike and takes the fine-tuned one for free of pre-training bias (arXiv 2310.08106).
After a few shots it is neither: `fit_combination` measures both on val, `SUM` is the paper's.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq, minimize
from torch import Tensor

from unskew.prior import adjust, check_logits

# What keeps the weights near one half each where val is small: nats at a distance of 1.
PULL = 2.0


class Combination(NamedTuple):
    """The numbers of ``ft_weight * (ft - log p - rho * log q) + zs_weight * (zs - log q)``."""

    rho: float  # in [0, 1], the share of log q that fine-tuning has left in its logits
    ft_weight: float
    zs_weight: float


SUM = Combination(rho=0.0, ft_weight=1.0, zs_weight=1.0)


def combine(ft, zs, log_q, combination: Combination = SUM, log_p=None, log_target=None) -> Tensor:
    """GLA's logits ``[N, C]`` from both halves' calibrated logits ``[N, C]`` and log priors ``[C]``, as in `adjust`."""
    rho, a, b = combination
    ft = ft - rho * log_q if log_p is None else ft - rho * log_q - log_p
    return adjust(a * ft, b * zs, b * log_q, log_target=log_target)


def fit_combination(ft, zs, labels, log_q, log_p=None) -> Combination:
    """rho, then the weights, from both halves' calibrated logits ``[N, C]`` and the labels ``[N]`` of val.

    Raises:
        ValueError: shapes or labels out of range; logits that are not finite.
    """
    ft, zs, log_q = (torch.as_tensor(tensor) for tensor in (ft, zs, log_q))
    ft = ft if log_p is None else ft - log_p
    rho = remaining_bias(ft, labels, log_q)
    return Combination(rho, *fit_weights(ft - rho * log_q, zs - log_q, labels))


def _log_frequencies(labels: Tensor, classes: int) -> Tensor:
    """log pi ``[C]``; a class that val lacks is out of the softmax."""
    return (torch.bincount(labels, minlength=classes).double() / len(labels)).log()


# --- rho --------------------------------------------------------------------------------------------


def remaining_bias(logits, labels, log_q) -> float:
    """The share rho in [0, 1] of the pre-training bias log q ``[C]`` that fine-tuned logits ``[N, C]`` still carry.

    Fine-tuning starts at a model whose logits carry log q, and a few steps on a few images take away only a part
    of it. rho is the least cross entropy of ``logits - rho * log q + log pi`` on labels ``[N]`` that the model was
    not trained on, pi being their frequencies. That is convex in rho; its slope is the mean of log q under the
    labels less the mean under the model, and rho is where the two agree: 0 where fine-tuning has undone the bias,
    1 where it is all still there.

    Raises:
        ValueError: shapes or labels out of range; logits that are not finite.
    """
    logits, labels = check_logits(logits, labels)
    log_q = torch.as_tensor(log_q).to(logits)
    if log_q.shape != logits.shape[1:]:
        raise ValueError(f"log_q must be [C] with C = {logits.shape[1]}, not {list(log_q.shape)}")
    scores = logits + _log_frequencies(labels, logits.shape[1])  # [N, C]
    args = (float(log_q[labels].mean()), scores, log_q)  # tensors as `args`: SciPy keeps closures alive for long
    if _slope(0.0, *args) >= 0:
        return 0.0
    return 1.0 if _slope(1.0, *args) <= 0 else brentq(_slope, 0.0, 1.0, args, xtol=1e-8)


def _slope(rho: float, target: float, scores, log_q) -> float:
    return target - float(((scores - rho * log_q).softmax(1) @ log_q).mean())


# --- the weights ------------------------------------------------------------------------------------


def fit_weights(ft, zs, labels, pull: float = PULL) -> tuple[float, float]:
    """a, b >= 0 that minimise ``sum_i CE(a ft_i + b zs_i + log pi, y_i) + pull ((a - 1/2)^2 + (b - 1/2)^2)`` (convex).

    ft and zs ``[N, C]`` are both right for balanced data. Without the last term this is stacking (Wolpert, Neural
    Networks 5, 1992); with it, a handful of images can neither silence one half nor make the sum as sure as they are
    separable, and a thousand can. One half each is the mean, which is calibrated where the halves agree for the same
    reason; where they are independent the fit goes to 1 and 1.

    Raises:
        ValueError: shapes or labels out of range; logits that are not finite.
    """
    ft, labels = check_logits(ft, labels)
    zs, labels = check_logits(zs, labels)
    if ft.shape != zs.shape:
        raise ValueError(f"ft and zs must both be [N, C], not {list(ft.shape)} and {list(zs.shape)}")
    parts = torch.stack([ft, zs])  # [2, N, C]
    args = (parts, parts[:, torch.arange(len(labels)), labels].mean(1), _log_frequencies(labels, ft.shape[1]), pull)
    # Both at 0 would be no answer at all, on a val that contradicts both halves.
    found = minimize(_penalised, [0.5, 0.5], args, jac=True, bounds=[(1e-4, None)] * 2, options={"ftol": 1e-12})
    return float(found.x[0]), float(found.x[1])


def _penalised(weights: np.ndarray, parts, own, log_pi, pull: float) -> tuple[float, np.ndarray]:
    """The objective per image, but for a constant, and its gradient by a and b."""
    w = torch.from_numpy(weights).to(parts)
    samples, distance = parts.shape[1], weights - 0.5
    scores = torch.tensordot(w, parts, 1) + log_pi  # [N, C]
    expected = torch.linalg.vecdot(parts, scores.softmax(1)).mean(1)  # [2]
    objective = float(scores.logsumexp(1).mean() - w @ own) + pull / samples * float(distance @ distance)
    return objective, (expected - own).cpu().numpy() + 2 * pull / samples * distance
