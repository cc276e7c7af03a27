"""Numbers fitted on val: the temperature at which logits mean what they say, the bias that fine-tuning has left."""

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
    own = logits.gather(1, labels[:, None]).mean()

    exponentials = torch.empty_like(logits)  # one buffer for all temperatures: allocating it is most of the time

    def overconfidence(log_t: float) -> float:
        torch.mul(logits, math.exp(-log_t), out=exponentials).exp_()
        return float(exponentials.sum(1).reciprocal().mean()) - accuracy

    def nll_slope(log_t: float) -> float:  # d nll / d (1/T)
        torch.mul(logits, math.exp(-log_t), out=exponentials).exp_()
        totals = exponentials.sum(1)
        return float((exponentials.mul_(logits).sum(1) / totals).mean() - own)

    falling = overconfidence if method == "confidence" else nll_slope
    lowest, highest = (math.log(end) for end in RANGE)
    end = RANGE[0] if falling(lowest) < 0 else RANGE[1] if falling(highest) > 0 else None
    if end is not None:
        logger.warning(f"no temperature in {RANGE} fits {samples} samples by '{method}': taking {end}")
        return end
    return math.exp(brentq(falling, lowest, highest, xtol=1e-10))


def remaining_bias(logits, labels, log_q) -> float:
    """The share rho in [0, 1] of the pre-training bias log q ``[C]`` that fine-tuned logits ``[N, C]`` still carry.

    Fine-tuning starts at a model whose logits carry log q, and a few steps on a few images take away only a part
    of it. rho is the least cross entropy of ``logits - rho * log q + log pi`` on labels ``[N]`` that the model was
    not trained on, pi being their frequencies. That is convex in rho; its slope is the mean of log q under the
    labels less the mean under the model, and rho is where the two agree: 0 where fine-tuning has undone the bias,
    1 where it is all still there.

    Raises:
        ValueError: shapes or labels out of range; logits that are not finite.
    """
    logits, labels = check_logits(logits, labels)
    log_q = torch.as_tensor(log_q).to(logits)
    if log_q.shape != logits.shape[1:]:
        raise ValueError(f"log_q must be [C] with C = {logits.shape[1]}, not {list(log_q.shape)}")
    frequencies = torch.bincount(labels, minlength=logits.shape[1]).to(logits) / len(labels)
    target, scores = frequencies @ log_q, logits + frequencies.log()  # [N, C]; an absent class is out of the softmax

    def slope(rho: float) -> float:
        return float(target - ((scores - rho * log_q).softmax(1) @ log_q).mean())

    if slope(0.0) >= 0:
        return 0.0
    return 1.0 if slope(1.0) <= 0 else brentq(slope, 0.0, 1.0, xtol=1e-8)
