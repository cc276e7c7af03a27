"""The GLA estimator, Generalized Logit Adjustment (Zhu et al., NeurIPS 2023, arXiv 2310.08106)."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from unskew.debias import temperature as temperatures
from unskew.debias._predicting import PredictingGLA
from unskew.debias._softmax import Selection
from unskew.debias._streamed import Source, is_source
from unskew.debias._streamed_scan import LogProbabilities, Streamed, load, loads, recognise_sources, scan
from unskew.debias._validation import (
    Array,
    check_labels,
    check_logits,
    check_same_shape,
    log_probabilities,
    to_prior,
    to_tensor,
    uses_numpy,
)
from unskew.debias.combination import MAP_PRIOR, SUM, Combination, fit_checked
from unskew.debias.prior import JOINT, METHODS, PriorEstimate, estimate
from unskew.debias.transport import check_installed
from unskew.utils.registry import unknown_name

logger = logging.getLogger("unskew")

# With this many held-out images per class the training images add little to the zero-shot half.
ENOUGH_HELD_OUT = 20

_CHOICES = {
    "combine": ("fitted", "map", "sum", "otter"),
    "temperature": (*temperatures.METHODS, "none"),
    "logit_scale": ("model", "unknown"),
}


class GLA(PredictingGLA):
    """Generalized Logit Adjustment of a zero-shot and a fine-tuned model.

    The logits are ``a (ft/T_ft - log p - rho log q) + b (zs/T_zs - log q) + log target``: q is the label prior of the
    pre-training data, p the label prior of the training images, rho the share of log q that remains in the fine-tuned
    logits; a and b are weights. With rho = 0 and a = b = 1 this is the paper's formula.

    The prior ``unlabelled`` and the combination ``otter`` use the images to predict, without labels: the prediction of
    an image then depends on the other images of the call.

    All arrays of one call are NumPy arrays or all are tensors; the results are of the same kind.

    Args:
        prior: A method of `estimate_log_prior`, or a known log q ``[C]``, for example from `read_prior`. With
            ``unlabelled`` each prediction estimates log q on its images, whose class frequency it assumes to be
            uniform; rho and the weights are fitted with an estimate on the images of the fit.
        strength: Pseudo-samples of the uniform prior, or "cv", as in `estimate_log_prior`; ``map`` and ``unlabelled``
            have none.
        combine: ``fitted`` fits rho, a and b on held-out labels; ``map`` also fits an offset of each class, with
            normal priors on all; ``sum`` is the paper's formula; ``otter`` has the weights of ``map`` and assigns the
            images to predict to the classes by optimal transport to the target class frequency (`transport_offset`),
            with which log q and the other offsets cancel.
        temperature: Method of `fit_temperature`, or ``none`` for temperatures of 1. The prior
            ``map`` fits the temperature of the zero-shot logits itself, and with ``unlabelled`` it is 1 unless the
            logit scale is unknown.
        logit_scale: ``model`` for logits multiplied by the model's logit scale, ``unknown`` for others. It decides
            where ``map`` expects the temperatures: at 1, or where ``confidence`` finds them.

    Attributes:
        zs_temperature_: Temperature of the zero-shot logits.
        ft_temperature_: Temperature of the fine-tuned logits; NaN if only the zero-shot half is fitted.
        log_q_: ``[C]``, log prior of the pre-training data, from the images of the fit.
        log_p_: ``[C]``, log prior of the training images; zeros if balanced or if the loss was logit-adjusted.
        rho_: Share of log q that remains in the fine-tuned logits.
        ft_weight_: Weight a of the fine-tuned half.
        zs_weight_: Weight b of the zero-shot half.
        offset_: ``[C]``, offset that is subtracted from the sum (``combine="map"``); otherwise 0.
        log_q_deviation_: ``[C]``, posterior standard deviation of log q (``map`` and ``unlabelled``); otherwise None.
        prediction_prior_: Estimate on the images of the last prediction (``unlabelled``); otherwise None.
        log_evidence_: Log Bayes factor of a class bias against none, in nats (``prior="map"``); otherwise NaN.
        no_bias_: Posterior probability that there is no class bias (``prior="map"``); otherwise 0.
        method_: Estimator of log q: ``em`` if ``convex`` had no labels, "given" for a known log q.
        converged_: Whether the estimate of log q converged.
        assumes_uniform_: Whether log q was estimated without labels, under a uniform class frequency.

    Examples:
        >>> import numpy as np
        >>> from unskew.debias import GLA
        >>> rng = np.random.default_rng(0)
        >>> y = np.arange(60) % 3
        >>> zs = rng.normal(size=(60, 3)) + 2 * np.eye(3)[y] + np.log([0.7, 0.2, 0.1])
        >>> ft = rng.normal(size=(60, 3)) + 2 * np.eye(3)[y]
        >>> gla = GLA().fit(zs, ft, y)
        >>> gla.predict_proba(zs, ft).shape
        (60, 3)
    """

    def __init__(
        self,
        *,
        prior: Any = "map",
        strength: float | str | None = None,
        combine: str = "map",
        temperature: str = "map",
        logit_scale: str = "model",
    ) -> None:
        super().__init__()
        if isinstance(prior, str):
            if prior not in METHODS:
                raise ValueError(unknown_name("prior method", prior, METHODS))
        else:
            to_prior(prior, "prior", len(prior) if hasattr(prior, "__len__") else 1, torch.device("cpu"))
        if isinstance(prior, str) and prior in JOINT and strength is not None:
            raise ValueError(f"prior '{prior}' has no strength (got {strength!r}): omit it, or choose convex")
        number = isinstance(strength, Real) and math.isfinite(strength) and strength >= 0
        if strength not in ("cv", None) and not number:
            raise ValueError(f"strength must be a number of 0 or more, or 'cv' (got {strength!r})")
        for name, choice in (("combine", combine), ("temperature", temperature), ("logit_scale", logit_scale)):
            if choice not in _CHOICES[name]:
                raise ValueError(f"{name} must be {' or '.join(_CHOICES[name])} (got {choice!r})")
        if combine == "otter":
            check_installed()
        self.prior, self.strength, self.combine = prior, strength, combine
        self.temperature, self.logit_scale = temperature, logit_scale
        self.method_ = prior if isinstance(prior, str) else "given"
        self.converged_, self.assumes_uniform_ = True, False

    # --- fitting ------------------------------------------------------------------------------------

    def fit(
        self,
        zs: Array | Source,
        ft: Array | Source | None,
        y: Array | Sequence[int] | None = None,
        *,
        zs_train: Array | None = None,
        y_train: Array | Sequence[int] | None = None,
        train_counts: Array | Sequence[float] | None = None,
        pool: Any = None,
    ) -> "GLA":
        """Fit the temperatures, log q and the combination.

        Args:
            zs: ``[N, C]``, zero-shot logits of held-out images. It may be a source, which is read block by block, see
                `estimate_log_prior`; ``ft`` must then be a source too.
            ft: ``[N, C]``, fine-tuned logits of the same images; None fits the zero-shot half alone.
            y: ``[N]``, labels of the held-out images. Without labels both temperatures are 1, rho is 0, a and b are
                0.3 and 0.7 (``fitted`` and ``sum``: 1), and the images are assumed to be balanced over the classes
                (``convex`` is then ``em``).
            zs_train: ``[M, C]``, zero-shot logits of the training images. The zero-shot model has not been trained on
                them, so they help to fit its temperature and log q, unless 20 images per class are held out.
            y_train: ``[M]``, their labels.
            train_counts: ``[C]``, training images per class; a class without images counts as one image. Omit it for
                balanced training data, and if the training loss was logit-adjusted.
            pool: Spreads the passes over sources, as in `estimate_log_prior`.

        Raises:
            ValueError: Shapes or labels out of range; logits that are not finite; mixed kinds of arrays.
        """
        uses_numpy(zs=zs, ft=ft, y=y, zs_train=zs_train, y_train=y_train, train_counts=train_counts)
        before = self.__dict__ | {"_buffers": dict(self._buffers)}
        if (zs_train is None) != (y_train is None):
            raise ValueError("zs_train and y_train belong together: pass both or neither")
        sources = {name: half for name, half in (("zs", zs), ("ft", ft)) if is_source(half)}
        if sources and ft is not None and len(sources) == 1:
            raise ValueError(f"{min(sources)} is a source and the other half an array: pass both as sources")
        try:
            if sources and not loads(sources["zs"]):
                return self._fit_sources(sources, y, zs_train, train_counts, pool)
            small: dict[str, Any] = {"zs": zs, "ft": ft} | {name: load(source) for name, source in sources.items()}
            return self._fit(small["zs"], small["ft"], y, zs_train, y_train, train_counts)
        except BaseException:  # a failed fit leaves the estimator as it was
            self.__dict__.update(before)
            raise

    def _fit(self, zs: Any, ft: Any, y: Any, zs_train: Any, y_train: Any, train_counts: Any) -> "GLA":
        zs_held, labels = check_logits(zs, y, None)
        ft_held = None if ft is None else check_logits(ft, None, None)[0]
        if ft_held is not None:
            check_same_shape(zs_held, ft_held)
        classes = zs_held.shape[1]
        halves, labels_fit = {"zs": zs_held} | ({} if ft_held is None else {"ft": ft_held}), labels
        if zs_train is not None and (labels is None or len(labels) < ENOUGH_HELD_OUT * classes):
            halves["zs_train"], labels_fit = check_logits(zs_train, y_train, None)
            if halves["zs_train"].shape[1] != classes:
                raise ValueError(f"zs_train must be [M, C] with C = {classes} (got {list(halves['zs_train'].shape)})")
            labels_fit = labels_fit if labels is None else torch.cat([labels_fit, labels])
        scaled = self.logit_scale == "model" or labels is None  # else the calibration finds any scale
        halves = self._recognised(scaled, **halves)
        zs_held, zs_fit = halves["zs"], halves.get("zs_train", halves["zs"])
        if "zs_train" in halves and labels is not None:
            zs_fit = torch.cat([zs_fit, zs_held])
        self.log_p_ = _log_frequencies(train_counts, classes, zs_held)
        self._fit_zeroshot(zs_fit, labels_fit)
        if "ft" in halves:
            return self._fit_finetuned(zs_held, halves["ft"], labels)
        self._store("ft_temperature_", math.nan)
        return self

    def _fit_sources(self, sources: dict[str, Any], y: Any, zs_train: Any, train_counts: Any, pool: Any) -> "GLA":
        if "ft" in sources:
            check_same_shape(sources["zs"], sources["ft"])
        samples, classes = sources["zs"].shape
        if zs_train is not None and (y is None or samples < ENOUGH_HELD_OUT * classes):
            raise ValueError("zs_train cannot be added to a source: omit it, or pass arrays")
        least = recognise_sources(sources, self.logit_scale == "model" or y is None, pool)
        for name, value in least.items():
            self._store(f"{name}_least_", value)
        halves = {
            name: scan(LogProbabilities(source, least[name]) if least[name] else source, y, pool=pool)
            for name, source in sources.items()
        }
        zs = halves["zs"]
        self.log_p_ = _log_frequencies(train_counts, classes, zs)
        self._fit_zeroshot(zs, zs.labels)
        if "ft" in halves:
            return self._fit_finetuned(zs, halves["ft"], zs.labels)
        self._store("ft_temperature_", math.nan)
        return self

    def fit_zeroshot(self, zs: Tensor, y: Tensor | None, *, start: "GLA | None" = None) -> "GLA":
        """Fit temperature and log q from zero-shot logits ``[N, C]`` and labels ``[N]``; T_ft becomes 1.

        ``start`` is an estimator that was fitted on similar images. The solvers start at its numbers and take fewer
        steps to the same result.
        """
        return self._fit_zeroshot(self._recognised(zs=zs)["zs"], y, start)

    def _fit_zeroshot(self, zs: Tensor | Streamed, y: Tensor | None, start: "GLA | None" = None) -> "GLA":
        fit = self._estimate_prior(zs, y, None if start is None else (float(start.zs_temperature_), start.log_q_))
        log_q = fit.log_q
        self.converged_, self.log_q_deviation_, self.prediction_prior_ = fit.converged, fit.deviation, None
        self.log_evidence_, self.no_bias_ = fit.log_evidence, fit.no_bias
        self._store("zs_temperature_", fit.temperature)
        self.log_q_ = log_q
        if self._buffers["log_p_"] is None or len(self.log_p_) != len(log_q):
            self.log_p_ = _log_frequencies(None, len(log_q), log_q)
        if self.offset_.dim() and len(self.offset_) != len(log_q):
            self.offset_ = self.offset_.new_zeros(len(log_q))
        self._store_combination(1.0, self._prior_combination)
        return self

    @property
    def _prior_combination(self) -> Combination:
        return MAP_PRIOR if self.combine in ("map", "otter") else SUM

    def _estimate_prior(
        self, zs: Tensor | Streamed, y: Tensor | None, start: tuple[float, Tensor] | None
    ) -> PriorEstimate[Tensor]:
        """Return the estimate of log q with the temperature of the zero-shot logits."""
        self.assumes_uniform_ = False
        self.method_ = self.prior if isinstance(self.prior, str) else "given"
        if isinstance(self.prior, str):
            self.assumes_uniform_ = self.prior == "unlabelled" or (y is None and self.prior != "eigen")
            if self.prior == "map":
                return estimate(zs, y, "map", logit_scale=self.logit_scale, start=start)
        known = self._estimates_on_prediction and self.logit_scale == "model"
        temperature = 1.0 if known else self._fit_temperature(zs, y)
        if not isinstance(self.prior, str):
            log_q = to_prior(self.prior, "prior", zs.shape[1], zs.device).clone()
            return PriorEstimate(log_q, True, math.nan, 0, math.nan, temperature)
        self.method_ = "em" if y is None and self.prior == "convex" else self.prior
        near = None if start is None else (1.0, start[1])
        scaled = zs.divided(temperature) if isinstance(zs, Streamed) else zs / temperature
        fit = estimate(scaled, y, self.method_, self.strength, start=near)
        return dataclasses.replace(fit, temperature=temperature)

    def fit_finetuned(self, zs: Tensor, ft: Tensor, y: Tensor | None, *, start: "GLA | None" = None) -> "GLA":
        """Fit the rest on held-out images, given a fitted zero-shot half: T_ft, rho and the weights.

        Args:
            zs: ``[N, C]``, zero-shot logits.
            ft: ``[N, C]``, fine-tuned logits, which contain ``log_p_``.
            y: ``[N]``; without labels T_ft is 1 and the weights are those of their prior, or of the paper's sum.
            start: As in `fit_zeroshot`.
        """
        self._check_fitted()
        if least := self._least_of(zs, "zs"):
            zs = log_probabilities(zs, least)
        return self._fit_finetuned(zs, self._recognised(ft=ft)["ft"], y, start)

    def _fit_finetuned(
        self, zs: Tensor | Streamed, ft: Tensor | Streamed, y: Tensor | None, start: "GLA | None" = None
    ) -> "GLA":
        near = None if start is None else float(start.ft_temperature_)
        self._store_combination(self._fit_temperature(ft, y, near), self._prior_combination)
        if self.combine != "sum" and y is not None:
            if isinstance(zs, Streamed) and isinstance(ft, Streamed):
                zs_half: Selection | Streamed = zs.divided(self.zs_temperature_)
                ft_half: Selection | Streamed = ft.divided(self.ft_temperature_)
            else:
                zs, ft = check_logits(zs, None, None)[0], check_logits(ft, None, None)[0]
                check_same_shape(zs, ft)
                zs_half = Selection(zs, temperature=self.zs_temperature_.to(zs.device))
                ft_half = Selection(ft, temperature=self.ft_temperature_.to(ft.device))
                y = check_labels(y, ft)
            method = "fitted" if self.combine == "fitted" else "map"
            first = None if start is None else start._combination
            combination = fit_checked(zs_half, ft_half, y, self.log_q_, self.log_p_, method, first)
            self._store_combination(float(self.ft_temperature_), combination)
        return self

    def _fit_temperature(self, logits: Tensor | Streamed, labels: Tensor | None, start: float | None = None) -> float:
        if self.temperature == "none" or labels is None:
            return 1.0
        if not isinstance(logits, Streamed):
            logits, labels = check_logits(logits, labels, None)
        known = self.temperature != "map" or self.logit_scale == "model"
        expected = 1.0 if known else temperatures.fit(logits, labels, start=start)
        return temperatures.fit(logits, labels, self.temperature, expected, start)

    # --- text and parameters ------------------------------------------------------------------------

    def summary(self) -> str:
        """Return the temperatures, the prior and the combination as three lines of text."""
        self._check_fitted()
        rho, a, b = (float(number) for number in (self.rho_, self.ft_weight_, self.zs_weight_))
        ft_temperature = float(self.ft_temperature_)
        zs_only = math.isnan(ft_temperature)
        finetuned = "not fitted" if zs_only else f"{ft_temperature:.3g}"
        if self.combine == "otter":
            combination = ("zs/T" if zs_only else f"{a:.2f} ft/T + {b:.2f} zs/T") + ", transported to the target"
        elif zs_only:
            combination = "zs/T - log q"
        else:
            offset = " - offset" if self.offset_.any() else ""
            combination = f"{a:.2f} (ft/T - {rho:.2f} log q) + {b:.2f} (zs/T - log q){offset}"
        state = "converged" if self.converged_ else "NOT converged"
        assumption = ", assuming a uniform class frequency" if self.assumes_uniform_ else ""
        if self._estimates_on_prediction:
            assumption += ", estimated again on the images to predict"
        return "\n".join(
            [
                f"T: zero-shot {float(self.zs_temperature_):.3g}, fine-tuned {finetuned}",
                f"q: {self.bias_summary()} ({self.method_}, {state}{assumption})",
                f"GLA: {combination}",
            ]
        )

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments by name, as scikit-learn's estimators do."""
        return {name: getattr(self, name) for name in ("prior", "strength", "combine", "temperature", "logit_scale")}

    def set_params(self, **params: Any) -> "GLA":
        """Set arguments of the constructor; the next `fit` uses them.

        Raises:
            ValueError: An unknown or invalid argument.
        """
        if unknown := params.keys() - self.get_params().keys():
            raise ValueError(unknown_name("argument of GLA", min(unknown), self.get_params()))
        GLA(**(self.get_params() | params))
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def extra_repr(self) -> str:
        """Return the constructor's arguments."""
        prior = repr(self.prior) if isinstance(self.prior, str) else "log q"
        return f"prior={prior}, strength={self.strength!r}, combine={self.combine!r}, temperature={self.temperature!r}"


def _log_frequencies(counts: Any, classes: int, like: Tensor | Streamed) -> Tensor:
    """Return log p ``[C]`` of class counts; zeros without counts, and for balanced counts, where p cancels."""
    if counts is None:
        return torch.zeros(classes, device=like.device)
    values = to_tensor(counts).to(like.device, torch.float64)
    if values.shape != (classes,) or not (values.isfinite() & (values >= 0)).all():
        raise ValueError(f"train_counts must be {classes} finite numbers of 0 or more (got {values.tolist()})")
    values = torch.where(values == 0, 1, values)
    if len(values.unique()) == 1:
        return torch.zeros(classes, device=like.device)
    return values.log().log_softmax(0).to(torch.promote_types(like.dtype, torch.float32))
