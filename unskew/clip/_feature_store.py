"""Rows of features on disk, found by key, shared by all processes: what one has encoded no other encodes again.

<folder>/<number>-<random>.safetensors    keys int64 [n], rows [n, V, D]; written once, whole, never changed
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from unskew.utils.files import write_atomically

logger = logging.getLogger("unskew")


class FeatureStore:
    """Rows [V, D] by 64-bit key: memory-mapped files, and what could not be written to one.

    Args:
        folder: where the files are; ``None`` for rows that are kept in memory alone.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._rows: list[Tensor] = []  # of each part, [n, V, D]
        self._read: set[str] = set()
        self._keys = np.empty(0, np.int64)  # sorted
        self._places = np.empty((0, 2), np.int64)  # part and row of each key

    def refresh(self) -> None:
        """Take in what other processes have written meanwhile; a damaged file is as if it were not there."""
        if self.folder is None or not self.folder.is_dir():
            return
        names = {entry.name for entry in os.scandir(self.folder) if entry.name.endswith(".safetensors")}
        for name in sorted(names - self._read):
            self._read.add(name)
            try:
                with safe_open(self.folder / name, "pt") as file:
                    self._append(file.get_tensor("keys").numpy(), file.get_tensor("rows"))
            except (OSError, SafetensorError) as error:
                logger.warning(f"'{self.folder / name}' cannot be used ({error}): its images are encoded again")

    def _append(self, keys: np.ndarray, rows: Tensor) -> None:
        places = np.stack([np.full(len(keys), len(self._rows)), np.arange(len(keys))], 1)
        self._rows.append(rows)
        keys, places = np.concatenate([self._keys, keys]), np.concatenate([self._places, places])
        self._keys, first = np.unique(keys, return_index=True)
        self._places = places[first]

    def missing(self, keys: np.ndarray) -> np.ndarray:
        """Which of ``keys`` [n] it does not have, [n] bool."""
        return ~np.isin(keys, self._keys)

    def take(self, keys: np.ndarray) -> Tensor:
        """The rows of ``keys`` [n], all of which it has, as a copy [n, V, D]."""
        places = self._places[np.searchsorted(self._keys, keys)]
        found = None
        for part in np.unique(places[:, 0]):
            mine = np.flatnonzero(places[:, 0] == part)
            rows = self._rows[part][torch.from_numpy(places[mine, 1])]
            found = rows.new_empty(len(keys), *rows.shape[1:]) if found is None else found
            found[torch.from_numpy(mine)] = rows
        return found

    def add(self, keys: np.ndarray, rows: Tensor) -> None:
        """Keep new rows [n, V, D], on disk where that is possible."""
        content = save({"keys": torch.from_numpy(keys), "rows": rows.contiguous()})
        name = f"{len(self._read):06d}-{os.urandom(4).hex()}.safetensors"
        if self._write(name, content):
            self._read.add(name)
            with safe_open(self.folder / name, "pt") as file:
                rows = file.get_tensor("rows")
        self._append(keys, rows)

    def _write(self, name: str, content: bytes) -> bool:
        if self.folder is None:
            return False
        try:
            if shutil.disk_usage(self.folder).free < 2 * len(content):
                raise OSError(f"the disk of '{self.folder}' is nearly full")
            write_atomically(self.folder / name, content)
        except OSError as error:
            logger.warning(f"features are kept in memory alone: {error}")
            self.folder = None
            return False
        return True

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One process at a time; another one waits, and then finds what this one has added."""
        if self.folder is None:
            yield
            return
        lock = FileLock(self.folder / ".lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (OSError, NotImplementedError) as error:  # a folder that cannot be written, or a disk without locks
            logger.warning(f"features are kept in memory alone: {error}")
            self.folder = None
            yield
            return
        try:
            yield
        finally:
            lock.release()
