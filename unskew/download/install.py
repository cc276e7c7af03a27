"""Bringing a dataset's files into its folder: what is there is kept, what is missing is fetched and unpacked."""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from unskew.download.archives import extract
from unskew.download.fetch import fetch, mismatch, remove_parts
from unskew.download.sources import Source

logger = logging.getLogger("unskew")


def prepare(folder, sources: Sequence[Source]) -> list[str]:
    """Bring every source into a dataset's folder, and say in the log what was done.

    A source whose targets are all there costs nothing. A second process waits for the first one. After a
    kill at any moment the same call goes on; a target appears whole or not at all.

    Returns:
        The names of the sources that were brought.

    Raises:
        FileNotFoundError: files have to be fetched by hand, or no mirror of theirs works; all are listed,
            after everything else was done.
        ValueError: a file that was put there is not the expected one, an archive is damaged or lacks a
            wanted member, or the folder cannot be written.
        OSError: the disk is full.
    """
    folder, sources = Path(folder), list(sources)
    waiting = [source for source in sources if not _is_done(folder, source)]
    if not waiting:
        logger.info(f"'{folder}' has everything")
        return []
    brought, absent = [], []
    with alone(folder):
        for source in waiting:
            if _is_done(folder, source):  # by another process, meanwhile
                continue
            try:
                logger.info(f"{source.name}: {_bring(folder, source)}")
                brought.append(source.name)
            except ConnectionError as error:
                logger.warning(f"{source.name}: not fetched")
                absent.append(str(error))
    if absent:
        raise FileNotFoundError(f"'{folder}' is not complete: {'; '.join(absent)}; then run the same command again")
    return brought


def _is_done(folder: Path, source: Source) -> bool:
    """Whether all targets are there; then what a kill may have left of the work is removed."""
    if _missing(folder, source):
        return False
    placed = folder / source.name
    if not source.makes:
        _check(source, placed)
        remove_parts(placed)
    else:
        _remove_work(_hidden(placed))
    return True


def _missing(folder: Path, source: Source) -> list[tuple[str, str]]:
    pairs = source.makes or ((source.name, source.name),)
    return [(member, target) for member, target in pairs if not (folder / target).exists()]


def _check(source: Source, path: Path) -> None:
    wrong = mismatch(source, path)
    if wrong:
        raise ValueError(f"'{path}' {wrong}; replace it, or delete it to have it fetched")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: of several processes that prepare it one goes on, the others wait."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".prepare.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info(f"another process prepares '{folder}': waiting for it")
            lock.acquire()
    except OSError as error:
        raise ValueError(f"the folder '{folder}' cannot be written ({error.strerror}); choose another") from error
    try:
        yield
    finally:
        lock.release()


# --- one source ----------------------------------------------------------------------------------------


def _hidden(placed: Path) -> Path:
    """Where a downloaded archive lies until its targets are in place; a person's own is ``placed``."""
    return placed.with_name(f".{placed.name}")


def _work(hidden: Path) -> Path:
    return hidden.with_name(f"{hidden.name}.unpack")


def _remove_work(hidden: Path) -> None:
    shutil.rmtree(_work(hidden), ignore_errors=True)
    if hidden.exists():
        hidden.unlink(missing_ok=True)
    remove_parts(hidden)


def _bring(folder: Path, source: Source) -> str:
    """Fetch or unpack one source; returns what was done."""
    placed = folder / source.name
    if not source.makes:
        fetch(source, placed)
        return "fetched"
    hidden = _hidden(placed)
    if placed.is_file():
        _check(source, placed)
        _unpack(folder, source, placed, _work(hidden))
    else:
        fetch(source, hidden, place=placed)
        try:
            _unpack(folder, source, hidden, _work(hidden))
        except ValueError as error:
            hidden.unlink()  # of no use
            advice = f"run the same command again to fetch it anew, or put another file at '{placed}'"
            raise ValueError(f"{error}; {advice}") from error
    _remove_work(hidden)
    return f"unpacked to {', '.join(target for _, target in source.makes)}"


def _unpack(folder: Path, source: Source, archive: Path, work: Path) -> None:
    """Unpack aside, then rename the targets that are missing into place."""
    if work.exists():
        shutil.rmtree(work)
    extract(archive, work)
    wanted = _missing(folder, source)
    lacking = [member for member, _ in wanted if not (work / member).exists()]
    if lacking:
        found = sorted(path.name for path in work.iterdir())
        shutil.rmtree(work)
        shown = ", ".join(found[:10]) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
        raise ValueError(f"'{archive}' lacks {', '.join(lacking)}; at its top it has {shown or 'nothing'}")
    for member, target in wanted:
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        os.rename(work / member, folder / target)
