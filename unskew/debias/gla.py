"""How GLA's two halves are put together: what is fitted on val beyond their temperatures.

The paper's sum trusts both halves alike and takes the fine-tuned one for free of pre-training bias (arXiv 2310.08106).
After a few shots it is neither: `fit_combination` measures both on val, `SUM` is the paper's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from unskew.debias._softmax import Exponentials, blocks, buffers
from unskew.debias._validation import check_logits
from unskew.debias.io import Sample
from unskew.debias.prior import estimate_log_prior
from unskew.debias.temperature import find_decreasing_root, fit_temperature


def adjust(ft, zs, log_q, log_p=None, log_target=None) -> torch.Tensor:
    """GLA's logits (arXiv 2310.08106): ``ft + zs - log q - log p``, ``[N, C]``.

    ft already carries log p, the label frequencies it was fine-tuned on; zs carries log q. Their sum is
    right for a balanced test set; ``log_target`` moves it to another.

    Args:
        ft: ``[N, C]``, fine-tuned logits, divided by their temperature.
        zs: ``[N, C]``, zero-shot logits, divided by theirs.
        log_q: ``[C]``.
        log_p: ``[C]``; omit it for balanced training data, and where the training loss was logit-adjusted.
        log_target: ``[C]``; uniform if omitted.

    Raises:
        ValueError: shapes that do not fit.
    """
    if ft.ndim != 2 or ft.shape != zs.shape:
        raise ValueError(f"ft and zs must both be [N, C], not {list(ft.shape)} and {list(zs.shape)}")
    logits = ft + zs  # [N, C]
    for name, term, sign in (("log_q", log_q, -1), ("log_p", log_p, -1), ("log_target", log_target, 1)):
        if term is None:
            continue
        if term.shape != logits.shape[1:]:
            raise ValueError(f"{name} must be [C] with C = {logits.shape[1]}, not {list(term.shape)}")
        logits = logits + sign * term.to(logits)
    return logits


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

    return find_decreasing_root(excess, 0.0, 1.0, 0.0)[0]


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


FOLDS = 5


# --- samples -> temperatures and prior -----------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How temperatures and prior are found.

    Attributes:
        temperature: ``confidence`` or ``nll``, fitted on labels (without any, T is 1); ``none``: T is 1.
        log_q: ``[C]``, a known prior; ``None`` to estimate it.
        method: of `estimate_log_prior`.
        strength: of `estimate_log_prior`; ``None`` for its default.
        combine: ``fitted`` on labels (without any, ``sum``), or ``sum``, the paper's.
    """

    temperature: str = "confidence"
    log_q: Tensor | None = None
    method: str = "convex"
    strength: float | str | None = None
    combine: str = "fitted"


class Fit(NamedTuple):
    """What GLA needs besides logits."""

    zs_temperature: float
    ft_temperature: float
    log_q: Tensor  # [C]
    converged: bool
    combination: Combination


def fit(sample: Sample, recipe: Recipe, log_p: Tensor | None = None) -> Fit:
    """All of `Fit` from one sample; the prior from the calibrated zero-shot logits."""
    zs, ft, labels = sample
    temperatures = [1.0, 1.0]
    if recipe.temperature != "none" and labels is not None:
        temperatures = [fit_temperature(logits, labels, method=recipe.temperature) for logits in (zs, ft)]
    log_q, converged = recipe.log_q, True
    if log_q is None:
        options = {} if recipe.strength is None else {"strength": recipe.strength}
        estimate = estimate_log_prior(zs / temperatures[0], labels, method=recipe.method, **options)
        log_q, converged = estimate.log_q, estimate.converged
    combination = SUM
    if recipe.combine == "fitted" and labels is not None:
        combination = fit_combination(ft / temperatures[1], zs / temperatures[0], labels, log_q, log_p)
    return Fit(*temperatures, log_q, converged, combination)


def fold_numbers(labels: Tensor) -> Tensor:
    """The fold ``[N]`` of each sample: those of a class are dealt out in order, so that each fold has its share."""
    folds = torch.empty_like(labels)
    folds[labels.argsort(stable=True)] = torch.arange(len(labels)) % FOLDS
    return folds


def cross_fit(sample: Sample, recipe: Recipe, log_p: Tensor | None = None) -> list[tuple[Tensor, Fit]]:
    """For each fold its rows (``[N]``, bool) and what the samples of the other folds fit.

    Raises:
        ValueError: fewer than two samples.
    """
    if len(sample.zs) < 2:
        raise ValueError("a single sample cannot be cross-fitted: fit on others, with --val-zeroshot and so on")
    folds = fold_numbers(sample.labels)
    held = [folds == number for number in folds.unique()]
    return [(rows, fit(Sample(*(tensor[~rows] for tensor in sample)), recipe, log_p)) for rows in held]


# --- temperatures and prior -> adjusted logits, table --------------------------------------------------


def parts(zs: Tensor, ft: Tensor, fitted: Fit, log_p: Tensor | None = None, log_target: Tensor | None = None) -> dict:
    """Logits ``[N, C]`` by the name of their row: each half, the debiased zero-shot half, the ensemble, GLA."""
    zs, ft = zs / fitted.zs_temperature, ft / fitted.ft_temperature
    debiased = "zero-shot - log q" if log_target is None else "zero-shot - log q + log target"
    return {
        "zero-shot": zs,
        debiased: adjust(torch.zeros_like(zs), zs, fitted.log_q, None, log_target),
        "fine-tuned": ft,
        "ensemble": ft + zs,
        "GLA": combine(ft, zs, fitted.log_q, fitted.combination, log_p, log_target),
    }


def apply(
    sample: Sample, plan: Sequence[tuple], log_p: Tensor | None = None, log_target: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """GLA's logits ``[N, C]``, and the predictions ``[N]`` of each of the `parts`.

    Args:
        plan: pairs of rows and the `Fit` that serves them; together they are all rows.
    """
    zs, ft, _ = sample
    logits = torch.empty_like(zs, dtype=torch.promote_types(zs.dtype, ft.dtype))
    predicted: dict[str, Tensor] = {}
    for rows, fitted in plan:
        scores = parts(zs[rows], ft[rows], fitted, log_p, log_target)
        for name, values in scores.items():
            predicted.setdefault(name, torch.empty(len(zs), dtype=torch.long))[rows] = values.argmax(1)
        logits[rows] = scores["GLA"]
    return logits, predicted
