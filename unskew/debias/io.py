"""Files of label priors and of single tensors. No pickled object is loaded."""

import csv
import logging
import operator
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unskew.utils.errors import DAMAGE, check_regular, format_error
from unskew.utils.files import read_json
from unskew.utils.tensor_files import check_dense, read_npy, read_safetensors, read_torch

logger = logging.getLogger("unskew")


def read_prior(path: str | Path, classes: Sequence[str] | int) -> Tensor:
    """Read log q ``[C]``, float32, from a file of probabilities or counts, which are normalised.

    ``.json`` (a list, or an object with the list "q"), ``.npy``, ``.pt`` (a tensor) and ``.csv`` (a column) hold the
    values in class order. A ``.csv`` of ``name,value`` lines may be in any order, but needs the class names. Pickles
    are refused.

    Args:
        path: The file.
        classes: Class names in label order, or their number.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Another format, another number of classes, or a value that is not finite and positive.

    Examples:
        >>> import json, pathlib, tempfile
        >>> from unskew.debias import read_prior
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "q.json"
        ...     _ = path.write_text(json.dumps([30, 10]))
        ...     read_prior(path, 2).exp()
        tensor([0.7500, 0.2500])
    """
    path = Path(path)
    if not isinstance(classes, Sequence):
        classes = operator.index(classes)  # perhaps NumPy's
    if path.suffix not in _PRIOR_READERS:
        raise ValueError(f"the prior '{path}' must be a {', '.join(_PRIOR_READERS)} file")
    if not path.exists():
        raise FileNotFoundError(f"no prior file '{path}'")
    check_regular(path)
    try:
        values = np.asarray(_PRIOR_READERS[path.suffix](path, classes))
        if values.dtype.kind not in "fiu":
            raise ValueError(f"its values must be real numbers (got {values.dtype})")
    except PermissionError:
        raise
    except DAMAGE as error:
        raise ValueError(f"the prior '{path}' cannot be read: {format_error(error)[:200]}") from None
    count = classes if isinstance(classes, int) else len(classes)
    if values.shape != (count,):
        raise ValueError(f"the prior '{path}' must hold {count} values, one per class (got shape {list(values.shape)})")
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        raise ValueError(f"the values in '{path}' must be finite and above 0; class {bad[0]} has {values[bad[0]]}")
    if values.max() <= 1 and abs(values.sum() - 1) > 0.01:  # neither counts nor probabilities
        logger.warning(f"the prior '{path}' sums to {values.sum():.3f} instead of 1; normalising it")
    return torch.from_numpy(np.log(values.astype(np.float64))).log_softmax(0).float()


def _prior_of_json(path: Path, classes: Sequence[str] | int) -> list[float]:
    content = read_json(path)
    values = content.get("q") if isinstance(content, dict) else content
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise ValueError('expected a list of numbers, or an object with the list "q"')
    return [float(value) for value in values]


def _prior_of_npy(path: Path, classes: Sequence[str] | int) -> np.ndarray:
    try:
        return read_npy(path)
    except DAMAGE:
        raise ValueError("expected one array of numbers; pickled objects are refused") from None


def _prior_of_pt(path: Path, classes: Sequence[str] | int) -> np.ndarray:
    try:
        return check_dense(read_torch(path)).double().numpy()
    except DAMAGE:
        raise ValueError("expected one tensor of numbers; other pickled objects are refused") from None


def _prior_of_csv(path: Path, classes: Sequence[str] | int) -> list[float]:
    with path.open(newline="", encoding="utf-8-sig") as file:  # files from spreadsheets begin with a byte-order mark
        rows = [row for row in csv.reader(file) if row]
    if all(len(row) == 1 for row in rows):
        return [float(row[0]) for row in rows]
    if not all(len(row) == 2 for row in rows):
        raise ValueError("expected lines of 'value' or of 'name,value'")
    if isinstance(classes, int):
        raise ValueError("its lines have names, but only the number of classes is known; give a column in class order")
    values = {name: float(value) for name, value in rows}
    if len(values) < len(rows) or values.keys() != set(classes):
        wrong = [name for name, _ in rows if name not in set(classes)] or [n for n in classes if n not in values]
        raise ValueError(f"its names must be the dataset's classes, once each; see {wrong[:1] or 'its repeated names'}")
    return [values[name] for name in classes]


_PRIOR_READERS: dict[str, Callable[[Path, Sequence[str] | int], Any]] = {
    ".json": _prior_of_json,
    ".npy": _prior_of_npy,
    ".pt": _prior_of_pt,
    ".csv": _prior_of_csv,
}

# --- one tensor ----------------------------------------------------------------------------------------


def read_tensor(spec: str, preferred: Sequence[str] = ()) -> Tensor:
    """Read one tensor of a ``.safetensors``, ``.npy`` or ``.pt`` file.

    Args:
        spec: ``FILE``, or ``FILE:KEY`` for one of several tensors.
        preferred: Keys to try if there are several tensors and no KEY; the first in the file is used.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Another format, a damaged file, Python objects in the file, no such key, or an ambiguous choice.
    """
    path, key = split_spec(spec)
    if path.suffix not in _READERS:
        raise ValueError(f"'{path}' must be a {', '.join(_READERS)} file; pickles are refused")
    if not path.exists():
        raise FileNotFoundError(f"no such file: '{path}'")
    check_regular(path)
    path.open("rb").close()  # a missing permission is not a damaged file
    try:
        content = _READERS[path.suffix](path)
    except DAMAGE as error:
        raise ValueError(
            f"'{path}' cannot be read: {_reason(error)}; save the tensors again, without other objects"
        ) from None
    content = content if isinstance(content, Mapping) else {"": content}
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    return _pick(path, tensors, key, preferred)


def split_spec(spec: str) -> tuple[Path, str]:
    """Return the file and the key of a spec of `read_tensor`; the key is empty if there is none."""
    head, _, key = spec.rpartition(":")
    if Path(head).suffix in (*_READERS, ".parquet") and not Path(spec).is_file():
        return Path(head), key
    return Path(spec), ""


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) or "pickle" in str(error):  # such messages advise to load it
        return "it holds Python objects or is truncated"
    return format_error(error)[:200]


def _pick(path: Path, tensors: Mapping[str, Tensor], key: str, preferred: Sequence[str]) -> Tensor:
    chosen = choose_key(path, list(tensors), key, preferred)
    try:
        return check_dense(tensors[chosen])
    except ValueError as error:
        raise ValueError(f"'{path}' cannot be used: {error}") from None


def choose_key(path: Path, held: Sequence[str], key: str, preferred: Sequence[str]) -> str:
    """Return the key of the tensor or column to read from a file that holds some by name.

    Raises:
        ValueError: The file does not have the ``key``, has none at all, or the choice is ambiguous.
    """
    names = ", ".join(held) or ("one tensor without a name" if held else "no tensor")
    if key and key not in held:
        raise ValueError(f"'{path}' has no '{key}'; it holds {names}")
    if not held:
        raise ValueError(f"'{path}' holds no tensor; save the logits or labels as a tensor")
    keys = [key] if key else list(held) if len(held) == 1 else [name for name in preferred if name in held]
    if not keys:
        raise ValueError(f"'{path}' holds {names}; choose one as '{path}:KEY'")
    return keys[0]


_READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": read_safetensors,
    ".npy": lambda path: torch.from_numpy(read_npy(path)),
    ".pt": read_torch,
}
