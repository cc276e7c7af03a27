"""Estimators of the label prior q of a model's pre-training data.

The pre-training data cannot be inspected, so q is inferred from the zero-shot model's predictions on samples whose
label frequencies are known (GLA, arXiv 2310.08106).
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Generic

import torch
from torch import Tensor

from unskew.debias import temperature
from unskew.debias._softmax import Exponentials, blocks, some_rows
from unskew.debias._solver import BiasProblem, ObservedClasses, cross_validate, solve
from unskew.debias._streamed import Source, is_source
from unskew.debias._streamed_newton import minimise_bias
from unskew.debias._streamed_scan import Streamed, open_stream
from unskew.debias._validation import Array, as_logits, check_logits, to_kind, uses_numpy
from unskew.debias.joint import fit_joint
from unskew.utils.registry import unknown_name

logger = logging.getLogger("unskew")

RELEASED_STEPS = 1000

# A joint fit and a calibration give temperatures within this ratio, unless a column of the logits is absurd.
MOST_RATIO = 5.0
CALIBRATION_SAMPLES = 2000


@dataclass(frozen=True)
class PriorEstimate(Generic[Array]):
    """An estimated label prior.

    Attributes:
        log_q: ``[C]``, log probabilities (their exponentials sum to one), of the same kind of array as the logits,
            on their device and in their precision, at least float32.
        converged: Whether the method's first-order condition or equation holds to its tolerance.
        objective: Value of the minimised objective at log_q, in nats per sample; for ``eigen``, which minimises
            nothing, the largest |P q - q|.
        passes: Passes of the last solve over the logits.
        strength: The strength used; NaN for ``map`` and ``unlabelled``.
        temperature: T of the logits that ``map`` fitted together with log q; 1 for the other methods.
        deviation: ``[C]``, posterior standard deviation of log q (``map`` and ``unlabelled`` only).
        log_evidence: Log Bayes factor of a bias against none, in nats (``map`` with labels only).
        no_bias: Posterior probability that the model has no class bias (``map`` only).

    Examples:
        >>> import numpy as np, unskew
        >>> estimate = unskew.estimate_log_prior(np.eye(3)[[0, 1, 2, 0, 1, 2]], [0, 1, 2, 0, 1, 2])
        >>> estimate.converged, estimate.log_q.shape
        (True, (3,))
    """

    log_q: Array
    converged: bool
    objective: float
    passes: int
    strength: float
    temperature: float = 1.0
    deviation: Array | None = None
    log_evidence: float = math.nan
    no_bias: float = 0.0


def estimate_log_prior(
    logits: Array | Source,
    labels: Array | Sequence[int] | None = None,
    *,
    method: str = "convex",
    strength: float | str | None = None,
    logit_scale: str = "model",
    pool: Any = None,
) -> PriorEstimate[Array]:
    """Estimate log q from zero-shot logits ``[N, C]``.

    The logits are divided by their temperature, except for ``map``, which fits the temperature too. Let pi be the
    label frequencies of the sample and u the uniform prior over C classes.

    ``map`` is the joint maximum a posteriori of temperature and class bias with its standard deviations and the
        evidence for a bias, see `unskew.debias.joint.fit_joint`. It has no ``strength``.
    ``unlabelled`` is ``map`` without the labels: the temperature is 1, and the images are assumed to be drawn with a
        uniform class frequency. `GLA` estimates q in this way on the images to predict.
    ``convex`` minimises ``1/N sum_i CE(logits_i - log q + log pi, y_i) + strength/N * KL(u || q)`` exactly.
        The first term is the objective of GLA (arXiv 2310.08106, its estimation step), where samples are balanced
        and pi drops out; without pi the result on other samples would be q/pi. The objective is convex in log q
        and does not depend on the scale of q: it is a logistic regression with a bias alone. At the optimum
        without the second term, the mean over samples of softmax(logits - log q + log pi) is pi. The labels enter
        only through their counts. The second term counts as ``strength`` samples of the uniform prior.
    ``em`` has the same minimum, and also serves unlabelled samples, which it assumes to be balanced: the solution
        of ``mean_i softmax(logits_i - log q + log pi) = pi``, the EM equation of Saerens et al. (Neural Computation
        14, 2002) with the prior pi of the sample known and the prior q of the model unknown.
    ``eigen`` solves ``q = P q``, where P[:, k] is the mean of softmax(logits) over the samples of class k (Frolic,
        arXiv 2410.19294, its released code): a calibrated model's mean prediction on data with prior q is q. Each
        class is averaged separately, so with labels the method assumes nothing about their frequencies. Without
        labels k is the predicted class: the method then assumes that the predictions are right. ``strength`` is
        spread over the columns: strength/C samples with the prediction u in each.
    ``released`` is the recipe of GLA's released code, for reproduction: 1000 steps from the uniform prior, without
        pi; ``strength`` has no effect. It stops far from the optimum below a thousand classes. Here q is
        normalised; the released code does not normalise it.

    A class without labels (without predictions, for ``eigen`` on unlabelled samples) is known by the pseudo-samples
    alone: its q_c is 1/C in ``convex`` and ``em``, its column of P is u in ``eigen``.

    A *source* is ``[N, C]`` and is read block by block; it has ``is_source = True``, ``shape``, ``device``, ``dtype``,
    ``block_rows`` (the rows to read at once) and ``source[slice]``. Its fits take constant memory and some passes over
    the logits: ``map`` takes 5 or 6 at 1,000 classes. A source of at most 2^23 logits and 2^16 rows is loaded.
    ``eigen``, ``released`` and the strength "cv" need all logits in memory.

    Args:
        logits: ``[N, C]``, NumPy or torch, or a source.
        labels: ``[N]``, integers in 0..C-1; optional for ``map``, ``em`` and ``eigen``, unused by ``unlabelled``.
        method: ``map``, ``unlabelled``, ``convex``, ``em``, ``eigen`` or ``released``.
        strength: At least 0, default 1; 0 requires every class among the labels. "cv" (``convex`` and ``em``) selects
            from `unskew.debias._solver.STRENGTHS` by cross-validation on the labels.
        logit_scale: ``model`` if the logits contain the model's logit scale, so that their temperature is near 1;
            ``unknown`` for others, whose temperature starts at a calibration (``map`` with labels).
        pool: Spreads the passes over a source: an object whose ``map(function, items)`` keeps the order, such as a
            ``concurrent.futures`` executor, ``multiprocessing.Pool`` or ``ray.util.multiprocessing.Pool``. Each worker
            computes with one thread. The pool does not change the result.

    Raises:
        ValueError: An unknown method; shapes, labels or strength out of range; logits that are not finite; mixed
            kinds of arrays; missing labels; a class without labels at strength 0; no class with two labels for
            "cv"; ``eigen`` where some classes are never confused with others; ``released`` where a step leaves the
            simplex.

    Examples:
        >>> import numpy as np
        >>> from unskew.debias import estimate_log_prior
        >>> estimate_log_prior(np.log([[0.9, 0.1], [0.6, 0.4]]), [0, 1], strength=0).log_q.round(2)
        array([-0.24, -1.54])
    """
    if method not in METHODS:
        raise ValueError(unknown_name("prior method", method, METHODS))
    if logit_scale not in ("model", "unknown"):
        raise ValueError(f"logit_scale must be model or unknown (got {logit_scale!r})")
    if method in JOINT and strength is not None:
        raise ValueError(f"method '{method}' has no strength (got {strength!r}): omit it, or choose convex")
    number = isinstance(strength, Real) and math.isfinite(strength) and strength >= 0
    if not number and strength not in ("cv", None):
        raise ValueError(f"strength must be a number of 0 or more, or 'cv' (got {strength!r})")
    numpy = uses_numpy(logits=logits, labels=labels)
    cosines = logit_scale == "model" or labels is None
    if is_source(logits):
        original = open_stream(logits, labels, cosines=cosines, pool=pool)
    else:
        (original,) = as_logits(cosines=cosines, logits=logits)
    fit = estimate(original, labels, method, strength, logit_scale)
    deviation = None if fit.deviation is None else to_kind(fit.deviation, numpy)
    return PriorEstimate(**(vars(fit) | {"log_q": to_kind(fit.log_q, numpy), "deviation": deviation}))


def estimate(
    logits: Tensor | Streamed,
    labels: Any,
    method: str,
    strength: float | str | None = None,
    logit_scale: str = "model",
    start: tuple[float, Tensor] | None = None,
) -> PriorEstimate[Tensor]:
    """Run `estimate_log_prior` on a tensor, as it is: of any scale, for instance divided by a temperature.

    ``start`` is a temperature and a log q ``[C]``, for example of a fit on similar images, at which `fit_joint` starts.
    The other methods ignore it: at strength 0 the minimum of ``convex`` need not be unique.
    """
    tensor, label_tensor = (
        (logits, logits.labels) if isinstance(logits, Streamed) else check_logits(logits, labels, None)
    )
    strength = 1.0 if strength is None else strength
    if label_tensor is None and method not in (*JOINT, "em", "eigen"):
        raise ValueError(f"method '{method}' needs labels; pass labels, or choose map, em or eigen")
    if method in JOINT:
        fit = _map(tensor, label_tensor if method == "map" else None, logit_scale, start)
    elif isinstance(tensor, Streamed):
        fit = _streamed_convex(tensor, label_tensor, method, strength)
    else:
        fit = _WITH_STRENGTH[method](tensor, label_tensor, strength)
    precision = torch.promote_types(logits.dtype, torch.float32)
    deviation = None if fit.deviation is None else fit.deviation.to(logits.device, precision)
    return dataclasses.replace(fit, log_q=fit.log_q.to(logits.device, precision), deviation=deviation)


def _map(
    logits: Tensor | Streamed, labels: Tensor | None, logit_scale: str, start: tuple[float, Tensor] | None
) -> PriorEstimate[Tensor]:
    scale, calibrated = 1.0, None
    if labels is not None:
        some: Tensor | Streamed = logits
        some_labels: Tensor | None = labels
        if logit_scale == "model":  # a check needs few
            if isinstance(logits, Streamed):
                some, some_labels = logits.some(CALIBRATION_SAMPLES)
            else:
                rows = some_rows(logits, CALIBRATION_SAMPLES)
                some, some_labels = logits[rows], labels[rows]
        calibrated = temperature.fit(some, some_labels, start=None if start is None else start[0])
        scale = 1 / calibrated if logit_scale == "unknown" else 1.0
    fit = fit_joint(logits, labels, scale=scale, start=start)
    unlike = calibrated is not None and not 1 / MOST_RATIO < fit.temperature / calibrated < MOST_RATIO
    # A calibration of separable labels says little.
    if unlike and labels is not None and not _separates(logits, labels):
        logger.warning(
            f"the temperature that is fitted with the class bias is {fit.temperature:.3g}, that of a calibration "
            f"{calibrated:.3g}: check the logits for classes of another scale"
        )
    return PriorEstimate(
        log_q=fit.log_q,
        converged=fit.converged,
        objective=fit.objective,
        passes=fit.passes,
        strength=math.nan,
        temperature=fit.temperature,
        deviation=fit.log_q_deviation,
        log_evidence=fit.log_evidence,
        no_bias=fit.no_bias,
    )


def _separates(logits: Tensor | Streamed, labels: Tensor) -> bool:
    if isinstance(logits, Streamed):
        return logits.correct == len(logits)
    return torch.equal(logits.argmax(1), labels)


def _streamed_convex(
    logits: Streamed, labels: Tensor | None, method: str, strength: float | str
) -> PriorEstimate[Tensor]:
    if method not in ("convex", "em"):
        raise ValueError(f"method '{method}' needs all logits in memory: choose map, unlabelled, convex or em")
    if isinstance(strength, str):
        raise ValueError("strength 'cv' needs all logits in memory: pass a number, or choose map")
    samples, classes = logits.shape
    counts = torch.ones(classes, dtype=torch.float64) if labels is None else logits.counts
    if labels is not None:
        _check_counts(counts, strength)
    present = counts.nonzero().flatten()
    frequencies = counts[present] / counts.sum()
    sample = ObservedClasses(logits.kept, None, present, frequencies, 0.0, samples)
    bias, point, passes, converged = minimise_bias(logits, sample, strength)
    if not converged:
        _warn_of_gradient(passes, point.gradient)
    return PriorEstimate(sample.log_q(bias), converged, point.value, passes, float(strength))


def _warn_of_gradient(passes: int, gradient: Tensor) -> None:
    logger.warning(
        f"the label prior did not converge in {passes} passes (largest gradient {float(gradient.abs().max()):.1e})"
    )


def _convex(logits: Tensor, labels: Tensor | None, strength: float | str) -> PriorEstimate[Tensor]:
    if labels is None:
        if isinstance(strength, str):
            raise ValueError("strength 'cv' needs labels; pass a number instead")
        sample = ObservedClasses.balanced(logits)
    else:
        strength = cross_validate(logits, labels) if isinstance(strength, str) else strength
        _check_counts(labels.bincount(minlength=logits.shape[1]), strength)
        sample = ObservedClasses.of(logits, labels)
    problem = BiasProblem(sample, sample.weight(strength))
    bias, point, converged = solve(problem)
    if not converged:
        _warn_of_gradient(problem.passes, point.gradient)
    return PriorEstimate(sample.log_q(bias), converged, float(point.objective), problem.passes, float(strength))


def _check_counts(counts: Tensor, strength: float, kind: str = "label") -> None:
    absent = (counts == 0).nonzero().flatten().tolist()
    if strength == 0 and absent:
        raise ValueError(
            f"{len(absent)} of {len(counts)} classes have no {kind} (the first: {absent[0]}), so strength 0 leaves "
            f"their prior undetermined; use a strength above 0"
        )


def _eigen(logits: Tensor, labels: Tensor | None, strength: float | str) -> PriorEstimate[Tensor]:
    if isinstance(strength, str):
        raise ValueError("strength 'cv' is for convex and em; pass a number for eigen")
    classes, kind = logits.shape[1], "label" if labels is not None else "prediction"
    labels = logits.argmax(1) if labels is None else labels
    counts = labels.bincount(minlength=classes)
    _check_counts(counts, strength, kind)
    sums = torch.zeros(classes, classes, dtype=torch.float64, device=logits.device)  # class k in row k
    for rows in blocks(logits):
        sums.index_add_(0, labels[rows], logits[rows].double().softmax(1))
    transitions = (sums.T + strength / classes**2) / (counts.double() + strength / classes)  # P; columns sum to one
    # q = P q and 1^T q = 1 give (I - P + u 1^T) q = u, and inverse @ u is the inverse's mean over columns. Power
    # iteration would take 1/gap passes, and the spectral gap is small if the model's predictions are confident.
    identity = torch.eye(classes, dtype=torch.float64, device=logits.device)
    inverse, singular = torch.linalg.inv_ex(identity - transitions + 1 / classes)
    q = inverse.mean(1)
    error = torch.finfo(q.dtype).eps * torch.linalg.matrix_norm(inverse, 1)
    if singular or not error < 1e-6 or not (q > 0).all():
        raise ValueError(
            f"some classes are never confused with others, so strength {strength} leaves their prior undetermined; "
            f"use a larger strength"
        )
    residual = float((transitions @ q - q).abs().max())
    return PriorEstimate((q / q.sum()).log(), residual < 1e-10, residual, 1, float(strength))


def _released(logits: Tensor, labels: Tensor | None, strength: float | str) -> PriorEstimate[Tensor]:
    """Run GLA's released recipe.

    SGD on the Lagrangian ``CE(logits - log q, y) + mu (1 - sum q) - lambda^T q`` descends in q and ascends in the
    multipliers, all from the same gradients and with one step size. lambda >= 0 starts at 0 and its gradient is -q, so
    it remains 0 while q is positive.
    """
    if labels is None:
        raise ValueError("method 'released' needs labels; pass labels, or choose map, em or eigen")
    samples, classes = logits.shape
    frequencies = labels.bincount(minlength=classes).double() / samples
    label_logit = logits.gather(1, labels[:, None]).double().mean()
    exponentials = Exponentials(logits)
    rate = 1e-5 * (samples / classes) / 50
    q, mu = torch.full_like(frequencies, 1 / classes), torch.zeros_like(frequencies[0])

    def entropy_and_defect() -> tuple[Tensor, Tensor]:  # d CE / d log q = frequencies - mean softmax(logits - log q)
        log_partition, mean, _ = exponentials.at(-q.log())
        return log_partition - label_logit + frequencies @ q.log(), frequencies - mean

    for step in range(1, RELEASED_STEPS + 1):
        defect = entropy_and_defect()[1]
        q, mu = q - rate * (defect / q - mu), mu + rate * (1 - q.sum())
        if not (q > 0).all():
            raise ValueError(
                f"method 'released' left the simplex in step {step} of {RELEASED_STEPS}: its step size does not "
                f"suit {samples} samples of {classes} classes; use method convex"
            )
    objective, defect = entropy_and_defect()
    converged = bool((defect.abs() <= 1e-10).all())
    return PriorEstimate((q / q.sum()).log(), converged, float(objective), RELEASED_STEPS + 1, 0.0)


_WITH_STRENGTH: dict[str, Callable[[Tensor, Tensor | None, float | str], PriorEstimate[Tensor]]] = {
    "convex": _convex,
    "em": _convex,
    "eigen": _eigen,
    "released": _released,
}

# Methods that estimate log q by `fit_joint`; they have no strength.
JOINT = ("map", "unlabelled")

METHODS = (*JOINT, *_WITH_STRENGTH)
