"""Temperature scaling of logits."""

import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor

from unskew.debias._softmax import blocks, buffers, some_rows, spread
from unskew.debias._streamed import Source, is_source
from unskew.debias._streamed_roots import below_maximum, mean_over, unit
from unskew.debias._streamed_scan import Streamed, open_stream
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
    logits: Array | Source,
    labels: Array | Sequence[int],
    *,
    method: str = "confidence",
    expected: float = 1.0,
    pool: Any = None,
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
        logits: ``[N, C]``, NumPy or torch, or a source that is read block by block.
        labels: ``[N]``, integers in 0..C-1.
        method: ``map``, ``confidence`` or ``nll``.
        expected: T that ``map`` expects; 1 for the logits of a model that was trained with cross entropy.
        pool: Spreads the passes over a source, as in `unskew.debias.estimate_log_prior`.

    Raises:
        ValueError: An unknown method; ``expected`` is not above 0; shapes or labels out of range; logits that are not
            finite; mixed kinds of arrays.

    Examples:
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
    opened = open_stream(logits, labels, pool=pool) if is_source(logits) else as_logits(logits=logits)[0]
    if isinstance(opened, Streamed):
        return fit(opened, None, method, expected)
    tensor, label_tensor = check_logits(opened, labels, None)
    return fit(tensor, label_tensor, method, expected)


def fit(
    logits: Tensor | Streamed,
    labels: Tensor | None,
    method: str = "confidence",
    expected: float = 1.0,
    start: float | None = None,
) -> float:
    """Run `fit_temperature` on checked tensors; the search for the root may start at a temperature near it.

    The result does not depend on ``start``: the root of ``confidence`` and ``nll`` is the only one, and the grid of
    ``map`` selects the root before the search starts.
    """
    if logits.shape[1] == 1:
        return 1.0  # the probability is 1 at every T
    if isinstance(logits, Streamed):
        sample: Sample = StreamedSample(logits)
        if start is None:  # a pass over the images that are kept is cheap
            start = math.exp(_fit(ArraySample(*logits.subset()), method, expected, None)[0])
    else:
        sample = ArraySample(logits, labels)
    log_t, has_root = _fit(sample, method, expected, None if start is None else math.log(start))
    if has_root:
        return math.exp(log_t)
    ends = [(sample.spread or 1.0) * end for end in RANGE]
    end = ends[log_t == math.log(ends[1])]
    span = f"from {ends[0]:.3g} to {ends[1]:.3g}"
    logger.warning(f"no temperature {span} fits {sample.shape[0]} samples by '{method}'; using {end:.3g}")
    return end


class Sample(Protocol):
    """Images with labels, as the fits of a temperature see them.

    Attributes:
        shape: N and C.
        spread: Standard deviation of the logits around their row means.
        accuracy: Share of the images whose largest logit is that of the label.
        label_below: Mean of the logit of the label minus the row maximum.
    """

    shape: tuple[int, int]
    spread: float
    accuracy: float
    label_below: float

    def ends(self) -> tuple[float, float]:
        """Return the means of the mean logit and of the second largest, minus the row maximum."""

    def few(self, most: int) -> tuple[Tensor, Tensor]:
        """Return the logits minus the row maximum, in float64, and the labels of some images."""

    def mean(self, method: str, sharpness: float) -> tuple[float, float]:
        """Return the mean of max softmax, or the mean logit under the softmax, and its derivative by 1/T."""


class ArraySample:
    """Images whose logits are in memory."""

    def __init__(self, logits: Tensor, labels: Tensor | None) -> None:
        if labels is None:
            raise ValueError("a temperature is fitted on labels: pass labels")
        self._logits, self._labels = logits, labels
        self.shape = (len(logits), logits.shape[1])
        self.spread = spread(logits)
        self._highest, predicted = logits.max(1)
        self.accuracy = float((predicted == labels).double().mean())
        self.label_below = float((logits.gather(1, labels[:, None])[:, 0].double() - self._highest).mean())

    def ends(self) -> tuple[float, float]:
        """Return the means of the mean logit and of the second largest, minus the row maximum."""
        mean = float((self._logits.mean(1, dtype=torch.float64) - self._highest).mean())
        return mean, float((self._logits.topk(2).values[:, 1].double() - self._highest).mean())

    def few(self, most: int) -> tuple[Tensor, Tensor]:
        """Return the rows of `some_rows`."""
        rows = some_rows(self._logits, most)
        return self._logits[rows].double() - self._highest[rows, None], self._labels[rows]

    def mean(self, method: str, sharpness: float) -> tuple[float, float]:
        """Return the mean and its derivative by 1/T."""
        value, slope = _SUMS[method](self._logits, self._highest, sharpness)
        return value / len(self._logits), slope / len(self._logits)


class StreamedSample:
    """Images of a source; each `mean` is a pass."""

    def __init__(self, logits: Streamed) -> None:
        samples, _ = self.shape = logits.shape
        self._logits, self.spread = logits, unit(logits)
        self.accuracy, self.label_below = logits.correct / samples, logits.label_below / samples

    def ends(self) -> tuple[float, float]:
        """Return the means of the mean logit and of the second largest, minus the row maximum."""
        return mean_over(below_maximum, self._logits, "logits")

    def few(self, most: int) -> tuple[Tensor, Tensor]:
        """Return the rows of `some_rows`."""
        logits, labels = self._logits.some(most)
        if labels is None:
            raise ValueError("a temperature is fitted on labels: pass labels")
        return logits.double() - logits.amax(1, keepdim=True), labels

    def mean(self, method: str, sharpness: float) -> tuple[float, float]:
        """Return the mean and its derivative by 1/T."""
        return mean_over(functools.partial(_sum_of_block, method=method, sharpness=sharpness), self._logits, "T")


def _sum_of_block(logits: Tensor, *, method: str, sharpness: float) -> tuple[float, float]:
    return _SUMS[method](logits, logits.amax(1), sharpness)


def _fit(sample: Sample, method: str, expected: float, log_start: float | None) -> tuple[float, bool]:
    """Return log T and whether the method has a root; without one T is the nearer end of its range."""
    if method == "map":
        return _fit_map(sample, expected, log_start), True
    samples, classes = sample.shape
    if method == "confidence":
        target = min(max(sample.accuracy, 1 / classes + 0.5 / samples), 1 - 0.5 / samples)
    else:
        target = _label_logit(sample)

    def excess(log_t: float) -> tuple[float, float]:
        value, slope = sample.mean(method, math.exp(-log_t))
        return value - target, -math.exp(-log_t) * slope

    low, high = (math.log((sample.spread or 1.0) * end) for end in RANGE)
    return find_decreasing_root(excess, low, high, min(max(log_start or 0.0, low), high))


def _fit_map(sample: Sample, expected: float, log_start: float | None) -> float:
    samples, expected_log, target = sample.shape[0], math.log(expected), sample.label_below
    low, high = (math.log((sample.spread or 1.0) * end) for end in RANGE)
    grid = torch.linspace(min(low, expected_log), max(high, expected_log), GRID_POINTS).tolist()
    few, few_labels = sample.few(GRID_SAMPLES)
    weight = samples / len(few)

    def objective(log_t: float) -> float:
        nll = torch.nn.functional.cross_entropy(few / math.exp(log_t), few_labels, reduction="sum")
        return weight * float(nll) + 0.5 * ((log_t - expected_log) / LOG_DEVIATION) ** 2

    def descent(log_t: float) -> tuple[float, float]:  # minus the derivative of the objective of all samples
        s = math.exp(-log_t)
        value, slope = sample.mean("nll", s)
        excess, precision = samples * s * (value - target), LOG_DEVIATION**-2
        return excess - precision * (log_t - expected_log), -excess - samples * s**2 * slope - precision

    best, step = min(grid, key=objective), grid[1] - grid[0]
    low, high = best - 2 * step, best + 2 * step
    start = best if log_start is None else min(max(log_start, low), high)
    log_t, has_root = find_decreasing_root(descent, low, high, start)
    if not has_root:  # the few samples were misleading
        log_t, _ = find_decreasing_root(descent, grid[0] - step, grid[-1] + step, log_t)
    return log_t


def _label_logit(sample: Sample) -> float:
    """Return the mean logit of the labels minus the row maximum, clipped by half a sample at both ends."""
    half = 0.5 / sample.shape[0]
    uniform, runner_up = sample.ends()
    return min(max(sample.label_below, (1 - half) * uniform), half * runner_up)


def _exponentials(logits: Tensor, highest: Tensor, sharpness: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield by blocks: logits minus the row maximum ``[n, C]``, exp(sharpness times these), and their sums ``[n]``."""
    workspace = buffers(logits, 2)
    for rows in blocks(logits):
        block, exponentials = workspace[:, : rows.stop - rows.start]
        block.copy_(logits[rows]).sub_(highest[rows, None])
        torch.mul(block, sharpness, out=exponentials).exp_()
        yield block, exponentials, exponentials.sum(1)


def _confidence(logits: Tensor, highest: Tensor, sharpness: float) -> tuple[float, float]:
    """Return the sum of max softmax(logits/T) and its derivative by 1/T."""
    value = slope = torch.zeros((), dtype=torch.float64, device=logits.device)
    for block, exponentials, totals in _exponentials(logits, highest, sharpness):
        value = value + totals.reciprocal().sum()
        slope = slope - (exponentials.mul_(block).sum(1) / totals.square()).sum()
    return float(value), float(slope)


def _mean_logit(logits: Tensor, highest: Tensor, sharpness: float) -> tuple[float, float]:
    """Return the sum of the mean logits under softmax(logits/T), and its derivative by 1/T.

    This is d nll / d (1/T) without the labels' term.
    """
    value = slope = torch.zeros((), dtype=torch.float64, device=logits.device)
    for block, exponentials, totals in _exponentials(logits, highest, sharpness):
        means = exponentials.mul_(block).sum(1) / totals
        value = value + means.sum()
        slope = slope + (exponentials.mul_(block).sum(1) / totals - means.square()).sum()
    return float(value), float(slope)


_SUMS = {"confidence": _confidence, "nll": _mean_logit}


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
