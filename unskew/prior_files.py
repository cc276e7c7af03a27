"""Label priors in files: probabilities or counts, one for each class."""

import csv
import logging
import struct
import tokenize
import zipfile
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch

from unskew.files import read_json

logger = logging.getLogger("unskew")

# What NumPy and torch raise for a file that is none of theirs, a pickle, or cut short.
_DAMAGE = (
    *(RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError),
    *(UnpicklingError, struct.error, tokenize.TokenError, zipfile.BadZipFile),
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
    if path.suffix not in _READERS:
        raise ValueError(f"the prior '{path}' must be a {', '.join(_READERS)} file; other formats are not read")
    if not path.is_file():
        raise FileNotFoundError(f"no prior file '{path}'")
    try:
        values = np.asarray(_READERS[path.suffix](path, classes))
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


def _read_json(path: Path, classes) -> list[float]:
    content = read_json(path)
    values = content.get("q") if isinstance(content, dict) else content
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise ValueError('expected a list of numbers, or an object whose "q" is one')
    return [float(value) for value in values]


def _read_npy(path: Path, classes) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except _DAMAGE:
        values = None
    if not isinstance(values, np.ndarray):
        raise ValueError("expected one array of numbers; pickled objects are refused")
    return values


def _read_pt(path: Path, classes) -> np.ndarray:
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE:
        values = None
    plain = isinstance(values, torch.Tensor) and values.layout == torch.strided
    if not plain or values.is_complex() or values.dtype == torch.bool:
        raise ValueError("expected one tensor of numbers; other pickled objects are refused")
    return values.detach().double().numpy()


def _read_csv(path: Path, classes) -> list[float]:
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


_READERS = {".json": _read_json, ".npy": _read_npy, ".pt": _read_pt, ".csv": _read_csv}
