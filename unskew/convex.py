"""The convex estimate of a label prior: a logistic regression with nothing but a bias, solved by Newton's method.

    f(b) = 1/N sum_i CE(logits_i - b + log pi, y_i) + weight * KL(u || softmax(b)),    log q = b - logsumexp(b)

Works on checked tensors in float64; `unskew.prior` is the public side.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

MAX_PASSES = 300  # over the logits; 8 to 30 is usual
STRENGTHS = tuple(10 ** (half / 2) for half in range(8, -3, -1))  # 10000 .. 0.1, what "cv" chooses from
FOLDS = 5


class Seen(NamedTuple):
    """The n classes that a sample has labels of, and the sample seen by them alone.

    An absent class has pi = 0 and leaves the softmax, so it enters the KL term alone, whose derivative by
    log q_c is proportional to q_c - 1/C: its q_c is 1/C. Of what the n others then share, n/C, each has the part
    that minimises the same objective over these n classes with n/C of the strength; the constants cancel and
    the minimum is the same number.
    """

    classes: torch.Tensor  # [n], ascending
    labels: torch.Tensor  # [N], positions in classes
    frequencies: torch.Tensor  # [n], pi
    logits: torch.Tensor  # [N, n]
    total: int  # C

    @classmethod
    def of(cls, logits, labels) -> "Seen":
        total = logits.shape[1]
        classes, labels, counts = labels.unique(return_inverse=True, return_counts=True)
        seen = logits[:, classes] if len(classes) < total else logits
        return cls(classes, labels, counts.double() / len(labels), seen, total)

    def weight(self, strength: float) -> float:
        """What KL counts in the objective of the n classes, in nats per sample."""
        return strength * len(self.classes) / self.total / len(self.logits)

    def log_q(self, bias) -> torch.Tensor:
        """``[C]``, from the bias of the n classes."""
        log_q = bias.new_full((self.total,), -math.log(self.total))
        log_q[self.classes] = bias.log_softmax(0) + math.log(len(self.classes) / self.total)
        return log_q


class Point(NamedTuple):
    """The objective and its derivatives at one bias b; ``probabilities`` is valid until the next point."""

    objective: torch.Tensor
    gradient: torch.Tensor  # [C]
    probabilities: torch.Tensor  # [N, C], softmax(logits/tau - b + log pi)
    mean: torch.Tensor  # [C], of the probabilities
    prior: torch.Tensor  # [C], softmax(b)


class BiasProblem:
    """f(b) over the classes that are seen, so that every pi is above 0. ``weight`` may be changed between solves."""

    def __init__(self, seen: Seen, weight: float):
        self.logits = seen.logits - seen.logits.mean(1, keepdim=True)  # [N, C]; softmax does not see what rows add
        self.labels = seen.labels[:, None]
        self.frequencies = seen.frequencies
        self.weight = weight
        self.passes = 0
        self._buffer = torch.empty_like(self.logits)  # page faults would cost more than the arithmetic

    def at(self, bias, tau: float) -> Point:
        self.passes += 1
        torch.add(self.frequencies.log() - bias, self.logits, alpha=1 / tau, out=self._buffer)
        scores = self._buffer.sub_(self._buffer.amax(1, keepdim=True))
        own = scores.gather(1, self.labels)
        totals = scores.exp_().sum(1, keepdim=True)
        probabilities = scores.div_(totals)
        mean, log_prior = probabilities.mean(0), bias.log_softmax(0)
        prior, uniform = log_prior.exp(), 1 / len(bias)
        objective = (totals.log() - own).mean() + self.weight * (math.log(uniform) - log_prior.mean())
        gradient = self.frequencies - mean + self.weight * (prior - uniform)
        return Point(objective, gradient, probabilities, mean, prior)

    def newton_step(self, point: Point) -> torch.Tensor:
        """Solve Hessian @ step = -gradient by conjugate gradients: two products with [N, C] an iteration,
        where the Hessian itself would take C of them. It is the Laplacian of the graph of confused classes,
        and its diagonal is a good preconditioner.
        """
        _, gradient, p, mean, prior = point
        floor = 1e-12 * self.frequencies  # a class whose probabilities are all 0 or 1 has no curvature
        squares = sum(rows.square().sum(0) for rows in p.split(64))  # in the processor's cache: a fifth of the time
        diagonal = floor + (mean - squares / len(p) + self.weight * prior * (1 - prior)).clamp(min=0)

        def hessian(v):
            likelihood = mean * v - (p @ v) @ p / len(p)
            return likelihood + floor * v + self.weight * prior * (v - prior @ v)

        step, residual = torch.zeros_like(gradient), -gradient
        direction = residual / diagonal
        size = first = residual @ direction
        for _ in range(200):
            product = hessian(direction)
            curvature = direction @ product
            if not curvature > 0:
                break
            step = step + size / curvature * direction
            residual = residual - size / curvature * product
            scaled = residual / diagonal
            last, size = size, residual @ scaled
            if size < 1e-4 * first:
                break
            direction = scaled + size / last * direction
        step = step - step.mean()
        return step if gradient @ step < 0 else -gradient / self.frequencies


def solve(problem: BiasProblem) -> tuple[torch.Tensor, Point, bool]:
    """The bias at the minimum, what stands there, and whether it converged.

    Newton's method. Very spread logits are first softened by a temperature tau that falls to 1: at a scale of
    100 the objective is nearly piecewise linear, and Newton steps from afar lead nowhere.
    """
    bias = soften(problem)
    tolerance = 1e-10 * max(1.0, problem.weight)
    bias, point = descend(problem, bias, 1.0, tolerance)
    return bias, point, bool((point.gradient.abs() <= tolerance).all())


def soften(problem: BiasProblem) -> torch.Tensor:
    """A bias to start from."""
    bias = torch.zeros_like(problem.frequencies)
    tau = max(1.0, float(problem.logits.std(correction=0)) / 8)
    while tau > 1:
        bias, _ = descend(problem, bias, tau, 0.01 * problem.frequencies)
        tau, last = max(1.0, tau / 4), tau
        bias = bias * (last / tau)
    return bias


def descend(problem: BiasProblem, bias, tau: float, tolerance) -> tuple[torch.Tensor, Point]:
    """Newton steps with backtracking until every |gradient| is within its tolerance."""
    reach = 4.0  # how far, in nats, a step may move a class: beyond a few the second order means little
    limit = problem.passes + MAX_PASSES
    point = problem.at(bias, tau)
    while (point.gradient.abs() > tolerance).any() and problem.passes < limit:
        step = problem.newton_step(point)
        longest, slope = float(step.abs().max()), float(point.gradient @ step)
        objective = float(point.objective)
        rounding = 1e-14 * (1 + abs(objective))
        scale = full = min(1.0, reach / longest)
        point = problem.at(bias + scale * step, tau)
        while point.objective > objective + 1e-4 * scale * slope + rounding and problem.passes < limit:
            scale *= 0.3
            point = problem.at(bias + scale * step, tau)
        reach = max(1.0, scale * longest * (4 if scale == full else 1))
        bias = bias + scale * step
    return bias, point


def cross_validate(logits, labels) -> float:
    """The one of `STRENGTHS` whose prior gives held-out samples the least CE(logits - log q + log pi, y).

    q is fitted on the other folds with their own frequencies; pi is that of all samples. Sample j of a class, in
    the order given, is in fold j mod K, with K = 5 or the largest class count if that is less. Where strengths
    tie to 1e-4 nats per sample, it is the largest.

    Raises:
        ValueError: no class has two samples.
    """
    counts = labels.bincount(minlength=logits.shape[1])
    folds = min(FOLDS, int(counts.max()))
    if folds < 2:
        raise ValueError(
            "strength 'cv' needs a class with two labels, one to fit and one to hold out; give a number instead"
        )
    order = labels.argsort(stable=True)
    rank = torch.empty_like(order)  # of each sample in its class
    rank[order] = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[labels[order]]
    fold = rank % folds
    log_pi = (counts.double() / len(labels)).log()  # [C], -inf where absent
    losses = logits.new_zeros(len(STRENGTHS))
    for held in (fold == k for k in range(folds)):
        held_logits, held_labels = logits[held] + log_pi, labels[held]
        for i, log_q in enumerate(_path(Seen.of(logits[~held], labels[~held]))):
            losses[i] += F.cross_entropy(held_logits - log_q, held_labels, reduction="sum")
    losses = losses / len(labels)
    return next(s for s, loss in zip(STRENGTHS, losses, strict=True) if loss <= losses.min() + 1e-4)


def _path(seen: Seen):
    """log q at each of `STRENGTHS`, each solve started from the one before: two or three passes in place of ten."""
    problem = BiasProblem(seen, seen.weight(STRENGTHS[0]))
    bias = soften(problem)
    for strength in STRENGTHS:
        problem.weight = seen.weight(strength)
        tolerance = 1e-4 * (seen.frequencies + problem.weight / len(bias))  # moves no loss by more than a tie
        bias, _ = descend(problem, bias, 1.0, tolerance)
        yield seen.log_q(bias)
