"""The command `unskew adjust`: GLA on saved logits, with a table of accuracies.

The labels of the scored samples never fit the numbers that adjust them: these come from a validation set or by
cross-fitting. Large files are read block by block, see `unskew.debias.samples`.
"""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unskew.cli.pools import open_pool
from unskew.cli.scores import Tally, names_of, prior_of, stream, table_rows
from unskew.debias.cross_fit import FOLDS, cross_fit, cross_scores, fit_halves
from unskew.debias.gla import GLA
from unskew.debias.io import read_prior
from unskew.debias.samples import Sample, Spec, files_of, read_sample
from unskew.debias.sources import LOGIT_SCALE
from unskew.runs import wiseft
from unskew.utils.files import write_atomically
from unskew.utils.tensor_files import Blocks, write_large_safetensors, write_safetensors


@dataclass(frozen=True)
class Request:
    """Arguments of `unskew adjust`; logits and labels are specs of `unskew.debias.samples.read_sample`.

    Attributes:
        zeroshot: Zero-shot logits of the samples to adjust.
        finetuned: Fine-tuned logits of the same samples; empty: the zero-shot half alone.
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
        out: A .safetensors file for the adjusted ``logits`` and ``log_q``, with the temperatures as metadata.
        logit_scale: Scale of features and a classifier.
        jobs: Processes among which the passes over large files are spread; None: 1, or all CPUs of Ray.
        launcher: ``local`` or ``ray``, where these processes run.

    Raises:
        ValueError: Contradictory or missing flags; ``out`` cannot be written.
    """

    zeroshot: Spec
    finetuned: Spec = ""
    labels: Spec = ""
    val: tuple[Spec, ...] = ()
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
    logit_scale: float = LOGIT_SCALE
    jobs: int | None = None
    launcher: str = "local"

    def __post_init__(self) -> None:
        if self.val and [bool(spec) for spec in self.val] != [True, bool(self.finetuned), True]:
            finetuned = ", --val-finetuned" if self.finetuned else ""
            raise ValueError(f"--val-zeroshot{finetuned} and --val-labels belong together: pass all or none")
        if not self.finetuned and (self.train_counts or self.checkpoints or self.combine != "map"):
            raise ValueError("--train-counts, --checkpoints and --combine need --finetuned: pass it, or omit them")
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
        if self.jobs is not None and self.jobs < 1:
            raise ValueError(f"--jobs must be at least 1 (got {self.jobs})")

    @property
    def fits_on_labels(self) -> bool:
        """True if there are labels to fit on."""
        return bool(self.val or self.labels)


def _check_out(path: Path, inputs: Sequence[Spec]) -> None:
    folder = next(parent for parent in path.absolute().parents if parent.exists())  # the others can be created
    if path.suffix != ".safetensors" or path.is_dir():
        raise ValueError(f"--out '{path}' must be a .safetensors file")
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ValueError(f"--out '{path}' cannot be written: '{folder}' is not a writable folder")
    if path.exists() and any(file.samefile(path) for spec in filter(None, inputs) for file in files_of(spec)):
        raise ValueError(f"--out '{path}' is one of the files to read: choose another name")


def run(request: Request) -> str:
    """Adjust the logits, write ``request.out`` and return the text to print.

    Raises:
        FileNotFoundError: A file is missing; nothing is written.
        ValueError: A file is invalid or does not fit the others; nothing is written.
    """
    sample, held_out = _read(request)
    samples, classes = sample.zs.shape
    log_target = read_prior(request.target, classes) if request.target else None
    gla = _estimator(request, classes)
    tally = Tally(sample.labels, classes) if sample.labels is not None else None
    wiseft_row, note = _wiseft_row(request, sample) if request.checkpoints else ({}, [])
    crossed = bool(request.labels and not request.val and _fits_something(gla))

    with open_pool(request.launcher, request.jobs) as pool:
        # With cross-fitting this fit is for display (T, q, the combination and the thirds of q); the folds start there.
        fit_halves(gla, *held_out, pool=pool)
        plan = []
        if crossed and sample.labels is not None:
            plan = cross_fit(gla, sample.zs, sample.ft, sample.labels, start=gla, pool=pool)
        shown = copy.deepcopy(gla)
        shown.log_q_ = prior_of(gla, sample.zs)
        shown.converged_ = gla.converged_ and all(fitted.converged_ for _, fitted in plan)
        basis = "cross-fitted" if crossed else f"from {len(held_out.zs):,} val samples"
        lines = [f"{samples:,} samples, {classes} classes", *_origins(request, shown, basis), *note]
        if crossed:
            lines.append(
                f"cross-fitted: each of {FOLDS} folds is adjusted by a fit on the other folds; "
                "T, q and the combination above are fitted on all samples"
            )

        def facts() -> dict[str, str]:  # of the file, when all samples are scored
            if tally is not None and sample.labels is not None:
                for name, predicted in wiseft_row.items():
                    tally.add(name, predicted, sample.labels)
                lines.extend(["", tally.table(shown.log_q_)])
            return _facts(shown, lines)

        if sample.streamed:
            fits = [fitted for _, fitted in plan] or [gla]
            blocks = stream(fits, sample, log_target, tally, keep=bool(request.out), pool=pool)
            _write_blocks(request, blocks, sample, shown, facts)
        else:
            plan = plan or [(torch.ones(samples, dtype=torch.bool), gla)]
            _write(request, _apply(plan, sample, log_target, tally, request), shown, facts())
    if request.out:
        name = "GLA's" if request.finetuned else "The adjusted"
        lines += ["", f"{name} logits [{samples}, {classes}] and log_q [{classes}] are in '{request.out}'"]
    return "\n".join(lines)


def _read(request: Request) -> tuple[Sample, Sample]:
    """Return the samples to adjust and those to fit on, which are the same without ``request.val``."""
    sample = held_out = read_sample(request.zeroshot, request.finetuned, request.labels, scale=request.logit_scale)
    if request.val:
        zeroshot, finetuned, labels = request.val
        held_out = read_sample(zeroshot, finetuned, labels, "--val-", request.logit_scale)
    classes, val_classes = sample.zs.shape[1], held_out.zs.shape[1]
    if classes != val_classes:
        raise ValueError(f"--val-zeroshot has {val_classes} classes and --zeroshot {classes}; they must agree")
    if sample.streamed and request.combine == "otter":
        raise ValueError("--combine otter needs all logits in memory: choose another combination for large files")
    return sample, held_out


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
    plan: Sequence[tuple[Tensor, GLA]], sample: Sample, log_target: Tensor | None, tally: Tally | None, request: Request
) -> Tensor | None:
    """Count the rows of the table in ``tally``; return the adjusted logits ``[N, C]`` for ``request.out``.

    Of the other logits only a block is in memory.
    """
    logits: Tensor | None = None
    for rows, parts in cross_scores(plan, sample.zs, sample.ft, log_target, names_of(sample)):
        found = table_rows(parts, log_target, transported=request.combine == "otter")
        if tally is not None and sample.labels is not None:
            for name, scores in found.items():
                tally.add(name, scores.argmax(1), sample.labels[rows])
        if request.out:
            *_, adjusted = found.values()
            logits = adjusted.new_empty(sample.zs.shape) if logits is None else logits
            logits[rows] = adjusted
    return logits


# --- text and files ------------------------------------------------------------------------------------


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


def _facts(gla: GLA, lines: Sequence[str]) -> dict[str, str]:
    """Return the metadata of the written file."""
    names = ("rho", "ft_weight", "zs_weight")
    return {
        "zeroshot_temperature": repr(float(gla.zs_temperature_)),
        "finetuned_temperature": repr(float(gla.ft_temperature_)),
        **{name: repr(float(getattr(gla, f"{name}_"))) for name in names},
        "description": "\n".join(lines),
    }


def _write(request: Request, logits: Tensor | None, gla: GLA, facts: dict[str, str]) -> None:
    if logits is not None:
        path = Path(request.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"logits": logits, "log_q": gla.log_q_}
        write_atomically(path, lambda file: write_safetensors(file, tensors, facts))


def _write_blocks(
    request: Request, blocks: Iterator[Tensor], sample: Sample, gla: GLA, facts: Callable[[], dict[str, str]]
) -> None:
    """Score the samples, and write the blocks as they come."""
    if not request.out:
        for _ in blocks:
            pass
        facts()
        return
    path = Path(request.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype = sample.zs.dtype if sample.ft is None else torch.promote_types(sample.zs.dtype, sample.ft.dtype)
    tensors: dict[str, Tensor | Blocks] = {"logits": Blocks(sample.zs.shape, dtype, blocks), "log_q": gla.log_q_}
    write_atomically(path, lambda file: write_large_safetensors(file, tensors, facts))
