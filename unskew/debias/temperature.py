"""The temperature T at which logits / T mean what they say."""

import logging
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from unskew.debias._softmax import blocks, buffers
from unskew.debias._validation import check_logits

logger = logging.getLogger("unskew")

RANGE = (0.01, 100.0)


def fit_temperature(logits, labels, *, method: str = "confidence") -> float:
    """The temperature in [0.01, 100] that calibrates logits ``[N, C]`` on labels ``[N]``, in float64.

    ``confidence``: the T at which the mean of max softmax(logits/T) is the accuracy, as GLA's released code
    chooses it. The accuracy is first clipped to [1/C + 1/(2N), 1 - 1/(2N)], so that a perfect or hopeless score
    on few samples does not send T to 0 or infinity. ``nll``: the T of the least negative log-likelihood, which is
    convex in 1/T. Both are the root of a function that falls in T; where it has none inside the range, the
    nearer end is returned with one warning.

    Raises:
        ValueError: an unknown method; shapes or labels out of range; logits that are not finite.
    """
    if method not in ("confidence", "nll"):
        raise ValueError(f"unknown temperature method '{method}'; choose confidence or nll")
    logits, labels = check_logits(logits, labels, None)
    samples, classes = logits.shape
    if classes == 1:
        return 1.0  # its probability is 1 at every T
    highest, first = logits.max(1)
    if method == "confidence":
        accuracy = float((first == labels).double().mean())
        target = min(max(accuracy, 1 / classes + 0.5 / samples), 1 - 0.5 / samples)
    else:
        target = float((logits.gather(1, labels[:, None])[:, 0].double() - highest).mean())
    mean = _confidence if method == "confidence" else _mean_logit

    def excess(log_t: float) -> tuple[float, float]:
        value, slope = mean(logits, highest, math.exp(-log_t))
        return value - target, -math.exp(-log_t) * slope

    lowest, highest_t = (math.log(end) for end in RANGE)
    log_t, found = find_decreasing_root(excess, lowest, highest_t, 0.0)
    if found:
        return math.exp(log_t)
    end = RANGE[log_t > 0]
    logger.warning(f"no temperature in {RANGE} fits {samples} samples by '{method}': taking {end}")
    return end


def _exponentials(logits: Tensor, highest: Tensor, sharpness: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """By blocks of rows, logits less the highest of each row ``[n, C]``, exp of them times the sharpness, its sums."""
    room = buffers(logits, 2)
    for part in blocks(logits):
        block, exponentials = room[:, : part.stop - part.start]
        block.copy_(logits[part]).sub_(highest[part, None])
        torch.mul(block, sharpness, out=exponentials).exp_()
        yield block, exponentials, exponentials.sum(1)


def _confidence(logits: Tensor, highest: Tensor, sharpness: float) -> tuple[float, float]:
    """The mean of max softmax(logits/T), and its derivative by 1/T."""
    value = slope = 0.0
    for block, exponentials, totals in _exponentials(logits, highest, sharpness):
        value += totals.reciprocal().sum()
        slope -= (exponentials.mul_(block).sum(1) / totals.square()).sum()
    return float(value) / len(logits), float(slope) / len(logits)


def _mean_logit(logits: Tensor, highest: Tensor, sharpness: float) -> tuple[float, float]:
    """d nll / d (1/T) but for the labels' part: the mean logit under softmax(logits/T), and its derivative by 1/T."""
    value = slope = 0.0
    for block, exponentials, totals in _exponentials(logits, highest, sharpness):
        means = exponentials.mul_(block).sum(1) / totals
        value += means.sum()
        slope += (exponentials.mul_(block).sum(1) / totals - means.square()).sum()
    return float(value) / len(logits), float(slope) / len(logits)


def find_decreasing_root(
    function: Callable[[float], tuple[float, float]], low: float, high: float, start: float
) -> tuple[float, bool]:
    """Where a falling function is 0 in [low, high], and True; without a root, the nearer end, and False.

    Newton's method, to 1e-6 before its last step and so to about its square after. A step that leaves what is known
    to hold the root, or is more than half of the one before, becomes a bisection.

    Args:
        function: gives its value and slope.
    """
    x, step = start, math.inf
    below = above = None  # where the value was above 0, and below
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
        known = below is not None and above is not None
        if known and (not below < new < above or abs(new - x) > step / 2):
            new = (below + above) / 2
        if new == x:  # as near as numbers come
            return x, True
        x, step = new, abs(new - x)
