"""A cache of rows of numbers that all processes share: image features, text features, priors.

<cache>/<kind>/<digest of the settings>/settings.json                    what decides the rows
<cache>/<kind>/<digest of the settings>/<number>-<random>.safetensors    keys int64 [n], rows [n, V, D]

A file is written once, whole, and never changed. Its metadata hold a checksum of the folder's name, keys and rows. A
file is checked when a row is first wanted from it.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unskew.utils import processes
from unskew.utils.files import cache_home, cache_problem, warn_of_cache, write_atomically, write_json
from unskew.utils.tensor_files import write_safetensors

logger = logging.getLogger("unskew")

Keys = npt.NDArray[np.int64]

# Seconds to wait for another process before a warning.
QUIET_SECONDS = 5.0


@dataclass
class _Block:
    """The content of a file; ``path`` is ``None`` if it is in memory only."""

    path: Path | None
    keys: Keys  # [n]
    rows: Tensor  # [n, V, D]
    checksum: str
    is_checked: bool = False


def open_store(kind: str, settings: Mapping[str, object]) -> "RowStore":
    """Return the store of some settings, the same object for the same settings; they are JSON values.

    Args:
        kind: the name of the cache's subfolder.
        settings: all that decides the rows beside their keys.
    """
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    store = open_folder(cache_home() / kind / digest)
    if store.folder is not None and not (store.folder / "settings.json").exists():
        with contextlib.suppress(OSError):  # `RowStore.exclusive_lock` reports the error
            write_json(settings, store.folder / "settings.json")
    return store


@functools.cache
def open_folder(folder: Path) -> "RowStore":
    """Return the store of a folder of the cache, in memory if the cache cannot be used."""
    problem = cache_problem()
    if problem:
        warn_of_cache(problem)
    return RowStore(None if problem else folder)


def stored(
    kind: str, settings: Mapping[str, object], count: int, make: Callable[[], Tensor], shared: bool = False
) -> Tensor:
    """Return a copy [n, D] of the rows of some settings on the CPU; one process makes them if they are missing.

    Args:
        kind: see `open_store`.
        settings: all that decides the rows.
        count: n.
        make: returns the rows [n, D].
        shared: see `locked`; all processes of the run then make the rows, and the main one writes them.
    """
    store, keys, shared = open_store(kind, settings), np.arange(count), shared and processes.in_group()
    with locked([store], keys, shared):
        if missing_in([store], keys, shared).any():
            add_rows([(store, make()[:, None].cpu())], keys, shared)
    return store.take(keys)[:, 0]


@contextlib.contextmanager
def locked(stores: "Sequence[RowStore]", keys: Keys, shared: bool = False) -> Iterator[None]:
    """Lock the stores that lack a row, so that other runs wait; first read what other processes have written.

    The stores are locked in the order of their folders: then no two processes wait for each other.

    Args:
        stores: the stores.
        keys: [n], the same for all stores.
        shared: whether all processes of the run do this together; the main one holds the locks.
    """
    with contextlib.ExitStack() as locks:
        if not shared or processes.is_main():
            for store in sorted(stores, key=lambda store: str(store.folder)):
                locks.enter_context(store.lock_if_missing(keys))
        if shared:
            processes.wait()
            for store in stores:
                store.refresh_if_missing(keys)
        yield


def missing_in(stores: "Sequence[RowStore]", keys: Keys, shared: bool = False) -> npt.NDArray[np.bool_]:
    """Return a mask [n, S] of the keys that a store lacks; with ``shared``, in any process of the run."""
    lacks = np.stack([store.missing(keys) for store in stores], 1)
    if not shared:
        return lacks
    packed = np.bitwise_or.reduce(processes.exchange(np.packbits(lacks)))
    return np.unpackbits(packed, count=lacks.size).reshape(lacks.shape).astype(bool)


def add_rows(rows: "Sequence[tuple[RowStore, Tensor]]", keys: Keys, shared: bool = False) -> None:
    """Add rows [n, V, D] to each store; with ``shared`` the main process writes them and the others read them.

    A process that cannot read them, such as one on a machine with a cache of its own, keeps them in memory.
    """
    if not shared or processes.is_main():
        for store, new in rows:
            store.add(keys, new)
    if shared:
        processes.wait()
        for store, new in rows:
            store.refresh_if_missing(keys)
            if store.missing(keys).any():
                store.add(keys, new, on_disk=False)


class RowStore:
    """Rows [V, D] by 64-bit key, in memory-mapped files or, where these cannot be written, in memory.

    Args:
        folder: the folder of the files, named by the settings of its rows; ``None`` keeps all rows in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._settings = "" if folder is None else folder.name
        self._known_files: set[str] = set()
        self._forget_blocks()

    def _forget_blocks(self) -> None:
        self._blocks: list[_Block] = []
        self._keys: Keys = np.empty(0, np.int64)  # sorted
        self._places: Keys = np.empty((0, 2), np.int64)  # block and row of each key

    def refresh(self) -> None:
        """Read the files that other processes have added; drop a damaged file with a warning."""
        if self.folder is None or not self.folder.is_dir():
            return
        names = {entry.name for entry in os.scandir(self.folder) if entry.name.endswith(".safetensors")}
        for name in sorted(names - self._known_files):
            self._known_files.add(name)
            try:
                self._append(_read(self.folder / name))
            except OSError as error:
                logger.warning(f"cannot read '{self.folder / name}' ({error}): computing its rows again")
            except (SafetensorError, ValueError) as error:
                _drop(self.folder / name, str(error))

    def _append(self, block: _Block) -> None:
        n = len(block.keys)
        places = np.stack([np.full(n, len(self._blocks)), np.arange(n)], 1)
        self._blocks.append(block)
        keys, places = np.concatenate([self._keys, block.keys]), np.concatenate([self._places, places])
        self._keys, first = np.unique(keys, return_index=True)
        self._places = places[first]

    def missing(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Return a mask [n] of the ``keys`` [n] that have no row. Damaged files with their rows are dropped."""
        while len(self._keys):
            places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            found = self._keys[places] == keys
            numbers = np.unique(self._places[places[found], 0])
            damaged = [number for number in numbers if not self._is_sound(self._blocks[number])]
            if not damaged:
                return ~found
            blocks = [block for number, block in enumerate(self._blocks) if number not in damaged]
            self._forget_blocks()
            for block in blocks:
                self._append(block)
        return np.ones(len(keys), bool)

    def _is_sound(self, block: _Block) -> bool:
        """Return whether a block equals what was written; check each file once, and drop a damaged one."""
        if block.path is None or block.is_checked:
            return True
        block.is_checked = _checksum(self._settings, block.keys, block.rows) == block.checksum
        if not block.is_checked:
            _drop(block.path, "wrong checksum")
        return block.is_checked

    def take(self, keys: Keys) -> Tensor:
        """Return a copy [n, V, D] of the rows of ``keys`` [n], none of which may be missing."""
        places = self._places[np.searchsorted(self._keys, keys)]
        numbers = np.unique(places[:, 0])
        first = self._blocks[numbers[0]].rows
        rows = first.new_empty(len(keys), *first.shape[1:])
        for number in numbers:
            chosen = np.flatnonzero(places[:, 0] == number)
            rows[torch.from_numpy(chosen)] = self._blocks[number].rows[torch.from_numpy(places[chosen, 1])]
        return rows

    def add(self, keys: Keys, rows: Tensor, on_disk: bool = True) -> None:
        """Keep new rows [n, V, D], on disk where possible."""
        rows = rows.contiguous()
        checksum = _checksum(self._settings, keys, rows)
        tensors = {"keys": torch.from_numpy(keys), "rows": rows}
        name = f"{len(self._known_files):06d}-{os.urandom(4).hex()}.safetensors"
        if on_disk and (path := self._write(name, tensors, checksum)):
            self._known_files.add(name)
            self._append(_read(path))
        else:
            self._append(_Block(None, keys, rows, checksum))

    def _write(self, name: str, tensors: Mapping[str, Tensor], checksum: str) -> Path | None:
        if self.folder is None:
            return None
        path, size = self.folder / name, sum(tensor.nbytes for tensor in tensors.values())
        try:
            if shutil.disk_usage(self.folder).free < 2 * size:
                raise OSError("its disk is nearly full")
            write_atomically(path, lambda file: write_safetensors(file, tensors, {"checksum": checksum}))
        except OSError as error:
            self._use_memory(error)
            return None
        return path

    def _use_memory(self, error: Exception) -> None:
        number = getattr(error, "errno", None)
        warn_of_cache(os.strerror(number) if number else str(error))
        self.folder = None

    def refresh_if_missing(self, keys: Keys) -> None:
        """Read what other processes have written, unless all ``keys`` [n] have a row."""
        if self.missing(keys).any():
            self.refresh()

    @contextlib.contextmanager
    def lock_if_missing(self, keys: Keys) -> Iterator[None]:
        """Hold the `exclusive_lock` unless all ``keys`` [n] have a row; first read what other processes have written.

        To lock several stores, use `locked`.
        """
        self.refresh_if_missing(keys)
        if not self.missing(keys).any():
            yield
            return
        with self.exclusive_lock():
            self.refresh()
            yield

    @contextlib.contextmanager
    def exclusive_lock(self) -> Iterator[None]:
        """Let one process at a time compute rows; the others wait and then read them."""
        if self.folder is None:
            yield
            return
        lock = FileLock(self.folder / ".lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _acquire(lock)
        except (OSError, NotImplementedError) as error:  # a read-only folder, or a file system without locks
            self._use_memory(error)
            yield
            return
        try:
            yield
        finally:
            lock.release()


def _read(path: Path) -> _Block:
    """Map a file of rows into memory; raise ``SafetensorError`` or ``ValueError`` if it is damaged."""
    with safe_open(path, "pt") as file:
        keys, rows = file.get_tensor("keys"), file.get_tensor("rows")
        checksum = (file.metadata() or {}).get("checksum", "")
    if keys.dtype != torch.int64 or keys.ndim != 1 or rows.ndim != 3 or len(rows) != len(keys):
        raise ValueError(f"keys {list(keys.shape)} and rows {list(rows.shape)} do not fit")
    return _Block(path, keys.numpy(), rows, checksum)


def _checksum(settings: str, keys: Keys, rows: Tensor) -> str:
    """Return the CRC-32 of the rows' settings, types, shapes and numbers; it takes 0.3 s per GB."""
    header = f"{settings} {keys.dtype} {keys.shape} {rows.dtype} {tuple(rows.shape)}"
    checksum = zlib.crc32(header.encode())
    for numbers in (torch.from_numpy(keys), rows):
        checksum = zlib.crc32(numbers.reshape(-1).view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"


def _drop(path: Path, reason: str) -> None:
    """Delete a damaged file, or leave it where it cannot be deleted."""
    logger.warning(f"'{path}' is damaged ({reason}): deleting it and computing its rows again")
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _acquire(lock: FileLock) -> None:
    """Wait for a lock, and say so after some seconds: the process that holds it may be stopped."""
    try:
        lock.acquire(timeout=QUIET_SECONDS)
    except Timeout:
        logger.warning(
            f"waiting for another process that computes the same rows (it holds '{lock.lock_file}'); if that process "
            "is stopped, continue or end it, or set UNSKEW_CACHE to another folder"
        )
        lock.acquire()
