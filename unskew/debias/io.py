"""Label priors in files: probabilities or counts, one for each class."""

import csv
import logging
import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unskew.debias._validation import check_logits
from unskew.utils.errors import DAMAGE
from unskew.utils.files import read_json

logger = logging.getLogger("unskew")

# What NumPy and torch raise for a file that is none of theirs, a pickle, or cut short.
_PRIOR_DAMAGE = (
    *(RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError),
    *(pickle.UnpicklingError, struct.error, TokenError, zipfile.BadZipFile),
)


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
    if path.suffix not in _PRIOR_READERS:
        raise ValueError(f"the prior '{path}' must be a {', '.join(_PRIOR_READERS)} file; other formats are not read")
    if not path.is_file():
        raise FileNotFoundError(f"no prior file '{path}'")
    try:
        values = np.asarray(_PRIOR_READERS[path.suffix](path, classes))
        if values.dtype.kind not in "fiu":
            raise ValueError(f"its values must be real numbers, not {values.dtype}")
    except (ValueError, OverflowError, csv.Error) as error:
        raise ValueError(f"the prior '{path}' cannot be read: {error}") from None
    count = classes if isinstance(classes, int) else len(classes)
    if values.shape != (count,):
        raise ValueError(f"the prior '{path}' has shape {list(values.shape)}; expected one value for {count} classes")
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        raise ValueError(f"the prior '{path}' must be finite and above 0; class {bad[0]} has {values[bad[0]]}")
    if values.max() <= 1 and abs(values.sum() - 1) > 0.01:  # not counts, and not probabilities either
        logger.warning(f"the prior '{path}' sums to {values.sum():.3f}, not to 1: it is normalised")
    return torch.from_numpy(np.log(values.astype(np.float64))).log_softmax(0).float()


def _prior_of_json(path: Path, classes) -> list[float]:
    content = read_json(path)
    values = content.get("q") if isinstance(content, dict) else content
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise ValueError('expected a list of numbers, or an object whose "q" is one')
    return [float(value) for value in values]


def _prior_of_npy(path: Path, classes) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except _PRIOR_DAMAGE:
        values = None
    if not isinstance(values, np.ndarray):
        raise ValueError("expected one array of numbers; pickled objects are refused")
    return values


def _prior_of_pt(path: Path, classes) -> np.ndarray:
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except _PRIOR_DAMAGE:
        values = None
    plain = isinstance(values, torch.Tensor) and values.layout == torch.strided
    if not plain or values.is_complex() or values.dtype == torch.bool:
        raise ValueError("expected one tensor of numbers; other pickled objects are refused")
    return values.detach().double().numpy()


def _prior_of_csv(path: Path, classes) -> list[float]:
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin with a byte-order mark
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


_PRIOR_READERS = {".json": _prior_of_json, ".npy": _prior_of_npy, ".pt": _prior_of_pt, ".csv": _prior_of_csv}

# What a file of several tensors is searched for where no KEY is given; a run's predictions.safetensors has them.
_KEYS = {"zeroshot": ("zs", "logits"), "finetuned": ("ft", "logits"), "labels": ("labels",)}

# What reading a damaged or foreign file may end in.
_DAMAGE = (*DAMAGE, MemoryError, SyntaxError, TokenError, struct.error, pickle.UnpicklingError, SafetensorError)


class Sample(NamedTuple):
    """Two models' answers to the same images."""

    zs: Tensor  # [N, C], zero-shot logits
    ft: Tensor  # [N, C], fine-tuned logits
    labels: Tensor | None  # [N]


def read_sample(zeroshot: str, finetuned: str, labels: str = "", prefix: str = "--") -> Sample:
    """Read and check a `Sample`.

    Args:
        zeroshot, finetuned, labels: as in `read_tensor`; ``labels`` may be empty.
        prefix: what stands before these three names in the flags, for errors.

    Raises:
        FileNotFoundError, ValueError: a file is missing, cannot be read or does not fit; its flag is named.
    """
    zs, ft = (_read_logits(prefix, *pair) for pair in (("zeroshot", zeroshot), ("finetuned", finetuned)))
    if zs.shape != ft.shape:
        raise ValueError(
            f"{prefix}zeroshot is {list(zs.shape)} and {prefix}finetuned {list(ft.shape)}; both must be [N, C] of the "
            "same samples and classes"
        )
    if not labels:
        return Sample(zs, ft, None)
    return Sample(zs, ft, _checked(f"{prefix}labels", labels, zs, read_tensor(labels, _KEYS["labels"]))[1])


def _read_logits(prefix: str, name: str, spec: str) -> Tensor:
    """Finite logits [N, C], in float32 at least."""
    logits = read_tensor(spec, _KEYS[name])
    _checked(prefix + name, spec, logits)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _checked(flag: str, spec: str, logits: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """`check_logits` with the flag and its file in the errors."""
    if labels is not None and labels.dtype in (torch.uint16, torch.uint32, torch.uint64):
        labels = labels.long()  # PyTorch cannot compare these
    try:
        return check_logits(logits, labels)
    except ValueError as error:
        raise ValueError(f"{flag} '{spec}': {error}") from None


# --- one tensor ----------------------------------------------------------------------------------------


def read_tensor(spec: str, preferred: Sequence[str] = ()) -> Tensor:
    """One tensor of a ``.safetensors``, ``.npy`` or ``.pt`` file; no pickled object is ever loaded.

    Args:
        spec: ``FILE``, or ``FILE:KEY`` for one of several tensors.
        preferred: where there are several and no KEY is given, the first of these that the file has.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another format, a damaged file, Python objects in it, no such key, or several to choose from.
    """
    path, key = Path(spec), ""
    head, _, tail = spec.rpartition(":")
    if Path(head).suffix in _READERS and not path.is_file():
        path, key = Path(head), tail
    if path.suffix not in _READERS:
        raise ValueError(f"'{path}' must be a {', '.join(_READERS)} file; others, such as pickles, are not read")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file '{path}'")
    path.open("rb").close()  # a file that may not be opened is not a damaged one
    try:
        content = _READERS[path.suffix](path)
    except _DAMAGE as error:
        raise ValueError(f"'{path}' cannot be read: {_reason(error)}; save it again, as tensors alone") from None
    content = content if isinstance(content, Mapping) else {"": content}
    return _pick(
        path, {str(name): value for name, value in content.items() if isinstance(value, Tensor)}, key, preferred
    )


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) or "pickle" in str(error):  # their own words advise to load it
        return "it holds Python objects, or is cut short"
    return (str(error).splitlines() or [type(error).__name__])[0]


def _pick(path: Path, tensors: Mapping[str, Tensor], key: str, preferred: Sequence[str]) -> Tensor:
    names = ", ".join(tensors) or ("one tensor without a name" if tensors else "no tensor")
    if key and key not in tensors:
        raise ValueError(f"'{path}' has no '{key}'; it holds {names}")
    found = [key] if key else list(tensors) if len(tensors) == 1 else [name for name in preferred if name in tensors]
    if not found:
        raise ValueError(f"'{path}' holds {names}; " + (f"choose one as '{path}:KEY'" if tensors else "one is needed"))
    return tensors[found[0]].detach()


def _read_npy(path: Path) -> Tensor:
    array = np.load(path, allow_pickle=False)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


_READERS = {
    ".safetensors": load_file,
    ".npy": _read_npy,
    ".pt": lambda path: torch.load(path, map_location="cpu", weights_only=True),
}
