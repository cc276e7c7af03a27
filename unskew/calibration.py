"""The temperature T at which logits / T mean what they say."""

import logging
import math

import torch
from scipy.optimize import brentq

from unskew.prior import check_logits

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
    logits, labels = check_logits(logits, labels)
    samples, classes = logits.shape
    if classes == 1:
        return 1.0  # its probability is 1 at every T
    logits = logits - logits.amax(1, keepdim=True)  # [N, C], the largest of each row is 0
    accuracy = float((logits.argmax(1) == labels).double().mean())
    accuracy = min(max(accuracy, 1 / classes + 0.5 / samples), 1 - 0.5 / samples)
    own = float(logits.gather(1, labels[:, None]).mean())
    falling, target = (_confidence, accuracy) if method == "confidence" else (_mean_logit, own)
    # Tensors as `args`, since SciPy's wrapper of a closure would keep them alive until the next garbage collection;
    # one buffer for all temperatures, since allocating it is most of the time.
    args = (target, logits, torch.empty_like(logits))
    lowest, highest = (math.log(end) for end in RANGE)
    end = RANGE[0] if falling(lowest, *args) < 0 else RANGE[1] if falling(highest, *args) > 0 else None
    if end is not None:
        logger.warning(f"no temperature in {RANGE} fits {samples} samples by '{method}': taking {end}")
        return end
    return math.exp(brentq(falling, lowest, highest, args, xtol=1e-10))


def _confidence(log_t: float, accuracy: float, logits, exponentials) -> float:
    """By how much the mean of max softmax(logits/T) is above the accuracy; the largest of each row of logits is 0."""
    torch.mul(logits, math.exp(-log_t), out=exponentials).exp_()
    return float(exponentials.sum(1).reciprocal().mean()) - accuracy


def _mean_logit(log_t: float, own: float, logits, exponentials) -> float:
    """d nll / d (1/T): the mean logit under softmax(logits/T) less that of the labels."""
    torch.mul(logits, math.exp(-log_t), out=exponentials).exp_()
    totals = exponentials.sum(1)
    return float((exponentials.mul_(logits).sum(1) / totals).mean()) - own
