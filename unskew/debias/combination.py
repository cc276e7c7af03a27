"""Addition of GLA's two halves: the remaining bias rho and the weights, fitted on held-out images.

The paper's sum (arXiv 2310.08106) trusts both halves equally and assumes that the fine-tuned half is free of
pre-training bias. After a few shots neither holds: `fit_combination` measures both on held-out images; `SUM` is the
paper's.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from unskew.debias._softmax import Exponentials, blocks, buffers
from unskew.debias._validation import (
    Array,
    check_logits,
    check_same_shape,
    to_kind,
    to_logits,
    to_prior,
    to_tensor,
    uses_numpy,
)
from unskew.debias.temperature import find_decreasing_root

# Strength of the penalty that keeps the weights near one half if few images are held out: nats at a distance of 1.
PULL = 2.0

# Lower bound of each weight. Both at 0 would give constant logits, on held-out images that contradict both halves.
MIN_WEIGHT = 1e-4

MAX_STEPS = 100


class Combination(NamedTuple):
    """Numbers, or tensors of one number, of ``ft_weight * (ft - log p - rho * log q) + zs_weight * (zs - log q)``."""

    rho: float | Tensor  # in [0, 1], share of log q that remains in the fine-tuned logits
    ft_weight: float | Tensor
    zs_weight: float | Tensor


SUM = Combination(rho=0.0, ft_weight=1.0, zs_weight=1.0)


def adjust(zs: Array, ft: Array, log_q: Array, log_p: Array | None = None, log_target: Array | None = None) -> Array:
    """Return GLA's logits (arXiv 2310.08106): ``ft + zs - log q - log p``, ``[N, C]``.

    ft contains log p, the label frequencies it was fine-tuned on; zs contains log q. Their adjusted sum is right for
    a balanced test set; ``log_target`` moves it to other label frequencies.

    Args:
        zs: ``[N, C]``, zero-shot logits, divided by their temperature.
        ft: ``[N, C]``, fine-tuned logits, divided by their temperature.
        log_q: ``[C]``.
        log_p: ``[C]``; omit it for balanced training data, and if the training loss was logit-adjusted.
        log_target: ``[C]``; uniform if omitted.

    Raises:
        ValueError: Shapes that do not fit; priors that are not finite log probabilities; mixed kinds of arrays.

    Example:
        >>> import numpy as np
        >>> from unskew.debias import adjust
        >>> adjust(np.array([[2.0, 1.0]]), np.array([[0.0, 0.5]]), np.log([0.75, 0.25])).round(2)
        array([[2.29, 2.89]])
    """
    numpy = uses_numpy(zs=zs, ft=ft, log_q=log_q, log_p=log_p, log_target=log_target)
    return to_kind(_adjust(to_logits(zs), to_logits(ft), log_q, log_p, log_target), numpy)


def _adjust(zs: Tensor, ft: Tensor, log_q: object, log_p: object = None, log_target: object = None) -> Tensor:
    check_same_shape(zs, ft)
    logits = ft + zs  # [N, C]
    for name, term, sign in (("log_q", log_q, -1), ("log_p", log_p, -1), ("log_target", log_target, 1)):
        if term is not None:
            logits = logits + sign * to_prior(term, name, logits.shape[1], logits)
    return logits


def combine(
    zs: Array,
    ft: Array,
    log_q: Array,
    combination: Combination = SUM,
    log_p: Array | None = None,
    log_target: Array | None = None,
) -> Array:
    """Return the weighted logits ``[N, C]`` of both halves; the arguments are those of `adjust`."""
    numpy = uses_numpy(zs=zs, ft=ft, log_q=log_q, log_p=log_p, log_target=log_target)
    rho, ft_weight, zs_weight = combination
    zs_half, ft_half = to_logits(zs), to_logits(ft)
    check_same_shape(zs_half, ft_half)
    classes, device = zs_half.shape[1], zs_half.device
    prior = to_prior(log_q, "log_q", classes, device)
    ft_half = ft_half - rho * prior
    if log_p is not None:
        ft_half = ft_half - to_prior(log_p, "log_p", classes, device)
    logits = _adjust(zs_weight * zs_half, ft_weight * ft_half, zs_weight * prior, log_target=log_target)
    return to_kind(logits, numpy)


def fit_combination(
    zs: Array, ft: Array, labels: Array | Sequence[int], log_q: Array, log_p: Array | None = None
) -> Combination:
    """Fit rho, then the weights, on calibrated logits ``[N, C]`` of both halves and held-out labels ``[N]``.

    Raises:
        ValueError: Shapes or labels out of range; logits that are not finite; mixed kinds of arrays.
    """
    uses_numpy(zs=zs, ft=ft, labels=labels, log_q=log_q, log_p=log_p)
    zs_half, ft_half = to_logits(zs), to_logits(ft)
    check_same_shape(zs_half, ft_half)
    classes, device = zs_half.shape[1], zs_half.device
    prior = to_prior(log_q, "log_q", classes, device)
    ft_half = ft_half if log_p is None else ft_half - to_prior(log_p, "log_p", classes, device)
    rho = remaining_bias(ft_half, to_tensor(labels), prior)
    return Combination(rho, *_fit_weights(zs_half, ft_half, labels, PULL, (rho * prior, prior)))


def _log_frequencies(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the n classes with labels, ascending, and their log pi ``[n]``; the others leave the softmax."""
    counts = torch.bincount(labels, minlength=classes)
    present = counts.nonzero().flatten()
    return present, (counts[present].double() / len(labels)).log()


# --- rho --------------------------------------------------------------------------------------------


def remaining_bias(logits: Array, labels: Array | Sequence[int], log_q: Array) -> float:
    """Fit rho in [0, 1], the share of the pre-training bias log q that remains in fine-tuned logits ``[N, C]``.

    Fine-tuning starts at a model whose logits contain log q, and a few steps on a few images remove only a part of
    it. rho minimises the cross entropy of ``logits - rho * log q + log pi`` on labels ``[N]`` that the model was not
    trained on, with pi their frequencies. The objective is convex in rho; its slope is the mean of log q under the
    labels minus the mean under the model, and rho is the root: 0 if fine-tuning has removed the bias, 1 if all of the
    bias remains.

    Raises:
        ValueError: Shapes or labels out of range; logits that are not finite; mixed kinds of arrays.
    """
    uses_numpy(logits=logits, labels=labels, log_q=log_q)
    scores, targets = check_logits(logits, labels, None)
    prior = to_prior(log_q, "log_q", scores.shape[1], scores.device).double()
    present, log_pi = _log_frequencies(targets, scores.shape[1])
    prior = prior - prior[present[0]]  # a uniform prior becomes exactly 0
    target = float(prior[targets].mean())
    prior, exponentials = prior[present], Exponentials(scores, None, present)

    def excess(rho: float) -> tuple[float, float]:
        mean = exponentials.at(log_pi - rho * prior).probabilities
        variance = mean @ prior.square() - prior @ exponentials.product(prior)
        return float(mean @ prior) - target, -float(variance)

    return find_decreasing_root(excess, 0.0, 1.0, 0.0)[0]


# --- the weights ------------------------------------------------------------------------------------


def fit_weights(zs: Array, ft: Array, labels: Array | Sequence[int], pull: float = PULL) -> tuple[float, float]:
    """Fit a, b >= 0 that minimise ``sum_i CE(a ft_i + b zs_i + log pi, y_i) + pull ((a - 1/2)^2 + (b - 1/2)^2)``.

    ft and zs ``[N, C]`` are both right for balanced data. Without the penalty this is stacking (Wolpert, Neural
    Networks 5, 1992). With the penalty, a handful of images can neither silence one half nor make the sum as confident
    as the images are separable; a thousand images can. One half each is the mean, which is calibrated if the halves
    agree for the same reason; if the halves are independent the fit approaches 1 and 1.

    Returns:
        The weights of ft and of zs, in the order of `Combination`.

    Raises:
        ValueError: Shapes or labels out of range; logits that are not finite; mixed kinds of arrays.
    """
    uses_numpy(zs=zs, ft=ft, labels=labels)
    return _fit_weights(to_logits(zs), to_logits(ft), labels, pull, (0.0, 0.0))


def _fit_weights(
    zs: Tensor, ft: Tensor, labels: object, pull: float, offsets: tuple[Tensor | float, Tensor | float]
) -> tuple[float, float]:
    """Run `fit_weights` on ft and zs minus an offset each, ``[C]`` or a number."""
    check_same_shape(zs, ft)
    ft, targets = check_logits(ft, labels, None)
    zs, _ = check_logits(zs, None, None)
    problem = _Stacking((ft, zs), offsets, targets, pull)
    weights = np.full(2, 0.5)
    objective, gradient, hessian = problem.at(weights)
    for _ in range(MAX_STEPS):
        step = _bounded_newton_step(gradient, hessian, MIN_WEIGHT - weights)
        if abs(step).max() <= 1e-6 * weights.max():  # quadratic convergence: the next step would be about its square
            weights = weights + step
            break
        bound, slope = objective + 1e-14 * (1 + abs(objective)), 1e-4 * gradient @ step
        scale = min(1.0, 10 / abs(step).max())  # the quadratic model is poor at a distance
        objective, *derivatives = problem.at(weights + scale * step)
        while objective > bound + scale * slope and scale > 1e-9:
            scale /= 4
            objective, *derivatives = problem.at(weights + scale * step)
        weights, (gradient, hessian) = weights + scale * step, derivatives
    return float(weights[0]), float(weights[1])


def _bounded_newton_step(gradient: np.ndarray, hessian: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Return the d >= least, in each coordinate, that minimises ``gradient . d + d . hessian d / 2``."""
    values, vectors = np.linalg.eigh(hessian)
    values = np.maximum(values, 1e-12 * max(1.0, values[-1]))  # the Hessian of two equal halves is singular
    root = np.sqrt(values)[:, None] * vectors.T  # hessian = root^T root
    return nnls(root, -root @ least - np.linalg.solve(root.T, gradient))[0] + least


class _Stacking:
    """The objective of `fit_weights` per image, with its gradient and Hessian by the weights."""

    def __init__(
        self, parts: tuple[Tensor, Tensor], offsets: tuple[Tensor | float, ...], labels: Tensor, pull: float
    ) -> None:
        classes = parts[0].shape[1]
        self.parts = parts
        self.offsets = [torch.as_tensor(offset).to(labels.device, torch.float64).expand(classes) for offset in offsets]
        present, log_pi = _log_frequencies(labels, classes)
        self.log_pi = torch.full_like(self.offsets[0], -math.inf)  # [C]
        self.log_pi[present] = log_pi
        self.workspace = buffers(parts[0], 5)
        label_logits = [
            part.gather(1, labels[:, None])[:, 0].double() - offset[labels]
            for part, offset in zip(parts, self.offsets, strict=True)
        ]
        self.label_logits = np.array([float(logits.mean()) for logits in label_logits])
        self.pull = pull / len(labels)

    def at(self, weights: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Evaluate the objective and its derivatives."""
        samples, count = len(self.parts[0]), len(self.parts)
        log_partition = torch.zeros_like(self.log_pi[0])
        means, products = self.log_pi.new_zeros(count), self.log_pi.new_zeros(count, count)
        for rows in blocks(self.parts[0]):
            *block, exponentials, weighted, product = self.workspace[:, : rows.stop - rows.start]  # [n, C] each
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
                    second = torch.mul(weighted, block[j], out=product).sum(1) / totals
                    products[i, j] += (second - expected[i] * expected[j]).sum()
        distance = weights - 0.5
        entropy = float(log_partition) / samples - weights @ self.label_logits
        objective = entropy + self.pull * float(distance @ distance)
        gradient = means.cpu().numpy() / samples - self.label_logits + 2 * self.pull * distance
        lower = products.cpu().numpy() / samples
        hessian = lower + np.tril(lower, -1).T + 2 * self.pull * np.eye(count)
        return objective, gradient, hessian
