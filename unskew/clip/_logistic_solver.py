"""The solver of `unskew.clip.logistic`: preconditioned conjugate gradients with warm starts."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from unskew.utils.blocks import row_blocks

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-2}  # of the weights, relative; see `Point.error`

STEPS = 1000  # at most, for one C; usual are 2 to 20, but hundreds at a large C if the classes overlap

STALLED = 96  # steps in which the error must halve; if it does not, rounding allows no better solution

REFRESH = 32  # steps after which the logits are computed again, since their rounding errors add up

NEIGHBOURS = 32  # samples per class in the preconditioner

SAMPLE = 2048  # samples for the start at the next C

BLOCK = 2**20  # logits of a block of rows, so that a block and its probabilities fit a processor's cache

DEVICE_BLOCK = 2**26  # the same on an accelerator


class Point(NamedTuple):
    """The objective and its derivatives at the current weights."""

    objective: float
    gradient: Tensor  # [C, R + 1]
    curvature: Tensor  # [C], the sum over the samples of p (1 - p)
    error: float  # bound on the distance of the weights from the solution, relative to their norm


class Solver:
    """Preconditioned conjugate gradients for features [N, R] on their principal axes, with warm starts.

    Each step minimises the objective's quadratic model over the plane of the preconditioned gradient and the last step.
    This is the method of conjugate gradients in its locally optimal form (Knyazev, SIAM J. Sci. Comput. 23, 2001), with
    the Hessian of each point. It takes two products of matrices per step. With ``offsets`` [N, C] of the logits, the
    biases are 0.

    Attributes:
        theta: [C, R + 1 or more], weights, biases, and columns of 0 that align the rows in memory.
        products: number of products with all features so far.
    """

    def __init__(self, rows: Tensor, labels: Tensor, num_classes: int, offsets: Tensor | None = None) -> None:
        self.count, self.width = rows.shape
        has_bias = offsets is None
        self.x = F.pad(F.pad(rows, (0, 1), value=float(has_bias)), (0, -(self.width + 1) % 16))
        self.labels, self.offsets = labels, offsets
        self.spectrum = self.x.square().mean(0)
        self.penalised = torch.ones_like(self.spectrum)
        self.theta = self.x.new_zeros(num_classes, self.x.shape[1])
        if has_bias:
            self.penalised[self.width] = 0
            self.theta[:, self.width] = (labels.bincount(minlength=num_classes) / self.count).log()
        self.last: Tensor | None = None  # theta at the C before
        # The arrays [N, C], beside the fixed offsets: the logits, and those of two directions.
        self.logits = self.theta[:, self.width].repeat(self.count, 1) if offsets is None else offsets.clone()
        self.directions = [torch.zeros_like(self.logits), torch.zeros_like(self.logits)]
        self.tolerance = TOLERANCE[rows.dtype]
        self.products = 0

    def solve(self, penalty: float) -> tuple[Tensor, bool]:
        """Minimise the sum of cross entropies + penalty / 2 |W|^2.

        Returns:
            The weights and biases [C, R + 1], and whether the solver converged.
        """
        self.extrapolate(penalty)
        point, known = self.evaluate(penalty), torch.zeros_like(self.theta[:, 0])
        last: Tensor | None = torch.zeros_like(self.theta)
        errors: list[float] = []
        while True:
            if (point.curvature - known).abs().sum() > 0.1 * known.sum():
                precondition, known = self.preconditioner(point.curvature, penalty), point.curvature
            direction = precondition(point.gradient)
            errors.append(point.error)
            stalled = len(errors) > STALLED and 2 * min(errors[-STALLED:]) > min(errors[:-STALLED])
            if last is None or stalled or point.error <= self.tolerance or len(errors) > STEPS:
                break
            point, last = self.step(point, direction, last, penalty)
            if len(errors) % REFRESH == 0:
                self._refresh()
                point = self.evaluate(penalty)
        self.theta = self.theta - direction  # one more step, which needs no product; `extrapolate` computes its logits
        return self.theta[:, : self.width + 1], point.error <= self.tolerance * (1 if len(errors) > STEPS else 10)

    def _blocks(self, count: int, width: int = 0) -> list[slice]:
        """Return the rows of a table [count, width], by default of logits, in blocks."""
        return row_blocks(count, width or len(self.theta), BLOCK if self.x.device.type == "cpu" else DEVICE_BLOCK)

    def _fill(self, logits: Tensor, theta: Tensor) -> None:
        self.products += 1
        for rows in self._blocks(self.count):
            torch.mm(self.x[rows], theta.T, out=logits[rows])

    def _refresh(self) -> None:
        """Compute the logits of the current weights again."""
        self._fill(self.logits, self.theta)
        if self.offsets is not None:
            self.logits += self.offsets

    def evaluate(self, penalty: float) -> Point:
        """Return the objective and its derivatives, with one product.

        The penalty makes the objective strongly convex, so |W - W*| <= |gradient| / penalty for the best biases. The
        error of the biases is their Newton step, in the logits and relative to the logits' spread.
        """
        self.products += 1
        loss = torch.zeros((), dtype=torch.float64, device=self.x.device)
        gradient, curvature = torch.zeros_like(self.theta), torch.zeros_like(self.theta[:, 0])
        for rows in self._blocks(self.count):
            logits, labels = self.logits[rows], self.labels[rows]
            loss += F.cross_entropy(logits, labels, reduction="none").sum(dtype=torch.float64)
            p = logits.softmax(1)
            curvature += p.sum(0) - p.square().sum(0)
            p[torch.arange(len(p), device=p.device), labels] -= 1
            gradient.addmm_(p.T, self.x[rows])
        weights = self.theta * self.penalised
        squared = dot(weights, weights)
        gradient.add_(weights, alpha=penalty)
        curvature.clamp_min_(torch.finfo(curvature.dtype).tiny)
        of_weights, of_biases = gradient * self.penalised, gradient[:, self.width]
        error = max(
            self._ratio(dot(of_weights, of_weights), penalty**2 * squared),
            self._ratio(dot(of_biases, of_biases / curvature), dot(curvature, weights.square() @ self.spectrum)),
        )
        return Point(float(loss) + 0.5 * penalty * squared, gradient, curvature, error)

    def _ratio(self, squared_error: float, squared_size: float) -> float:
        rounding = self.count * torch.finfo(self.x.dtype).eps ** 2  # of a sum of probabilities, squared
        return (max(0.0, squared_error - rounding) / max(squared_size, 1e-300)) ** 0.5

    # --- a step -------------------------------------------------------------------------------------

    def step(self, point: Point, direction: Tensor, last: Tensor, penalty: float) -> tuple[Point, Tensor | None]:
        """Go to the minimum over the plane of a direction and the last step.

        Returns:
            The new point, and the step, or None if no step lowers the objective.
        """
        self._fill(self.directions[0], direction)
        plane = [direction, last]
        hessian = penalty * self._products(plane)
        for rows in self._blocks(self.count):
            sides = [z[rows] for z in self.directions]
            hessian += plane_of(self.logits[rows], sides, self.labels[rows])[2]
        slopes = torch.tensor([dot(point.gradient, side) for side in plane], dtype=torch.float64)
        first, second = newton_step(slopes, hessian).tolist()
        step = (first * direction).add_(last, alpha=second)
        change = self.directions[1].mul_(second).add_(self.directions[0], alpha=first)
        slope = float(first * slopes[0] + second * slopes[1])
        scale, moved = 1.0, 1.0
        while scale > 1e-6:
            self.theta.add_(step, alpha=moved)
            self.logits.add_(change, alpha=moved)
            new = self.evaluate(penalty)
            # Near the minimum the objective's change is lost in rounding; its slope along the step is not.
            if new.objective <= (1 + 1e-4) * point.objective and dot(new.gradient, step) <= 0.5 * abs(slope):
                return new, step
            scale, moved = scale / 2, -scale / 2
        return new, None

    def _products(self, plane: Sequence[Tensor]) -> Tensor:
        """Return the products [2, 2] of the weights of two directions."""
        sides = [side * self.penalised for side in plane]
        return torch.tensor([[dot(a, b) for a in sides] for b in sides], dtype=torch.float64)

    def preconditioner(self, curvature: Tensor, penalty: float) -> "Preconditioner":
        """Return the preconditioner at the current logits."""
        count, classes = min(NEIGHBOURS, self.count), len(self.theta)
        largest, chosen = self.theta.new_empty(classes, count), self.labels.new_empty(classes, count)
        normaliser = torch.cat([self.logits[rows].logsumexp(1) for rows in self._blocks(self.count)])
        for block in self._blocks(classes, self.count):
            p = (self.logits[:, block].T - normaliser).exp_()
            largest[block], chosen[block] = (p - p.square()).topk(count, dim=1)
        rest = (curvature - largest.sum(1)).clamp_min(max(1e-3 * float(curvature.max()), 1e-30))
        base = rest[:, None] * self.spectrum + penalty * self.penalised
        return Preconditioner(base, self.x, chosen, largest, self.width)

    # --- from one C to the next ---------------------------------------------------------------------

    def extrapolate(self, penalty: float) -> None:
        """Start from the best combination of the last two solutions, by Newton's method on two coefficients.

        The coefficients are those of at most `SAMPLE` samples.
        """
        last, self.last = self.last, self.theta.clone()
        if last is None:
            return
        # The part of the last solution that is orthogonal to this one; at a small C the two are nearly parallel.
        weights = self.theta * self.penalised
        ratio = dot(weights, last) / max(dot(weights, weights), 1e-300)
        plane = [self.theta, last.sub(self.theta, alpha=ratio)]
        chosen = torch.randperm(self.count, generator=torch.Generator().manual_seed(0))[:SAMPLE].to(self.x.device)
        share = len(chosen) / self.count
        norms = share * penalty * self._products(plane)
        x, labels = self.x[chosen], self.labels[chosen]
        offsets = None if self.offsets is None else self.offsets[chosen]
        sides = [x @ side.T for side in plane]

        def along(at: Tensor) -> tuple[float, Tensor, Tensor]:
            value, gradient, hessian = 0.5 * float(at @ norms @ at), norms @ at, norms.clone()
            for rows in self._blocks(len(x)):
                first, second = (z[rows] for z in sides)
                logits = (float(at[0]) * first).add_(second, alpha=float(at[1]))
                if offsets is not None:
                    logits += offsets[rows]
                value_, gradient_, hessian_ = plane_of(logits, (first, second), labels[rows])
                value, gradient, hessian = value + value_, gradient + gradient_, hessian + hessian_
            return value, gradient, hessian

        best = torch.tensor([1.0, 0.0], dtype=torch.float64)
        value, gradient, hessian = along(best)
        for _ in range(10):
            step = newton_step(gradient, hessian)
            new = along(best + step)
            while new[0] > value and step.abs().max() > 1e-6:
                step = step / 2
                new = along(best + step)
            decrease = value - new[0]
            best, (value, gradient, hessian) = best + step, new
            if decrease < 1e-2 * value:
                break
        self.theta = (float(best[0]) * plane[0]).add_(plane[1], alpha=float(best[1]))
        self._refresh()
        self.directions[1].zero_()


def plane_of(logits: Tensor, plane: Sequence[Tensor], labels: Tensor) -> tuple[float, Tensor, Tensor]:
    """Return the cross entropy's sum, gradient [2] and Hessian [2, 2] along two directions, all [B, C], at logits.

    Directions relative to their means under p keep the digits of their variances where p is nearly 1.
    """
    p = logits.softmax(1)
    sides = [z - z.gather(1, labels[:, None]) for z in plane]
    means = [torch.linalg.vecdot(p, z) for z in sides]
    sides = [z.sub_(mean[:, None]) for z, mean in zip(sides, means, strict=True)]
    weighted = [p * z for z in sides]
    squares = torch.stack([torch.linalg.vecdot(weighted[i], sides[j]) for i, j in ((0, 0), (0, 1), (1, 1))])
    a, b, c = squares.sum(1, dtype=torch.float64).tolist()
    loss = F.cross_entropy(logits, labels, reduction="sum")
    hessian = torch.tensor([[a, b], [b, c]], dtype=torch.float64)
    return float(loss), torch.stack(means).sum(1, dtype=torch.float64).cpu(), hessian


def newton_step(gradient: Tensor, hessian: Tensor) -> Tensor:
    """Return the step [2] to the minimum of a quadratic function, of the shortest scaled length."""
    scale = hessian.diagonal().clamp_min(1e-300).rsqrt()
    inverse = torch.linalg.pinv(scale[:, None] * hessian * scale, hermitian=True, rtol=1e-6)
    return -scale * (inverse @ (scale * gradient))


class Preconditioner:
    """The inverse of diag(base_c) + sum_i w_ci x_i x_i^T for each class c, by Woodbury's identity.

    Args:
        base: [C, R], the penalty and the curvature of all samples but the chosen ones, on the principal axes.
        x: [N, R], the samples.
        chosen: [C, K], the samples with the largest curvature p (1 - p) of each class.
        curvature: [C, K], their curvature.
        bias: the column of the biases.
    """

    def __init__(self, base: Tensor, x: Tensor, chosen: Tensor, curvature: Tensor, bias: int) -> None:
        self.base, self.bias = base, bias
        samples = x[chosen].mul_(curvature.clamp_min(0).sqrt()[:, :, None])  # [C, K, R]
        self.scaled = samples / base[:, None]
        system = self.scaled @ samples.mT
        system.diagonal(dim1=1, dim2=2).add_(1)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(system))

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return the preconditioned gradient [C, R]."""
        projected = self.inverse @ (self.scaled @ gradient[:, :, None])  # [C, K, 1]
        result = gradient / self.base - (self.scaled.mT @ projected)[:, :, 0]
        result[:, self.bias] -= result[:, self.bias].mean()  # rounding would let a shift of all biases grow
        return result


def dot(a: Tensor, b: Tensor) -> float:
    """Return the sum of the products, accumulated in float64."""
    return float((a * b).sum(dtype=torch.float64))
