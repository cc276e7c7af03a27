"""The label prior q of a model's pre-training data, estimated, read, and taken out of logits.

The pre-training data cannot be opened, so q is inferred from how the zero-shot model answers on samples
whose label frequencies are known (GLA, arXiv 2310.08106). Pure functions of (logits, labels).
"""

import logging
import math
from dataclasses import dataclass, replace
from numbers import Real

import torch

from unskew.debias._softmax import Exponentials, blocks
from unskew.debias._solver import BiasProblem, EMStep, ObservedClasses, cross_validate, iterate, solve
from unskew.debias._validation import check_logits
from unskew.utils.registry import unknown_name

logger = logging.getLogger("unskew")

RELEASED_STEPS = 1000


@dataclass(frozen=True)
class PriorEstimate:
    """An estimated label prior.

    Attributes:
        log_q: ``[C]``, log probabilities (their exponentials sum to one), on the logits' device and in
            their precision, at least float32.
        converged: whether the method's first-order condition or equation holds to its tolerance.
        objective: what the method minimises, at log_q, in nats per sample; for ``eigen``, which minimises
            nothing, the largest |P q - q|.
        passes: that the last solve made over the logits or what it keeps of them.
        strength: the one used.
    """

    log_q: torch.Tensor
    converged: bool
    objective: float
    passes: int
    strength: float


def estimate_log_prior(logits, labels=None, *, method: str = "convex", strength: float | str = 1.0) -> PriorEstimate:
    """Estimate log q from zero-shot logits ``[N, C]``, already divided by their temperature.

    With pi the label frequencies of the sample and u the uniform prior over C classes:

    ``convex`` minimises ``1/N sum_i CE(logits_i - log q + log pi, y_i) + strength/N * KL(u || q)``, exactly.
        The first term is the objective of GLA (arXiv 2310.08106, its estimation step), where samples are balanced
        and pi drops out; without pi the result on other samples would be q/pi. It is convex in log q and does
        not see the scale of q: a logistic regression with nothing but a bias. At the optimum without the second
        term the mean over samples of softmax(logits - log q + log pi) is pi. The labels enter only through their
        counts. The second term counts as ``strength`` samples of the uniform prior.
    ``em`` solves the same equation, ``mean_i softmax(logits_i - log q + log pi) = pi``, by its fixed-point
        iteration, and so serves unlabelled samples: it is the EM equation of Saerens et al. (Neural Computation
        14, 2002) with the prior pi of the sample known and the prior q of the model unknown. Without labels it
        assumes that the sample is balanced. Same minimum as ``convex``, at any strength.
    ``eigen`` solves ``q = P q``, P[:, k] being the mean of softmax(logits) over the samples of class k (Frolic,
        arXiv 2410.19294, its released code): what a calibrated model answers on data with prior q is q on the
        average. Each class is averaged by itself, so with labels it assumes nothing about their frequencies.
        Without labels k is the predicted class: it assumes that the predictions are right. ``strength`` is
        spread over the columns, strength/C samples that answer u in each.
    ``released`` is the recipe of GLA's released code, for reproduction: 1000 steps from the uniform prior, pi
        left out, strength without meaning. It stops far from the optimum below a thousand classes. q is
        normalised here; the release does not.

    A class without labels (without predictions, in ``eigen`` on unlabelled samples) is known by the pseudo-samples
    alone: q_c is 1/C in ``convex`` and ``em``, its column of P is u in ``eigen``.

    Args:
        labels: ``[N]``, integers in 0..C-1; ``em`` and ``eigen`` do without.
        strength: at least 0; 0 needs every class among the labels. "cv" (``convex`` and ``em``) takes the one of
            `unskew.debias._solver.STRENGTHS` that is best in cross-validation on the labels.

    Raises:
        ValueError: an unknown method; shapes, labels or strength out of range; logits that are not finite;
            labels missing; a class without labels at strength 0; no class with two labels for "cv"; ``eigen``
            where some classes are never taken for others; ``released`` where a step leaves the simplex.
    """
    if method not in METHODS:
        raise ValueError(unknown_name("prior method", method, METHODS))
    number = isinstance(strength, Real) and math.isfinite(strength) and strength >= 0
    if not number and strength != "cv":
        raise ValueError(f"strength must be a number of 0 or more, or 'cv', not {strength!r}")
    given = torch.as_tensor(logits)
    logits, labels = check_logits(given, labels, None)
    if labels is None and method not in ("em", "eigen"):
        raise ValueError(f"method '{method}' needs labels; em and eigen do without")
    estimate = METHODS[method](logits, labels, strength)
    log_q = estimate.log_q.to(given.device, torch.promote_types(given.dtype, torch.float32))
    return replace(estimate, log_q=log_q)


def _convex(logits, labels, strength) -> PriorEstimate:
    strength = cross_validate(logits, labels) if strength == "cv" else strength
    _check_counts(labels.bincount(minlength=logits.shape[1]), strength)
    seen = ObservedClasses.of(logits, labels)
    problem = BiasProblem(seen, seen.weight(strength))
    bias, point, converged = solve(problem)
    if not converged:
        logger.warning(
            f"the label prior did not converge in {problem.passes} passes "
            f"(largest gradient {float(point.gradient.abs().max()):.1e})"
        )
    return PriorEstimate(seen.log_q(bias), converged, float(point.objective), problem.passes, float(strength))


def _check_counts(counts, strength: float, what: str = "label") -> None:
    absent = (counts == 0).nonzero().flatten().tolist()
    if strength == 0 and absent:
        raise ValueError(
            f"{len(absent)} of {len(counts)} classes have no {what} (the first: {absent[0]}), so strength 0 leaves "
            f"their prior undetermined; use a strength above 0"
        )


def _em(logits, labels, strength) -> PriorEstimate:
    samples, classes = logits.shape
    if labels is None:
        if strength == "cv":
            raise ValueError("strength 'cv' needs labels; give a number instead")
        log_q = torch.full((classes,), -math.log(classes), dtype=torch.float64, device=logits.device)
        step = EMStep(logits, log_q.exp(), strength / samples)
        log_q, objective, converged = iterate(step, log_q)
    else:
        strength = cross_validate(logits, labels) if strength == "cv" else strength
        _check_counts(labels.bincount(minlength=classes), strength)
        seen = ObservedClasses.of(logits, labels)
        step = EMStep(logits, seen.frequencies, seen.weight(strength), labels, seen.classes)
        bias, objective, converged = iterate(step, torch.zeros_like(seen.frequencies).log_softmax(0))
        log_q = seen.log_q(bias)
    if not converged:
        logger.warning(f"the label prior did not converge in {step.passes} passes of em; convex takes few")
    return PriorEstimate(log_q, converged, objective, step.passes, float(strength))


def _eigen(logits, labels, strength) -> PriorEstimate:
    if strength == "cv":
        raise ValueError("strength 'cv' is for convex and em; give eigen a number")
    classes, what = logits.shape[1], "label" if labels is not None else "prediction"
    labels = logits.argmax(1) if labels is None else labels
    counts = labels.bincount(minlength=classes)
    _check_counts(counts, strength, what)
    sums = torch.zeros(classes, classes, dtype=torch.float64, device=logits.device)  # class k in row k
    for part in blocks(logits):
        sums.index_add_(0, labels[part], logits[part].double().softmax(1))
    transitions = (sums.T + strength / classes**2) / (counts.double() + strength / classes)  # P; columns sum to one
    # q = P q and 1^T q = 1 give (I - P + u 1^T) q = u, and inverse @ u is the inverse's mean over columns. Power
    # iteration takes 1/gap passes, and the spectral gap is small where the model is sure of its answers.
    identity = torch.eye(classes, dtype=torch.float64, device=logits.device)
    inverse, singular = torch.linalg.inv_ex(identity - transitions + 1 / classes)
    q = inverse.mean(1)
    error = torch.finfo(q.dtype).eps * torch.linalg.matrix_norm(inverse, 1)
    if singular or not error < 1e-6 or not (q > 0).all():
        raise ValueError(
            f"some classes are never taken for others, so strength {strength} leaves their prior undetermined; "
            f"use a larger one"
        )
    residual = float((transitions @ q - q).abs().max())
    return PriorEstimate((q / q.sum()).log(), residual < 1e-10, residual, 1, float(strength))


def _released(logits, labels, strength) -> PriorEstimate:
    """The recipe: SGD on the Lagrangian ``CE(logits - log q, y) + mu (1 - sum q) - lambda^T q`` down in q and up in the
    multipliers, all from the same gradients and with one step size. lambda >= 0 starts at 0 and its gradient is -q, so
    it stays there while q is positive.
    """
    samples, classes = logits.shape
    frequencies = labels.bincount(minlength=classes).double() / samples
    own = logits.gather(1, labels[:, None]).double().mean()
    exponentials = Exponentials(logits)
    rate = 1e-5 * (samples / classes) / 50
    q, mu = torch.full_like(frequencies, 1 / classes), 0.0

    def entropy_and_defect():  # d CE / d log q = frequencies - mean softmax(logits - log q)
        log_partition, mean, _ = exponentials.at(-q.log())
        return log_partition - own + frequencies @ q.log(), frequencies - mean

    for done in range(RELEASED_STEPS):
        defect = entropy_and_defect()[1]
        q, mu = q - rate * (defect / q - mu), mu + rate * (1 - q.sum())
        if not (q > 0).all():
            raise ValueError(
                f"method 'released' left the simplex in step {done + 1} of {RELEASED_STEPS}: its step size does not "
                f"suit {samples} samples of {classes} classes; use convex"
            )
    objective, defect = entropy_and_defect()
    converged = bool((defect.abs() <= 1e-10).all())
    return PriorEstimate((q / q.sum()).log(), converged, float(objective), RELEASED_STEPS + 1, 0.0)


METHODS = {"convex": _convex, "em": _em, "eigen": _eigen, "released": _released}
