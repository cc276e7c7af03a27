"""How GLA's two halves are put together: what is fitted on val beyond their temperatures.

The paper's sum trusts both halves alike and takes the fine-tuned one for free of pre-training bias (arXiv 2310.08106).
After a few shots it is neither: `fit_combination` measures both on val, `SUM` is the paper's.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from unskew.exponentials import Exponentials, blocks, buffers
from unskew.prior import adjust, check_logits
from unskew.roots import falling_root

# What keeps the weights near one half each where val is small: nats at a distance of 1.
PULL = 2.0
# Both at 0 would be no answer at all, on a val that contradicts both halves.
LEAST = 1e-4
MOST_STEPS = 100


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
    return Combination(rho, *_fit_weights(ft, zs, labels, PULL, (rho * log_q, log_q)))


def _log_frequencies(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The n classes that val has, ascending, and their log pi ``[n]``; the others are out of the softmax."""
    counts = torch.bincount(labels, minlength=classes)
    present = counts.nonzero().flatten()
    return present, (counts[present].double() / len(labels)).log()


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
    logits, labels = check_logits(logits, labels, None)
    log_q = torch.as_tensor(log_q).to(logits.device, torch.float64)
    if log_q.shape != logits.shape[1:]:
        raise ValueError(f"log_q must be [C] with C = {logits.shape[1]}, not {list(log_q.shape)}")
    present, log_pi = _log_frequencies(labels, logits.shape[1])
    log_q = log_q - log_q[present[0]]  # a uniform prior is 0, whatever the rounding
    target = float(log_q[labels].mean())
    log_q, exponentials = log_q[present], Exponentials(logits, None, present)

    def excess(rho: float) -> tuple[float, float]:
        mean = exponentials.at(log_pi - rho * log_q).probabilities
        variance = mean @ log_q.square() - log_q @ exponentials.product(log_q)
        return float(mean @ log_q) - target, -float(variance)

    return falling_root(excess, 0.0, 1.0, 0.0)[0]


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
    return _fit_weights(ft, zs, labels, pull, (0.0, 0.0))


def _fit_weights(ft, zs, labels, pull: float, offsets: tuple) -> tuple[float, float]:
    """`fit_weights` of both halves less an offset, ``[C]`` or a number, each."""
    ft, labels = check_logits(ft, labels, None)
    zs, labels = check_logits(zs, labels, None)
    if ft.shape != zs.shape:
        raise ValueError(f"ft and zs must both be [N, C], not {list(ft.shape)} and {list(zs.shape)}")
    problem = _Stacking((ft, zs), offsets, labels, pull)
    weights = np.full(2, 0.5)
    objective, gradient, hessian = problem.at(weights)
    for _ in range(MOST_STEPS):
        step = _bounded_newton_step(gradient, hessian, LEAST - weights)
        if abs(step).max() <= 1e-6 * weights.max():  # quadratic convergence: the next one would be about its square
            weights = weights + step
            break
        bound, slope = objective + 1e-14 * (1 + abs(objective)), 1e-4 * gradient @ step
        scale = min(1.0, 10 / abs(step).max())  # far away the second order means little
        objective, *derivatives = problem.at(weights + scale * step)
        while objective > bound + scale * slope and scale > 1e-9:
            scale /= 4
            objective, *derivatives = problem.at(weights + scale * step)
        weights, (gradient, hessian) = weights + scale * step, derivatives
    return float(weights[0]), float(weights[1])


def _bounded_newton_step(gradient: np.ndarray, hessian: np.ndarray, least: np.ndarray) -> np.ndarray:
    """The d >= least, in each coordinate, that minimises ``gradient . d + d . hessian d / 2``."""
    values, vectors = np.linalg.eigh(hessian)
    values = np.maximum(values, 1e-12 * max(1.0, values[-1]))  # where both halves are the same, so are its rows
    root = np.sqrt(values)[:, None] * vectors.T  # hessian = root^T root
    return nnls(root, -root @ least - np.linalg.solve(root.T, gradient))[0] + least


class _Stacking:
    """The objective of `fit_weights` per image, its gradient and Hessian by the weights."""

    def __init__(self, parts: tuple[Tensor, Tensor], offsets: tuple, labels: Tensor, pull: float):
        classes = parts[0].shape[1]
        self.parts = parts
        self.offsets = [torch.as_tensor(offset).to(labels.device, torch.float64).expand(classes) for offset in offsets]
        present, log_pi = _log_frequencies(labels, classes)
        self.log_pi = torch.full_like(self.offsets[0], -math.inf)  # [C]
        self.log_pi[present] = log_pi
        self.room = buffers(parts[0], 5)
        own = [
            part.gather(1, labels[:, None])[:, 0].double() - c[labels]
            for part, c in zip(parts, self.offsets, strict=True)
        ]
        self.own = np.array([float(logits.mean()) for logits in own])
        self.pull = pull / len(labels)

    def at(self, weights: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        samples, count = len(self.parts[0]), len(self.parts)
        log_partition = torch.zeros_like(self.log_pi[0])
        means, products = self.log_pi.new_zeros(count), self.log_pi.new_zeros(count, count)
        for rows in blocks(self.parts[0]):
            *block, exponentials, weighted, room = self.room[:, : rows.stop - rows.start]  # [n, C] each
            exponentials.copy_(self.log_pi.expand_as(exponentials))
            for logits, part, offset, weight in zip(block, self.parts, self.offsets, weights, strict=True):
                logits.copy_(part[rows]).sub_(offset)
                exponentials.add_(logits, alpha=float(weight))
            highest = exponentials.amax(1, keepdim=True)
            totals = exponentials.sub_(highest).exp_().sum(1)
            log_partition += (highest[:, 0] + totals.log()).sum()
            expected = []
            for i in range(count):
                torch.mul(exponentials, block[i], out=weighted)
                expected.append(weighted.sum(1) / totals)
                means[i] += expected[i].sum()
                for j in range(i + 1):
                    second = torch.mul(weighted, block[j], out=room).sum(1) / totals
                    products[i, j] += (second - expected[i] * expected[j]).sum()
        distance = weights - 0.5
        objective = float(log_partition) / samples - weights @ self.own + self.pull * float(distance @ distance)
        gradient = means.cpu().numpy() / samples - self.own + 2 * self.pull * distance
        lower = products.cpu().numpy() / samples
        hessian = lower + np.tril(lower, -1).T + 2 * self.pull * np.eye(count)
        return objective, gradient, hessian
