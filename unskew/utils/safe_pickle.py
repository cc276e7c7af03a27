"""Pickles that others published, read without running anything that stands in them.

A pickle may ask for any class or function by name; here each file kind has a short list, and whatever else is asked
for is refused.
"""

import pickle
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

# What reading a damaged pickle may end in, besides an unknown class.
_DAMAGE = (
    *(EOFError, LookupError, ValueError, TypeError, AttributeError, ImportError),
    *(MemoryError, OverflowError, RecursionError),
)


class _Restricted(pickle.Unpickler):
    def __init__(self, file, allowed: Callable[[str, str], object | None], **options) -> None:
        super().__init__(file, **options)
        self._allowed = allowed

    def find_class(self, module: str, name: str):
        found = self._allowed(module, name)
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return found


def _load(path: Path, allowed: Callable[[str, str], object | None], holds: str, encoding: str = "ASCII"):
    try:
        with Path(path).open("rb") as file:
            return _Restricted(file, allowed, encoding=encoding).load()
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


def _values(dtype, content) -> np.ndarray:
    if not isinstance(dtype, _Dtype):
        raise ValueError("it holds an array without a type")
    code = dtype.arguments[0]
    if not re.fullmatch("[biuf][1248]", code):
        raise ValueError(f"it holds an array of '{code}'")
    content = content.encode("latin1") if isinstance(content, str) else content  # Python 2 wrote str
    if not isinstance(content, bytes | bytearray):
        raise ValueError("it holds an array that is not one of numbers")
    return np.frombuffer(content, dtype.state[1] + code)


def _array(stand_in: _Array) -> np.ndarray:
    _, shape, dtype, by_columns, content = stand_in.state
    return _values(dtype, content).reshape(shape, order="F" if by_columns is True else "C")


def _scalar(dtype, content) -> np.generic:
    return _values(dtype, content)[0]


def _array_of_protocol_5(content, dtype, shape, order) -> np.ndarray:
    return _values(dtype, content).reshape(shape, order=order)


# By the names of NumPy 1 and 2.
_OF_NUMPY = {
    **{("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _array_of_protocol_5 for core in ("core", "_core")},
}


def read_arrays(path) -> dict[str, object]:
    """A pickled mapping of arrays of numbers (read-only) and plain values, such as CIFAR's "python version".

    Raises:
        ValueError: it asks for anything else, is cut short, or is no mapping.
    """
    holds = "arrays of numbers and plain values"
    content = _load(path, lambda *names: _OF_NUMPY.get(names), holds, encoding="latin1")
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' holds a {type(content).__name__}; a mapping of arrays was expected; replace it")
    try:
        return {key: _array(value) if isinstance(value, _Array) else value for key, value in content.items()}
    except _DAMAGE as error:
        raise _unreadable(path, holds, error) from error


# Containers and plain values that have no opcode of their own; Python 2's protocols call builtins __builtin__.
_BUILTINS = (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, range, set, slice, str, tuple)

_PLAIN = {
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in _BUILTINS},
    **{("collections", kind.__name__): kind for kind in (Counter, OrderedDict, defaultdict, deque)},
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # how protocol 2 has bytes
}


def array_stand_ins() -> list[tuple[object, str]]:
    """What `torch.serialization.safe_globals` is given to read a file that holds arrays; then `with_arrays`."""
    named = [(stand_in, f"{module}.{name}") for (module, name), stand_in in _OF_NUMPY.items()]
    return [*named, (bytes, "builtins.bytes")]  # of an empty array


def with_arrays(content, path):
    """What was read with stand-ins for arrays; lists and mappings are changed in place.

    Raises:
        ValueError: an array is not one of numbers, or is damaged.
    """
    try:
        return _with_arrays(content, {})
    except _DAMAGE as error:
        raise _unreadable(path, "plain values, tensors and arrays of numbers", error) from error


def _with_arrays(value, done: dict[int, tuple]):
    if id(value) in done:
        return done[id(value)][1]
    made = value
    done[id(value)] = value, made  # also keeps the value, whose id would else be another's
    match value:
        case _Array():
            made = _array(value).copy()  # which may be written to
        case dict():
            for key in list(value):
                value[key] = _with_arrays(value[key], done)
        case list():
            value[:] = [_with_arrays(item, done) for item in value]
        case tuple() if type(value) is tuple:
            made = tuple(_with_arrays(item, done) for item in value)
    done[id(value)] = value, made
    return made


def read_plain(file, datum: type, **options):
    """The next pickle of an open file: containers, plain values, arrays of numbers, and Datum of any codebase.

    Args:
        file: open for reading bytes, with a name.
        datum: the class to take for every class called Datum.
        options: `pickle.load`'s.

    Raises:
        ValueError: it asks for anything else, or is cut short.
        EOFError: it ended with the last pickle.
    """
    known = {**_PLAIN, **_OF_NUMPY}
    start = file.tell()
    try:
        unpickler = _Restricted(file, lambda *names: datum if names[1] == "Datum" else known.get(names), **options)
        return _with_arrays(unpickler.load(), {})
    except (pickle.UnpicklingError, *_DAMAGE) as error:
        if isinstance(error, EOFError) and start and file.tell() == start:  # as one reads several of a file
            raise
        raise _unreadable(file.name, "containers, plain values, arrays of numbers and Datum", error) from error
