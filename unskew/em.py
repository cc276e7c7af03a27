"""The label prior from samples whose label frequencies are known but whose labels need not be.

The fixed point ``mean_i softmax(logits_i - log q + log pi) = pi``, by multiplicative updates of q. Works on
checked tensors in float64; `unskew.prior` is the public side.
"""

import math

import torch

from unskew.exponentials import Exponentials

MAX_PASSES = 2000  # over the logits; 10 to 200 is usual, more where the model is sure of almost all its answers
TOLERANCE = 1e-8  # of the largest change of log q


class EMStep:
    """A step of EM: how it changes log q, and the objective F before it.

    F is that of `unskew.convex`, which needs the labels for a constant alone; without them it is given less the
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
    while change.abs().max() > TOLERANCE and step.passes < MAX_PASSES:
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
