"""Minimisation over sources: as few passes as possible, because a pass reads all logits.

A fit starts at the minimum for a subset of the images that is kept in memory. Newton's method with the whole Hessian
then needs 4 or 5 passes at 1,000 classes. Above `MOST_WHOLE` classes the Hessian is too large. There L-BFGS-B in
variables that its diagonal scales needs more passes.
"""

from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from unskew.debias._joint import LAST_STEP, LogitSums, Minimum, Penalty, ScalePenalty, Sums, minimise
from unskew.debias._solver import BiasProblem, ObservedClasses, solve
from unskew.debias._streamed_joint import StreamedSums
from unskew.debias._streamed_scan import Streamed

# Largest change in nats, or of a weight relative to its size, at which a step is the last: it squares the error.
LAST_CHANGE = 3e-5

# Largest change in nats of a class in one step; the quadratic model is poor beyond a few nats.
REACH = 4.0

MOST_STEPS = 200


class Point(NamedTuple):
    """An objective and its derivatives at one point x ``[n]``."""

    value: float
    gradient: Tensor  # [n]
    hessian: Tensor  # [n, n]; [n] its diagonal; or empty
    sums: Sums


class Problem(Protocol):
    """A convex objective of x: weights, if they are free, then the bias of each class."""

    data: StreamedSums
    least: Tensor  # [n], lower bounds

    def at(self, x: Tensor, keep: bool = True) -> Point:
        """Evaluate the objective; the arguments are those of `StreamedSums.at`."""

    def longest(self, x: Tensor, step: Tensor) -> float:
        """Return the largest multiple of a step, at most 1, that may be taken."""


class JointProblem:
    """The objective of `unskew.debias._joint.minimise` with a normal prior on the bias."""

    def __init__(self, data: StreamedSums, weights: Tensor, penalty: Penalty, precision: Tensor, fixed: bool) -> None:
        self.data, self._weights, self._penalty, self._precision = data, weights, penalty, precision
        self._free = 0 if fixed else len(weights)
        least = torch.full_like(precision, -torch.inf)
        self.least = torch.cat([torch.full_like(weights[: self._free], penalty.least), least])

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights and the bias."""
        return (x[: self._free] if self._free else self._weights), x[self._free :]

    def at(self, x: Tensor, keep: bool = True) -> Point:
        """Evaluate the objective."""
        (weights, bias), data = self.split(x), self.data
        sums = data.at(weights, bias, keep)
        penalty, slope, curvature = self._penalty.at(weights)
        label_scores = weights @ data.label_logits + data.counts @ (data.log_pi - bias)
        value = sums.log_partition - float(label_scores) + penalty + float(self._precision @ bias.square()) / 2
        by_weight = (sums.expected - data.label_logits + slope)[: self._free]
        gradient = torch.cat([by_weight, data.counts - sums.probabilities + self._precision * bias])
        hessian = _hessian(sums, data, self._precision, keep)
        if self._free and keep:
            block = sums.covariance + curvature.diag()
            if hessian.dim() == 1:
                hessian = torch.cat([block.diagonal(), hessian])
            else:
                crossed = -sums.crossed
                hessian = torch.cat([torch.cat([block, crossed], 1), torch.cat([crossed.T, hessian], 1)])
        return Point(value, gradient, hessian, sums)

    def longest(self, x: Tensor, step: Tensor) -> float:
        """Limit the change of the weights as their penalty does, and that of the bias by `REACH`."""
        reach = min(1.0, REACH / max(float(step[self._free :].abs().max()), 1e-300))
        return min(reach, self._penalty.longest(x[: self._free], step[: self._free])) if self._free else reach


class BiasOnlyProblem:
    """The objective of `unskew.debias._solver`: in nats per image, with a KL term of the bias."""

    def __init__(self, data: StreamedSums, weight: float, label_logit: float) -> None:
        self.data, self._weight, self._label_logit = data, weight, label_logit
        self.least = torch.full_like(data.counts, -torch.inf)

    def at(self, x: Tensor, keep: bool = True) -> Point:
        """Evaluate the objective."""
        data, samples, uniform = self.data, len(self.data), 1 / len(x)
        sums = data.at(x.new_ones(1), x, keep)
        pi, log_prior = data.log_pi.exp(), x.log_softmax(0)
        prior = log_prior.exp()
        value = sums.log_partition / samples - self._label_logit - float(pi @ (data.log_pi - x))
        value += self._weight * float(np.log(uniform) - log_prior.mean())
        gradient = pi - sums.probabilities / samples + self._weight * (prior - uniform)
        hessian = _hessian(sums, data, 1e-12 * data.counts, keep) / samples
        if hessian.dim() == 2:  # a constant vector changes nothing
            constant = float(hessian.diagonal().mean()) / len(x)
            hessian += constant + self._weight * (prior.diag() - prior.outer(prior))
        elif keep:
            hessian += self._weight * prior * (1 - prior)
        return Point(value, gradient, hessian, sums)

    def longest(self, x: Tensor, step: Tensor) -> float:
        """Limit the change by `REACH`."""
        return min(1.0, REACH / max(float(step.abs().max()), 1e-300))


def _hessian(sums: Sums, data: StreamedSums, precision: Tensor, keep: bool) -> Tensor:
    """Return the Hessian by the bias, ``[c, c]`` or its diagonal ``[c]``; empty without ``keep``."""
    if not keep:
        return precision.new_zeros(0)
    diagonal = (sums.probabilities - sums.squares).clamp(min=0) + precision  # in double precision, unlike gram
    if not data.whole:
        return diagonal
    hessian = -data.gram()
    return hessian.diagonal_scatter(diagonal)


def minimise_joint(
    data: StreamedSums,
    weights: Tensor,
    penalty: Penalty,
    variances: Tensor | None,
    *,
    fixed: bool = False,
    bias: Tensor | None = None,
) -> Minimum:
    """Minimise the objective of `unskew.debias._joint.minimise` over sources; the arguments are the same.

    A given bias is the start, instead of a fit on the subset.
    """
    subset, share = data.subset()
    of_images = _Share(penalty, len(subset) / len(data))
    if variances is None:
        near = minimise(subset, weights, of_images, None) if bias is None else None
        enough = LAST_STEP * max(1.0, len(data) / 100)  # in nats: an error of 1e-5 before the last step
        weights = weights if near is None else near.weights
        sums = cast(LogitSums, data)  # of which this fit needs `at` alone
        return minimise(sums, weights, penalty, None, last_step=enough, bias=bias)
    if bias is None:
        occurs = share > 0
        near = minimise(subset, weights, of_images, (variances / share)[occurs], fixed=fixed, last_step=1e-2)
        weights, bias = near.weights, torch.zeros_like(share)
        bias[occurs] = near.bias
    problem = JointProblem(data, weights, penalty, 1 / variances, fixed)
    start = bias if fixed else torch.cat([weights, bias])
    if isinstance(penalty, ScalePenalty) and not data.whole and not fixed:
        problem.least[0] = float(weights[0]) / 100  # its logarithm is infinite at 0
    x, point, steps, converged = solve_streamed(problem, start)
    weights, bias = problem.split(x)
    return Minimum(weights, bias, point.sums, point.value, steps, converged)


class _Share(NamedTuple):
    """A share of a penalty, for a share of the images."""

    penalty: Penalty
    share: float

    @property
    def least(self) -> float:
        """Lower bound of each weight."""
        return self.penalty.least

    def at(self, weights: Tensor) -> tuple[float, Tensor, Tensor]:
        """Return value, gradient and second derivatives."""
        value, slope, curvature = self.penalty.at(weights)
        return self.share * value, self.share * slope, self.share * curvature

    def longest(self, weights: Tensor, step: Tensor) -> float:
        """Return the limit of the whole penalty."""
        return self.penalty.longest(weights, step)


def minimise_bias(logits: Streamed, sample: ObservedClasses, strength: float) -> tuple[Tensor, Point, int, bool]:
    """Minimise the objective of `unskew.debias._solver`; return the bias ``[c]``, last point, passes, and convergence.

    Args:
        logits: A scanned source.
        sample: Its classes, without logits.
        strength: Of the KL term, in images.
    """
    data = StreamedSums(
        [logits],
        sample.frequencies.new_zeros(logits.shape[1]).index_add(0, sample.classes, sample.frequencies * len(logits)),
    )
    kept, labels = logits.subset()
    near = ObservedClasses.balanced(kept) if labels is None else ObservedClasses.of(kept, labels)
    label_logit = float(data.label_logits) / len(data)
    if labels is None:  # the mean of logsumexp(logits), as in `ObservedClasses.balanced`
        sums = data.at(data.counts.new_ones(1), torch.zeros_like(data.counts), keep=False)
        label_logit = sums.log_partition / len(data) - float(data.log_pi[0])
    # With a strength of 0 the subset may leave a bias without limit.
    found, _, _ = solve(BiasProblem(near, near.weight(max(strength, 1e-3) * len(kept) / len(data))))
    bias = found.mean() * torch.ones(logits.shape[1], dtype=torch.float64)
    bias[near.classes] = found
    problem = BiasOnlyProblem(data, sample.weight(strength), label_logit)
    x, point, _, converged = solve_streamed(problem, bias[sample.classes])
    return x, point, data.passes, converged


def solve_streamed(problem: Problem, x: Tensor) -> tuple[Tensor, Point, int, bool]:
    """Return the minimum, the last evaluated point, which is one small step away, the steps, and convergence."""
    if not problem.data.whole:
        return _lbfgs(problem, x)
    point = problem.at(x)
    for number in range(1, MOST_STEPS + 1):
        free = ~((x <= problem.least) & (point.gradient > 0))
        step = torch.zeros_like(x)
        step[free] = _solve(point.hessian[free][:, free], -point.gradient[free])
        change = float(step.abs().max())
        if change <= LAST_CHANGE:
            return torch.maximum(x + step, problem.least), point, number, True
        scale, descent = problem.longest(x, step), float(-point.gradient @ step)
        rounding = 1e-13 * (1 + abs(point.value))
        while True:
            new = torch.maximum(x + scale * step, problem.least)
            following = problem.at(new)
            if following.value <= point.value - 1e-4 * scale * descent + rounding or scale < 1e-10:
                break
            scale *= 0.3
        stalled = scale == 1 and following.value >= point.value - rounding
        x, point = new, following
        if stalled and change <= 10 * LAST_CHANGE:  # rounding hides any further progress
            return x, point, number, True
    return x, point, MOST_STEPS, False


def _solve(hessian: Tensor, right: Tensor) -> Tensor:
    """Solve with a ridge if rounding makes the Hessian indefinite."""
    ridge = 0.0
    while True:
        factor, failed = torch.linalg.cholesky_ex(hessian + ridge * hessian.diagonal().diag() if ridge else hessian)
        if not failed:
            return torch.cholesky_solve(right[:, None], factor)[:, 0]
        ridge = max(1e-8, 10 * ridge)


def _lbfgs(problem: Problem, x: Tensor) -> tuple[Tensor, Point, int, bool]:
    """Minimise by L-BFGS-B in variables whose Hessian has a diagonal of 1 at the start.

    It stops at a small change, or when rounding of the objective hides any further progress.
    """
    point = first = problem.at(x)
    unit = first.hessian.rsqrt()
    size = float((first.gradient * unit).norm()) or 1.0  # so that the first step of L-BFGS-B has its full length
    unit *= size

    def objective(y: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal point
        point = problem.at(x + unit * torch.from_numpy(y), keep=False) if y.any() else first
        return (point.value - first.value) / size**2, (point.gradient * unit / size**2).numpy()

    def largest_change(at: Tensor, diagonal: Tensor) -> float:
        change = (point.gradient / diagonal).abs()
        change[(at <= problem.least) & (point.gradient > 0)] = 0
        return float(change.max())

    def stop(y: np.ndarray) -> None:
        if largest_change(x + unit * torch.from_numpy(y), first.hessian) <= LAST_CHANGE / 10:
            raise StopIteration

    bounds = [(low, None) for low in ((problem.least - x) / unit).tolist()]
    rounding = 1e-15 * (1 + abs(first.value)) / size**2
    options = {"maxcor": 20, "maxiter": MOST_STEPS, "ftol": rounding, "gtol": 0.0}
    start = np.zeros(len(x))
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, callback=stop, options=options)
    new = x + unit * torch.from_numpy(found.x)
    point = problem.at(new)
    return new, point, found.nit, largest_change(new, point.hessian) <= LAST_CHANGE
