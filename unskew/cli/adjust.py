"""GLA on saved logits: samples -> temperatures and prior -> adjusted logits and a table.

The labels of the samples that are scored never fit what they are scored with: temperatures and prior come from a
validation set, or by cross-fitting.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from tabulate import tabulate
from torch import Tensor

from unskew.debias.gla import (
    FOLDS,
    Fit,
    Recipe,
    apply,
    cross_fit,
    fit,
)
from unskew.debias.io import Sample, read_prior, read_sample
from unskew.debias.metrics import group_accuracies, prior_groups
from unskew.runs import wiseft
from unskew.utils.files import write_atomically


def table(predicted: Mapping[str, Tensor], labels: Tensor, log_q: Tensor) -> str:
    """Accuracy in percent of predictions ``[N]``, over all samples and by thirds of q (mean over their classes)."""
    groups = prior_groups(log_q)
    lines = []
    for name, classes in predicted.items():
        correct = classes == labels
        by_group = group_accuracies(correct, labels, groups)
        values = [100 * correct.double().mean().item(), *map(by_group.get, ("p_many", "p_medium", "p_few"))]
        lines.append([name, *("" if value is None else f"{value:.1f}" for value in values)])
    headers = ["", "accuracy", "head", "medium", "tail"]
    return tabulate(lines, headers, "github", disable_numparse=True, colalign=("left", *["right"] * 4))


# --- the command ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What `unskew adjust` is asked for; a file of logits or labels is a spec of `read_tensor`.

    Attributes:
        zeroshot, finetuned: logits of the samples to adjust.
        labels: theirs; they only score, or cross-fit where there is no ``val``. Empty: no table.
        val: logits and labels of a validation set, in the same order; empty: none.
        prior: a file of q for `read_prior`, in place of an estimate.
        train_counts: a file of training counts, whose log p is subtracted.
        target: a file of the class frequencies to predict for; empty: uniform.
        temperature: of `Recipe`; empty: confidence.
        method: of `Recipe`; empty: convex with labels, em without.
        strength, combine: of `Recipe`.
        checkpoints: two for `wiseft.predict_test`, at ``alpha``: one more row.
        out: a .safetensors file for GLA's ``logits`` and ``log_q``, with the temperatures as metadata.

    Raises:
        ValueError: flags that contradict or miss each other; ``out`` cannot be written.
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
    combine: str = "fitted"
    checkpoints: tuple[str, ...] = ()
    alpha: float = 0.5
    out: str = ""

    def __post_init__(self) -> None:
        if self.val and not all(self.val):
            raise ValueError("--val-zeroshot, --val-finetuned and --val-labels belong together: give all or none")
        if self.prior and (self.method or self.strength is not None):
            raise ValueError("--prior takes the place of an estimate: leave out --method and --strength, or --prior")
        if self.temperature not in ("", "none") and not self.fits_on_labels:
            raise ValueError(f"--temperature {self.temperature} needs labels: give --labels or the three --val-...")
        if self.checkpoints and not self.labels:
            raise ValueError("--checkpoints adds a row of accuracies, which needs --labels")
        if self.out:
            _check_out(Path(self.out))

    @property
    def fits_on_labels(self) -> bool:
        return bool(self.val or self.labels)


def _check_out(path: Path) -> None:
    folder = next(parent for parent in path.absolute().parents if parent.exists())  # the rest can be made
    if path.suffix != ".safetensors" or path.is_dir():
        raise ValueError(f"--out '{path}' must be a .safetensors file")
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ValueError(f"--out '{path}' cannot be written: '{folder}' is no folder that may be written to")


def run(request: Request) -> str:
    """Adjust, and write ``request.out``; returns the text to print.

    Raises:
        FileNotFoundError, ValueError: a file is missing, bad, or does not fit the others; nothing is written.
    """
    sample = read_sample(request.zeroshot, request.finetuned, request.labels)
    source = read_sample(*request.val, prefix="--val-") if request.val else sample
    classes = sample.zs.shape[1]
    if source.zs.shape[1] != classes:
        raise ValueError(f"--val-zeroshot has {source.zs.shape[1]} classes and --zeroshot {classes}; they must agree")
    priors = (request.prior, request.train_counts, request.target)
    log_q, log_p, log_target = (read_prior(path, classes) if path else None for path in priors)
    method = request.method or ("convex" if request.fits_on_labels else "em")
    recipe = Recipe(request.temperature or "confidence", log_q, method, request.strength, request.combine)
    more, note = _wiseft_row(request, sample) if request.checkpoints else ({}, [])

    fitted = fit(source, recipe, log_p)  # across folds this one is only shown: T, q, the combination and q's thirds
    fits_something = log_q is None or recipe.temperature != "none" or recipe.combine == "fitted"
    crossed = bool(request.labels and not request.val and fits_something)
    plan = cross_fit(sample, recipe, log_p) if crossed else [(slice(None), fitted)]
    logits, predicted = apply(sample, plan, log_p, log_target)

    basis = "cross-fitted" if crossed else f"from {len(source.zs):,} val samples"
    fitted = fitted._replace(converged=fitted.converged and all(each.converged for _, each in plan))
    lines = [f"{len(logits):,} samples, {classes} classes", *_origins(request, recipe, fitted, basis), *note]
    if crossed:
        lines.append(
            f"cross-fitted: each of {FOLDS} folds is adjusted by what the others fit; "
            "what is shown of T, q and the combination is of all"
        )
    if sample.labels is not None:
        lines += ["", table({**predicted, **more}, sample.labels, fitted.log_q)]
    if request.out:
        _write(Path(request.out), logits, fitted, lines)
        lines += ["", f"GLA's logits [{len(logits)}, {classes}] and log_q [{classes}] are in '{request.out}'"]
    return "\n".join(lines)


def _origins(request: Request, recipe: Recipe, fitted: Fit, basis: str) -> list[str]:
    """What the temperatures, the prior and the combination are, and where they come from."""
    temperatures = "not fitted" if recipe.temperature == "none" else f"{recipe.temperature}, {basis}"
    if not request.fits_on_labels:
        temperatures = "no labels to fit them on"
        assumption = "its predictions are right" if recipe.method == "eigen" else "it is balanced over the classes"
        basis = f"from --zeroshot itself, assuming that {assumption}"
    state = "converged" if fitted.converged else "NOT converged"
    prior = f"of '{request.prior}'" if request.prior else f"{recipe.method}, {basis}, {state}"
    prior += f"; less log p of '{request.train_counts}'" if request.train_counts else ""
    prior += f"; plus log target of '{request.target}'" if request.target else ""
    spread = (fitted.log_q.max() - fitted.log_q.min()).exp()
    return [
        f"T: zero-shot {fitted.zs_temperature:.3g}, fine-tuned {fitted.ft_temperature:.3g} ({temperatures})",
        f"q: max/min {spread:.3g} ({prior})",
        "GLA: {1:.2f} (ft - {0:.2f} log q) + {2:.2f} (zs - log q)".format(*fitted.combination),
    ]


def _wiseft_row(request: Request, sample: Sample) -> tuple[dict[str, Tensor], list[str]]:
    """The interpolated model's predictions [N] by the name of its row; none, and why, if of other images."""
    logits, labels = wiseft.predict_test(*request.checkpoints, request.alpha)
    name = f"WiSE-FT {request.alpha:g}"
    if not torch.equal(labels, sample.labels):
        return {}, [f"no row {name}: --labels are not those of the {len(labels):,} test images of its runs, in order"]
    return {name: logits.argmax(1)}, []


def _write(path: Path, logits: Tensor, fitted: Fit, lines: Sequence[str]) -> None:
    facts = {
        "zeroshot_temperature": repr(fitted.zs_temperature),
        "finetuned_temperature": repr(fitted.ft_temperature),
        **{name: repr(value) for name, value in fitted.combination._asdict().items()},
        "description": "\n".join(lines),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"logits": logits.contiguous(), "log_q": fitted.log_q.contiguous()}
    write_atomically(path, save(tensors, facts))
