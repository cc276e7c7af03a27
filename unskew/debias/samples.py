"""Two models' logits of the same images and their labels: arrays in memory, or sources if they are large."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unskew.debias._source_labels import read_labels
from unskew.debias._validation import as_logits, check_labels, check_logits
from unskew.debias.io import read_tensor, split_spec
from unskew.debias.sources import LOGIT_SCALE, Source, find_files, is_pattern, open_source, split_features

# Logits in a file of so many bytes are read block by block.
STREAM_FROM = 2**31

# Default keys in a file of several tensors, such as a run's predictions.safetensors.
_KEYS = {"zeroshot": ("zs", "logits"), "finetuned": ("ft", "logits")}

Spec = str | Sequence[str]  # as in `open_source`; "" for none


class Sample(NamedTuple):
    """Two models' logits for the same images; all logits are tensors or all are sources."""

    zs: Any  # [N, C], zero-shot logits
    ft: Any  # [N, C], fine-tuned logits, or None
    labels: Tensor | None  # [N]

    @property
    def streamed(self) -> bool:
        """True if the logits are sources."""
        return isinstance(self.zs, Source)


def read_sample(
    zeroshot: Spec, finetuned: Spec = "", labels: Spec = "", prefix: str = "--", scale: float = LOGIT_SCALE
) -> Sample:
    """Read and check a `Sample`.

    Shards, Parquet files, features with a classifier, and files of 2 GiB or more become sources. So does then the other
    model's file.

    Args:
        zeroshot: Zero-shot logits: a file as in `read_tensor`, or a spec of `open_source`.
        finetuned: Fine-tuned logits; may be empty.
        labels: Labels; may be empty.
        prefix: Prefix of these three names in the command's flags, for error messages.
        scale: Logit scale of features and a classifier.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file cannot be read or does not fit the others; the message names its flag.
    """
    specs = {name: spec for name, spec in (("zeroshot", zeroshot), ("finetuned", finetuned)) if spec}
    halves: dict[str, Any]
    if any(map(_is_streamed, specs.values())):
        halves = {name: open_source(spec, scale=scale, preferred=_KEYS[name]) for name, spec in specs.items()}
    else:
        read = {prefix + name: _read_logits(prefix, name, _one(spec)) for name, spec in specs.items()}
        halves = dict(zip(specs, as_logits(cosines=True, **read), strict=True))
    zs, ft = halves["zeroshot"], halves.get("finetuned")
    if ft is not None and zs.shape != ft.shape:
        raise ValueError(
            f"{prefix}zeroshot is {list(zs.shape)} and {prefix}finetuned {list(ft.shape)}; both must be [N, C] of the "
            "same samples and classes"
        )
    if not labels:
        return Sample(zs, ft, None)
    found = read_labels(labels)
    return Sample(zs, ft, _checked(f"{prefix}labels", labels, lambda: check_labels(_signed(found), zs)))


def _one(spec: Spec) -> str:
    return spec if isinstance(spec, str) else spec[0]


def _is_streamed(spec: Spec) -> bool:
    """Return whether logits are read block by block."""
    if not isinstance(spec, str) and len(spec) > 1:
        return True
    spec = _one(spec)
    path = split_spec(spec)[0]
    if is_pattern(spec) or split_features(spec)[1] or path.suffix == ".parquet":
        return True
    if path.suffix not in (".npy", ".safetensors") or not path.is_file() or path.stat().st_size < STREAM_FROM:
        return False
    try:
        open_source(spec)
    except ValueError:  # whole numbers or columns of an array, or a tensor that a run's file gives by a formula
        return False
    return True


def _read_logits(prefix: str, name: str, spec: str) -> Tensor:
    """Read finite logits ``[N, C]``, at least float32."""
    logits = read_tensor(spec, _KEYS[name])
    _checked(prefix + name, spec, lambda: check_logits(logits, None, None))
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _signed(labels: Tensor) -> Tensor:
    """Return labels that PyTorch can compare."""
    return labels.long() if labels.dtype in (torch.uint16, torch.uint32, torch.uint64) else labels


def _checked(flag: str, spec: Spec, check: Any) -> Any:
    """Run a check with the flag and its file in the error."""
    try:
        return check()
    except ValueError as error:
        raise ValueError(f"{flag} '{spec if isinstance(spec, str) else ' '.join(spec)}': {error}") from None


def files_of(spec: Spec) -> list[Path]:
    """Return the existing files that a spec names, also that of a classifier."""
    found: list[Path] = []
    for each in [spec] if isinstance(spec, str) else spec:
        for part in filter(None, split_features(each)):
            with contextlib.suppress(FileNotFoundError):
                found += find_files([part])
    return [path for path in found if path.exists()]
