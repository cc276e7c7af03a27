"""Joint MAP estimate of the temperature and the class bias of a zero-shot model, with its posterior.

Temperature and bias are one fit (bias-corrected temperature scaling, Alexandari et al., ICML 2020), because a
temperature that is fitted while the logits still contain log q absorbs a part of log q. The prior on the bias is
normal. The numbers of images per class are chosen, not drawn, so that the variance of the estimated bias is the
inverse Hessian minus ``diag(1/n)``; the normal prior refers to this variance. The estimate is then averaged with that
of a model without bias, by their evidence.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from unskew.debias._joint import LogitSums, Minimum, ScalePenalty, minimise

# Standard deviation of the normal prior on the bias of a class, in nats.
DEVIATION = 1.5

# Prior probability that the model has no class bias.
NO_BIAS = 0.1

# Pseudo-samples that hold the temperature at its start.
SCALE_STRENGTH = 1.0

# Up to as many classes the deviations come from the whole Hessian, beyond from its diagonal.
MOST_CLASSES = 2000


class JointPosterior(NamedTuple):
    """The posterior of temperature and class bias.

    Attributes:
        bias: ``[C]``, posterior mean of log q minus its mean over the classes.
        deviation: ``[C]``, posterior standard deviation of ``bias``.
        log_q_deviation: ``[C]``, that of ``log_q``, whose normalisation couples the classes.
        temperature: of the logits.
        log_evidence: log Bayes factor of a bias against none, in nats; infinite if it was not computed.
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
    logits: Tensor,
    labels: Tensor | None,
    *,
    scale: float = 1.0,
    deviation: float = DEVIATION,
    no_bias: float = NO_BIAS,
    scale_strength: float = SCALE_STRENGTH,
) -> JointPosterior:
    """Fit temperature T and bias beta by maximum a posteriori, and average over "no bias" by its evidence.

    With s = 1/T, label frequencies pi, n_c images of class c and v_c = deviation^2 - 1/n_c, it minimises

        sum_i CE(s logits_i - b + log pi, y_i) + K (s/s_0 - 1 - log(s/s_0)) + 1/2 sum_c b_c^2 / v_c

    over s > 0 and b; beta_c = b_c deviation^2 / v_c. A class without images has bias 0 with the deviation of the prior.
    Images without labels are assumed to be drawn with a uniform class frequency: s is then s_0, nothing is averaged,
    v_c is deviation^2, and beta = (1 - P / deviation^2) b with the posterior covariance P of the bias: the counts vary
    too, which the curvature of the objective does not contain. A single image shows no bias.

    Args:
        logits: ``[N, C]``, finite.
        labels: ``[N]``, in 0..C-1, or None.
        scale: s_0, the expected 1/T.
        deviation: Standard deviation of the prior on the bias, in nats.
        no_bias: Prior probability of "no bias".
        scale_strength: K, pseudo-samples that hold s at s_0.

    Raises:
        ValueError: ``deviation^2`` is at most 1/n_c for a class.
    """
    samples, classes = logits.shape
    if labels is None:
        counts = torch.full((classes,), samples / classes, dtype=torch.float64, device=logits.device)
    else:
        counts = labels.bincount(minlength=classes).double()
    present = counts.nonzero().flatten()
    bias = torch.zeros(classes, dtype=torch.float64, device=logits.device)
    if len(present) < 2 or samples < 2:
        sd = torch.full_like(bias, deviation)
        return JointPosterior(bias, sd, sd, 1 / scale, 0.0, no_bias, 0.0, 0, True)
    observed = counts[present]
    design = 1 / observed if labels is not None else torch.zeros_like(observed)
    variances = deviation**2 - design
    if (variances <= 0).any():
        raise ValueError(f"deviation^2 = {deviation**2:g} must be above 1 / images per class, 1/{int(observed.min())}")
    data, penalty = LogitSums([logits], labels, counts), ScalePenalty(scale, scale_strength)
    fit = minimise(data, observed.new_tensor([scale]), penalty, variances, fixed=labels is None)
    hessian = _Hessian(fit, data, None if labels is None else penalty)
    covariance = hessian.posterior(design, deviation)
    log_evidence, probability, s = math.inf, 0.0, float(fit.weights)
    if labels is not None and no_bias > 0:
        log_evidence = hessian.log_evidence(variances, design, deviation)
        probability = 1 / (1 + math.exp(min(max(log_evidence, -500), 500)) * (1 - no_bias) / no_bias)
        if probability > 1e-6:
            s += probability * (float(minimise(data, fit.weights, penalty, None).weights) - s)
    estimate = fit.bias * deviation**2 / variances
    if labels is None:
        estimate = estimate - covariance @ estimate / deviation**2
    bias[present] = (1 - probability) * estimate
    # The variance of the average of "bias" and "no bias": within both, and between them.
    covariance = (1 - probability) * (covariance + probability * estimate.outer(estimate))
    deviations = _deviations(covariance, bias.softmax(0), present, deviation)
    return JointPosterior(
        bias, *deviations, 1 / s, log_evidence, probability, fit.objective / samples, data.passes, fit.converged
    )


class _Hessian:
    """The Hessian of the negative log-likelihood by the bias, with the scale profiled out, at a fit."""

    def __init__(self, fit: Minimum, data: LogitSums, penalty: ScalePenalty | None) -> None:
        """Compute its diagonal; without a ``penalty`` the scale is known and the images have no labels."""
        self.fit, self.data, self.labelled = fit, data, penalty is not None
        self.centring = (len(data.counts) - 1) / len(data.counts)
        self.crossed = torch.zeros_like(data.counts)  # [c], its square is subtracted from the Hessian
        if penalty is not None:
            scale_hessian = float(fit.sums.covariance) + float(penalty.at(fit.weights)[2])
            self.crossed = fit.sums.crossed[0] / math.sqrt(scale_hessian)
        self.diagonal = (fit.sums.probabilities - fit.sums.squares - self.crossed.square()).clamp(min=1e-9)
        samples = len(data)
        self.resampling = samples / max(samples - 1, 1)  # of a variance around the mean of the same images
        self.floor = 0.02 / float(data.counts.mean())

    def marginal(self, design: Tensor) -> Tensor:
        """Return the variance ``[c]`` of each estimated bias without its prior, from the diagonal alone.

        Labelled images have chosen counts: f^2/d - f/n, with f = (c-1)/c for the centring. Unlabelled images are
        drawn: f^2 (f n/d^2 - 1/d) N/(N-1).
        """
        f, d = self.centring, self.diagonal
        drawn = f**2 * (f * self.data.counts / d.square() - 1 / d) * self.resampling
        return (f**2 / d - f * design if self.labelled else drawn).clamp(min=self.floor)

    def log_evidence(self, variances: Tensor, design: Tensor, deviation: float) -> float:
        """Return the log Bayes factor of the normal prior against no bias, with the classes taken as independent."""
        f, variance = self.centring, self.marginal(design)
        prior = f * deviation**2
        squares = (self.fit.bias * (1 + f / (self.diagonal * variances))).square()  # without shrinkage
        terms = (1 + prior / variance).log() + squares / (variance + prior) - squares / variance
        return -f / 2 * float(terms.sum())

    def posterior(self, design: Tensor, deviation: float) -> Tensor:
        """Return the posterior covariance ``[c, c]`` of the centred bias.

        With the variance V of the estimate, ``H^+ - diag(1/n)`` centred (or ``H^+ Cov(sum_i p_i) H^+`` for drawn
        images), it is ``(V^-1 + tau^-2)^-1 = tau^2 - tau^4 (V + tau^2)^-1``.
        """
        classes, prior = len(design), deviation**2
        if classes > MOST_CLASSES:
            variance = self.marginal(design)
            return (self.centring * prior * variance / (self.centring * prior + variance)).diag()
        identity, m = torch.eye(classes).to(design), self.fit.sums.probabilities
        gram = self.data.gram()
        hessian = m.diag() - gram - self.crossed.outer(self.crossed)
        mean = float(self.diagonal.mean()) / classes  # of the constant vector, which the Hessian maps to zero
        inverse = torch.linalg.inv(hessian + mean + 1e-9 * float(m.mean()) * identity)
        inverse = inverse - inverse.mean(0) - inverse.mean(1)[:, None] + inverse.mean()
        if self.labelled:
            centred = design.diag() - design / classes - design[:, None] / classes + design.mean() / classes
            variance = inverse - centred
        else:
            drawn = gram - m.outer(m) / m.sum()
            expected = self.centring * self.data.counts - self.diagonal  # few images may show none of a class
            drawn = drawn + (expected - drawn.diagonal()).clamp(min=0).diag()
            variance = self.resampling * inverse @ drawn @ inverse
        return prior * identity - prior**2 * torch.linalg.inv(variance + prior * identity)


def _deviations(covariance: Tensor, q: Tensor, present: Tensor, deviation: float) -> tuple[Tensor, Tensor]:
    """Return the standard deviations ``[C]`` of bias and log q; absent classes have that of the prior."""
    variance = torch.full_like(q, deviation**2)
    variance[present] = covariance.diagonal().clamp(min=1e-12)
    shared = variance * q  # [C], covariance with log sum_j q_j of each class
    shared[present] = covariance @ q[present]
    return variance.sqrt(), (variance - 2 * shared + q @ shared).clamp(min=1e-12).sqrt()
