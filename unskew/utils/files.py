"""Atomic and durable writes, JSON files, and the folders of caches."""

import atexit
import contextlib
import errno
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from unskew.utils.errors import DAMAGE, check_regular, format_error
from unskew.utils.logging import warn_once

# Temporary files and folders: ".<name>.<system>-<process>-<random>.tmp".
_TEMPORARY = re.compile(r"\..*\.([0-9a-f]{8})-(\d{1,9})-[0-9a-f]{8}\.tmp", re.DOTALL)

# Seconds after which a temporary file is a leftover even if its process may live: on another machine, for instance.
_LEFTOVER_AFTER = 86_400

_LONGEST_NAME = 255  # bytes, on all common file systems

# Errors of a disk that takes no more data.
FULL = (errno.ENOSPC, errno.EDQUOT)


# --- writing ------------------------------------------------------------------------------------------


def write_atomically(path: str | Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part, after a power cut too.

    A symbolic link stays, and the file that it points to is written. An existing file keeps its permissions. A device
    or a pipe is written directly.

    Args:
        path: the file to write.
        content: text (written as UTF-8), bytes, or a function that writes to an open binary file.

    Raises:
        OSError: the file cannot be written, for instance because the disk is full; its old content is kept.
    """
    path = Path(path)
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            with path.open("wb") as device:
                _fill(device, content)
            return
        _replace_content(Path(os.path.realpath(path)) if path.is_symlink() else path, content)
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: str | Path, error: OSError) -> OSError:
    """Return an error with the file and advice; a failed write() does not name its file."""
    advice = "make room on the disk and run the same command again" if error.errno in FULL else ""
    reason = f"cannot write '{path}': {error.strerror}; {advice or 'choose another place'}"
    return type(error)(error.errno, reason)


def _replace_content(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    remove_leftovers(path.parent)
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as file:
            _fill(file, content)
            file.flush()
            os.fsync(file.fileno())
        if path.is_file():
            with contextlib.suppress(PermissionError):  # the file of another user
                temporary.chmod(path.stat().st_mode & 0o7777)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _fill(file: BinaryIO, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode() if isinstance(content, str) else content)


def make_folder(folder: str | Path, fill: Callable[[Path], object]) -> None:
    """Create a folder with content so that a reader sees all of it or nothing, after a power cut too.

    If another process creates the same folder first, that one is kept.

    Args:
        folder: the folder to create.
        fill: a function that writes the content into the folder that it is given.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
    temporary = temporary_path(folder)
    try:
        temporary.mkdir()
        fill(temporary)
        move_into_place(temporary, folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_into_place(source: str | Path, target: str | Path) -> None:
    """Move a complete file or folder to its final name; a power cut leaves all of it there or nothing.

    The content is on the disk before the move, and the move is on the disk when the function returns.

    Raises:
        OSError: the disk is full, or the target is a folder that is not empty.
    """
    source, target = Path(source), Path(target)
    if source.is_dir() and not source.is_symlink():
        with ThreadPoolExecutor(16) as pool:  # a disk commits many files together
            for folder, _, names in os.walk(source, topdown=False):
                list(pool.map(_sync_file, (os.path.join(folder, name) for name in names)))
                _sync_folder(folder)
    else:
        _sync_file(source)
    os.replace(source, target)
    _sync_folder(target.parent)


def _sync_file(path: str | Path) -> None:
    if os.path.islink(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: str | Path) -> None:
    """Write a folder's entries to the disk, on file systems that can do so."""
    with contextlib.suppress(OSError):
        _sync_file(os.path.realpath(folder))


# --- leftovers of killed processes --------------------------------------------------------------------


@functools.cache
def _system() -> str:
    """Return a short hash of the machine, its boot and the process namespace: what a process number depends on."""
    facts = [platform.node()]
    with contextlib.suppress(OSError):  # Linux only
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8"))
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(facts).encode(errors="replace")).hexdigest()[:8]


def temporary_path(path: Path) -> Path:
    """Return a new hidden name beside a path; `remove_leftovers` recognises it if this process is killed."""
    name = os.fsdecode(os.fsencode(path.name)[:200])
    return path.with_name(f".{name}.{_system()}-{os.getpid()}-{os.urandom(4).hex()}.tmp")


def remove_leftovers(folder: str | Path) -> None:
    """Delete the temporary files and folders in a folder whose process is gone, or that are older than a day."""
    with contextlib.suppress(OSError):
        with os.scandir(folder) as entries:
            found = [entry.path for entry in entries if entry.name.endswith(".tmp") and _is_leftover(entry)]
        for path in found:
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)


def _is_leftover(entry: os.DirEntry) -> bool:
    match = _TEMPORARY.fullmatch(entry.name)
    if match is None:
        return False
    if match[1] == _system() and os.name == "posix" and not _is_alive(int(match[2])):
        return True
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > _LEFTOVER_AFTER


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except OSError:  # the process of another user
        return True
    return True


# --- JSON ---------------------------------------------------------------------------------------------


def read_json(path: str | Path, object_pairs_hook: Callable[[Any], Any] | None = None) -> Any:
    """Return the content of a JSON file.

    Args:
        path: the file.
        object_pairs_hook: see `json.loads`; it sees keys that a JSON object has twice.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not JSON.
    """
    try:
        check_regular(path)
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file '{path}'") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not a JSON file: {error}") from None
    try:
        return json.loads(text, object_pairs_hook=object_pairs_hook)
    except DAMAGE as error:
        raise ValueError(f"'{path}' is not a JSON file: {format_error(error)}") from None


def write_json(content: object, path: str | Path) -> None:
    """Write a JSON file atomically; create its folder if it is missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content))


def expand(path: str | Path) -> Path:
    """Expand ``~`` in a path; ``~name`` of an unknown user is kept."""
    return Path(os.path.expanduser(path))


# --- caches -------------------------------------------------------------------------------------------


def cache_home() -> Path:
    """Return the root of all caches: ``UNSKEW_CACHE``, else ``~/.cache/unskew``."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand(os.environ.get("UNSKEW_CACHE") or Path(home) / "unskew")


def user_cache(folder: str | Path) -> Path:
    """Return the subfolder of `cache_home` for files that are derived from a folder."""
    folder = Path(folder).resolve()
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    return cache_home() / f"{os.fsdecode(os.fsencode(folder.name)[:200])}-{digest}"


def cache_folder(folder: str | Path) -> Path:
    """Return where to write files that are derived from a folder: the folder itself, or `user_cache` if read-only."""
    return Path(folder) if not unwritable(folder) else user_cache(folder)


def unwritable(folder: str | Path) -> str:
    """Return the reason why no file can be written to a folder, which need not exist yet; "" if there is none."""
    existing = os.path.abspath(folder)
    while not os.path.exists(existing):  # never raises, unlike Path.exists
        existing, name = os.path.split(existing)
        if len(os.fsencode(name)) > _LONGEST_NAME:
            return os.strerror(errno.ENAMETOOLONG)
    if not os.path.isdir(existing):
        return f"'{existing}' is not a folder"
    effective = os.access in os.supports_effective_ids  # writing depends on the effective user
    return "" if os.access(existing, os.W_OK | os.X_OK, effective_ids=effective) else f"'{existing}' is read-only"


def cache_problem() -> str:
    """Return the reason why `cache_home` cannot be used, "" if there is none."""
    try:
        os.fspath(cache_home()).encode()
    except UnicodeEncodeError:  # the readers of features want UTF-8
        return "its name is not UTF-8"
    return unwritable(cache_home())


def warn_of_cache(reason: str) -> None:
    """Warn once in a process that a cache is kept in memory."""
    home = os.fsencode(cache_home()).decode(errors="backslashreplace")
    home = home if len(home) <= 100 else f"{home[:100]}..."
    warn_once(f"the cache '{home}' cannot be used ({reason}), so it is kept in memory: set UNSKEW_CACHE to a folder")


def cached_folder(root: str | Path, name: str, fill: Callable[[Path], object]) -> Path:
    """Return the folder ``root/name``, or its copy in the user's cache; create it if neither exists.

    Where neither place can be written, a temporary folder lives as long as the process.

    Args:
        root: the folder that the content belongs to.
        name: the folder's name.
        fill: see `make_folder`.
    """
    places = [place for place in (Path(root), user_cache(root)) if os.path.isdir(place / name)]
    if not places:
        places = [cache_folder(root)]
        problem = cache_problem() if places[0] != Path(root) else ""
        if problem:
            warn_of_cache(problem)
            places = [_temporary_cache() / user_cache(root).name]
        if not os.path.isdir(places[0] / name):
            make_folder(places[0] / name, fill)
    return places[0] / name


@functools.cache
def _temporary_cache() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="unskew-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
