"""The convex estimate of a label prior: a logistic regression with a bias alone, solved by Newton's method.

    f(b) = 1/N sum_i CE(logits_i - b + log pi, y_i) + weight * KL(u || softmax(b)),    log q = b - logsumexp(b)

The functions take validated tensors and compute in float64; `unskew.debias.prior` is the public interface.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from unskew.debias._softmax import Exponentials, blocks, spread

NEWTON_PASSES = 3000  # over the logits; 15 to 30 is usual

STRENGTHS = tuple(10 ** (half / 2) for half in range(8, -3, -1))  # 10000 .. 0.1, the candidates of "cv"

FOLDS = 5


class ObservedClasses(NamedTuple):
    """The sample restricted to the n classes that have labels.

    An absent class has pi = 0 and leaves the softmax, so it enters only the KL term, whose derivative by
    log q_c is proportional to q_c - 1/C: its q_c is 1/C. The n other classes share n/C. Their shares minimise the
    same objective over these n classes with n/C of the strength; the constants cancel and the minimum is the same.
    """

    logits: Tensor  # [M, C], unchanged
    rows: Tensor | None  # [N], of the sample; None for all
    classes: Tensor  # [n], ascending
    frequencies: Tensor  # [n], pi
    label_logit: float  # mean logit of the labels
    samples: int  # N

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, rows: Tensor | None = None) -> "ObservedClasses":
        """Select the ``rows`` ``[N]`` of logits ``[M, C]`` and labels ``[M]``; None selects all."""
        rows = torch.arange(len(labels), device=labels.device) if rows is None else rows
        counts = labels[rows].bincount(minlength=logits.shape[1])
        classes = counts.nonzero().flatten()
        label_logit = float(logits[rows, labels[rows]].double().mean())
        return cls(logits, rows, classes, counts[classes].double() / len(rows), label_logit, len(rows))

    @classmethod
    def balanced(cls, logits: Tensor) -> "ObservedClasses":
        """Treat an unlabelled sample ``[N, C]`` as balanced over the classes.

        The labels only enter the objective by their counts and by a constant. Without labels the constant is such
        that the objective lacks the cross entropy of the logits.
        """
        samples, width = logits.shape
        totals = sum(logits[rows].double().logsumexp(1).sum() for rows in blocks(logits))
        classes = torch.arange(width, device=logits.device)
        frequencies = torch.full((width,), 1 / width, dtype=torch.float64, device=logits.device)
        return cls(logits, None, classes, frequencies, float(totals) / samples, samples)

    def spread(self) -> float:
        """Return the `spread` of the logits of the sample."""
        every = max(1, self.samples // 1000)
        rows = self.logits[::every] if self.rows is None else self.logits[self.rows[::every]]
        return spread(rows, self.classes)

    def weight(self, strength: float) -> float:
        """Return the weight of the KL term in the objective of the n classes, in nats per sample."""
        return strength * len(self.classes) / self.logits.shape[1] / self.samples

    def log_q(self, bias: Tensor) -> Tensor:
        """Return log q ``[C]`` from the bias ``[n]``."""
        total = self.logits.shape[1]
        log_q = bias.new_full((total,), -math.log(total))
        log_q[self.classes] = bias.log_softmax(0) + math.log(len(self.classes) / total)
        return log_q


class Point(NamedTuple):
    """The objective and its derivatives at one bias b."""

    objective: float
    gradient: Tensor  # [n]
    mean: Tensor  # [n], of the probabilities softmax(logits/tau - b + log pi)
    squares: Tensor  # [n], of their squares
    prior: Tensor  # [n], softmax(b)
    rounding: float  # bound on the rounding error of the objective


class BiasProblem:
    """The objective f(b) over the observed classes, so that every pi is positive.

    Attributes:
        weight: Weight of the KL term; may be changed between solves.
    """

    def __init__(self, sample: ObservedClasses, weight: float) -> None:
        self.label_logit = sample.label_logit
        self.frequencies = sample.frequencies
        self.weight = weight
        self.exponentials = Exponentials(sample.logits, sample.rows, sample.classes)
        self.spread = sample.spread()

    @property
    def passes(self) -> int:
        """Number of passes over the logits so far."""
        return self.exponentials.passes

    def at(self, bias: Tensor) -> Point:
        """Evaluate the objective and its derivatives."""
        pi, label_logit = self.frequencies, self.label_logit / self.exponentials.tau
        log_partition, mean, squares = self.exponentials.at(pi.log() - bias, squares=True)
        log_prior = bias.log_softmax(0)
        prior, uniform = log_prior.exp(), 1 / len(bias)
        entropy = log_partition - label_logit - pi @ (pi.log() - bias)
        objective = float(entropy + self.weight * (math.log(uniform) - log_prior.mean()))
        gradient = pi - mean + self.weight * (prior - uniform)
        rounding = 1e-14 * (1 + abs(objective) + abs(label_logit) + float(bias.abs().max()))
        return Point(objective, gradient, mean, squares, prior, rounding)

    def newton_step(self, point: Point, last_size: float, reach: float) -> tuple[Tensor, float]:
        """Solve Hessian @ step = -gradient at the last point.

        Uses conjugate gradients, one pass per iteration. The Hessian is the Laplacian of the graph of confused
        classes, and its diagonal is a good preconditioner. Far from the minimum the iteration stops early: when the
        residual has shrunk as much as the gradient did since the last point (Eisenstat & Walker, SIAM J. Sci.
        Comput. 17, 1996), or when the step is longer than allowed (Steihaug, SIAM J. Numer. Anal. 20, 1983).

        Args:
            point: The last evaluated point.
            last_size: Size of the gradient at the point before.
            reach: Largest useful change of a bias.

        Returns:
            The step ``[n]`` and the squared, scaled size of the gradient.
        """
        gradient, mean, prior = point.gradient, point.mean, point.prior
        floor = 1e-12 * self.frequencies  # a class whose probabilities are all 0 or 1 has no curvature
        diagonal = floor + (mean - point.squares + self.weight * prior * (1 - prior)).clamp(min=0)

        def hessian(v: Tensor) -> Tensor:
            likelihood = mean * v - self.exponentials.product(v)
            return likelihood + floor * v + self.weight * prior * (v - prior @ v)

        step, residual = torch.zeros_like(gradient), -gradient
        direction = residual / diagonal
        size = first = residual @ direction
        target = first * min(0.1, max(1e-4, float(first) / last_size))
        for _ in range(200):
            product = hessian(direction)
            curvature = direction @ product
            if not curvature > 0:
                break
            step = step + size / curvature * direction
            residual = residual - size / curvature * product
            scaled = residual / diagonal
            before, size = size, residual @ scaled
            if size < target or step.abs().max() > reach:
                break
            direction = scaled + size / before * direction
        step = step - step.mean()
        return step if gradient @ step < 0 else -gradient / self.frequencies, float(first)


def solve(problem: BiasProblem) -> tuple[Tensor, Point, bool]:
    """Return the bias at the minimum, its `Point`, and whether the solver converged.

    Very spread logits are first softened by a temperature tau that falls to 1: at a scale of 100 the objective
    is nearly piecewise linear, and Newton steps from a distant start do not help.
    """
    bias = soften(problem)
    tolerance = 1e-10 * max(1.0, problem.weight)
    bias, point = descend(problem, bias, 1.0, tolerance)
    return bias, point, bool((point.gradient.abs() <= tolerance).all())


def soften(problem: BiasProblem) -> Tensor:
    """Return a starting bias ``[n]``."""
    bias = torch.zeros_like(problem.frequencies)
    tau = max(1.0, problem.spread / 16)
    while tau > 1:
        bias, _ = descend(problem, bias, tau, 0.01 * problem.frequencies)
        tau, last = max(1.0, tau / 4), tau
        bias = bias * (last / tau)
    return bias


def descend(problem: BiasProblem, bias: Tensor, tau: float, tolerance: Tensor | float) -> tuple[Tensor, Point]:
    """Take Newton steps with backtracking until every gradient component is within its tolerance."""
    reach = 4.0  # largest change of a class in nats; the quadratic model is poor beyond a few nats
    limit = problem.passes + NEWTON_PASSES
    problem.exponentials.soften(tau)
    point = problem.at(bias)
    size = math.inf
    while (point.gradient.abs() > tolerance).any() and problem.passes < limit:
        step, size = problem.newton_step(point, size, reach)
        longest, slope = float(step.abs().max()), float(point.gradient @ step)
        highest = point.objective + point.rounding
        scale = full = min(1.0, reach / longest)
        point = problem.at(bias + scale * step)
        while point.objective > highest + 1e-4 * scale * slope and problem.passes < limit:
            scale *= 0.3
            point = problem.at(bias + scale * step)
        reach = max(1.0, scale * longest * (4 if scale == full else 1))
        bias = bias + scale * step
    return bias, point


def cross_validate(logits: Tensor, labels: Tensor) -> float:
    """Return the strength whose prior gives held-out samples the least CE(logits - log q + log pi, y).

    q is fitted on the other folds with their label frequencies; pi is computed from all samples. Sample j of a
    class, in the given order, belongs to fold j mod K, with K = 5 or the largest class count if smaller. Among
    `STRENGTHS` within 1e-4 nats per sample of the best, the largest is returned.

    Raises:
        ValueError: No class has two samples.
    """
    counts = labels.bincount(minlength=logits.shape[1])
    folds = min(FOLDS, int(counts.max()))
    if folds < 2:
        raise ValueError(
            "strength 'cv' needs a class with two labels, one to fit and one to hold out; pass a number instead"
        )
    order = labels.argsort(stable=True)
    rank = torch.empty_like(order)  # of each sample in its class
    rank[order] = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[labels[order]]
    fold = rank % folds
    present = counts.nonzero().flatten()
    log_pi = (counts[present].double() / len(labels)).log()  # [n]
    losses = log_pi.new_zeros(len(STRENGTHS))
    for number in range(folds):
        path = [
            log_q[present] for log_q in _path(ObservedClasses.of(logits, labels, (fold != number).nonzero().flatten()))
        ]
        rows = (fold == number).nonzero().flatten()
        held_out, held_counts = Exponentials(logits, rows, present), labels[rows].bincount(minlength=len(counts))
        label_logits = logits[rows, labels[rows]].double().sum()
        class_counts = held_counts[present].double()
        for i, log_q in enumerate(path):
            offset = log_pi - log_q
            losses[i] += len(rows) * held_out.at(offset).log_partition - label_logits - class_counts @ offset
    losses = losses / len(labels)
    return next(s for s, loss in zip(STRENGTHS, losses, strict=True) if loss <= losses.min() + 1e-4)


def _path(sample: ObservedClasses) -> Iterator[Tensor]:
    """Yield log q at each of `STRENGTHS`, each solve warm-started: two or three passes instead of ten."""
    problem = BiasProblem(sample, sample.weight(STRENGTHS[0]))
    bias = soften(problem)
    for strength in STRENGTHS:
        problem.weight = sample.weight(strength)
        tolerance = 1e-4 * (sample.frequencies + problem.weight / len(bias))  # changes no loss by more than a tie
        bias, _ = descend(problem, bias, 1.0, tolerance)
        yield sample.log_q(bias)
