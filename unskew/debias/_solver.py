"""The convex estimate of a label prior: a logistic regression with nothing but a bias, solved by Newton's method.

    f(b) = 1/N sum_i CE(logits_i - b + log pi, y_i) + weight * KL(u || softmax(b)),    log q = b - logsumexp(b)

Works on checked tensors in float64; `unskew.debias.prior` is the public side.
"""

import math
from typing import NamedTuple

import torch

from unskew.debias._softmax import Exponentials

NEWTON_PASSES = 3000  # over the logits; 15 to 30 is usual

STRENGTHS = tuple(10 ** (half / 2) for half in range(8, -3, -1))  # 10000 .. 0.1, what "cv" chooses from

FOLDS = 5


class ObservedClasses(NamedTuple):
    """The n classes that a sample has labels of, and the sample seen by them alone.

    An absent class has pi = 0 and leaves the softmax, so it enters the KL term alone, whose derivative by
    log q_c is proportional to q_c - 1/C: its q_c is 1/C. Of what the n others then share, n/C, each has the part
    that minimises the same objective over these n classes with n/C of the strength; the constants cancel and
    the minimum is the same number.
    """

    logits: torch.Tensor  # [M, C], as given
    rows: torch.Tensor  # [N], of the sample
    classes: torch.Tensor  # [n], ascending
    frequencies: torch.Tensor  # [n], pi
    own: float  # the mean logit of the labels

    @classmethod
    def of(cls, logits, labels, rows=None) -> "ObservedClasses":
        """The sample is the ``rows`` ``[N]`` of logits ``[M, C]`` and labels ``[M]``; None is all."""
        rows = torch.arange(len(labels), device=labels.device) if rows is None else rows
        counts = labels[rows].bincount(minlength=logits.shape[1])
        classes = counts.nonzero().flatten()
        own = float(logits[rows, labels[rows]].double().mean())
        return cls(logits, rows, classes, counts[classes].double() / len(rows), own)

    def spread(self) -> float:
        """The deviation of the logits from their rows' means; a thousand rows tell it well enough."""
        some = self.rows[:: max(1, len(self.rows) // 1000)]
        return float(self.logits[some][:, self.classes].double().var(1, correction=0).mean().sqrt())

    def weight(self, strength: float) -> float:
        """What KL counts in the objective of the n classes, in nats per sample."""
        return strength * len(self.classes) / self.logits.shape[1] / len(self.rows)

    def log_q(self, bias) -> torch.Tensor:
        """``[C]``, from the bias of the n classes."""
        total = self.logits.shape[1]
        log_q = bias.new_full((total,), -math.log(total))
        log_q[self.classes] = bias.log_softmax(0) + math.log(len(self.classes) / total)
        return log_q


class Point(NamedTuple):
    """The objective and its derivatives at one bias b."""

    objective: float
    gradient: torch.Tensor  # [C]
    mean: torch.Tensor  # [C], of the probabilities softmax(logits/tau - b + log pi)
    squares: torch.Tensor  # [C], of their squares
    prior: torch.Tensor  # [C], softmax(b)
    rounding: float  # of the objective


class BiasProblem:
    """f(b) over the classes that are seen, so that every pi is above 0. ``weight`` may be changed between solves."""

    def __init__(self, seen: ObservedClasses, weight: float):
        self.own = seen.own
        self.frequencies = seen.frequencies
        self.weight = weight
        self.exponentials = Exponentials(seen.logits, seen.rows, seen.classes)
        self.spread = seen.spread()

    @property
    def passes(self) -> int:
        return self.exponentials.passes

    def at(self, bias) -> Point:
        pi, own = self.frequencies, self.own / self.exponentials.tau
        log_partition, mean, squares = self.exponentials.at(pi.log() - bias, squares=True)
        log_prior = bias.log_softmax(0)
        prior, uniform = log_prior.exp(), 1 / len(bias)
        entropy = log_partition - own - pi @ (pi.log() - bias)
        objective = float(entropy + self.weight * (math.log(uniform) - log_prior.mean()))
        gradient = pi - mean + self.weight * (prior - uniform)
        rounding = 1e-14 * (1 + abs(objective) + abs(own) + float(bias.abs().max()))
        return Point(objective, gradient, mean, squares, prior, rounding)

    def newton_step(self, point: Point, last_size: float, reach: float) -> tuple[torch.Tensor, float]:
        """Solve Hessian @ step = -gradient at the last point; the step and the gradient's size, squared and scaled.

        By conjugate gradients, a pass an iteration: the Hessian is the Laplacian of the graph of confused classes, and
        its diagonal is a good preconditioner. Far from the minimum they stop early: where the residual's size has
        fallen as the gradient's did from the last point to this (Eisenstat & Walker, SIAM J. Sci. Comput. 17, 1996),
        or where the step is longer than will be taken (Steihaug, SIAM J. Numer. Anal. 20, 1983).
        """
        gradient, mean, prior = point.gradient, point.mean, point.prior
        floor = 1e-12 * self.frequencies  # a class whose probabilities are all 0 or 1 has no curvature
        diagonal = floor + (mean - point.squares + self.weight * prior * (1 - prior)).clamp(min=0)

        def hessian(v):
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
    tau = max(1.0, problem.spread / 16)
    while tau > 1:
        bias, _ = descend(problem, bias, tau, 0.01 * problem.frequencies)
        tau, last = max(1.0, tau / 4), tau
        bias = bias * (last / tau)
    return bias


def descend(problem: BiasProblem, bias, tau: float, tolerance) -> tuple[torch.Tensor, Point]:
    """Newton steps with backtracking until every |gradient| is within its tolerance."""
    reach = 4.0  # how far, in nats, a step may move a class: beyond a few the second order means little
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
    present = counts.nonzero().flatten()
    log_pi = (counts[present].double() / len(labels)).log()  # [n]
    losses = log_pi.new_zeros(len(STRENGTHS))
    for number in range(folds):
        path = [
            log_q[present] for log_q in _path(ObservedClasses.of(logits, labels, (fold != number).nonzero().flatten()))
        ]
        rows = (fold == number).nonzero().flatten()
        held, counted = Exponentials(logits, rows, present), labels[rows].bincount(minlength=len(counts))[present]
        own = logits[rows, labels[rows]].double().sum()
        for i, log_q in enumerate(path):
            offset = log_pi - log_q
            losses[i] += len(rows) * held.at(offset).log_partition - own - counted.double() @ offset
    losses = losses / len(labels)
    return next(s for s, loss in zip(STRENGTHS, losses, strict=True) if loss <= losses.min() + 1e-4)


def _path(seen: ObservedClasses):
    """log q at each of `STRENGTHS`, each solve started from the one before: two or three passes in place of ten."""
    problem = BiasProblem(seen, seen.weight(STRENGTHS[0]))
    bias = soften(problem)
    for strength in STRENGTHS:
        problem.weight = seen.weight(strength)
        tolerance = 1e-4 * (seen.frequencies + problem.weight / len(bias))  # moves no loss by more than a tie
        bias, _ = descend(problem, bias, 1.0, tolerance)
        yield seen.log_q(bias)


EM_PASSES = 2000  # over the logits; 10 to 200 is usual, more where the model is sure of almost all its answers

TOLERANCE = 1e-8  # of the largest change of log q


class EMStep:
    """A step of EM: how it changes log q, and the objective F before it.

    F is that of `unskew.debias._solver`, which needs the labels for a constant alone; without them it is given less the
    cross entropy of the logits as they are. With d the change of log q, z = exp(d) and m the mean of
    softmax(logits - log q + log pi), log x <= x - 1 on both logarithms of sums bounds F from above::

        F(log q + d) <= F(log q) + sum_c (m_c / z_c - m_c + pi_c d_c) + weight * sum_c (q_c z_c - q_c - d_c / C)

    The bound touches F at d = 0 and is least at the root of ``weight q z^2 + (pi - weight/C) z - m = 0``, so no
    step raises F. At weight 0 the root is m/pi: generalised iterative scaling (Darroch & Ratcliff, 1972).
    """

    def __init__(self, logits, frequencies, weight: float, labels=None, classes=None):
        """Every frequency must be above 0; they are of ``classes``, ascending, if given, else of all."""
        self.exponentials = Exponentials(logits, None, classes)
        if labels is None:
            own = self.exponentials.at(torch.zeros_like(frequencies)).log_partition
        else:
            own = logits.gather(1, labels[:, None]).double().mean()
        self.own = float(own)
        self.frequencies = frequencies
        self.weight = weight

    @property
    def passes(self) -> int:
        return self.exponentials.passes

    def __call__(self, log_q) -> tuple[torch.Tensor, float]:
        pi, weight, uniform, q = self.frequencies, self.weight, 1 / len(log_q), log_q.exp()
        log_partition, mean, _ = self.exponentials.at(pi.log() - log_q)
        entropy = log_partition - self.own - pi @ (pi.log() - log_q)
        objective = entropy + weight * (math.log(uniform) - log_q.mean())
        slope = pi - weight * uniform
        root = (slope**2 + 4 * weight * q * mean).sqrt()
        z = torch.where(slope >= 0, 2 * mean / (slope + root), (root - slope) / (2 * weight * q))
        return z.clamp(min=1e-300).log(), float(objective)


def iterate(step: EMStep, log_q) -> tuple[torch.Tensor, float, bool]:
    """log q ``[C]`` at the fixed point, the objective there, and whether it was reached.

    Each round takes two steps and extrapolates them (SQUAREM, Varadhan & Roland, Scand. J. Statist. 35, 2008);
    where that raises the objective, the round is the two steps.
    """
    change, objective = step(log_q)
    while change.abs().max() > TOLERANCE and step.passes < EM_PASSES:
        once = (log_q + change).log_softmax(0)
        second, bound = step(once)
        bend = second - change
        length = max(1.0, float(change.norm() / bend.norm()))
        jump = (log_q + 2 * length * change + length**2 * bend).log_softmax(0)
        change, objective = step(jump)
        if not objective <= bound + 1e-14 * (1 + abs(bound)):
            jump = (once + second).log_softmax(0)
            change, objective = step(jump)
        log_q = jump
    return log_q, objective, bool(change.abs().max() <= TOLERANCE)
