"""Prediction by a fitted GLA, in blocks of rows, so that temporaries need little memory."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from unskew.debias._fitted import FittedGLA
from unskew.debias._softmax import DEVICE_BLOCK
from unskew.debias._streamed import Source, is_source
from unskew.debias._streamed_scan import (
    LogProbabilities,
    check_block,
    check_shape,
    load,
    loads,
    recognise_sources,
    scan,
)
from unskew.debias._validation import (
    Array,
    check_finite,
    check_same_shape,
    log_probabilities,
    to_kind,
    to_logits,
    to_prior,
    uses_numpy,
)
from unskew.debias.combination import Combination, combine_logits
from unskew.debias.prior import estimate
from unskew.debias.transport import transport_offset
from unskew.utils.blocks import in_blocks, row_blocks

logger = logging.getLogger("unskew")

PARTS = ("zs", "ft", "ensemble", "debiased", "gla")

BLOCK = 2**20  # elements of a block of rows: ten temporaries take 40 megabytes in float32


def blocks(logits: Tensor | Source) -> list[slice]:
    """Return the rows of ``[N, C]`` as slices."""
    samples, classes = logits.shape
    if not isinstance(logits, Tensor):
        return row_blocks(samples, 1, logits.block_rows)
    return row_blocks(samples, classes, BLOCK if logits.device.type == "cpu" else DEVICE_BLOCK)


class PredictingGLA(FittedGLA):
    """A fitted GLA with its methods of prediction; see `unskew.debias.GLA` for the arguments."""

    prior: Any
    combine: str

    @property
    def _estimates_on_prediction(self) -> bool:
        return isinstance(self.prior, str) and self.prior == "unlabelled"

    @property
    def transductive(self) -> bool:
        """True if the prediction of an image depends on the other images of the call."""
        return self._estimates_on_prediction or self.combine == "otter"

    def parts(
        self,
        zs: Array,
        ft: Array | None = None,
        *,
        log_target: Array | None = None,
        names: Sequence[str] = (),
    ) -> dict[str, Array]:
        """Return the logits ``[N, C]`` of each part by name; ``names`` restricts the parts.

        ``zs`` and ``ft`` are the calibrated halves, ``ensemble`` is their sum, ``debiased`` is ``zs`` minus log q (with
        ``otter``, minus the offset of its transport), and ``gla`` is `decision_function`. Without ``ft`` there are only
        ``zs`` and ``debiased``.
        """
        numpy = uses_numpy(zs=zs, ft=ft, log_target=log_target)
        scores = Scores(self, zs, ft, log_target, names or (PARTS if ft is not None else ("zs", "debiased")))
        return {name: to_kind(logits, numpy) for name, logits in scores.whole().items()}

    def log_q_for(self, zs: Array) -> Array:
        """Return the log q ``[C]`` that predictions of zero-shot logits ``[N, C]`` subtract.

        It is ``log_q_``, and with the prior ``unlabelled`` an estimate on these images.
        """
        return to_kind(Scores(self, zs, None, None, ("debiased",), transport=False).log_q, uses_numpy(zs=zs))

    def fitted_logits(self, zs: Tensor, ft: Tensor) -> Tensor:
        """Return the logits ``[N, C]`` for a uniform target by the fitted numbers alone, without transport."""
        scores = Scores(self, zs, ft, None, ("gla",), transport=False, log_q=self.log_q_)
        return scores.whole()["gla"]

    def decision_function(
        self, zs: Array | Source, ft: Array | Source | None = None, *, log_target: Array | None = None
    ) -> Array:
        """Return GLA's logits ``[N, C]``.

        Args:
            zs: ``[N, C]``, zero-shot logits; with ``unlabelled`` and ``otter``, of all images to predict. Sources are
                read block by block; the results are arrays.
            ft: ``[N, C]``, fine-tuned logits; without them the result is ``zs/T_zs - log q``, or with ``otter``
                ``zs/T_zs`` minus the offset of its transport.
            log_target: ``[C]``, log prior of the images to predict; uniform if omitted.

        Raises:
            ValueError: Not fitted; shapes that do not fit; logits that are not finite; mixed kinds of arrays.
        """
        return self._decided(zs, ft, log_target, lambda logits: logits)

    def predict_proba(
        self, zs: Array | Source, ft: Array | Source | None = None, *, log_target: Array | None = None
    ) -> Array:
        """Return class probabilities ``[N, C]``; the arguments are those of `decision_function`."""
        return self._decided(zs, ft, log_target, lambda logits: logits.softmax(1))

    def predict(
        self, zs: Array | Source, ft: Array | Source | None = None, *, log_target: Array | None = None
    ) -> Array:
        """Return labels ``[N]``; the arguments are those of `decision_function`."""
        return self._decided(zs, ft, log_target, lambda logits: logits.argmax(1))

    def forward(self, zs: Tensor, ft: Tensor | None = None) -> Tensor:
        """Return `decision_function`."""
        return self.decision_function(zs, ft)

    def _decided(self, zs: Any, ft: Any, log_target: Any, function: Callable[[Tensor], Tensor]) -> Any:
        """Return a function of the rows of `decision_function`."""
        numpy = uses_numpy(zs=zs, ft=ft, log_target=log_target)
        name = "debiased" if ft is None else "gla"
        scores = Scores(self, zs, ft, log_target, (name,))
        moved = ft is None and scores.target is not None and self.combine != "otter"

        def decide(rows: slice) -> dict[str, Tensor]:
            logits = scores[rows][name]
            if moved:
                logits = logits + to_prior(log_target, "log_target", self.n_classes_, logits)
            return {name: function(logits)}

        return to_kind(in_blocks(decide, blocks(scores.logits))[name], numpy)


class Scores:
    """The parts of a fitted GLA for logits ``[N, C]`` of both halves, computed for the rows that are requested.

    Attributes:
        logits: ``[N, C]``, of the zero-shot half, as they are given.
        target: ``[C]``, log target, or None.
        log_q: ``[C]``, subtracted from the zero-shot half.
    """

    def __init__(
        self,
        gla: PredictingGLA,
        zs: Any,
        ft: Any,
        log_target: Any,
        names: Sequence[str] = PARTS,
        *,
        transport: bool = True,
        log_q: Tensor | None = None,
    ) -> None:
        """Check the logits, and compute what depends on all rows.

        Args:
            gla: The estimator.
            zs: Zero-shot logits ``[N, C]``.
            ft: Fine-tuned logits ``[N, C]``, or None.
            log_target: ``[C]``, or None.
            names: The parts of `PARTS` to compute.
            transport: Whether ``otter`` transports the logits.
            log_q: ``[C]``; if omitted, that of the estimator or, with ``unlabelled``, of these logits.
        """
        self._gla, self._names = gla, names
        self.logits: Any = _opened(zs)
        self._zs, self._ft = _Half(gla, "zs", self.logits), None
        if ft is not None:
            if gla.ft_temperature_.isnan():
                raise ValueError("only the zero-shot half is fitted: pass ft to fit, or omit it here")
            finetuned = _opened(ft)
            self._ft = _Half(gla, "ft", finetuned)
            check_same_shape(self.logits, finetuned)
        device = self.logits.device
        self.target = None if log_target is None else to_prior(log_target, "log_target", gla.n_classes_, device)
        self.log_q = (self._estimate() if log_q is None else log_q).to(device)
        self._offsets: dict[str, Tensor] = {}
        self._transported = transport and gla.combine == "otter"
        if self._transported and is_source(self.logits):
            raise ValueError("combine='otter' needs all logits in memory: pass arrays, or combine with map")
        if self._transported:  # the offsets are of the logits without them
            self._names = tuple(name for name in names if name in ("debiased", "gla"))
            whole = self.whole()
            self._offsets, self._names = {name: self._offset(whole[name]) for name in self._names}, names

    def _estimate(self) -> Tensor:
        if not self._gla._estimates_on_prediction:
            return self._gla.log_q_
        zs: Any = self._zs.scanned() if is_source(self.logits) else None
        if zs is None:
            zs = in_blocks(lambda rows: {"zs": self._zs[rows]}, blocks(self.logits))["zs"]
        found = self._gla.prediction_prior_ = estimate(zs, None, "unlabelled")
        log_q = found.log_q
        ratio = float((log_q.max() - log_q.min()).exp())
        logger.info(
            f"class bias of {len(zs):,} images to predict, unlabelled, assuming a uniform class frequency: "
            f"max/min {ratio:.3g}"
        )
        return log_q

    def _offset(self, logits: Tensor) -> Tensor:
        logger.info(f"optimal transport of {len(logits):,} images, unlabelled, to the target class frequency")
        return transport_offset(logits, self.target)

    def __getitem__(self, rows: slice | Tensor) -> dict[str, Tensor]:
        """Return the parts ``[n, C]`` of some rows by name."""
        zs = self._zs[rows]
        parts = {"zs": zs}
        if "debiased" in self._names:
            parts["debiased"] = zs if self._transported else (zs - self.log_q).to(zs.dtype)
        if self._ft is not None:
            ft = parts["ft"] = self._ft[rows]
            if "ensemble" in self._names:
                parts["ensemble"] = ft + zs
            if "gla" in self._names:
                parts["gla"] = self._combined(zs, ft)
        parts |= {name: parts[name] - offset for name, offset in self._offsets.items()}
        return {name: parts[name] for name in self._names}

    def _combined(self, zs: Tensor, ft: Tensor) -> Tensor:
        """Return the weighted sum of both calibrated halves."""
        gla, target = self._gla, None if self._transported else self.target
        combination = Combination(*(gla._number(f"{name}_", zs) for name in Combination._fields))
        logits = combine_logits(zs, ft, self.log_q, combination, gla.log_p_.to(zs.device), target)
        return logits.to(torch.promote_types(zs.dtype, ft.dtype))

    def whole(self) -> dict[str, Tensor]:
        """Return the parts ``[N, C]`` of all rows by name."""
        return in_blocks(self.__getitem__, blocks(self.logits))


def _opened(logits: Any) -> Any:
    """Return logits as a tensor, or as a source if they are too large to be loaded."""
    if not is_source(logits):
        return to_logits(logits)
    check_shape(logits)
    return load(logits) if loads(logits) else logits


class _Half:
    """Calibrated logits of one half for the rows that are requested, at least in float32."""

    def __init__(self, gla: FittedGLA, name: str, logits: Any) -> None:
        gla._check_fitted()
        if not is_source(logits):
            check_finite(logits)
        if logits.shape[1] != gla.n_classes_:
            raise ValueError(f"{name} has {logits.shape[1]} classes; GLA was fitted on {gla.n_classes_}")
        self._logits = logits
        self._least = recognise_sources({name: logits})[name] if is_source(logits) else gla._least_of(logits, name)
        self._temperature = gla._number(f"{name}_temperature_", logits)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        logits = self._logits[rows]
        if isinstance(rows, slice) and is_source(self._logits):
            check_block(self._logits, rows, logits)
        return log_probabilities(logits, self._least) / self._temperature

    def scanned(self) -> Any:
        """Return a source scanned, without labels."""
        source = LogProbabilities(self._logits, self._least) if self._least else self._logits
        return scan(source).divided(self._temperature)
