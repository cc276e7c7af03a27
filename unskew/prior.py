"""The label prior q of a model's pre-training data, estimated, read, and taken out of logits.

The pre-training data cannot be opened, so q is inferred from how the zero-shot model answers on samples
whose label frequencies are known (GLA, arXiv 2310.08106). Pure functions of (logits, labels).
"""

import csv
import logging
import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from unskew.data import read_json
from unskew.registry import unknown_name

logger = logging.getLogger("unskew")

_MAX_PASSES = 300  # over the logits; 8 to 30 is usual


@dataclass(frozen=True)
class PriorEstimate:
    """An estimated label prior.

    Attributes:
        log_q: ``[C]``, log probabilities (their exponentials sum to one), on the logits' device and in
            their precision, at least float32.
        converged: whether the first-order condition holds to the solver's tolerance.
        objective: the minimum, in nats per sample.
        passes: over the logits that the solver made.
    """

    log_q: torch.Tensor
    converged: bool
    objective: float
    passes: int


def estimate_log_prior(logits, labels=None, *, method: str = "convex", strength: float = 1.0) -> PriorEstimate:
    """Estimate log q from zero-shot logits ``[N, C]``, already divided by their temperature.

    ``convex`` minimises, with pi the label frequencies of the sample and u the uniform prior over C classes::

        1/N sum_i CE(logits_i - log q + log pi, y_i)  +  strength/N * KL(u || q)

    The first term is the objective of GLA (its estimation step), where samples are balanced and pi drops out;
    without pi the result on other samples would be q/pi. It is convex in log q and does not see the scale of q:
    a logistic regression with nothing but a bias. At the optimum without the second term the mean over samples of
    softmax(logits - log q + log pi) is pi. The labels enter only through their counts, so shuffling them does
    not change q. The second term counts as ``strength`` samples of the uniform prior.

    A class without a label has pi = 0 and leaves the softmax, so it enters the second term alone, whose
    derivative by log q_c is ``strength * (q_c - 1/C)``: its q_c is 1/C. Of what the n classes with labels
    then share, n/C, each has the part r_c that minimises the same objective over these n classes with
    strength * n/C in place of strength; the constants cancel and the minimum is the same number.

    Args:
        labels: ``[N]``, integers in 0..C-1.
        strength: at least 0; 0 needs every class among the labels.

    Raises:
        ValueError: an unknown method; shapes, labels or strength out of range; logits that are not finite;
            a class without labels at strength 0.
    """
    if method not in METHODS:
        raise ValueError(unknown_name("prior method", method, METHODS))
    return METHODS[method](logits, labels, strength)


def adjust(ft, zs, log_q, log_p=None, log_target=None) -> torch.Tensor:
    """GLA's logits (arXiv 2310.08106): ``ft + zs - log q - log p``, ``[N, C]``.

    ft already carries log p, the label frequencies it was fine-tuned on; zs carries log q. Their sum is
    right for a balanced test set; ``log_target`` moves it to another.

    Args:
        ft: ``[N, C]``, fine-tuned logits, divided by their temperature.
        zs: ``[N, C]``, zero-shot logits, divided by theirs.
        log_q: ``[C]``.
        log_p: ``[C]``; omit it for balanced training data, and where the training loss was logit-adjusted.
        log_target: ``[C]``; uniform if omitted.

    Raises:
        ValueError: shapes that do not fit.
    """
    if ft.ndim != 2 or ft.shape != zs.shape:
        raise ValueError(f"ft and zs must both be [N, C], not {list(ft.shape)} and {list(zs.shape)}")
    logits = ft + zs  # [N, C]
    for name, term, sign in (("log_q", log_q, -1), ("log_p", log_p, -1), ("log_target", log_target, 1)):
        if term is None:
            continue
        if term.shape != logits.shape[1:]:
            raise ValueError(f"{name} must be [C] with C = {logits.shape[1]}, not {list(term.shape)}")
        logits = logits + sign * term.to(logits)
    return logits


def check_logits(logits, labels=None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Finite logits ``[N, C]`` in float64 and their labels ``[N]``, on one device; else a ``ValueError``."""
    logits = torch.as_tensor(logits).detach()
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits must be [N, C] with N and C of at least 1, not {list(logits.shape)}")
    device = "cpu" if logits.device.type == "mps" else logits.device  # mps has no float64
    logits = logits.to(device, torch.float64)
    finite = logits.isfinite()
    if not finite.all():
        row, column = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"{int((~finite).sum())} of {logits.numel()} logits are NaN or infinite, the first in row {row}, "
            f"column {column}"
        )
    if labels is None:
        return logits, None
    labels = torch.as_tensor(labels, device=device)
    if labels.shape != logits.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels must be {len(logits)} integers, one for each row of logits, "
            f"not {labels.dtype} of shape {list(labels.shape)}"
        )
    low, high, classes = int(labels.min()), int(labels.max()), logits.shape[1]
    if low < 0 or high >= classes:
        raise ValueError(f"labels must be in 0..{classes - 1}, the columns of logits, not {low}..{high}")
    return logits, labels.long()


# --- the convex estimator --------------------------------------------------------------------------


def _convex(logits, labels, strength: float) -> PriorEstimate:
    if labels is None:
        raise ValueError("method 'convex' needs labels")
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"strength must be a number of 0 or more, not {strength}")
    given = torch.as_tensor(logits)
    logits, labels = check_logits(given, labels)
    samples, classes = logits.shape
    present, labels, counts = labels.unique(return_inverse=True, return_counts=True)
    if strength == 0 and len(present) < classes:
        absent = sorted(set(range(classes)) - set(present.tolist()))
        raise ValueError(
            f"{len(absent)} of {classes} classes have no label (the first: {absent[0]}), so strength 0 leaves "
            f"their prior undetermined; use a strength above 0"
        )
    share = len(present) / classes
    logits = logits[:, present] if share < 1 else logits
    problem = _BiasProblem(logits, labels, counts.double() / samples, strength * share / samples)
    bias, point, converged = _solve(problem)
    if not converged:
        logger.warning(
            f"the label prior did not converge in {problem.passes} passes "
            f"(largest gradient {float(point.gradient.abs().max()):.1e})"
        )
    log_q = torch.full((classes,), -math.log(classes), dtype=torch.float64, device=logits.device)
    log_q[present] = bias.log_softmax(0) + math.log(share)
    log_q = log_q.to(given.device, torch.promote_types(given.dtype, torch.float32))
    return PriorEstimate(log_q, converged, float(point.objective), problem.passes)


METHODS = {"convex": _convex}


class _Point(NamedTuple):
    """The objective and its derivatives at one bias b; ``probabilities`` is valid until the next point."""

    objective: torch.Tensor
    gradient: torch.Tensor  # [C]
    probabilities: torch.Tensor  # [N, C], softmax(logits/tau - b + log pi)
    mean: torch.Tensor  # [C], of the probabilities
    prior: torch.Tensor  # [C], softmax(b)


class _BiasProblem:
    """f(b) = 1/N sum_i CE(logits_i/tau - b + log pi, y_i) + weight * KL(u || softmax(b)), every pi above 0."""

    def __init__(self, logits, labels, frequencies, weight: float):
        self.logits = logits - logits.mean(1, keepdim=True)  # [N, C]; softmax does not see what rows add
        self.labels = labels[:, None]
        self.frequencies = frequencies
        self.weight = weight
        self.passes = 0
        self._buffer = torch.empty_like(self.logits)  # page faults would cost more than the arithmetic

    def at(self, bias, tau: float) -> _Point:
        self.passes += 1
        torch.add(self.frequencies.log() - bias, self.logits, alpha=1 / tau, out=self._buffer)
        scores = self._buffer.sub_(self._buffer.amax(1, keepdim=True))
        own = scores.gather(1, self.labels)
        totals = scores.exp_().sum(1, keepdim=True)
        probabilities = scores.div_(totals)
        mean, log_prior = probabilities.mean(0), bias.log_softmax(0)
        prior, uniform = log_prior.exp(), 1 / len(bias)
        objective = (totals.log() - own).mean() + self.weight * (math.log(uniform) - log_prior.mean())
        gradient = self.frequencies - mean + self.weight * (prior - uniform)
        return _Point(objective, gradient, probabilities, mean, prior)

    def newton_step(self, point: _Point) -> torch.Tensor:
        """Solve Hessian @ step = -gradient by conjugate gradients: two products with [N, C] an iteration,
        where the Hessian itself would take C of them. It is the Laplacian of the graph of confused classes,
        and its diagonal is a good preconditioner.
        """
        _, gradient, p, mean, prior = point
        floor = 1e-12 * self.frequencies  # a class whose probabilities are all 0 or 1 has no curvature
        diagonal = mean - torch.linalg.vector_norm(p, dim=0) ** 2 / len(p) + self.weight * prior * (1 - prior)
        diagonal = floor + diagonal.clamp(min=0)

        def hessian(v):
            likelihood = mean * v - (p @ v) @ p / len(p)
            return likelihood + floor * v + self.weight * prior * (v - prior @ v)

        step, residual = torch.zeros_like(gradient), -gradient
        direction = residual / diagonal
        size = first = residual @ direction
        for _ in range(200):
            product = hessian(direction)
            curvature = direction @ product
            if not curvature > 0:
                break
            step = step + size / curvature * direction
            residual = residual - size / curvature * product
            scaled = residual / diagonal
            last, size = size, residual @ scaled
            if size < 1e-4 * first:
                break
            direction = scaled + size / last * direction
        step = step - step.mean()
        return step if gradient @ step < 0 else -gradient / self.frequencies


def _solve(problem: _BiasProblem) -> tuple[torch.Tensor, _Point, bool]:
    """Newton's method. Very spread logits are first softened by a temperature tau that falls to 1: at a
    scale of 100 the objective is nearly piecewise linear, and Newton steps from afar lead nowhere.
    """
    bias = torch.zeros_like(problem.frequencies)
    tau = max(1.0, float(problem.logits.std(correction=0)) / 8)
    while tau > 1:
        bias, _ = _descend(problem, bias, tau, 0.01 * problem.frequencies)
        tau, last = max(1.0, tau / 4), tau
        bias = bias * (last / tau)
    tolerance = 1e-10 * max(1.0, problem.weight)
    bias, point = _descend(problem, bias, 1.0, tolerance)
    return bias, point, bool((point.gradient.abs() <= tolerance).all())


def _descend(problem: _BiasProblem, bias, tau: float, tolerance) -> tuple[torch.Tensor, _Point]:
    """Newton steps with backtracking until every |gradient| is within its tolerance."""
    reach = 4.0  # how far, in nats, a step may move a class: beyond a few the second order means little
    point = problem.at(bias, tau)
    while (point.gradient.abs() > tolerance).any() and problem.passes < _MAX_PASSES:
        step = problem.newton_step(point)
        longest, slope = float(step.abs().max()), float(point.gradient @ step)
        objective = float(point.objective)
        rounding = 1e-14 * (1 + abs(objective))
        scale = full = min(1.0, reach / longest)
        point = problem.at(bias + scale * step, tau)
        while point.objective > objective + 1e-4 * scale * slope + rounding and problem.passes < _MAX_PASSES:
            scale *= 0.3
            point = problem.at(bias + scale * step, tau)
        reach = max(1.0, scale * longest * (4 if scale == full else 1))
        bias = bias + scale * step
    return bias, point


# --- priors in files -------------------------------------------------------------------------------


def read_prior(path, classes: Sequence[str] | int) -> torch.Tensor:
    """log q ``[C]`` in float32 from a file of probabilities or counts, which are normalised.

    ``.json`` (a list, or an object whose "q" is one), ``.npy``, ``.pt`` (a tensor) and ``.csv`` (a column) hold
    them in class order; a ``.csv`` of ``name,value`` lines may be in any order. Pickles are refused.

    Args:
        classes: the class names in label order, or just their number.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another format, another number of classes, or a value that is not finite and positive.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise ValueError(f"the prior '{path}' must be a {', '.join(_READERS)} file; other formats are not read")
    if not path.is_file():
        raise FileNotFoundError(f"no prior file '{path}'")
    try:
        values = np.asarray(_READERS[path.suffix](path, classes), dtype=np.float64)
    except (ValueError, TypeError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"the prior '{path}' cannot be read: {reason}") from None
    count = classes if isinstance(classes, int) else len(classes)
    if values.shape != (count,):
        raise ValueError(f"the prior '{path}' has shape {list(values.shape)}; expected one value for {count} classes")
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        raise ValueError(f"the prior '{path}' must be finite and above 0; class {bad[0]} has {values[bad[0]]}")
    return torch.from_numpy(np.log(values / values.sum())).float()


def _read_json(path: Path, classes):
    content = read_json(path)
    return content["q"] if isinstance(content, dict) and "q" in content else content


def _read_csv(path: Path, classes):
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row]
    if all(len(row) == 1 for row in rows):
        return [float(row[0]) for row in rows]
    if not all(len(row) == 2 for row in rows):
        raise ValueError("expected lines of 'value' or of 'name,value'")
    if isinstance(classes, int):
        return [float(value) for _, value in rows]
    values = {name: float(value) for name, value in rows}
    if len(values) < len(rows) or values.keys() != set(classes):
        odd = [name for name, _ in rows if name not in set(classes)] or [n for n in classes if n not in values]
        raise ValueError(f"its names must be the dataset's classes, once each; see {odd[:1] or 'its repeated names'}")
    return [values[name] for name in classes]


_READERS = {
    ".json": _read_json,
    ".npy": lambda path, classes: np.load(path, allow_pickle=False),
    ".pt": lambda path, classes: torch.load(path, map_location="cpu", weights_only=True).detach().double().numpy(),
    ".csv": _read_csv,
}
