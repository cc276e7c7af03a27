"""Rows of features in files that all processes share, so that each image is encoded once.

<folder>/<number>-<random>.safetensors    keys int64 [n], rows [n, V, D]; written once, whole, never changed
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from unskew.utils.files import write_atomically

logger = logging.getLogger("unskew")

Keys = npt.NDArray[np.int64]


class FeatureStore:
    """Rows [V, D] by 64-bit key, in memory-mapped files or, where these cannot be written, in memory.

    Args:
        folder: the folder of the files; ``None`` keeps all rows in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._blocks: list[Tensor] = []  # [n, V, D] each
        self._known_files: set[str] = set()
        self._keys: Keys = np.empty(0, np.int64)  # sorted
        self._places: Keys = np.empty((0, 2), np.int64)  # block and row of each key

    def refresh(self) -> None:
        """Read the files that other processes have added; skip a damaged file with a warning."""
        if self.folder is None or not self.folder.is_dir():
            return
        names = {entry.name for entry in os.scandir(self.folder) if entry.name.endswith(".safetensors")}
        for name in sorted(names - self._known_files):
            self._known_files.add(name)
            try:
                with safe_open(self.folder / name, "pt") as file:
                    self._append(file.get_tensor("keys").numpy(), file.get_tensor("rows"))
            except (OSError, SafetensorError) as error:
                logger.warning(f"cannot read '{self.folder / name}' ({error}); encoding its images again")

    def _append(self, keys: Keys, rows: Tensor) -> None:
        places = np.stack([np.full(len(keys), len(self._blocks)), np.arange(len(keys))], 1)
        self._blocks.append(rows)
        keys, places = np.concatenate([self._keys, keys]), np.concatenate([self._places, places])
        self._keys, first = np.unique(keys, return_index=True)
        self._places = places[first]

    def missing(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Return a mask [n] of the ``keys`` [n] that have no row."""
        return ~np.isin(keys, self._keys)

    def take(self, keys: Keys) -> Tensor:
        """Return a copy [n, V, D] of the rows of ``keys`` [n], none of which may be missing."""
        places = self._places[np.searchsorted(self._keys, keys)]
        numbers = np.unique(places[:, 0])
        rows = self._blocks[numbers[0]].new_empty(len(keys), *self._blocks[numbers[0]].shape[1:])
        for number in numbers:
            chosen = np.flatnonzero(places[:, 0] == number)
            rows[torch.from_numpy(chosen)] = self._blocks[number][torch.from_numpy(places[chosen, 1])]
        return rows

    def add(self, keys: Keys, rows: Tensor) -> None:
        """Keep new rows [n, V, D], on disk where possible."""
        content = save({"keys": torch.from_numpy(keys), "rows": rows.contiguous()})
        name = f"{len(self._known_files):06d}-{os.urandom(4).hex()}.safetensors"
        if path := self._write(name, content):
            self._known_files.add(name)
            with safe_open(path, "pt") as file:
                rows = file.get_tensor("rows")
        self._append(keys, rows)

    def _write(self, name: str, content: bytes) -> Path | None:
        if self.folder is None:
            return None
        path = self.folder / name
        try:
            if shutil.disk_usage(self.folder).free < 2 * len(content):
                raise OSError(f"the disk of '{self.folder}' is nearly full")
            write_atomically(path, content)
        except OSError as error:
            self._use_memory(error)
            return None
        return path

    def _use_memory(self, error: Exception) -> None:
        logger.warning(f"keeping features in memory only: {error}")
        self.folder = None

    @contextlib.contextmanager
    def exclusive_lock(self) -> Iterator[None]:
        """Let one process at a time encode; the others wait and then read its rows."""
        if self.folder is None:
            yield
            return
        lock = FileLock(self.folder / ".lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (OSError, NotImplementedError) as error:  # a read-only folder, or a file system without locks
            self._use_memory(error)
            yield
            return
        try:
            yield
        finally:
            lock.release()
