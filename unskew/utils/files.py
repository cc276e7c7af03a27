"""Files: written whole (aside first, then renamed into place), JSON, and where derived ones go."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write ``path`` so that a reader sees the old file or the new one, never a part.

    Args:
        content: text (as UTF-8), bytes, or a function that writes to the binary file it is given.

    Raises:
        OSError: it cannot be written (a full disk); the file is named and what was there before is kept.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with aside.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
        os.replace(aside, path)
    except OSError as error:  # a failed write() does not know its file's name
        reason = f"cannot write '{path}': {error.strerror}; make room there and run the same command again"
        raise type(error)(error.errno, reason) from error
    finally:
        aside.unlink(missing_ok=True)


def make_folder(folder, fill: Callable[[Path], object]) -> None:
    """Make a folder whose content ``fill(path)`` writes; a reader sees all of it or nothing.

    Where another process is first with the same content, its folder stays.

    Raises:
        OSError: it cannot be written.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fill(work)
        work.chmod(0o755)  # mkdtemp's are private
        os.rename(work, folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def read_json(path):
    """The content of a JSON file.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file '{path}'") from None
    except ValueError as error:  # bad JSON or bad UTF-8
        raise ValueError(f"'{path}' is not a JSON file: {error}") from None


def write_json(content, path) -> None:
    """Write a JSON file, and its folder if need be; a reader sees the old file or the new one, never a part."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content))


def expand(path) -> Path:
    """A path with its ``~``; that of an unknown user stays as it is, for the error that there is no such folder."""
    return Path(os.path.expanduser(path))


def cache_home() -> Path:
    """Where what can be made again goes: ``UNSKEW_CACHE``, else ``~/.cache/unskew``."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand(os.environ.get("UNSKEW_CACHE") or Path(home) / "unskew")


def user_cache(folder) -> Path:
    """Where what is derived from a folder goes, outside of it: a folder of its own in `cache_home`."""
    folder = Path(folder).resolve()
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    return cache_home() / f"{folder.name}-{digest}"


def cache_folder(folder) -> Path:
    """Where what is derived from a folder goes: the folder itself, or `user_cache` where it cannot be written."""
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    effective = os.access in os.supports_effective_ids  # those that a write goes by
    return Path(folder) if os.access(existing, os.W_OK, effective_ids=effective) else user_cache(folder)
