"""Joint MAP estimate of the temperature and the class bias of a zero-shot model, with its posterior.

Temperature and bias are one fit (bias-corrected temperature scaling, Alexandari et al., ICML 2020), because a
temperature that is fitted while the logits still contain log q absorbs a part of log q. The prior on the bias is
normal. The numbers of images per class are chosen, not drawn, so that the variance of the estimated bias is the
inverse Hessian minus ``diag(1/n)``; the normal prior refers to this variance. Similar classes share a part of their
bias. The estimate is then averaged with that of a model without bias, by their evidence.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unskew.debias._joint import LAST_STEP, LAST_STEP_NEAR, LogitSums, ScalePenalty, minimise
from unskew.debias._posterior import Curvature
from unskew.debias._streamed_joint import StreamedSums
from unskew.debias._streamed_newton import minimise_joint
from unskew.debias._streamed_scan import Streamed

# Standard deviation of the normal prior on the bias of a class, in nats.
DEVIATION = 1.5

# Prior probability that the model has no class bias.
NO_BIAS = 0.1

# Pseudo-samples that hold the temperature at its start.
SCALE_STRENGTH = 1.0

# Candidates of the share of the prior variance that follows the similarity of the classes.
SHARED = (0.0, 0.25, 0.5, 0.75)


class JointPosterior(NamedTuple):
    """The posterior of temperature and class bias.

    Attributes:
        bias: ``[C]``, posterior mean of log q minus its mean over the classes.
        deviation: ``[C]``, posterior standard deviation of ``bias``.
        log_q_deviation: ``[C]``, that of ``log_q``, whose normalisation couples the classes.
        temperature: of the logits.
        log_evidence: log Bayes factor of a bias against none, in nats; NaN if it was not computed.
        no_bias: Posterior probability that there is no bias.
        objective: Value of the minimised objective, in nats per image.
        passes: Passes over the logits.
        converged: Whether the solver converged.
    """

    bias: Tensor
    deviation: Tensor
    log_q_deviation: Tensor
    temperature: float
    log_evidence: float
    no_bias: float
    objective: float
    passes: int
    converged: bool

    @property
    def log_q(self) -> Tensor:
        """``[C]``, log prior; its exponentials sum to one."""
        return self.bias.log_softmax(0)


def fit_joint(
    logits: Tensor | Streamed,
    labels: Tensor | None,
    *,
    scale: float = 1.0,
    deviation: float = DEVIATION,
    no_bias: float = NO_BIAS,
    scale_strength: float = SCALE_STRENGTH,
    shared: Sequence[float] = SHARED,
    start: tuple[float, Tensor] | None = None,
) -> JointPosterior:
    """Fit temperature T and bias beta by maximum a posteriori, and average over "no bias" by its evidence.

    With s = 1/T, label frequencies pi, n_c images of class c and v_c = deviation^2 - 1/n_c, it minimises

        sum_i CE(s logits_i - b + log pi, y_i) + K (s/s_0 - 1 - log(s/s_0)) + 1/2 sum_c b_c^2 / v_c

    over s > 0 and b. If the classes share no bias, beta_c = b_c deviation^2 / v_c; otherwise `Curvature.posterior`
    computes beta from the curvature at b. A class without images has bias 0 with the deviation of the prior. Images
    without labels are assumed to be drawn with a uniform class frequency: s is then s_0, v_c is deviation^2, "no bias"
    is not averaged, and the variance of the counts, which the objective does not contain, is added. A single image
    shows no bias.

    Args:
        logits: ``[N, C]``, finite.
        labels: ``[N]``, in 0..C-1, or None; they must be those of a scanned source.
        scale: s_0, the expected 1/T.
        deviation: Standard deviation of the prior on the bias, in nats.
        no_bias: Prior probability of "no bias".
        scale_strength: K, pseudo-samples that hold s at s_0.
        shared: Candidates in [0, 1) of the share of the prior variance that follows the similarity of the classes.
        start: Temperature and log q ``[C]`` at which the solver starts, s_0 and no bias if omitted. The objective is
            jointly convex in s and b, so that the start changes the number of steps, but not the minimum.

    Raises:
        ValueError: ``deviation^2`` is at most 1/n_c for a class.
    """
    samples, classes = logits.shape
    device = logits.device if isinstance(logits, Tensor) else torch.device("cpu")
    if labels is None:
        counts = torch.full((classes,), samples / classes, dtype=torch.float64, device=device)
    else:
        counts = labels.bincount(minlength=classes).double()
    present = counts.nonzero().flatten()
    bias = torch.zeros(classes, dtype=torch.float64, device=device)
    if len(present) < 2 or samples < 2:
        sd = torch.full_like(bias, deviation)
        return JointPosterior(bias, sd, sd, 1 / scale, 0.0, no_bias, 0.0, 0, True)
    observed = counts[present]
    design = 1 / observed if labels is not None else torch.zeros_like(observed)
    variances = deviation**2 - design
    if (variances <= 0).any():
        raise ValueError(f"deviation^2 = {deviation**2:g} must be above 1 / images per class, 1/{int(observed.min())}")
    penalty = ScalePenalty(scale, scale_strength)
    data = LogitSums([logits], labels, counts) if isinstance(logits, Tensor) else StreamedSums([logits], counts)
    s_start, bias_start = scale, None
    if start is not None:
        log_q = start[1].to(observed)[present]
        s_start = scale if labels is None else 1 / start[0]
        bias_start = (log_q - log_q.mean()) * variances / deviation**2
    weights, last_step = observed.new_tensor([s_start]), LAST_STEP if start is None else LAST_STEP_NEAR
    if isinstance(data, LogitSums):
        fit = minimise(data, weights, penalty, variances, fixed=labels is None, bias=bias_start, last_step=last_step)
    else:
        fit = minimise_joint(data, weights, penalty, variances, fixed=labels is None, bias=bias_start)
    curvature = Curvature(fit, data, None if labels is None else penalty)
    estimate, covariance = curvature.posterior(variances, design, deviation, shared)
    log_evidence, probability, s = math.nan, 0.0, float(fit.weights)
    if labels is not None and no_bias > 0:
        log_evidence = curvature.log_evidence(variances, design, deviation)
        probability = 1 / (1 + math.exp(min(max(log_evidence, -500), 500)) * (1 - no_bias) / no_bias)
        if probability > 1e-6:
            if isinstance(data, LogitSums):
                unbiased = minimise(data, fit.weights, penalty, None)
            else:
                unbiased = minimise_joint(data, fit.weights, penalty, None)
            s += probability * (float(unbiased.weights) - s)
    bias[present] = (1 - probability) * estimate
    q = bias.softmax(0)
    deviations = _deviations(*_averaged(estimate, covariance, probability, q[present]), q, present, deviation)
    return JointPosterior(
        bias, *deviations, 1 / s, log_evidence, probability, fit.objective / samples, data.passes, fit.converged
    )


def _averaged(estimate: Tensor, covariance: Tensor, probability: float, q: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variances ``[c]`` of the average of "bias" and "no bias", and their covariance matrix times q ``[c]``.

    They are the variances within both and between them. A ``covariance`` ``[c]`` is the diagonal of that of "bias".
    """
    if covariance.dim() == 1:  # thousands of classes, for which a matrix would take gigabytes
        variance = covariance + probability * estimate.square()
        product = covariance * q + probability * (estimate @ q) * estimate
        return (1 - probability) * variance, (1 - probability) * product
    covariance = (1 - probability) * (covariance + probability * estimate.outer(estimate))
    return covariance.diagonal(), covariance @ q


def _deviations(within: Tensor, product: Tensor, q: Tensor, present: Tensor, deviation: float) -> tuple[Tensor, Tensor]:
    """Return the standard deviations ``[C]`` of bias and log q; absent classes have that of the prior.

    Args:
        within: ``[c]``, variances of the present classes.
        product: ``[c]``, their covariance matrix times q.
        q: ``[C]``.
        present: ``[c]``, classes with images.
        deviation: Of the prior.
    """
    variance = torch.full_like(q, deviation**2)
    variance[present] = within.clamp(min=1e-12)
    shared = variance * q  # [C], covariance with log sum_j q_j of each class
    shared[present] = product
    return variance.sqrt(), (variance - 2 * shared + q @ shared).clamp(min=1e-12).sqrt()
