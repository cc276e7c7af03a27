"""The command `unskew adjust`: GLA on saved logits, with a table of accuracies.

The labels of the scored samples never fit the numbers that adjust them: these come from a validation set or by
cross-fitting.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor

from unskew.debias.cross_fit import FOLDS, cross_fit, cross_scores
from unskew.debias.gla import GLA
from unskew.debias.io import Sample, read_prior, read_sample, split_spec
from unskew.debias.metrics import group_accuracies, prior_groups
from unskew.runs import wiseft
from unskew.utils.files import write_atomically
from unskew.utils.tensor_files import write_safetensors


@dataclass(frozen=True)
class Request:
    """Arguments of `unskew adjust`; a file of logits or labels is a spec of `read_tensor`.

    Attributes:
        zeroshot: Zero-shot logits of the samples to adjust.
        finetuned: Fine-tuned logits of the same samples.
        labels: Their labels, for the table, and for cross-fitting without ``val``. Empty: no table.
        val: Zero-shot logits, fine-tuned logits and labels of a validation set; empty: none.
        prior: A file of q for `read_prior`, instead of an estimate.
        train_counts: A file of training counts; their log p is subtracted.
        target: A file of the class frequencies to predict for; empty: uniform.
        temperature: As in `GLA`; empty: map.
        method: As ``prior`` in `GLA`; empty: map.
        strength: As in `GLA`; None: the default.
        combine: As in `GLA`.
        checkpoints: Two checkpoints for `wiseft.predict_test`, which add a row to the table.
        alpha: Weight of the second checkpoint; None: 0.5.
        out: A .safetensors file for GLA's ``logits`` and ``log_q``, with the temperatures as metadata.

    Raises:
        ValueError: Contradictory or missing flags; ``out`` cannot be written.
    """

    zeroshot: str
    finetuned: str
    labels: str = ""
    val: tuple[str, ...] = ()
    prior: str = ""
    train_counts: str = ""
    target: str = ""
    temperature: str = ""
    method: str = ""
    strength: float | str | None = None
    combine: str = "map"
    checkpoints: tuple[str, ...] = ()
    alpha: float | None = None
    out: str = ""

    def __post_init__(self) -> None:
        if self.val and not all(self.val):
            raise ValueError("--val-zeroshot, --val-finetuned and --val-labels belong together: pass all or none")
        if self.prior and (self.method or self.strength is not None):
            raise ValueError("--prior replaces the estimate: omit --method and --strength, or omit --prior")
        if self.temperature not in ("", "none") and not self.fits_on_labels:
            raise ValueError(
                f"--temperature {self.temperature} needs labels: pass --labels or the three --val-... files"
            )
        if self.method in ("convex", "released") and not self.fits_on_labels:
            raise ValueError(f"--method {self.method} needs labels: pass --labels, or choose map, em or eigen")
        if self.alpha is not None and not self.checkpoints:
            raise ValueError("--alpha is the weight of the second of two --checkpoints: pass both, or omit --alpha")
        if self.checkpoints and not self.labels:
            raise ValueError("--checkpoints adds a row of accuracies, which needs --labels")
        if self.out:
            _check_out(Path(self.out), [self.zeroshot, self.finetuned, self.labels, *self.val])

    @property
    def fits_on_labels(self) -> bool:
        """True if there are labels to fit on."""
        return bool(self.val or self.labels)


def _check_out(path: Path, inputs: Sequence[str]) -> None:
    folder = next(parent for parent in path.absolute().parents if parent.exists())  # the others can be created
    if path.suffix != ".safetensors" or path.is_dir():
        raise ValueError(f"--out '{path}' must be a .safetensors file")
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ValueError(f"--out '{path}' cannot be written: '{folder}' is not a writable folder")
    sources = [split_spec(spec)[0] for spec in inputs]
    if path.exists() and any(source.exists() and source.samefile(path) for source in sources):
        raise ValueError(f"--out '{path}' is one of the files to read: choose another name")


def run(request: Request) -> str:
    """Adjust the logits, write ``request.out`` and return the text to print.

    Raises:
        FileNotFoundError: A file is missing; nothing is written.
        ValueError: A file is invalid or does not fit the others; nothing is written.
    """
    sample = read_sample(request.zeroshot, request.finetuned, request.labels)
    source = sample
    if request.val:
        val_zs, val_ft, val_labels = request.val
        source = read_sample(val_zs, val_ft, val_labels, prefix="--val-")
    classes = sample.zs.shape[1]
    if source.zs.shape[1] != classes:
        raise ValueError(f"--val-zeroshot has {source.zs.shape[1]} classes and --zeroshot {classes}; they must agree")
    log_target = read_prior(request.target, classes) if request.target else None
    gla = _estimator(request, classes)
    wiseft_row, note = _wiseft_row(request, sample) if request.checkpoints else ({}, [])

    # With cross-fitting this fit is for display (T, q, the combination and the thirds of q), and the folds start there.
    gla.fit_zeroshot(source.zs, source.labels).fit_finetuned(source.zs, source.ft, source.labels)
    crossed = bool(request.labels and not request.val and _fits_something(gla))
    plan = []
    if crossed and sample.labels is not None:
        plan = cross_fit(gla, sample.zs, sample.ft, sample.labels, start=gla)
    predicted, logits = _apply(
        plan or [(torch.ones(len(sample.zs), dtype=torch.bool), gla)], sample, log_target, request
    )
    gla.log_q_ = gla.log_q_for(sample.zs)
    gla.converged_ = gla.converged_ and all(fitted.converged_ for _, fitted in plan)

    basis = "cross-fitted" if crossed else f"from {len(source.zs):,} val samples"
    lines = [f"{len(sample.zs):,} samples, {classes} classes", *_origins(request, gla, basis), *note]
    if crossed:
        lines.append(
            f"cross-fitted: each of {FOLDS} folds is adjusted by a fit on the other folds; "
            "T, q and the combination above are fitted on all samples"
        )
    if sample.labels is not None:
        lines += ["", table(predicted | wiseft_row, sample.labels, gla.log_q_)]
    if logits is not None:
        _write(Path(request.out), logits, gla, lines)
        lines += ["", f"GLA's logits [{len(sample.zs)}, {classes}] and log_q [{classes}] are in '{request.out}'"]
    return "\n".join(lines)


def _estimator(request: Request, classes: int) -> GLA:
    gla = GLA(
        prior=read_prior(request.prior, classes) if request.prior else request.method or "map",
        strength=request.strength,
        combine=request.combine,
        temperature=request.temperature or "map",
        logit_scale="unknown",
    )
    if request.train_counts:
        gla.log_p_ = read_prior(request.train_counts, classes)
    return gla


def _fits_something(gla: GLA) -> bool:
    return isinstance(gla.prior, str) or gla.temperature != "none" or gla.combine != "sum"


def _apply(
    plan: Sequence[tuple[Tensor, GLA]], sample: Sample, log_target: Tensor | None, request: Request
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return the predictions ``[N]`` of each row of the table, and GLA's logits ``[N, C]`` for ``request.out``.

    Of the other logits only a block is in memory.
    """
    predicted: dict[str, Tensor] = {}
    logits: Tensor | None = None
    for rows, parts in cross_scores(plan, sample.zs, sample.ft, log_target):
        if sample.labels is not None:
            for name, scores in _rows(parts, log_target, transported=request.combine == "otter").items():
                predicted.setdefault(name, torch.empty_like(sample.labels))[rows] = scores.argmax(1)
        if request.out:
            logits = parts["gla"].new_empty(sample.zs.shape) if logits is None else logits
            logits[rows] = parts["gla"]
    return predicted, logits


# --- text and files ------------------------------------------------------------------------------------


def _rows(parts: Mapping[str, Tensor], log_target: Tensor | None, transported: bool) -> dict[str, Tensor]:
    """Return the logits ``[n, C]`` of each row of the table."""
    name, debiased = "zero-shot - log q", parts["debiased"]
    if transported:
        name = "zero-shot, transported"
    elif log_target is not None:
        name, debiased = "zero-shot - log q + log target", debiased + log_target.to(debiased)
    return {
        "zero-shot": parts["zs"],
        name: debiased,
        "fine-tuned": parts["ft"],
        "ensemble": parts["ensemble"],
        "GLA": parts["gla"],
    }


def table(predicted: Mapping[str, Tensor], labels: Tensor, log_q: Tensor) -> str:
    """Format the accuracy in percent of predictions ``[N]``: over all samples, and the class mean by thirds of q."""
    groups = prior_groups(log_q)
    lines = []
    for name, classes in predicted.items():
        correct = classes == labels
        by_group = group_accuracies(correct, labels, groups)
        values = [100 * correct.double().mean().item(), *map(by_group.get, ("p_many", "p_medium", "p_few"))]
        lines.append([name, *("" if value is None else f"{value:.1f}" for value in values)])
    headers = ["", "accuracy", "head", "medium", "tail"]
    return tabulate(lines, headers, "github", disable_numparse=True, colalign=("left", *["right"] * 4))


def _origins(request: Request, gla: GLA, basis: str) -> list[str]:
    """Return the lines on the temperatures, the prior and the combination, and their sources."""
    temperatures = "not fitted" if gla.temperature == "none" else f"{gla.temperature}, {basis}"
    if not request.fits_on_labels:
        temperatures = "no labels to fit them on"
        assumption = "its predictions are right" if gla.prior == "eigen" else "it is balanced over the classes"
        basis = f"from --zeroshot, assuming that {assumption}"
    elif gla.prior == "unlabelled":
        basis = "from --zeroshot without labels, assuming that it is balanced over the classes"
    state = "converged" if gla.converged_ else "NOT converged"
    prior = f"from '{request.prior}'" if request.prior else f"{gla.prior}, {basis}, {state}"
    prior += f"; minus log p of '{request.train_counts}'" if request.train_counts else ""
    prior += f"; plus log target of '{request.target}'" if request.target else ""
    temperature, ratio, combination = gla.summary().splitlines()
    return [f"{temperature} ({temperatures})", f"{ratio.partition(' (')[0]} ({prior})", combination]


def _wiseft_row(request: Request, sample: Sample) -> tuple[dict[str, Tensor], list[str]]:
    """Return the predictions ``[N]`` of the interpolated model by name, or an explanation if its images differ."""
    start, end = request.checkpoints
    alpha = 0.5 if request.alpha is None else request.alpha
    logits, labels = wiseft.predict_test(start, end, alpha)
    name = f"WiSE-FT {alpha:g}"
    if sample.labels is None or not torch.equal(labels, sample.labels):
        return {}, [f"no row {name}: --labels differ from those of the {len(labels):,} test images of its runs"]
    return {name: logits.argmax(1)}, []


def _write(path: Path, logits: Tensor, gla: GLA, lines: Sequence[str]) -> None:
    names = ("rho", "ft_weight", "zs_weight")
    facts = {
        "zeroshot_temperature": repr(float(gla.zs_temperature_)),
        "finetuned_temperature": repr(float(gla.ft_temperature_)),
        **{name: repr(float(getattr(gla, f"{name}_"))) for name in names},
        "description": "\n".join(lines),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"logits": logits, "log_q": gla.log_q_}
    write_atomically(path, lambda file: write_safetensors(file, tensors, facts))
