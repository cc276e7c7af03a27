"""Downloads from Google Drive with gdown, which handles Drive's pages and keeps partial files of its own."""

from pathlib import Path
from typing import Any

import requests

from unskew.download._http import ATTEMPTS, TIMEOUT, ConnectionDropped, MirrorError, describe_failure
from unskew.download._limits import LimitError, Stalled, Watch
from unskew.download._partial import (
    discard,
    drive_path,
    drive_size,
    explain_write_error,
    progress_bar,
    remove_parts,
)
from unskew.download.sources import Source
from unskew.utils.files import move_into_place


def download(source: Source, key: str, partial: Path) -> None:
    """Complete a partial file from Drive's file ``key``.

    Raises:
        MirrorError: Drive does not give the file.
    """
    output = drive_path(partial)
    size_before = drive_size(partial)
    if not output.is_file():
        try:
            _run_gdown(source, key, output, size_before)
        except ConnectionDropped as error:
            # gdown never deletes its partial file, even if it is complete or the server cannot resume it.
            if not size_before or drive_size(partial) > size_before:
                raise MirrorError(str(error)) from error
            remove_parts(partial.with_suffix(""))
            return download(source, key, partial)
    discard(partial)
    move_into_place(output, partial)


def _run_gdown(source: Source, key: str, output: Path, size_before: int) -> None:
    import gdown  # slow to import, and few files need it

    bar, watch = progress_bar(source.name, source.size, initial=size_before), Watch()
    watch.begin(size_before)

    def show(done: int, total: int | None) -> None:
        watch.check(done, total or source.size)
        bar.total = total or bar.total
        bar.update(done - bar.n)

    options: dict[str, Any] = {"quiet": True, "use_cookies": False, "resume": True, "retries": ATTEMPTS - 1}
    with bar, explain_write_error(output, 0):
        try:
            result = gdown.download(id=key, output=str(output), progress=show, timeout=TIMEOUT, **options)
        except gdown.exceptions.FileURLRetrievalError as error:
            raise MirrorError("Drive gives a page, not the file (too many downloads, or not shared)") from error
        except gdown.exceptions.DownloadError as error:
            raise ConnectionDropped("the connection broke") from error
        except (LimitError, Stalled) as error:
            raise MirrorError(str(error)) from error
        except requests.RequestException as error:
            raise MirrorError(str(describe_failure(error))) from error
        except KeyError as error:  # a reply without Content-Type
            raise MirrorError("a reply that gdown does not understand") from error
    if result is None:
        raise MirrorError("Drive does not give the file")
