"""Pickles that others published, read without running anything that stands in them.

A pickle may ask for any class or function by name; here each file kind has a short list, and whatever else is asked
for is refused.
"""

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

# What reading a damaged pickle may end in, besides an unknown class.
_DAMAGE = (
    *(EOFError, LookupError, ValueError, TypeError, AttributeError, ImportError),
    *(MemoryError, OverflowError, RecursionError),
)


class _Restricted(pickle.Unpickler):
    def __init__(self, file, allowed: Callable[[str, str], object | None], encoding: str = "ASCII") -> None:
        super().__init__(file, encoding=encoding)
        self._allowed = allowed

    def find_class(self, module: str, name: str):
        found = self._allowed(module, name)
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return found


def _load(path: Path, allowed: Callable[[str, str], object | None], holds: str, encoding: str = "ASCII"):
    try:
        with Path(path).open("rb") as file:
            return _Restricted(file, allowed, encoding).load()
    except (pickle.UnpicklingError, *_DAMAGE) as error:
        raise _unreadable(path, holds, error) from error


def _unreadable(path: Path, holds: str, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())  # pickle's own have line breaks
    return ValueError(f"'{path}' was not read: {reason}; it must hold {holds} and nothing else; replace or delete it")


class _StandIn:
    """Keeps what an object of the pickle is made of, and does nothing with it."""

    arguments, state = (), None

    def __init__(self, *arguments) -> None:
        self.arguments = arguments

    def __setstate__(self, state) -> None:
        self.state = state


class _Datum(_StandIn):
    """Dassl's Datum; its state is its attributes."""


class _Array(_StandIn):
    """numpy's array. Its own, and its dtype, believe what a pickle says: a made-up state crashes the interpreter."""


class _Dtype(_StandIn):
    """numpy's dtype."""


def read_fewshot(path) -> dict[str, list[tuple[str, int, str]]]:
    """A few-shot file of CoOp or GLA, ``shot_K-seed_S.pkl``.

    Returns:
        ``{"train": [(path, label, class name), ..]}``, and ``"val"`` where the file has one: those of ImageNet that
        CoOp wrote have none, GLA's have.

    Raises:
        ValueError: it asks for another class than a Datum, is cut short, or is no few-shot file.
    """
    # Each codebase files its Datum under a module of its own; none of them is imported.
    content = _load(path, lambda _, name: _Datum if name == "Datum" else None, "lists of Datum")
    if not isinstance(content, dict) or "train" not in content:
        raise ValueError(f"'{path}' is not a few-shot file: it has no list 'train'; replace or delete it")
    return {split: _entries(path, content[split]) for split in ("train", "val") if split in content}


def _entries(path, items) -> list[tuple[str, int, str]]:
    if not isinstance(items, list):
        raise ValueError(f"'{path}' is not a few-shot file: it must hold lists of Datum; replace or delete it")
    found = []
    for item in items:
        match isinstance(item, _Datum) and item.state:
            case {"_impath": str(impath), "_label": int(label), "_classname": str(classname)}:
                found.append((impath, label, classname))
            case _:
                raise ValueError(f"'{path}' is not a few-shot file: it must hold lists of Datum; replace or delete it")
    return found


def _numpy(module: str, name: str):
    if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
        return _Array
    return {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype}.get((module, name))


def _array(stand_in: _Array) -> np.ndarray:
    _, shape, dtype, by_columns, content = stand_in.state
    code = dtype.arguments[0]
    if not re.fullmatch("[biuf][1248]", code):
        raise ValueError(f"it holds an array of '{code}'")
    content = content.encode("latin1") if isinstance(content, str) else content  # Python 2 wrote str
    return np.frombuffer(content, dtype.state[1] + code).reshape(shape, order="F" if by_columns else "C")


def read_arrays(path) -> dict[str, object]:
    """A pickled mapping of arrays of numbers (read-only) and plain values, such as CIFAR's "python version".

    Raises:
        ValueError: it asks for anything else, is cut short, or is no mapping.
    """
    holds = "arrays of numbers and plain values"
    content = _load(path, _numpy, holds, encoding="latin1")
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' holds a {type(content).__name__}; a mapping of arrays was expected; replace it")
    try:
        return {key: _array(value) if isinstance(value, _Array) else value for key, value in content.items()}
    except _DAMAGE as error:
        raise _unreadable(path, holds, error) from error
