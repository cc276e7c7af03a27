"""Installation of a dataset's files into its folder: download and unpack the missing ones, keep the others."""

import contextlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from unskew.download import targets
from unskew.download._partial import remove_parts
from unskew.download.archives import extract
from unskew.download.fetch import fetch, mismatch
from unskew.download.sources import Source, has_content
from unskew.utils.files import move_into_place

logger = logging.getLogger("unskew")


def prepare(folder: str | Path, sources: Sequence[Source]) -> list[str]:
    """Install every source in a dataset's folder and log each step.

    A source whose targets exist costs nothing. A second process waits for the first one. After a kill at any moment,
    the same call resumes; a target appears complete or not at all.

    Returns:
        The names of the sources that were installed by this call.

    Raises:
        FileNotFoundError: files have to be downloaded by hand, or none of their mirrors works. The error comes after
            the other sources are installed and lists all of these files.
        ValueError: a file in the folder is not the expected one, a target has empty or missing files, an archive is
            damaged or lacks a member, or the folder is read-only.
        OSError: the disk is full.
    """
    folder, sources = Path(folder), list(sources)
    missing = [source for source in sources if not _is_installed(folder, source)]
    if not missing:
        logger.info(f"'{folder}' has everything")
        return []
    installed, failures = [], []
    with exclusive_lock(folder):
        for source in missing:
            if _is_installed(folder, source):  # another process was faster
                continue
            try:
                logger.info(f"{source.name}: {_install(folder, source)}")
                installed.append(source.name)
            except ConnectionError as error:
                logger.warning(f"{source.name}: not downloaded")
                failures.append(str(error))
    if failures:
        raise FileNotFoundError(f"'{folder}' is not complete: {'; '.join(failures)}; then run the same command again")
    return installed


def _is_installed(folder: Path, source: Source) -> bool:
    """Return whether all targets exist; if so, delete temporary files that a killed process has left."""
    if _missing_targets(folder, source):
        return False
    manual = folder / source.name
    if not source.makes:
        _check(source, manual)
        remove_parts(manual)
    else:
        targets.check(folder, [source])
        _remove_temporary(_hidden(manual))
    return True


def _missing_targets(folder: Path, source: Source) -> list[tuple[str, str]]:
    """Return the pairs (archive member, target) whose target does not exist or is an empty folder."""
    pairs = source.pairs or ((source.name, source.name),)
    return [(member, target) for member, target in pairs if not has_content(folder / target)]


def _check(source: Source, path: Path) -> None:
    problem = mismatch(source, path)
    if problem:
        raise ValueError(f"'{path}' {problem}; replace it, or delete it and run the same command again")


@contextlib.contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; other processes that prepare the same folder wait."""
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


def _hidden(manual: Path) -> Path:
    """Return where a downloaded archive is kept until its targets exist; ``manual`` is a file that the user put there.

    The archive of the user is never deleted.
    """
    return manual.with_name(f".{manual.name}")


def _workspace(hidden: Path) -> Path:
    return hidden.with_name(f"{hidden.name}.unpack")


def _remove_temporary(hidden: Path) -> None:
    shutil.rmtree(_workspace(hidden), ignore_errors=True)
    if hidden.exists():
        hidden.unlink(missing_ok=True)
    remove_parts(hidden)


def _install(folder: Path, source: Source) -> str:
    """Download or unpack one source; return a description of the step for the log."""
    manual = folder / source.name
    if not source.makes:
        fetch(source, manual)
        return "downloaded"
    hidden = _hidden(manual)
    if manual.is_file():
        _check(source, manual)
        _unpack(folder, source, manual, _workspace(hidden))
    else:
        fetch(source, hidden, place=manual)
        try:
            _unpack(folder, source, hidden, _workspace(hidden))
        except ValueError as error:
            hidden.unlink()
            advice = f"run the same command again to download it again, or put another file at '{manual}'"
            raise ValueError(f"{error}; {advice}") from error
    _remove_temporary(hidden)
    return f"unpacked to {', '.join(source.targets)}"


def _unpack(folder: Path, source: Source, archive: Path, workspace: Path) -> None:
    """Unpack into the workspace, then rename the missing targets into place."""
    if workspace.exists():
        shutil.rmtree(workspace)
    extract(archive, workspace)
    missing = _missing_targets(folder, source)
    absent = [member for member, _ in missing if not (workspace / member).exists()]
    if absent:
        names = sorted(path.name for path in workspace.iterdir())
        shutil.rmtree(workspace)
        listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        raise ValueError(f"'{archive}' lacks {', '.join(absent)}; its top level holds {listed or 'nothing'}")
    for member, target in missing:
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        move_into_place(workspace / member, folder / target)
    targets.record(folder, source.name, [target for _, target in missing])
