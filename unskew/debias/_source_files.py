"""Rows ``[N, D]`` of one ``.npy``, ``.safetensors`` or Parquet file, read a block at a time.

An opened file holds its path and its shape but no handle, so that it pickles and a worker process reads it again. No
page of a file stays in memory after its block.
"""

import importlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from unskew.debias.io import choose_key
from unskew.utils.errors import DAMAGE, check_regular, format_error

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Bytes that a Parquet reader buffers of a column, and the rows that it decodes at once.
PARQUET_BUFFER, PARQUET_ROWS = 2**20, 1024

# Readers of one Parquet file that continue where they stopped; each thread of a pool may have one.
MOST_CURSORS = 8


class RowFile:
    """An opened file of rows.

    Attributes:
        path: The file.
        shape: N and D.
        dtype: Type of the numbers in the file.
        state: Size and time of the file when it was opened.
    """

    path: Path
    shape: tuple[int, int]
    dtype: torch.dtype
    state: tuple[int, int]

    def read(self, first: int, last: int) -> Tensor:
        """Return the rows from ``first`` to ``last``, ``[last - first, D]``."""
        raise NotImplementedError


def open_rows(path: str | Path, key: str = "", preferred: tuple[str, ...] = ()) -> RowFile:
    """Open a file of rows and check what its header says.

    Args:
        path: The file.
        key: Tensor or column of a file that holds several.
        preferred: Keys to try without a ``key``.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Another format, a damaged file, no such key, or no floating-point numbers ``[N, D]``.
    """
    path = Path(path)
    kind = _KINDS.get(path.suffix)
    if kind is None:
        raise ValueError(f"'{path}' cannot be read block by block: give {', '.join(_KINDS)} files")
    if not path.exists():
        raise FileNotFoundError(f"no such file: '{path}'")
    check_regular(path)
    path.open("rb").close()  # a missing permission is not a damaged file
    if path.suffix == ".npy" and key:
        raise ValueError(f"'{path}' holds one array without a name: omit ':{key}'")
    state = _state(path)
    try:
        file = kind(path, key, preferred)
    except DAMAGE as error:
        raise _unreadable(path, error) from None
    file.state = state
    return file


def _state(path: Path) -> tuple[int, int]:
    """Return what changes when a file is written again: its size and its time in nanoseconds."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def read_block(file: RowFile, first: int, last: int) -> Tensor:
    """Return some rows of a file; an error names the file.

    Raises:
        ValueError: The file is damaged, or has changed since it was opened.
    """
    try:
        rows, problem = file.read(first, last), None
    except DAMAGE as error:
        rows, problem = torch.empty(0), _unreadable(file.path, error)
    if file.path.exists() and _state(file.path) != file.state:
        raise ValueError(f"'{file.path}' has changed while it was read: start again")
    if problem:
        raise problem
    return rows


def _unreadable(path: Path, error: BaseException) -> ValueError:
    text = format_error(error)[:300]
    reason = "it holds Python objects; save an array of numbers" if "ython object" in text else text
    incomplete = any(word in text for word in ("mmap length", "No data left", "incomplete", "footer", "truncated"))
    advice = "; it seems incomplete: copy it again" if incomplete else ""
    return ValueError(text if f"'{path}'" in text else f"'{path}' cannot be read: {reason}{advice}")


def _check(shape: tuple[int, ...], dtype: object, floating: bool) -> tuple[int, int]:
    if len(shape) != 2 or shape[1] == 0:
        raise ValueError(f"expected [N, C] with C of at least 1 (got {list(shape)})")
    if not floating:
        raise ValueError(f"expected floating-point numbers (got {dtype})")
    return shape[0], shape[1]


class _NpyRows(RowFile):
    def __init__(self, path: Path, key: str, preferred: tuple[str, ...]) -> None:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # checks the size of the file too
        if not isinstance(array, np.memmap):
            raise ValueError("it holds several arrays; save one array with numpy.save")
        self.path, self._stored, self._offset = path, array.dtype, int(array.offset)
        self.shape = _check(array.shape, array.dtype, array.dtype.kind == "f" and array.dtype.itemsize <= 8)
        if not array.flags.c_contiguous:
            raise ValueError("its rows are not contiguous; save numpy.ascontiguousarray of the array")
        self.dtype = torch.from_numpy(np.empty(0, self._stored.newbyteorder("="))).dtype

    def read(self, first: int, last: int) -> Tensor:
        width = self.shape[1]
        offset = self._offset + first * width * self._stored.itemsize
        # Not a map of the file: the thread that reads ahead would only map, and the computing thread would read.
        block = np.fromfile(self.path, self._stored, (last - first) * width, offset=offset)
        return torch.from_numpy(block.astype(self._stored.newbyteorder("="), copy=False).reshape(-1, width))


class _SafetensorsRows(RowFile):
    def __init__(self, path: Path, key: str, preferred: tuple[str, ...]) -> None:
        self.path = path
        with safe_open(path, framework="pt") as file:
            self._key = choose_key(path, list(file.keys()), key, preferred)
            part = file.get_slice(self._key)
            shape = tuple(part.get_shape())
            self.dtype = part[:0].dtype
        self.shape = _check(shape, self.dtype, self.dtype in FLOATS)

    def read(self, first: int, last: int) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            return file.get_slice(self._key)[first:last].clone()  # the slice is a map of the file


class _Cursor(NamedTuple):
    batches: Iterator[Any]
    rest: Tensor  # decoded rows that were not requested


class _ParquetRows(RowFile):
    """Lists of floats in a column, one list of D numbers per row.

    A reader decodes a column from the start of a row group, so a block that continues the last one reuses its reader.
    """

    def __init__(self, path: Path, key: str, preferred: tuple[str, ...]) -> None:
        self.path, self._cursors, self._lock = path, dict[int, _Cursor](), threading.Lock()
        file = self._open()
        lists = [field.name for field in file.schema_arrow if _is_list(field.type)]
        names = [field.name for field in file.schema_arrow] if key else lists
        if not names:
            columns = ", ".join(file.schema_arrow.names)
            raise ValueError(f"it has no column of lists of numbers (its columns: {columns})")
        self._key = choose_key(path, names, key, preferred)
        groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        self._starts = np.cumsum([0, *groups]).tolist()
        samples, kind = self._starts[-1], file.schema_arrow.field(self._key).type
        if not _is_list(kind):
            raise ValueError(f"the column '{self._key}' must hold a list of numbers per row (got {kind})")
        if not samples:  # the width of its lists is unknown
            self.shape, self.dtype = (0, 0), torch.float32
            return
        first = next(file.iter_batches(1, columns=[self._key], use_threads=False)).column(0)
        row = np.asarray(first[0].values.to_numpy(zero_copy_only=False) if first[0].is_valid else [])
        self.shape = _check((samples, len(row)), kind, row.dtype.kind == "f")
        self.dtype = torch.from_numpy(row[:0].copy()).dtype

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_cursors", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _cursors={}, _lock=threading.Lock())

    def _open(self) -> Any:
        return import_parquet(self.path).ParquetFile(self.path, buffer_size=PARQUET_BUFFER, pre_buffer=False)

    def read(self, first: int, last: int) -> Tensor:
        with self._lock:
            cursor = self._cursors.pop(first, None)
        batches, rest = cursor or self._skip(first)
        found = [rest]
        missing = last - first - len(found[0])
        while missing > 0:
            found.append(self._decode(next(batches)))
            missing -= len(found[-1])
        rows = torch.cat(found)
        with self._lock:
            if len(self._cursors) >= MOST_CURSORS:
                self._cursors.pop(next(iter(self._cursors)))
            self._cursors[last] = _Cursor(batches, rows[last - first :].clone())
        return rows[: last - first]

    def _skip(self, first: int) -> _Cursor:
        """Return a reader that stands at a row; rows before it in the row group are decoded and dropped."""
        group = int(np.searchsorted(self._starts, first, side="right")) - 1
        file = self._open()
        groups = range(group, file.num_row_groups)
        batches = file.iter_batches(PARQUET_ROWS, row_groups=groups, columns=[self._key], use_threads=False)
        skipped = first - self._starts[group]
        while skipped >= 0:
            batch = next(batches)
            if skipped < len(batch):
                return _Cursor(batches, self._decode(batch.slice(skipped)))
            skipped -= len(batch)
        raise ValueError("its row groups have changed")

    def _decode(self, batch: Any) -> Tensor:
        column = batch.column(0)
        values = column.flatten()
        width = self.shape[1]
        if column.null_count or values.null_count:
            raise ValueError(f"the column '{self._key}' has missing values")
        lengths = np.asarray(column.value_lengths())
        if (lengths != width).any():
            other = lengths[lengths != width][0]
            raise ValueError(f"the lists of '{self._key}' must have {width} numbers, as in the first row (got {other})")
        return torch.from_numpy(values.to_numpy(zero_copy_only=False).reshape(-1, width).copy())


def _is_list(kind: Any) -> bool:
    types = importlib.import_module("pyarrow").types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def import_parquet(path: Path) -> Any:
    """Return `pyarrow.parquet`, which reads Parquet files.

    Raises:
        ValueError: pyarrow is not installed.
    """
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ValueError(f"'{path}' needs pyarrow: pip install 'unskew[import]'") from None


_KINDS: dict[str, Callable[[Path, str, tuple[str, ...]], RowFile]] = {
    ".npy": _NpyRows,
    ".safetensors": _SafetensorsRows,
    ".parquet": _ParquetRows,
}
SUFFIXES = tuple(_KINDS)
