"""Temperature scaling of logits."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from numbers import Real

import torch
from torch import Tensor

from unskew.debias._softmax import blocks, buffers, some_rows, spread
from unskew.debias._validation import Array, as_logits, check_logits, uses_numpy
from unskew.utils.registry import unknown_name

logger = logging.getLogger("unskew")

# Range of T in units of the logits' spread.
RANGE = (0.01, 100.0)

METHODS = ("map", "confidence", "nll")

# Standard deviation of the normal prior of ``map`` on log T.
LOG_DEVIATION = 1.0

# ``map`` searches its minimum on a grid of log T first, with at most as many samples.
GRID_POINTS = 33
GRID_SAMPLES = 2000


def fit_temperature(
    logits: Array, labels: Array | Sequence[int], *, method: str = "confidence", expected: float = 1.0
) -> float:
    """Fit the temperature that calibrates logits ``[N, C]`` on labels ``[N]``, in float64.

    ``confidence`` returns the T at which the mean of max softmax(logits/T) equals the accuracy, as in GLA's released
    code. The accuracy is first clipped to [1/C + 1/(2N), 1 - 1/(2N)], so that a perfect or hopeless score on few
    samples does not send T to 0 or infinity. ``nll`` returns the T of the least negative log-likelihood, which is
    convex in 1/T: there the mean logit under softmax(logits/T) equals the mean logit of the labels. The latter is
    clipped alike, as if at least half a sample were right and half a sample wrong: from uniform labels with 1/(2N) of
    each moved to the predicted class, to predicted labels with 1/(2N) of each moved to the runner-up. Without the
    limits T would be 0 if all samples are right. Between them the result is the exact minimum.

    Both are the root of a decreasing function of T. It is searched from 0.01 to 100 times the standard deviation of the
    logits around their row means; without a root there, the nearer end is returned with one warning.

    ``map`` is the maximum a posteriori: it adds ``log(T/expected)^2 / 2`` to the negative log-likelihood, so that few
    samples do not move T far.

    Args:
        logits: ``[N, C]``, NumPy or torch.
        labels: ``[N]``, integers in 0..C-1.
        method: ``map``, ``confidence`` or ``nll``.
        expected: T that ``map`` expects; 1 for the logits of a model that was trained with cross entropy.

    Raises:
        ValueError: An unknown method; ``expected`` is not above 0; shapes or labels out of range; logits that are not
            finite; mixed kinds of arrays.

    Example:
        >>> import numpy as np
        >>> from unskew.debias import fit_temperature
        >>> round(fit_temperature(np.eye(2)[[0, 0, 0, 1]], [0, 0, 0, 0]), 3)  # 75% right: softmax(1/T) = 0.75
        0.91
    """
    if method not in METHODS:
        raise ValueError(unknown_name("temperature method", method, METHODS))
    if not (isinstance(expected, Real) and 0 < expected < math.inf):
        raise ValueError(f"expected must be a temperature above 0 (got {expected!r})")
    uses_numpy(logits=logits, labels=labels)
    tensor, label_tensor = check_logits(as_logits(logits=logits)[0], labels, None)
    return fit(tensor, label_tensor, method, expected)


def fit(
    logits: Tensor, labels: Tensor, method: str = "confidence", expected: float = 1.0, start: float | None = None
) -> float:
    """Run `fit_temperature` on checked tensors; the search for the root may start at a temperature near it.

    The result does not depend on ``start``: the root of ``confidence`` and ``nll`` is the only one, and the grid of
    ``map`` selects the root before the search starts.
    """
    if logits.shape[1] == 1:
        return 1.0  # the probability is 1 at every T
    log_start = None if start is None else math.log(start)
    if method == "map":
        return _fit_map(logits, labels, expected, log_start)
    return _fit(logits, labels, method, 0.0 if log_start is None else log_start)


def _fit(logits: Tensor, labels: Tensor, method: str, log_start: float) -> float:
    samples, classes = logits.shape
    highest, predicted = logits.max(1)
    if method == "confidence":
        accuracy = float((predicted == labels).double().mean())
        target = min(max(accuracy, 1 / classes + 0.5 / samples), 1 - 0.5 / samples)
    else:
        target = _label_logit(logits, labels, highest)
    mean = _confidence if method == "confidence" else _mean_logit

    def excess(log_t: float) -> tuple[float, float]:
        value, slope = mean(logits, highest, math.exp(-log_t))
        return value - target, -math.exp(-log_t) * slope

    unit = spread(logits) or 1.0
    ends = [unit * end for end in RANGE]
    low, high = map(math.log, ends)
    log_t, has_root = find_decreasing_root(excess, low, high, min(max(log_start, low), high))
    if has_root:
        return math.exp(log_t)
    end = ends[log_t == high]
    span = f"from {ends[0]:.3g} to {ends[1]:.3g}"
    logger.warning(f"no temperature {span} fits {samples} samples by '{method}'; using {end:.3g}")
    return end


def _fit_map(logits: Tensor, labels: Tensor, expected: float, log_start: float | None) -> float:
    highest = logits.amax(1)
    target = float((logits.gather(1, labels[:, None])[:, 0].double() - highest).mean())
    samples, expected_log, unit = len(logits), math.log(expected), spread(logits) or 1.0
    low, high = (math.log(unit * end) for end in RANGE)
    grid = torch.linspace(min(low, expected_log), max(high, expected_log), GRID_POINTS).tolist()
    rows = some_rows(logits, GRID_SAMPLES)
    few, few_labels, weight = logits[rows].double() - highest[rows, None], labels[rows], samples / len(rows)

    def objective(log_t: float) -> float:
        nll = torch.nn.functional.cross_entropy(few / math.exp(log_t), few_labels, reduction="sum")
        return weight * float(nll) + 0.5 * ((log_t - expected_log) / LOG_DEVIATION) ** 2

    def descent(log_t: float) -> tuple[float, float]:  # minus the derivative of the objective of all samples
        s = math.exp(-log_t)
        value, slope = _mean_logit(logits, highest, s)
        excess, precision = samples * s * (value - target), LOG_DEVIATION**-2
        return excess - precision * (log_t - expected_log), -excess - samples * s**2 * slope - precision

    best, step = min(grid, key=objective), grid[1] - grid[0]
    low, high = best - 2 * step, best + 2 * step
    start = best if log_start is None else min(max(log_start, low), high)
    log_t, has_root = find_decreasing_root(descent, low, high, start)
    if not has_root:  # the few samples were misleading
        log_t, _ = find_decreasing_root(descent, grid[0] - step, grid[-1] + step, log_t)
    return math.exp(log_t)


def _label_logit(logits: Tensor, labels: Tensor, highest: Tensor) -> float:
    """Return the mean logit of the labels minus the row maximum, clipped by half a sample at both ends."""
    half = 0.5 / len(logits)
    target = float((logits.gather(1, labels[:, None])[:, 0].double() - highest).mean())
    uniform = float((logits.mean(1, dtype=torch.float64) - highest).mean())
    runner_up = float((logits.topk(2).values[:, 1].double() - highest).mean())
    return min(max(target, (1 - half) * uniform), half * runner_up)


def _exponentials(logits: Tensor, highest: Tensor, sharpness: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield by blocks: logits minus the row maximum ``[n, C]``, exp(sharpness times these), and their sums ``[n]``."""
    workspace = buffers(logits, 2)
    for rows in blocks(logits):
        block, exponentials = workspace[:, : rows.stop - rows.start]
        block.copy_(logits[rows]).sub_(highest[rows, None])
        torch.mul(block, sharpness, out=exponentials).exp_()
        yield block, exponentials, exponentials.sum(1)


def _confidence(logits: Tensor, highest: Tensor, sharpness: float) -> tuple[float, float]:
    """Return the mean of max softmax(logits/T) and its derivative by 1/T."""
    value = slope = torch.zeros((), dtype=torch.float64, device=logits.device)
    for block, exponentials, totals in _exponentials(logits, highest, sharpness):
        value = value + totals.reciprocal().sum()
        slope = slope - (exponentials.mul_(block).sum(1) / totals.square()).sum()
    return float(value) / len(logits), float(slope) / len(logits)


def _mean_logit(logits: Tensor, highest: Tensor, sharpness: float) -> tuple[float, float]:
    """Return the mean logit under softmax(logits/T), d nll / d (1/T) without the labels' term, and its derivative."""
    value = slope = torch.zeros((), dtype=torch.float64, device=logits.device)
    for block, exponentials, totals in _exponentials(logits, highest, sharpness):
        means = exponentials.mul_(block).sum(1) / totals
        value = value + means.sum()
        slope = slope + (exponentials.mul_(block).sum(1) / totals - means.square()).sum()
    return float(value) / len(logits), float(slope) / len(logits)


def find_decreasing_root(
    function: Callable[[float], tuple[float, float]], low: float, high: float, start: float
) -> tuple[float, bool]:
    """Find the root of a decreasing function in [low, high].

    Newton's method, to 1e-6 before the last step and so to about its square after. A step that leaves the bracket of
    the root, or is more than half of the previous step, becomes a bisection.

    Args:
        function: Returns its value and slope.
        low: Lower end of the range.
        high: Upper end.
        start: First argument to evaluate.

    Returns:
        The root and True; without a root, the nearer end and False.
    """
    x, step = start, math.inf
    below, above = -math.inf, math.inf  # the bracket: the function is positive at below and negative at above
    while True:
        value, slope = function(x)
        if value == 0:
            return x, True
        if x == (high if value > 0 else low):
            return x, False
        below, above = (x, above) if value > 0 else (below, x)
        new = x - value / slope if slope < 0 else math.copysign(math.inf, value)
        if abs(new - x) <= 1e-6 and low <= new <= high:
            return new, True
        new = min(max(new, low), high)
        bracketed = math.isfinite(below) and math.isfinite(above)
        if bracketed and (not below < new < above or abs(new - x) > step / 2):
            new = (below + above) / 2
        if new == x:  # the closest floating-point number
            return x, True
        x, step = new, abs(new - x)
