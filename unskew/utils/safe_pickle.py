"""Reading of pickles from others without running any code in them.

A pickle may ask for any class or function by name. Each kind of file has a short list of permitted names here; a file
that asks for any other name is refused.
"""

import io
import re
import sys
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from unskew.utils import _tensors
from unskew.utils._unpickler import BoundedUnpickler, TooLargeError
from unskew.utils.errors import DAMAGE, check_regular, format_error

_ADVICE = "replace or delete it"


def _load(path: str | Path, permitted: Callable[[str, str], object | None], kind: str, encoding: str = "ASCII") -> Any:
    check_regular(path)
    with Path(path).open("rb") as file:
        try:
            return BoundedUnpickler(file, permitted, encoding=encoding).load()
        except DAMAGE as error:
            raise _unreadable(path, kind, error) from error


def _unreadable(path: str | Path, kind: str, error: Exception, advice: str = _ADVICE) -> ValueError:
    return ValueError(f"'{path}' was not read: {format_error(error)}; it must hold {kind} and nothing else; {advice}")


class _StandIn:
    """A passive replacement for an object: it keeps the constructor's arguments and the state."""

    arguments: tuple = ()
    state: Any = None

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Datum(_StandIn):
    """Dassl's Datum; its state holds the attributes."""


class _Array(_StandIn):
    """A NumPy array. NumPy's own class trusts the pickled state: an invalid one crashes the interpreter."""


class _Dtype(_StandIn):
    """A NumPy dtype; see `_Array`."""


# --- few-shot files ------------------------------------------------------------------------------------


def read_fewshot(path: str | Path) -> dict[str, list[tuple[str, int, str]]]:
    """Read a few-shot file of CoOp or GLA, ``shot_K-seed_S.pkl``.

    Returns:
        ``{"train": [(path, label, class name), ..]}``, and ``"val"`` if the file has one: GLA's files of ImageNet
        have a val, CoOp's do not.

    Raises:
        ValueError: the file asks for another class than Datum, is cut short, or is not a few-shot file.
    """
    # Each codebase has its Datum in another module; none of them is imported.
    content = _load(path, lambda _, name: _Datum if name == "Datum" else None, "lists of Datum")
    if not isinstance(content, dict) or "train" not in content:
        raise ValueError(f"'{path}' is not a few-shot file: it has no list 'train'; replace or delete it")
    return {split: _entries(path, content[split]) for split in ("train", "val") if split in content}


def _entries(path: str | Path, items: object) -> list[tuple[str, int, str]]:
    entries = []
    for item in items if isinstance(items, list) else [None]:
        match isinstance(item, _Datum) and item.state:
            case {"_impath": str(impath), "_label": int(label), "_classname": str(classname)}:
                entries.append((impath, label, classname))
            case _:
                raise ValueError(f"'{path}' is not a few-shot file: it must hold lists of Datum; replace or delete it")
    return entries


# --- arrays --------------------------------------------------------------------------------------------


def _dtype(stand_in: object) -> np.dtype:
    if not isinstance(stand_in, _Dtype):
        raise ValueError("it holds an array without a type")
    code = stand_in.arguments[0]
    if not re.fullmatch("[biuf][1248]|c8|c16|[SU][0-9]+", code):
        raise ValueError(f"it holds an array of '{code}'")
    return np.dtype(stand_in.state[1] + code)


def _buffer(dtype: object, content: object) -> np.ndarray:
    """Return pickled bytes as a flat array of numbers or texts."""
    kind = _dtype(dtype)
    content = content.encode("latin1") if isinstance(content, str) else content  # Python 2 wrote str
    if not isinstance(content, bytes | bytearray):
        raise ValueError("it holds an array without bytes")
    values = np.frombuffer(content, kind)
    if kind.kind == "U" and values.size and values.view(f"{kind.byteorder}u4").max() > sys.maxunicode:
        raise ValueError("it holds an array of damaged text")
    return values


def _array(stand_in: _Array) -> np.ndarray:
    _, shape, dtype, by_columns, content = stand_in.state
    return _buffer(dtype, content).reshape(shape, order="F" if by_columns is True else "C")


def _scalar(dtype: object, content: object) -> np.generic:
    return _buffer(dtype, content)[0]


def _array_of_protocol_5(content: object, dtype: object, shape: Any, order: Any) -> np.ndarray:
    return _buffer(dtype, content).reshape(shape, order=order)


_NUMPY: dict[tuple[str, str], Any] = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Dtype}
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and 2
    _NUMPY[f"{_core}.multiarray", "_reconstruct"] = _Array
    _NUMPY[f"{_core}.multiarray", "scalar"] = _scalar
    _NUMPY[f"{_core}.numeric", "_frombuffer"] = _array_of_protocol_5


def read_arrays(path: str | Path) -> dict[str, Any]:
    """Read a pickled mapping of arrays of numbers (read-only) and plain values, such as CIFAR's "python version".

    Raises:
        ValueError: the file asks for any other class, is cut short, or is not a mapping.
    """
    kind = "arrays of numbers and plain values"
    content = _load(path, lambda *names: _NUMPY.get(names), kind, encoding="latin1")
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' holds a {type(content).__name__}; a mapping of arrays was expected; replace it")
    try:
        return {key: _array(value) if isinstance(value, _Array) else value for key, value in content.items()}
    except DAMAGE as error:
        raise _unreadable(path, kind, error) from error


# --- files of scripts ----------------------------------------------------------------------------------

# Containers and plain values without an opcode of their own; Python 2's protocols call builtins __builtin__.
_BUILTINS = (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, range, set, slice, str, tuple)

_PLAIN: Mapping[tuple[str, str], Any] = {
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in _BUILTINS},
    **{("collections", kind.__name__): kind for kind in (Counter, OrderedDict, defaultdict, deque)},
    ("__builtin__", "xrange"): range,
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # protocol 2 writes bytes this way
    **_NUMPY,
}


def array_stand_ins() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return the stand-ins for `torch.serialization.safe_globals`; pass the loaded content to `with_arrays`."""
    named = [(stand_in, f"{module}.{name}") for (module, name), stand_in in _NUMPY.items()]
    return [*named, (bytes, "builtins.bytes")]  # an empty array asks for bytes


_SHARED_BYTES = 2**16


def with_arrays(content: Any, path: object) -> Any:
    """Replace stand-ins by arrays; lists and mappings are changed in place.

    Raises:
        ValueError: an array does not hold numbers, or is damaged.
    """
    try:
        return _with_arrays(content, {})
    except DAMAGE as error:
        raise _unreadable(str(path), "plain values, tensors and arrays of numbers", error) from error


def _with_arrays(value: Any, done: dict[object, tuple]) -> Any:
    if id(value) in done:
        return done[id(value)][1]
    result = value
    done[id(value)] = value, result  # keeps the value alive, so that no other object gets its id
    match value:
        case _Array():
            content = value.state[-1]
            if done.setdefault(("bytes", id(content)), (value,))[0] is not value and len(content) > _SHARED_BYTES:
                raise ValueError("several of its arrays share their bytes")  # a copy of each could fill the memory
            result = _array(value).copy()  # writable
        case _Dtype():
            result = _dtype(value)
        case dict():
            for key in list(value):
                value[key] = _with_arrays(value[key], done)
        case list():
            value[:] = [_with_arrays(item, done) for item in value]
        case tuple() if type(value) is tuple:
            result = tuple(_with_arrays(item, done) for item in value)
    done[id(value)] = value, result
    return result


class _DryUnpickler(BoundedUnpickler):
    """An unpickler that builds no object but containers and plain values, to check what `torch.load` would build."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, lambda module, name: _PLAIN.get((module, name), _StandIn))

    def persistent_load(self, pid: object) -> _StandIn:
        """Return a stand-in for a tensor's storage."""
        return _StandIn()

    def create(self, function: Any, *arguments: object, **options: object) -> object:
        """Return a stand-in for an object that cannot be created."""
        try:
            return super().create(function, *arguments, **options)
        except TooLargeError:
            raise
        except DAMAGE:
            return _StandIn()

    def _collection(self, *kinds: type) -> Any:
        found = self.stack[-1]
        return found if isinstance(found, kinds) else kinds[0]()


# A file of torch.save's old format begins with five pickles.
_PICKLES = 5


def check_torch_file(path: str | Path) -> None:
    """Raise ``ValueError`` for a file of `torch.save` that would fill the memory or never be read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a pickle in it asks for too many elements, its content is compressed, or it is no regular file.
    """
    size = check_regular(path)
    try:
        with Path(path).open("rb") as file:
            if file.read(4) == b"PK\3\4":
                pickles = _pickles_of_archive(zipfile.ZipFile(file), size)
            else:
                file.seek(0)
                pickles = [file] * _PICKLES
            _check_pickles(pickles)
    except TooLargeError as error:
        raise ValueError(f"'{path}' was not read: {error}; save it again with torch.save") from error
    except zipfile.BadZipFile as error:
        raise ValueError(f"'{path}' is truncated or damaged: {format_error(error)}; copy it again") from error
    except DAMAGE as error:  # torch.load will explain it
        if isinstance(error, OSError):
            raise


def _check_pickles(sources: Sequence[BinaryIO]) -> None:
    for source in sources:
        _DryUnpickler(source).load()


def _check_storage(content: bytes) -> None:
    """Check the bytes of a storage, a file of torch.save's old format."""
    _check_pickles([io.BytesIO(content)] * _PICKLES)


def _pickles_of_archive(archive: zipfile.ZipFile, size: int) -> list[BinaryIO]:
    if sum(member.file_size for member in archive.infolist()) > size:
        raise TooLargeError("it is compressed, and torch.save compresses nothing")
    return [io.BytesIO(archive.read(name)) for name in archive.namelist() if name.endswith(".pkl")]


def read_plain(file: BinaryIO, datum: type, advice: str = _ADVICE, **options: Any) -> Any:
    """Read the next pickle of an open file: containers, plain values, arrays, tensors, and any codebase's Datum.

    Args:
        file: a file with a name, open for reading bytes.
        datum: the class to use for every class called Datum.
        advice: the end of the error message for a file that is not read.
        **options: options of `pickle.load`.

    Raises:
        ValueError: the file asks for any other class, or is cut short.
        EOFError: the file ended with the previous pickle.
    """
    start = file.tell()
    try:
        return _with_arrays(BoundedUnpickler(file, _permitted_with(datum), **options).load(), {})
    except DAMAGE as error:
        if isinstance(error, EOFError) and start and file.tell() == start:  # a file may hold several pickles
            raise
        raise _unreadable(file.name, "containers, plain values, arrays, tensors and Datum", error, advice) from error


def _permitted_with(datum: type) -> Callable[[str, str], object | None]:
    def permitted(module: str, name: str) -> object | None:
        if name == "Datum":
            return datum
        return _PLAIN.get((module, name)) or _tensors.permitted(module, name, _check_storage)

    return permitted
