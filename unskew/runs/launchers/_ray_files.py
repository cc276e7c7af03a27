"""Files that go between the driver and a worker that does not see the driver's files, in parts of a few megabytes."""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from unskew.runs.elsewhere import files_of
from unskew.utils.files import move_into_place, temporary_path, write_error

# Size in bytes, and time of modification in nanoseconds, which is part of an evaluation's fingerprint.
State: TypeAlias = "tuple[int, int]"

CHUNK = 8 << 20

# Files that name paths. Each is one part, so that a name is never cut.
_TEXTS = (".yaml", ".json", ".txt", ".csv")


def listing(paths: Iterable[str | Path], root: str = "", unread: bool = False) -> dict[str, State]:
    """Return the states of files and of the files in folders, by their absolute path without ``root``.

    Args:
        paths: files and folders.
        root: see `unskew.runs.elsewhere`.
        unread: include the files that no other run reads.
    """
    states = {}
    for file in (file for path in paths for file in files_of(path, unread)):
        with contextlib.suppress(FileNotFoundError):
            found = file.stat()
            states[os.path.abspath(file).removeprefix(root)] = (found.st_size, found.st_mtime_ns)
    return states


def differing(files: Mapping[str, State], root: str) -> list[str]:
    """Return the files whose copy below ``root`` is missing or differs."""
    return [path for path, state in files.items() if listing([f"{root}{path}"]) != {f"{root}{path}": state}]


def read_chunk(path: str, start: int, root: str = "") -> bytes:
    """Return a part of a file; of a text, all without ``root``."""
    with open(path, "rb") as file:
        file.seek(start)
        if not path.endswith(_TEXTS):
            return file.read(CHUNK)
        return file.read().replace(root.encode(), b"") if root else file.read()


def write_chunk(path: str, start: int, content: bytes, state: State) -> None:
    """Write a part of a file, and its time."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "r+b" if start else "wb") as file:
        file.seek(start)
        file.write(content)
    os.utime(path, ns=(state[1], state[1]))


def send(files: Mapping[str, State], wanted: Iterable[str], write: Callable[[str, int, bytes, State], object]) -> None:
    """Send files in parts to a worker."""
    for path in wanted:
        for start in range(0, max(files[path][0], 1), CHUNK):
            write(path, start, _part(path, start), files[path])


def _part(path: str, start: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(CHUNK)


def fetch(files: Mapping[str, State], before: Mapping[str, State], read: Callable[[str, int], bytes]) -> None:
    """Replace the files of a job's folder by those of a worker, so that a ``done`` appears last.

    Args:
        files: the files of the worker.
        before: the files of the folder that the worker was sent.
        read: returns a part of a file of the worker.

    Raises:
        OSError: a file cannot be written.
    """
    new = [path for path, state in files.items() if before.get(path) != state]
    stale = [path for path in before if path not in files or (Path(path).name == "done" and path in new)]
    temporary: dict[str, Path] = {}
    try:
        for path in sorted(new, key=lambda path: (Path(path).name == "done", -path.count(os.sep))):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            temporary[path] = temporary_path(Path(path))
            _receive(path, temporary[path], files[path], read)
        for path in stale:
            Path(path).unlink(missing_ok=True)
        for path, file in temporary.items():
            move_into_place(file, path)
    except OSError as error:
        raise write_error(error.filename or "the results of a worker", error) from error
    finally:
        for file in temporary.values():
            file.unlink(missing_ok=True)


def _receive(path: str, temporary: Path, state: State, read: Callable[[str, int], bytes]) -> None:
    with temporary.open("wb") as file:
        start = 0
        while part := read(path, start):
            file.write(part)
            start += len(part)
            if path.endswith(_TEXTS):
                break
    os.utime(temporary, ns=(state[1], state[1]))
