"""Byte-identical images in train and test, which make a test accuracy too high."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from unskew.data.dataset import Datum
from unskew.data.snapshot import file_states, map_in_threads, remember
from unskew.utils.errors import DAMAGE
from unskew.utils.files import read_json, user_cache, write_json

logger = logging.getLogger("unskew")

# A cache is not worth it for fewer images.
CACHE_FROM = 1000

_TAIL = 4096  # bytes at the end of a file, which differ for almost all images of equal size

_State = tuple[int, int]  # size and modification time

_Contents = dict[str, object]  # what is known of the content of each path; None: nothing


def warn_of_copies(kind: str, root: str | Path, train: Sequence[Datum], test: Sequence[Datum]) -> None:
    """Warn if test images of the user's data are byte-identical to training images.

    Args:
        kind: the name of the dataset, for the command in the warning.
        root: the folder or CSV file; it identifies the cache.
        train: all training images.
        test: all test images.
    """
    copies = copies_of_data(root, train, test)
    if copies:
        one = min(copies)
        logger.warning(
            f"{len(copies)} of {len(test)} test images are byte-identical to a training image, for instance '{one}' to "
            f"'{copies[one]}': the accuracy is too high; `unskew data verify {kind} --root {root} --full` lists them"
        )


def copies_of_data(root: str | Path, train: Sequence[Datum], test: Sequence[Datum]) -> dict[str, str]:
    """Return ``{test image: the training image with the same bytes}`` of the user's data."""
    paths = tuple(item.impath for item in train), tuple(item.impath for item in test)
    return remember(("copies", *paths), lambda: find_copies(*paths, user_cache(root) / ".copies.json"))


def find_copies(train: Iterable[str], test: Iterable[str], cache: Path | None = None) -> dict[str, str]:
    """Return ``{test image: the first training image with the same bytes}``.

    Only files of equal size are read, at first their ends.

    Args:
        train: paths of training images.
        test: paths of test images.
        cache: the file that keeps the result of many images while their sizes and modification times stay.
    """
    states = [_states(list(paths)) for paths in (train, test)]
    digest = hashlib.sha256(repr([sorted(state.items()) for state in states]).encode("utf-8", "surrogateescape"))
    many = cache is not None and sum(map(len, states)) >= CACHE_FROM
    cached = _read(cache, digest.hexdigest()) if many else None  # type: ignore[arg-type]  # not None if many
    if cached is not None:
        return cached
    sizes: list[_Contents] = [{path: state and state[0] for path, state in of.items()} for of in states]
    first, second = _common(*sizes)
    for read in (_read_end, _digest):
        first, second = _common(_read_all(read, first), _read_all(read, second))
    originals: dict[object, str] = {}
    for path, content in first.items():
        originals.setdefault(content, path)
    copies = {path: originals[content] for path, content in second.items()}
    if many:
        _write(cache, digest.hexdigest(), copies)  # type: ignore[arg-type]
    return copies


def _states(paths: Sequence[str]) -> dict[str, _State | None]:
    """Return size and time of each path that is a regular file with content, else ``None``."""
    found = zip(paths, file_states(paths), strict=True)
    return {path: state[:2] if state and state[3] and state[0] else None for path, state in found}


def _common(train: _Contents, test: _Contents) -> tuple[_Contents, _Contents]:
    """Return the entries of both whose value, other than ``None``, appears in the other."""
    both = set(train.values()) & set(test.values()) - {None}
    first, second = ({path: value for path, value in of.items() if value in both} for of in (train, test))
    return first, second


def _read_all(read: Callable[[str], object], paths: _Contents) -> _Contents:
    """Add what ``read`` returns to what is known of each path; ``None`` for an unreadable file."""
    found = map_in_threads(read, list(paths))
    return {path: (before, now) if now else None for (path, before), now in zip(paths.items(), found, strict=True)}


def _read_end(path: str) -> bytes | None:
    """Return the hash of the end of a file."""
    return _digest(path, _TAIL)


def _digest(path: str, last: int = 0) -> bytes | None:
    """Return the hash of a file or of its ``last`` bytes; ``None`` if it cannot be read."""
    content = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:
            if last:
                file.seek(max(0, os.fstat(file.fileno()).st_size - last))
            while block := file.read(1 << 20):
                content.update(block)
    except OSError:
        return None
    return content.digest()


def _read(cache: Path, digest: str) -> dict[str, str] | None:
    try:
        content = read_json(cache)
        return dict(content["copies"]) if content["state"] == digest else None
    except DAMAGE:
        return None


def _write(cache: Path, digest: str, copies: dict[str, str]) -> None:
    try:
        write_json({"state": digest, "copies": copies}, cache)
    except OSError as error:
        logger.debug(f"the list of copies was not cached: {error}")
