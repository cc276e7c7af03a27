"""Normal approximation of the posterior of the class bias, with a prior under which similar classes share bias.

A shift of the image features, such as another style of the pictures, moves the logits of similar classes together: in
the directions in which the logits vary over the images. The prior covariance of the bias is therefore
``tau^2 ((1 - r) I + r K)`` with the correlation K of the logits over the images. The share r is averaged over
candidates by their evidence (empirical Bayes; Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006,
Eq. 2.25 to 2.30). The evidence takes the scale of the logits as known. The logits contain the bias, so that a change
of the scale multiplies its estimate: with a free scale, priors that are too narrow for the bias would have too large
an evidence.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from unskew.debias._joint import LogitSums, Minimum, ScalePenalty
from unskew.debias._streamed_joint import StreamedSums

# With more classes only the diagonal of the Hessian is used, and classes share no bias.
MOST_CLASSES = 2000

# Candidates of r with a smaller weight do not count.
LEAST_WEIGHT = 1e-3


class Curvature:
    """The Hessian of the negative log-likelihood by the bias, with the scale profiled out, at a fit."""

    def __init__(self, fit: Minimum, data: LogitSums | StreamedSums, penalty: ScalePenalty | None) -> None:
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

    def posterior(
        self, variances: Tensor, design: Tensor, deviation: float, shared: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Return mean ``[c]`` and covariance of the bias minus its mean: ``[c, c]``, or its diagonal ``[c]``.

        With the estimate x without its prior, its variance V and the prior covariance S, they are ``S (S + V)^-1 x``
        and ``S - S (S + V)^-1 S``. For chosen counts V is ``H^+ - diag(1/m)`` centred, with the expected counts m; it
        is positive, since H is at most that of images that show only their frequencies. For drawn images V is
        ``H^+ Cov(sum_i p_i) H^+``.

        Args:
            variances: ``[c]``, variances of the prior in the fit.
            design: ``[c]``, 1/n_c of chosen counts.
            deviation: tau.
            shared: Candidates of r.
        """
        if len(design) > MOST_CLASSES:
            variance, prior_variance = self.marginal(design), self.centring * deviation**2
            posterior_variance = prior_variance * variance / (prior_variance + variance)
            return self.fit.bias * deviation**2 / variances, posterior_variance
        variance, inverse = self._variance()
        by_scale = inverse @ self.crossed
        by_scale /= (1 + self.crossed @ by_scale).sqrt()  # its square is the variance that a free scale adds
        gradient = self.fit.bias / variances
        if self.labelled:  # for r = 0 the mean is then the maximum a posteriori itself
            estimate = deviation**2 * gradient + variance @ gradient
        else:
            estimate = self.fit.bias + inverse @ gradient
        estimate = estimate - estimate.mean()
        similar = _centre(self.data.correlation()) if any(shared) else torch.zeros_like(variance)
        identity = _centre(torch.eye(len(design)).to(variance))
        constant = deviation**2 / len(design)  # on the diagonal of the constant vector, which all else maps to zero
        log_evidence, candidates = [], []
        for share in shared:
            prior = deviation**2 * ((1 - share) * identity + share * similar)
            factor = torch.linalg.cholesky(prior + variance + constant)
            solved, scale_part = torch.cholesky_solve(torch.stack([estimate, by_scale], 1), factor).unbind(1)
            known = 1 - by_scale @ scale_part  # ratio of the determinants with a known and a free scale
            squares = estimate @ solved + (by_scale @ solved).square() / known
            log_evidence.append(-0.5 * (squares + known.log()) - factor.diagonal().log().sum())
            candidates.append((prior, factor, prior @ solved))
        weights = torch.stack(log_evidence).softmax(0)
        mean = torch.stack([candidate[2] for candidate in candidates], 1) @ weights
        covariance = torch.zeros_like(variance)
        for weight, (prior, factor, candidate_mean) in zip(weights.tolist(), candidates, strict=True):
            if weight > LEAST_WEIGHT:
                explained = torch.linalg.solve_triangular(factor, prior, upper=False)
                between = candidate_mean - mean
                covariance += weight * (prior - explained.T @ explained + between.outer(between))
        return mean, covariance

    def _variance(self) -> tuple[Tensor, Tensor]:
        """Return the variance ``[c, c]`` of the estimate without its prior, and the inverse of the Hessian, centred."""
        classes, m = len(self.diagonal), self.fit.sums.probabilities
        gram = self.data.gram()
        hessian = m.diag() - gram - self.crossed.outer(self.crossed)
        identity = torch.eye(classes).to(m)
        mean = float(self.diagonal.mean()) / classes  # of the constant vector, which the Hessian maps to zero
        # For classes that are never confused: above the rounding of the sums, and of V, which is of order m/ridge^2 for
        # drawn images.
        ridge = 1e-6 * float(m.max()) if self.labelled else 1e-3 * float(m.max()) ** 0.5
        inverse = _centre(torch.linalg.inv(hessian + mean + ridge * identity))
        if self.labelled:
            variance = inverse - _centre((1 / (m + ridge)).diag())
        else:
            drawn = gram - m.outer(m) / m.sum()
            expected = self.centring * self.data.counts - self.diagonal  # few images may show none of a class
            drawn = drawn + (expected - drawn.diagonal()).clamp(min=0).diag()
            variance = self.resampling * inverse @ drawn @ inverse
            variance = (variance + variance.T) / 2
        return variance + self.floor * _centre(identity), inverse


def _centre(matrix: Tensor) -> Tensor:
    """Subtract the means over rows and columns."""
    return matrix - matrix.mean(0) - matrix.mean(1)[:, None] + matrix.mean()
