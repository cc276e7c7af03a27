"""Files of an unfinished download, which the next call resumes.

Beside the target ``x`` are ``x.part`` (the bytes so far), ``x.part.json`` (their URL) and gdown's ``x.drive*``.
"""

import contextlib
import glob
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from unskew.utils.files import read_json, write_atomically

_RESUME = "make room on the disk and run the same command again to resume the download"


def partial_path(path: Path) -> Path:
    """Return where the bytes of an unfinished download to ``path`` are."""
    return path.with_name(f"{path.name}.part")


def _origin_path(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def drive_path(partial: Path) -> Path:
    """Return where gdown writes its file; its own partial files append eight characters and ".part"."""
    return partial.with_suffix(".drive")


def _drive_partials(partial: Path) -> list[Path]:
    return list(partial.parent.glob(f"{glob.escape(drive_path(partial).name)}????????.part"))


def read_origin(partial: Path) -> dict[str, Any]:
    """Return where a partial file comes from: ``url``, ``validator`` and the complete file's size ``total``.

    Without a record, or with a damaged one, the result is empty, and the download starts again.
    """
    try:
        origin = read_json(_origin_path(partial))
    except (FileNotFoundError, ValueError):
        return {}
    kinds = {"url": str, "validator": str, "total": int}
    is_valid = isinstance(origin, dict) and all(isinstance(origin.get(key), kind) for key, kind in kinds.items())
    return origin if is_valid else {}


def start(partial: Path, url: str, validator: str, total: int) -> None:
    """Begin a partial file from zero and record where it comes from."""
    discard(partial)
    write_atomically(_origin_path(partial), json.dumps({"url": url, "validator": validator, "total": total}))


def discard(partial: Path) -> None:
    """Delete a partial file and its record."""
    partial.unlink(missing_ok=True)  # first: a partial file without a record is not resumed
    _origin_path(partial).unlink(missing_ok=True)


def remove_parts(path: str | Path) -> None:
    """Delete all files that an unfinished `fetch` to ``path`` has left."""
    partial = partial_path(Path(path))
    for file in (partial, _origin_path(partial), drive_path(partial), *_drive_partials(partial)):
        if file.exists():  # on a read-only disk, unlink fails even if there is no file
            file.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Return a file's size, 0 if it does not exist."""
    return path.stat().st_size if path.is_file() else 0


def drive_size(partial: Path) -> int:
    """Return how many bytes gdown has stored."""
    return sum(map(size_of, _drive_partials(partial)))


def progress_bar(description: str, total: int, **options: Any) -> tqdm:
    """Return a bar in bytes that is shown on terminals only."""
    return tqdm(total=total or None, desc=description, unit="B", unit_scale=True, leave=False, disable=None, **options)


def check_space(path: Path, needed: int) -> None:
    """Raise an ``OSError`` if the disk has fewer free bytes than needed."""
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(f"'{path}' needs {needed} more bytes and the disk has {free} left; {_RESUME}")


@contextlib.contextmanager
def explain_write_error(path: Path, total: int) -> Iterator[None]:
    """Add the file's name and the number of missing bytes to an ``OSError``."""
    try:
        yield
    except OSError as error:
        missing = f", {total - size_of(path)} bytes are missing" if total else ""
        raise type(error)(error.errno, f"cannot write '{path}': {error.strerror}{missing}; {_RESUME}") from error
