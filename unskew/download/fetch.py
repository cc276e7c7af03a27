"""Download of one file from the first mirror that works, with a check of its size and checksum."""

import hashlib
import re
from pathlib import Path
from urllib.parse import urlsplit

from unskew.download._partial import (
    check_space,
    discard,
    drive_size,
    partial_path,
    progress_bar,
    read_origin,
    remove_parts,
    size_of,
)
from unskew.download.sources import Source
from unskew.utils.files import move_into_place


def fetch(source: Source, path: str | Path, place: str | Path | None = None) -> None:
    """Download a file from the first of its mirrors that works; do nothing if the file exists.

    The bytes so far are in ``<path>.part``, and the next call resumes there.

    Args:
        source: the file and its mirrors.
        path: where to save the file.
        place: where the error message tells the user to put the file if no mirror works; default ``path``.

    Raises:
        ConnectionError: no mirror works, or there is none; the message tells how to get the file by hand.
        OSError: the disk is full; the partial file is kept.
    """
    path = Path(path)
    if path.is_file():
        return
    from unskew.download._http import MirrorError  # requests, which only downloads need

    partial = partial_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if source.size and source.urls:
        check_space(partial, source.size - max(size_of(partial), drive_size(partial)))
    resumed_url = read_origin(partial).get("url")
    failures = []
    for url in sorted(source.urls, key=lambda url: url != resumed_url):
        try:
            _fetch_from(source, url, partial)
        except MirrorError as error:
            failures.append(f"{urlsplit(url).netloc or url}: {error}")
        else:
            move_into_place(partial, path)
            remove_parts(path)
            return
    reasons = f" could not be downloaded ({'; '.join(failures)})" if failures else " cannot be downloaded"
    raise ConnectionError(f"{source.name}{reasons}: {_manual_advice(source, place or path)}")


def _manual_advice(source: Source, place: str | Path) -> str:
    links = [re.sub("^drive:(.*)", r"https://drive.google.com/file/d/\1/view", url) for url in source.urls]
    origin = source.page or " or ".join(links) or "its authors"
    return f"download it by hand from {origin} and put it at '{place}'"


def _fetch_from(source: Source, url: str, partial: Path) -> None:
    """Complete and check a partial file; if a resumed file is wrong, download it once more from zero."""
    from unskew.download import _drive, _http

    if url.startswith("drive:"):
        resumed = drive_size(partial) > 0
        _drive.download(source, url.removeprefix("drive:"), partial)
    else:
        resumed = read_origin(partial).get("url") == url
        _http.download(source, url, partial)
    problem = mismatch(source, partial)
    if not problem:
        return
    discard(partial)
    if not resumed:
        raise _http.MirrorError(f"the file {problem}")
    _fetch_from(source, url, partial)


def mismatch(source: Source, path: str | Path) -> str:
    """Return how a file differs from its source, such as "has 10 bytes instead of 12"; "" if it does not."""
    size = size_of(Path(path))
    if source.size and size != source.size:
        return f"has {size} bytes instead of {source.size}"
    if source.checksum:
        algorithm, _, expected = source.checksum.partition(":")
        actual = _checksum(Path(path), algorithm, source.name)
        return "" if actual == expected.lower() else f"has {algorithm} {actual} instead of {expected}"
    with open(path, "rb") as file:
        beginning = file.read(256).lstrip().lower()
    if beginning.startswith((b"<!doctype html", b"<html")) and not source.name.endswith((".html", ".htm")):
        return "is a web page"
    return "" if size else "is empty"


def _checksum(path: Path, algorithm: str, name: str) -> str:
    checksum = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file, progress_bar(f"check {name}", size_of(path), delay=2) as bar:
        while block := file.read(2**20):
            checksum.update(block)
            bar.update(len(block))
    return checksum.hexdigest()
