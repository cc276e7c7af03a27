"""Fetching the files of a dataset: from the first mirror that works, resumed after a kill, checked at the end."""

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import requests
import urllib3
from tqdm import tqdm

from unskew import __version__
from unskew.download.sources import Source
from unskew.utils.files import write_atomically

TIMEOUT = (20, 60)  # seconds to connect, and between two pieces of data

ATTEMPTS = 5  # at one mirror, without progress between them

BACKOFF = 1.0  # seconds before the second attempt, doubled at each further one

PROGRESS = 2**20  # bytes after which a dropped connection does not count as a failed attempt

CHUNK = 2**16

_BAR = {"unit": "B", "unit_scale": True, "leave": False, "disable": None}


class _MirrorError(Exception):
    """Why a mirror failed, in few words."""


class _Dropped(Exception):
    """The connection broke: what came is kept, and another attempt may bring the rest."""


class _Unreachable(_Dropped):
    """There was no connection at all."""


# --- one file ----------------------------------------------------------------------------------------


def fetch(source: Source, path, place=None) -> None:
    """Download a file to ``path`` from the first of its mirrors that works; nothing is done if it is there.

    What has come so far is in ``<path>.part``, and the next call goes on from there.

    Args:
        place: where a person is told to put the file if no mirror works; default ``path``.

    Raises:
        ConnectionError: no mirror works, or there is none; it says why and what to fetch by hand.
        OSError: the disk is full; what has come is kept.
    """
    path = Path(path)
    if path.is_file():
        return
    part = _part(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if source.size and source.urls:
        _check_space(part, source.size - max(_size(part), _size_of_drive_part(part)))
    begun = _note(part).get("url")
    failures = []
    for url in sorted(source.urls, key=lambda url: url != begun):  # the mirror that the part came from is first
        try:
            _fetch_from(source, url, part)
        except _MirrorError as error:
            failures.append(f"{urlsplit(url).netloc or url}: {error}")
        else:
            os.replace(part, path)
            remove_parts(path)
            return
    reasons = f" could not be downloaded ({'; '.join(failures)})" if failures else " cannot be downloaded"
    raise ConnectionError(f"{source.name}{reasons}: {_by_hand(source, place or path)}")


def _by_hand(source: Source, place) -> str:
    links = [re.sub("^drive:(.*)", r"https://drive.google.com/file/d/\1/view", url) for url in source.urls]
    origin = source.page or " or ".join(links) or "its authors"
    return f"fetch it by hand from {origin} and put it at '{place}'"


def _fetch_from(source: Source, url: str, part: Path) -> None:
    """Bring the whole file into ``part``, and check it."""
    if url.startswith("drive:"):
        resumed = _size_of_drive_part(part) > 0
        _from_drive(source, url.removeprefix("drive:"), part)
    else:
        resumed = _note(part).get("url") == url
        _from_http(source, url, part)
    wrong = mismatch(source, part)
    if not wrong:
        return
    _discard(part)
    if not resumed:
        raise _MirrorError(f"the file {wrong}")
    _fetch_from(source, url, part)  # its beginning was from an earlier call: once more, from zero


def mismatch(source: Source, path) -> str:
    """What is wrong with a file, as "has 10 bytes in place of 12"; "" if it is as expected."""
    size = _size(Path(path))
    if source.size and size != source.size:
        return f"has {size} bytes in place of {source.size}"
    if source.checksum:
        algorithm, _, wanted = source.checksum.partition(":")
        found = _digest(path, algorithm, source.name)
        return "" if found == wanted.lower() else f"has {algorithm} {found} in place of {wanted}"
    with open(path, "rb") as file:
        start = file.read(256).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")) and not source.name.endswith((".html", ".htm")):
        return "is a web page"
    return "" if size else "is empty"


def _digest(path, algorithm: str, name: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file, tqdm(total=_size(Path(path)), desc=f"check {name}", delay=2, **_BAR) as bar:
        while block := file.read(2**20):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


# --- what lies beside the file -------------------------------------------------------------------------


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _note_path(part: Path) -> Path:
    """Says where the part came from: ``url``, ``validator`` and the whole's ``total``."""
    return part.with_name(f"{part.name}.json")


def _note(part: Path) -> dict:
    try:
        return json.loads(_note_path(part).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)  # first: a part without a note is not gone on with
    _note_path(part).unlink(missing_ok=True)


def _drive_path(part: Path) -> Path:
    """Where gdown puts its file; its part of it has eight more characters and ".part"."""
    return part.with_suffix(".drive")


def _drive_parts(part: Path) -> list[Path]:
    return list(part.parent.glob(f"{glob.escape(_drive_path(part).name)}????????.part"))


def remove_parts(path) -> None:
    """Remove what an unfinished `fetch` to ``path`` has left."""
    part = _part(Path(path))
    for file in (part, _note_path(part), _drive_path(part), *_drive_parts(part)):
        if file.exists():  # asked first: a disk that is read-only refuses even to remove nothing
            file.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(f"'{path}' needs {needed} more bytes and the disk has {free} left; {_GO_ON}")


_GO_ON = "make room there and run the same command again, it goes on from what has come"


@contextlib.contextmanager
def _writing(path: Path, total: int) -> Iterator[None]:
    """Name the file, and what it still needs, where a write fails."""
    try:
        yield
    except OSError as error:
        missing = f", {total - _size(path)} bytes are missing" if total else ""
        raise type(error)(error.errno, f"cannot write '{path}': {error.strerror}{missing}; {_GO_ON}") from error


# --- HTTP ----------------------------------------------------------------------------------------------


def _from_http(source: Source, url: str, part: Path) -> None:
    begun = best = _size(part)
    attempts = 0
    while True:
        try:
            return _transfer(source, url, part)
        except _Dropped as error:
            size = _size(part)
            attempts = 1 if size >= best + PROGRESS else attempts + 1
            best = max(best, size)
            if attempts >= ATTEMPTS or (isinstance(error, _Unreachable) and size == begun):
                raise _MirrorError(str(error)) from error
            time.sleep(min(BACKOFF * 2 ** (attempts - 1), 30))


def _transfer(source: Source, url: str, part: Path) -> None:
    """One request for what ``part`` still lacks."""
    note = _note(part)
    # Without a validator only a checksum would notice that the file has changed since.
    goes_on = note.get("url") == url and (note["validator"] or source.checksum)
    start = _size(part) if goes_on else 0
    if start and start in (note["total"], source.size):
        return
    headers = {"User-Agent": f"unskew/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if note["validator"]:
            headers["If-Range"] = note["validator"]
    with _request(url, headers) as response:
        begin, total = _content_range(response)
        # Said by If-Range already, but not every server heeds it.
        changed = note.get("validator") and _validator(response) not in ("", note["validator"])
        if start and response.status_code == 416 and total == start and not changed:
            return
        if start and (response.status_code == 416 or (response.status_code == 206 and (begin != start or changed))):
            _discard(part)
            raise _Dropped("the file has changed")
        _check_reply(source, response)
        if response.status_code == 200:
            start, total = 0, int(response.headers.get("Content-Length", 0))
        if source.size and total and total != source.size:
            raise _MirrorError(f"the file has {total} bytes in place of {source.size}")
        if start == 0:
            _discard(part)
            write_atomically(
                _note_path(part), json.dumps({"url": url, "validator": _validator(response), "total": total})
            )
        _check_space(part, total - start)
        _save(source, response, part, start, total)
    if total and _size(part) != total:
        raise _Dropped(f"it ended after {_size(part)} of {total} bytes")


def _save(source: Source, response: requests.Response, part: Path, start: int, total: int) -> None:
    bar = tqdm(total=total or None, initial=start, desc=source.name, **_BAR)
    with bar, _writing(part, total), part.open("ab") as file:
        for chunk in _chunks(response):
            file.write(chunk)
            bar.update(len(chunk))


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """The body's bytes as they are stored: some servers call a .tar.gz a tar in gzip encoding."""
    try:
        yield from response.raw.stream(CHUNK, decode_content=False)
    except urllib3.exceptions.ReadTimeoutError as error:
        raise _Dropped(f"no data for {TIMEOUT[1]} s") from error
    except urllib3.exceptions.HTTPError as error:
        raise _Dropped("the connection broke") from error


def _request(url: str, headers: dict) -> requests.Response:
    try:
        return requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    except requests.ConnectTimeout as error:
        raise _Unreachable(f"no answer in {TIMEOUT[0]} s") from error
    except requests.ReadTimeout as error:
        raise _Dropped(f"no data for {TIMEOUT[1]} s") from error
    except requests.RequestException as error:
        raise _failure(error) from error


def _failure(error: requests.RequestException) -> Exception:
    """A failed request in few words."""
    if isinstance(error, requests.exceptions.ProxyError):
        return _Unreachable("the proxy does not answer")
    if isinstance(error, requests.exceptions.SSLError):
        return _Unreachable("no secure connection")
    if isinstance(error, requests.ConnectionError):
        reason = getattr(error.args[0] if error.args else None, "reason", None)
        if isinstance(reason, urllib3.exceptions.NewConnectionError):
            return _Unreachable("cannot connect")
        return _Dropped("the connection broke")
    if error.response is not None:
        return _MirrorError(f"HTTP {error.response.status_code}")
    return _MirrorError(type(error).__name__)


def _check_reply(source: Source, response: requests.Response) -> None:
    status = response.status_code
    if status >= 500 or status == 429:
        raise _Dropped(f"HTTP {status}")
    if status not in (200, 206):
        raise _MirrorError(f"HTTP {status}")
    kind = response.headers.get("Content-Type", "")
    if kind.lower().startswith("text/html") and not source.name.endswith((".html", ".htm")):
        raise _MirrorError("a web page in place of the file")


def _validator(response: requests.Response) -> str:
    """What names this version of the file; weak tags do not vouch for its bytes."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _content_range(response: requests.Response) -> tuple[int, int]:
    """First byte and whole size, 0 where they are not said."""
    match = re.match(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
    begin, total = match.groups() if match else (None, "*")
    return int(begin or 0), 0 if total == "*" else int(total)


# --- Google Drive --------------------------------------------------------------------------------------


def _from_drive(source: Source, key: str, part: Path) -> None:
    """Let gdown bring the file: it finds its way through Drive's pages, and keeps a part of its own."""
    output = _drive_path(part)
    before = _size_of_drive_part(part)
    if not output.is_file():
        try:
            _gdown(source, key, output, before)
        except _Dropped as error:
            # gdown never drops a part, also not one that is whole or that the server cannot go on from.
            if not before or _size_of_drive_part(part) > before:
                raise _MirrorError(str(error)) from error
            remove_parts(part.with_suffix(""))
            return _from_drive(source, key, part)
    _discard(part)
    os.replace(output, part)


def _size_of_drive_part(part: Path) -> int:
    return sum(_size(file) for file in _drive_parts(part))


def _gdown(source: Source, key: str, output: Path, begun: int) -> None:
    import gdown  # slow to import, and few files need it

    bar = tqdm(total=source.size or None, initial=begun, desc=source.name, **_BAR)

    def show(done: int, total: int | None) -> None:
        bar.total = total or bar.total
        bar.update(done - bar.n)

    options = {"quiet": True, "use_cookies": False, "resume": True, "timeout": TIMEOUT, "retries": ATTEMPTS - 1}
    with bar, _writing(output, 0):
        try:
            done = gdown.download(id=key, output=str(output), progress=show, **options)
        except gdown.exceptions.FileURLRetrievalError as error:
            raise _MirrorError("Drive gives a page, not the file (too many downloads, or not shared)") from error
        except gdown.exceptions.DownloadError as error:
            raise _Dropped("the connection broke") from error
        except requests.RequestException as error:
            raise _MirrorError(str(_failure(error))) from error
        except KeyError as error:  # a reply without Content-Type
            raise _MirrorError("a reply that gdown does not understand") from error
    if done is None:
        raise _MirrorError("Drive does not give the file")
