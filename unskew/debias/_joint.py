"""Newton's method for weights of logits and a bias per class, fitted jointly on labelled images.

The model is ``softmax(sum_j w_j F_j - b + log pi)`` over the c classes that occur: J arrays of logits F_j ``[N, c]``
with weights w, a bias b and the label frequencies pi. With a convex penalty on w and a normal prior on b the negative
log posterior is jointly convex. The solver sees the images only through `LogitSums`, which returns sums over them.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from unskew.debias._softmax import Selection, blocks, buffers, some_rows

MAX_STEPS = 200

# Newton decrement in nats at which the next step, which squares the error, is the last.
LAST_STEP = 1e-8

# The same for a fit that starts near its minimum, so that no trace of the start is left in the sums of the last point.
LAST_STEP_NEAR = 1e-12

# Images that the correlation of the classes is computed from.
MOST_CORRELATED = 2048

# Row maxima are subtracted from larger logits, whose variances would lose precision otherwise.
LARGE = 1e3


class Sums(NamedTuple):
    """Sums over the images at one point; the probabilities of an image are p ``[c]``, its logits F ``[J, c]``."""

    log_partition: float  # of logsumexp(sum_j w_j F_j - b + log pi)
    probabilities: Tensor  # [c], of p
    squares: Tensor  # [c], of p^2, or zeros
    expected: Tensor  # [J], of p . F_j
    covariance: Tensor  # [J, J], of the covariances of F_j and F_k under p
    crossed: Tensor  # [J, c], of the covariances of F_j and the indicators of the classes under p, or zeros


class LogitSums:
    """Sums over N images, from J arrays of logits, which are read block by block.

    Attributes:
        counts: ``[c]``, images per class, in float64; they may be fractions for images without labels.
        label_logits: ``[J]``, sum over the images of the logit of the label; zeros without labels.
        passes: Number of passes over the images so far.
    """

    def __init__(
        self,
        features: Sequence[Tensor | Selection],
        labels: Tensor | None,
        counts: Tensor,
        offsets: Sequence[Tensor] = (),
    ) -> None:
        """Select the classes that occur.

        Args:
            features: J arrays ``[N, C]`` of finite logits.
            labels: ``[N]``, in 0..C-1, or None.
            counts: ``[C]``, images per class; a class with 0 leaves the softmax.
            offsets: ``[C]`` each, are subtracted from the features.
        """
        classes = counts.nonzero().flatten()
        self._features = [Selection(feature, None, classes) for feature in features]
        self.counts = counts[classes].double()
        self.log_pi = (self.counts / self.counts.sum()).log()
        self._offsets = [offset[classes].to(self.counts) for offset in offsets]
        first, count = self._features[0], len(self._features)
        self._highest: Tensor | None = None
        self.label_logits = self.counts.new_zeros(count)
        self._workspace = buffers(first, count + 1)
        self._exponentials: Tensor | None = None
        self._inverse = self.counts.new_empty(len(first))
        self.passes = 0
        ends = [torch.stack(feature[rows].aminmax()) for feature in self._features for rows in blocks(first)]
        if float(torch.stack(ends).abs().max()) > LARGE:
            highest = [[feature[rows].amax(1).double() for rows in blocks(first)] for feature in self._features]
            self._highest = torch.stack([torch.cat(each) for each in highest])  # [J, N]
        if labels is not None:
            places = torch.searchsorted(classes, labels.contiguous())
            for rows in blocks(self._features[0]):
                self.label_logits += (
                    self._read(rows).gather(2, places[None, rows, None].expand(count, -1, 1)).sum((1, 2))
                )

    def __len__(self) -> int:
        """Return N."""
        return len(self._inverse)

    def _read(self, rows: slice) -> Tensor:
        """Copy a block of the features minus their offsets into the workspace, ``[J, n, c]``."""
        parts = self._workspace[:-1, : rows.stop - rows.start]
        for j, (part, feature) in enumerate(zip(parts, self._features, strict=True)):
            part.copy_(feature[rows])
            if self._highest is not None:
                part.sub_(self._highest[j, rows, None])
            if self._offsets:
                part.sub_(self._offsets[j])
        return parts

    def at(self, weights: Tensor, bias: Tensor, keep: bool = True) -> Sums:
        """Return the sums at weights ``[J]`` and bias ``[c]``.

        Args:
            weights: ``[J]``.
            bias: ``[c]``.
            keep: Compute what a fit of the bias needs: ``squares``, ``crossed``, and the exponentials for `product`.
        """
        self.passes += 1
        if keep and self._exponentials is None:
            self._exponentials = self.counts.new_empty(len(self._inverse), len(self.counts))
        offset, count = self.log_pi - bias, len(self._features)
        log_partition, probabilities, squares = offset.new_zeros(()), *offset.new_zeros(2, len(offset))
        expected, covariance = offset.new_zeros(count), offset.new_zeros(count, count)
        crossed, second = offset.new_zeros(count, len(offset)), torch.empty_like(self._workspace[0])
        for rows in blocks(self._features[0]):
            parts, product = self._read(rows), self._workspace[-1, : rows.stop - rows.start]
            scores = self._exponentials[rows] if keep and self._exponentials is not None else second[: len(product)]
            torch.add(offset, parts[0], alpha=float(weights[0]), out=scores)
            for part, weight in zip(parts[1:], weights[1:].tolist(), strict=True):
                scores.add_(part, alpha=weight)
            top = scores.amax(1, keepdim=True)
            totals = scores.sub_(top).exp_().sum(1)
            inverse = torch.reciprocal(totals, out=self._inverse[rows])
            log_partition = log_partition + top.sum() + totals.log().sum()
            probabilities += inverse @ scores
            if keep:
                squares += inverse.square() @ torch.square(scores, out=product)
            means: list[Tensor] = []
            for j, part in enumerate(parts):
                torch.mul(scores, part, out=product)
                means.append(product.sum(1).mul_(inverse))  # [n], p . F_j
                expected[j] += means[j].sum()
                if keep:
                    crossed[j] += inverse @ product - (means[j] * inverse) @ scores
                for k in range(j + 1):
                    covariance[j, k] += torch.linalg.vecdot(product, parts[k]) @ inverse - means[j] @ means[k]
        covariance = covariance + covariance.tril(-1).T
        return Sums(float(log_partition), probabilities, squares, expected, covariance, crossed)

    def correlation(self) -> Tensor:
        """Return the correlation ``[c, c]`` over the images of the first logits, minus their mean over the classes.

        It is computed from at most `MOST_CORRELATED` images. A class with constant logits has no correlation.
        """
        logits = self._features[0][some_rows(self._features[0], MOST_CORRELATED)].double()
        return torch.corrcoef((logits - logits.mean(1, keepdim=True)).T).nan_to_num(0)

    def product(self, vector: Tensor) -> Tensor:
        """Return sum_i p_i (p_i . vector), ``[c]``, at the last point, whose exponentials were kept."""
        if self._exponentials is None:
            raise RuntimeError("no exponentials are kept: call `at` first")
        self.passes += 1
        result = torch.zeros_like(vector)
        for rows in blocks(self._features[0]):
            scores = self._exponentials[rows]
            result += (scores @ vector).mul_(self._inverse[rows].square()) @ scores
        return result

    def gram(self) -> Tensor:
        """Return sum_i p_i p_i^T, ``[c, c]``, at the last point, whose exponentials were kept."""
        if self._exponentials is None:
            raise RuntimeError("no exponentials are kept: call `at` first")
        self.passes += 1
        result = self.counts.new_zeros(len(self.counts), len(self.counts))
        for start in range(0, len(self._inverse), 4096):  # single precision: the sums are of numbers in [0, 1]
            rows = slice(start, start + 4096)
            p = (self._exponentials[rows] * self._inverse[rows, None]).float()
            result += p.T @ p
        return result


class Penalty(Protocol):
    """A convex penalty on the weights ``[J]``, a sum over them, with their lower bound."""

    @property
    def least(self) -> float:
        """Lower bound of each weight."""

    def at(self, weights: Tensor) -> tuple[float, Tensor, Tensor]:
        """Return its value, gradient ``[J]`` and second derivatives ``[J]``."""

    def longest(self, weights: Tensor, step: Tensor) -> float:
        """Return the largest multiple of a step, at most 1, that keeps the weights valid."""


class ScalePenalty(NamedTuple):
    """``strength * (x - 1 - log x)`` with x = w / start: least at ``start``, and infinite at 0."""

    start: float
    strength: float = 1.0
    least: float = 0.0

    def at(self, weights: Tensor) -> tuple[float, Tensor, Tensor]:
        """Return value, gradient and second derivatives."""
        ratio = weights / self.start
        value = self.strength * float((ratio - 1 - ratio.log()).sum())
        return value, self.strength * (1 / self.start - 1 / weights), self.strength / weights.square()

    def longest(self, weights: Tensor, step: Tensor) -> float:
        """Limit a step to nine tenths of the way to zero."""
        ratio = float((-step / weights).max())
        return 1.0 if ratio <= 0.9 else 0.9 / ratio


class NormalPenalty(NamedTuple):
    """A normal prior on each weight: means, a common precision (1/variance), and a lower bound of the weights."""

    means: tuple[float, ...]
    precision: float
    least: float = 0.0

    def at(self, weights: Tensor) -> tuple[float, Tensor, Tensor]:
        """Return value, gradient and second derivatives."""
        distance = weights - weights.new_tensor(self.means)
        value = self.precision / 2 * float(distance @ distance)
        return value, self.precision * distance, torch.full_like(weights, self.precision)

    def longest(self, weights: Tensor, step: Tensor) -> float:
        """Accept every step: `minimise` projects the weights."""
        return 1.0


class Minimum(NamedTuple):
    """The joint minimum of `minimise`."""

    weights: Tensor  # [J]
    bias: Tensor  # [c]
    sums: Sums  # at the minimum, or a last step away from it
    objective: float
    steps: int
    converged: bool


def minimise(
    data: LogitSums,
    weights: Tensor,
    penalty: Penalty,
    variances: Tensor | None,
    *,
    fixed: bool = False,
    bias: Tensor | None = None,
    last_step: float = LAST_STEP,
) -> Minimum:
    """Minimise ``sum_i CE(sum_j w_j F_ij - b + log pi, y_i) + penalty(w) + 1/2 sum_c b_c^2 / variances_c``.

    Args:
        data: The images.
        weights: ``[J]``, start of w, at least its lower bound.
        penalty: Of the weights.
        variances: ``[c]`` of the normal prior on b; None fixes b at its start.
        fixed: Whether w keeps its start.
        bias: ``[c]``, start of b; zeros if omitted.
        last_step: Newton decrement in nats at which the next step is the last.
    """
    bias = torch.zeros_like(data.counts) if bias is None else bias
    precision = None if variances is None else 1 / variances
    problem = _Problem(data, penalty, precision, fixed)
    value, sums = problem.at(weights, bias)
    last = math.inf
    for step_number in range(1, MAX_STEPS + 1):
        weight_step, bias_step, decrement = problem.newton_step(weights, bias, sums, last)
        if decrement <= last_step:
            weights, bias = (weights + weight_step).clamp(min=penalty.least), bias + bias_step
            return Minimum(weights, bias, sums, value, step_number, True)
        scale = penalty.longest(weights, weight_step)
        rounding = 1e-13 * (1 + abs(value))
        while True:
            new_weights, new_bias = (weights + scale * weight_step).clamp(min=penalty.least), bias + scale * bias_step
            new_value, new_sums = problem.at(new_weights, new_bias)
            if new_value <= value - 1e-4 * scale * decrement + rounding or scale < 1e-10:
                break
            scale *= 0.3
        stalled = new_value >= value - rounding and scale * decrement < 1e-6 * (1 + abs(value))
        weights, bias, value, sums, last = new_weights, new_bias, new_value, new_sums, decrement
        if stalled and scale == 1:  # rounding hides any further progress
            return Minimum(weights, bias, sums, value, step_number, True)
    return Minimum(weights, bias, sums, value, MAX_STEPS, False)


class _Problem:
    """The objective of `minimise` with its derivatives."""

    def __init__(self, data: LogitSums, penalty: Penalty, precision: Tensor | None, fixed: bool) -> None:
        self.data, self.penalty, self.precision, self.fixed = data, penalty, precision, fixed

    def at(self, weights: Tensor, bias: Tensor) -> tuple[float, Sums]:
        sums = self.data.at(weights, bias, keep=self.precision is not None)
        label_scores = weights @ self.data.label_logits + self.data.counts @ (self.data.log_pi - bias)
        value = sums.log_partition - float(label_scores) + self.penalty.at(weights)[0]
        if self.precision is not None:
            value += float(self.precision @ bias.square()) / 2
        return value, sums

    def newton_step(self, weights: Tensor, bias: Tensor, sums: Sums, last: float) -> tuple[Tensor, Tensor, float]:
        """Return the Newton steps of weights and bias, and the decrement ``-gradient . step``.

        The weights are eliminated: conjugate gradients solve the Schur complement in the bias. A weight at its
        lower bound whose gradient is positive stays there (projected Newton, Bertsekas, SIAM J. Control
        Optim. 20, 1982).
        """
        _, slope, curvature = self.penalty.at(weights)
        gradient = sums.expected - self.data.label_logits + slope
        free = ~((weights <= self.penalty.least) & (gradient > 0)) & (not self.fixed)
        weight_step, bias_step = torch.zeros_like(weights), torch.zeros_like(bias)
        hessian = sums.covariance + curvature.diag()
        ridge = 1e-12 * max(1.0, float(hessian.trace()))  # without a penalty two equal features are singular
        inverse = torch.linalg.inv((hessian + ridge * torch.eye(len(weights)).to(hessian))[free][:, free])
        precision = self.precision
        if precision is None:
            weight_step[free] = -inverse @ gradient[free]
            return weight_step, bias_step, float(-gradient @ weight_step)
        crossed = -sums.crossed[free]  # [J', c], derivative of the weights' gradient by the bias
        bias_gradient = self.data.counts - sums.probabilities + precision * bias
        right = crossed.T @ (inverse @ gradient[free]) - bias_gradient
        diagonal = (sums.probabilities - sums.squares).clamp(min=0) + precision

        def schur(vector: Tensor) -> Tensor:
            likelihood = sums.probabilities * vector - self.data.product(vector)
            return likelihood + precision * vector - crossed.T @ (inverse @ (crossed @ vector))

        bias_step = _conjugate_gradients(schur, right, diagonal, last)
        weight_step[free] = -inverse @ (gradient[free] + crossed @ bias_step)
        return weight_step, bias_step, float(-gradient @ weight_step - bias_gradient @ bias_step)


def _conjugate_gradients(apply: Callable[[Tensor], Tensor], right: Tensor, diagonal: Tensor, last: float) -> Tensor:
    """Solve ``apply(x) = right`` with a diagonal preconditioner.

    Far from the minimum the iteration stops early (Eisenstat & Walker, SIAM J. Sci. Comput. 17, 1996): when the
    residual has shrunk as much as the decrement did since the last step.
    """
    solution, residual = torch.zeros_like(right), right
    scaled = residual / diagonal
    direction, size = scaled, float(residual @ scaled)
    target = size * min(1e-2, max(1e-10, size / last))
    for _ in range(300):
        if size <= target or size == 0:
            break
        product = apply(direction)
        curvature = float(direction @ product)
        if not curvature > 0:
            break
        solution = solution + size / curvature * direction
        residual = residual - size / curvature * product
        scaled = residual / diagonal
        before, size = size, float(residual @ scaled)
        direction = scaled + size / before * direction
    return solution
