"""Atomic writes, JSON files, and the folders of caches."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from unskew.utils.errors import DAMAGE, check_regular, format_error


def write_atomically(path: str | Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part.

    Args:
        path: the file to write.
        content: text (written as UTF-8), bytes, or a function that writes to an open binary file.

    Raises:
        OSError: the file cannot be written, for instance because the disk is full; its old content is kept.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with temporary.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError as error:  # a failed write() does not name its file
        full = errno.errorcode.get(error.errno or 0) in ("ENOSPC", "EDQUOT")
        advice = "make room on the disk and run the same command again" if full else "choose another place"
        reason = f"cannot write '{path}': {error.strerror}; {advice}"
        raise type(error)(error.errno, reason) from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: str | Path, fill: Callable[[Path], object]) -> None:
    """Create a folder with content so that a reader sees all of it or nothing.

    If another process creates the same folder first, that one is kept.

    Args:
        folder: the folder to create.
        fill: a function that writes the content into the folder that it is given.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fill(temporary)
        temporary.chmod(0o755)  # mkdtemp makes it private
        os.rename(temporary, folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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


def cache_home() -> Path:
    """Return the root of all caches: ``UNSKEW_CACHE``, else ``~/.cache/unskew``."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand(os.environ.get("UNSKEW_CACHE") or Path(home) / "unskew")


def user_cache(folder: str | Path) -> Path:
    """Return the subfolder of `cache_home` for files that are derived from a folder."""
    folder = Path(folder).resolve()
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    return cache_home() / f"{folder.name}-{digest}"


def cache_folder(folder: str | Path) -> Path:
    """Return where to write files that are derived from a folder: the folder itself, or `user_cache` if read-only."""
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    effective = os.access in os.supports_effective_ids  # writing depends on the effective user
    return Path(folder) if os.access(existing, os.W_OK, effective_ids=effective) else user_cache(folder)
