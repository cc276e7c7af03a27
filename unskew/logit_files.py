"""Saved logits and labels: files -> checked samples."""

import pickle
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unskew.checkpoint import DAMAGE
from unskew.prior import check_logits

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
