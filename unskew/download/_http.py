"""Downloads over HTTP: retried, and resumed with a range request if the file has not changed."""

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import requests
import urllib3

from unskew import __version__
from unskew.download._limits import LimitError, Stalled, TooLarge, Watch
from unskew.download._partial import (
    check_space,
    discard,
    explain_write_error,
    progress_bar,
    read_origin,
    size_of,
    start,
)
from unskew.download.sources import Source

TIMEOUT = (20, 60)  # seconds to connect, and between two pieces of data

ATTEMPTS = 5  # at one mirror, without progress between them

BACKOFF = 1.0  # seconds before the second attempt, doubled for each further one

PROGRESS = 2**20  # a connection that drops after so many bytes is not a failed attempt

CHUNK = 2**16


class MirrorError(Exception):
    """A mirror does not give the file; the message is a few words."""


class ConnectionDropped(Exception):
    """The connection broke; another attempt may give the rest of the file."""


class Unreachable(ConnectionDropped):
    """No connection could be made."""


def download(source: Source, url: str, partial: Path) -> None:
    """Complete a partial file from one mirror.

    Raises:
        MirrorError: all attempts failed, the mirror has another file, or the download reached a limit.
    """
    size_before = largest = size_of(partial)
    attempts, watch = 0, Watch()
    while True:
        try:
            return _transfer(source, url, partial, watch)
        except LimitError as error:
            if isinstance(error, TooLarge):
                discard(partial)
            raise MirrorError(str(error)) from error
        except ConnectionDropped as error:
            size = size_of(partial)
            attempts = 1 if size >= largest + PROGRESS else attempts + 1
            largest = max(largest, size)
            if attempts >= ATTEMPTS or (isinstance(error, Unreachable) and size == size_before):
                raise MirrorError(str(error)) from error
            time.sleep(min(BACKOFF * 2 ** (attempts - 1), 30))


def _transfer(source: Source, url: str, partial: Path, watch: Watch) -> None:
    """Make one request for the missing bytes of a partial file."""
    origin = read_origin(partial)
    # Without a validator, only a checksum would show that the file has changed since.
    is_resumable = origin.get("url") == url and (origin["validator"] or source.checksum)
    begin = size_of(partial) if is_resumable else 0
    if begin and begin in (origin["total"], source.size):
        return
    with _request(url, _headers(begin, origin)) as response:
        if begin and _is_complete(response, begin, origin, partial):
            return
        _check_reply(source, response)
        _, total = _content_range(response)
        if response.status_code == 200:
            begin, total = 0, int(response.headers.get("Content-Length", 0))
        if source.size and total and total != source.size:
            raise MirrorError(f"the file has {total} bytes instead of {source.size}")
        if begin == 0:
            start(partial, url, _validator(response), total)
        check_space(partial, total - begin)
        _save(source, response, partial, begin, total, watch)
    if total and size_of(partial) != total:
        raise ConnectionDropped(f"the data ended after {size_of(partial)} of {total} bytes")


def _headers(begin: int, origin: Mapping[str, Any]) -> dict[str, str]:
    headers = {"User-Agent": f"unskew/{__version__}", "Accept-Encoding": "identity"}
    if begin:
        headers["Range"] = f"bytes={begin}-"
        if origin["validator"]:
            headers["If-Range"] = origin["validator"]
    return headers


def _is_complete(response: requests.Response, begin: int, origin: Mapping[str, Any], partial: Path) -> bool:
    """Return whether the reply to a range request means that no bytes are missing.

    Raises:
        ConnectionDropped: the file has changed; the partial file is deleted.
    """
    if response.status_code not in (206, 416):
        return False
    first, total = _content_range(response)
    # If-Range asks the server for this check, but not every server heeds it.
    changed = origin["validator"] and _validator(response) not in ("", origin["validator"])
    if response.status_code == 416 and total == begin and not changed:
        return True
    if response.status_code == 416 or first != begin or changed:
        discard(partial)
        raise ConnectionDropped("the file has changed")
    return False


def _save(source: Source, response: requests.Response, partial: Path, begin: int, total: int, watch: Watch) -> None:
    bar, size, expected = progress_bar(source.name, total, initial=begin), begin, total or source.size
    watch.begin(begin)
    with bar, explain_write_error(partial, total), partial.open("ab") as file:
        for chunk in _chunks(response):
            size += len(chunk)
            if expected and size > expected:
                raise MirrorError(f"the file has more than {expected} bytes")
            try:
                watch.check(size, expected)
            except Stalled as error:
                raise ConnectionDropped(str(error)) from error
            file.write(chunk)
            bar.update(len(chunk))


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """Yield the body undecoded, because some servers call a .tar.gz a tar with gzip encoding."""
    try:
        if not hasattr(response.raw, "read1"):  # urllib3 before 2.1: a slow server is noticed later
            yield from response.raw.stream(CHUNK, decode_content=False)
        else:
            while chunk := response.raw.read1(CHUNK, decode_content=False):  # what has come, not a whole chunk
                yield chunk
    except urllib3.exceptions.ReadTimeoutError as error:
        raise ConnectionDropped(f"no data for {TIMEOUT[1]} s") from error
    except urllib3.exceptions.HTTPError as error:
        raise ConnectionDropped("the connection broke") from error


def _request(url: str, headers: dict[str, str]) -> requests.Response:
    try:
        return requests.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    except requests.ConnectTimeout as error:
        raise Unreachable(f"no answer in {TIMEOUT[0]} s") from error
    except requests.ReadTimeout as error:
        raise ConnectionDropped(f"no data for {TIMEOUT[1]} s") from error
    except requests.RequestException as error:
        raise describe_failure(error) from error


def describe_failure(error: requests.RequestException) -> Exception:
    """Return a failed request as one of this module's exceptions."""
    if isinstance(error, requests.exceptions.ProxyError):
        return Unreachable("the proxy does not answer")
    if isinstance(error, requests.exceptions.SSLError):
        return Unreachable("no secure connection")
    if isinstance(error, requests.ConnectionError):
        reason = getattr(error.args[0] if error.args else None, "reason", None)
        if isinstance(reason, urllib3.exceptions.NewConnectionError):
            return Unreachable("cannot connect")
        return ConnectionDropped("the connection broke")
    if error.response is not None:
        return MirrorError(f"HTTP {error.response.status_code}")
    return MirrorError(type(error).__name__)


def _check_reply(source: Source, response: requests.Response) -> None:
    status = response.status_code
    if status >= 500 or status == 429:
        raise ConnectionDropped(f"HTTP {status}")
    if status not in (200, 206):
        raise MirrorError(f"HTTP {status}")
    kind = response.headers.get("Content-Type", "")
    if kind.lower().startswith("text/html") and not source.name.endswith((".html", ".htm")):
        raise MirrorError("a web page instead of the file")


def _validator(response: requests.Response) -> str:
    """Return the header that identifies this version of the file; weak ETags do not identify bytes."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _content_range(response: requests.Response) -> tuple[int, int]:
    """Return the first byte and the complete size, 0 if the server does not give them."""
    match = re.match(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
    begin, total = match.groups() if match else (None, "*")
    return int(begin or 0), 0 if total == "*" else int(total)
