"""A worker of Ray: a process that executes one job after another."""

import contextlib
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from unskew.data.snapshot import Snapshot
from unskew.runs import libraries
from unskew.runs.elsewhere import Reads
from unskew.runs.launchers._ray_files import State, differing, listing, read_chunk, write_chunk
from unskew.runs.launchers.jobs import Job, Outcome, Remark, outcome_of, portable
from unskew.utils.errors import format_error
from unskew.utils.files import remove_leftovers, temporary_path

# Seconds to wait for features that another worker of the sweep computes, before a warning.
_QUIET_SECONDS = 1800.0


@dataclass(frozen=True)
class Driver:
    """The driver, for its workers.

    Attributes:
        folder: the current folder.
        token: a file in the output folder.
        content: the content of the file.
    """

    folder: str
    token: str
    content: str


@dataclass(frozen=True)
class Facts:
    """A worker, for the driver.

    Attributes:
        node: the name of its computer.
        code: the digest of its code, see `_ray_packages.code_digest`.
        root: the folder that replaces the driver's ``/``; "" if the worker sees the driver's files.
    """

    node: str
    code: str
    root: str


@dataclass(frozen=True)
class Result:
    """A job's result.

    Attributes:
        outcome: the metrics or the error.
        remark: see `outcome_of`.
        warnings: the warnings of the job's log.
        files: the files of its folder by the driver's path, on a worker without the driver's files.
    """

    outcome: Outcome
    remark: Remark
    warnings: list[str]
    files: dict[str, State]


class Worker:
    """An actor. Its process holds the backbone and the features of its last job."""

    def __init__(self, driver: Driver) -> None:
        from unskew.utils import row_store

        libraries.allow_freezing()
        row_store.QUIET_SECONDS = _QUIET_SECONDS
        self._snapshot = Snapshot()  # of the images, see `in_process`
        self._root = "" if _sees(driver) else _make_root()
        folder = f"{self._root}{driver.folder}"
        os.makedirs(folder, exist_ok=True)
        os.chdir(folder)

    def facts(self) -> Facts:
        """Return what the driver must know before the first job."""
        from unskew.runs.launchers._ray_packages import code_digest

        return Facts(platform.node(), code_digest(), self._root)

    def execute(self, job: Job, reads: Reads | None = None) -> Result:
        """Execute a job.

        Args:
            job: the job, with the driver's paths.
            reads: the paths that it reads, for a worker without the driver's files.
        """
        if not reads:
            with _warnings() as lines, self._snapshot.used():
                outcome, remark = outcome_of(job)
            return Result(portable(outcome), remark, lines, {})
        job, remark, lines = job.moved(self._root), "", []
        try:
            self._find(reads)
        except FileNotFoundError as error:
            outcome = error
        else:
            with _warnings() as lines, self._snapshot.used():
                outcome, remark = outcome_of(job)
        lines = [line.replace(self._root, "") for line in lines]
        files = listing([job.place], self._root, unread=True) if job.place else {}
        return Result(self._named(portable(outcome)), remark, lines, files)

    def _named(self, outcome: Outcome) -> Outcome:
        """Return an outcome with the driver's paths; the message about a missing file names this computer."""
        if isinstance(outcome, dict):
            return {key: v.replace(self._root, "") if isinstance(v, str) else v for key, v in outcome.items()}
        hint = f" (on the worker {platform.node()}, which does not share the driver's files)"
        hint = hint if isinstance(outcome, FileNotFoundError) else ""
        return type(outcome)(f"{format_error(outcome).replace(self._root, '')}{hint}")

    def _find(self, reads: Reads) -> None:
        """Let relative paths of images and weights lead to those of this computer; check the others."""
        for path in (*reads.there, reads.images):
            ours, theirs = Path(os.path.abspath(path)), Path(os.path.abspath(path).removeprefix(self._root))
            if not theirs.exists() and path != reads.images:
                raise FileNotFoundError(f"there is no '{theirs}'")
            if theirs.exists() and not ours.exists():  # a relative path
                ours.parent.mkdir(parents=True, exist_ok=True)
                ours.symlink_to(theirs)

    # --- files, on a worker without those of the driver ----------------------------------------------

    def missing(self, files: dict[str, State]) -> list[str]:
        """Return the files, by the driver's path, that differ from those of this worker."""
        return differing(files, self._root)

    def write(self, path: str, start: int, content: bytes, state: State) -> None:
        """Write a part of a file that the driver sends."""
        write_chunk(f"{self._root}{path}", start, content, state)

    def read(self, path: str, start: int) -> bytes:
        """Return a part of a file, with the driver's paths if it is a text."""
        return read_chunk(f"{self._root}{path}", start, self._root)

    def drop(self, folder: str) -> None:
        """Delete a folder that the driver has fetched."""
        shutil.rmtree(f"{self._root}{folder}", ignore_errors=True)

    def close(self) -> None:
        """Delete the files of this worker."""
        if self._root:
            os.chdir("/")
            shutil.rmtree(self._root, ignore_errors=True)


def _sees(driver: Driver) -> bool:
    """Return whether this process sees the driver's output folder and current folder."""
    try:
        return Path(driver.token).read_text(encoding="utf-8") == driver.content and os.path.isdir(driver.folder)
    except (OSError, ValueError):
        return False


def _make_root() -> str:
    """Return a new temporary folder; delete those of workers that were killed."""
    remove_leftovers(tempfile.gettempdir())
    root = temporary_path(Path(tempfile.gettempdir()).resolve() / "unskew-worker")
    root.mkdir()
    return str(root)


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect the warnings of the log."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Collector(logging.WARNING)
    handler.addFilter(lambda record: record.levelno == logging.WARNING)
    logging.getLogger("unskew").addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger("unskew").removeHandler(handler)
