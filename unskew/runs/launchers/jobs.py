"""A job of a sweep or a protocol, its outcome, and the launcher that executes jobs."""

import os
from collections.abc import Generator, Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from unskew.data.snapshot import with_snapshot
from unskew.utils import processes
from unskew.utils.errors import MissingWeightsError, format_error

if TYPE_CHECKING:
    from unskew.runs.elsewhere import Reads

# The metrics of a job or its error.
Outcome: TypeAlias = "dict | Exception"

# A few words for the line of progress, such as "finished earlier"; usually empty.
Remark: TypeAlias = str

# Errors that keep their type on the way from a worker; one line describes them.
KEPT = (MissingWeightsError, FileNotFoundError, PermissionError, OSError, FloatingPointError, MemoryError, ValueError)


class Job(Protocol):
    """A run or an evaluation. Its pickle holds its description alone, so that a worker builds the config again."""

    @property
    def label(self) -> str:
        """A few words for the line of progress."""

    @property
    def place(self) -> Path | None:
        """The folder of the results; ``None`` if a wrong config gives none."""

    @property
    def shares(self) -> Hashable:
        """The dataset and the backbones, which jobs of one worker share."""

    def reads(self) -> "Reads":
        """Return the paths that the job reads, for a worker without the driver's files."""

    def moved(self, root: str) -> "Job":
        """Return the job for a worker without the driver's files, with absolute paths below ``root``."""

    def finished(self) -> dict | None:
        """Return the metrics if the job is finished."""

    def execute(self) -> dict:
        """Do the job; return the metrics."""


class Launcher(Protocol):
    """Executes jobs, in any order."""

    def outcomes(self, jobs: Sequence[Job]) -> Generator[tuple[int, Outcome, Remark], None, None]:
        """Yield the position of each job, its outcome and a remark, as jobs finish.

        A caller that closes the iterator, or an interrupt, cancels the other jobs. Jobs that a detached launcher leaves
        to a queue are not yielded.

        Raises:
            ValueError: the cluster cannot be reached or refuses the options.
        """


class WorkerError(Exception):
    """An error of a worker whose type need not exist in this process; its message names the type."""


def outcome_of(job: Job) -> tuple[Outcome, Remark]:
    """Return a job's metrics or its error, and a remark if it was finished before."""
    try:
        if (finished := job.finished()) is not None:
            return finished, "finished earlier"
        return job.execute(), ""
    except Exception as error:  # of any kind: the method may be a plugin
        several = processes.count() > 1
        if os.environ.get("UNSKEW_DEBUG") or (several and not isinstance(error, ValueError | OSError)):
            raise
        # The frames of a traceback hold the trainer, and with it the device's memory.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        return error, ""


@with_snapshot
def settled(jobs: Sequence[Job]) -> dict[int, Outcome]:
    """Return the outcomes by position of the jobs that need no worker: finished ones, and those with a wrong config."""
    found: dict[int, Outcome] = {}
    for position, job in enumerate(jobs):
        try:
            metrics = job.finished()
        except Exception as error:  # of any kind: the config may be a plugin's
            if os.environ.get("UNSKEW_DEBUG"):
                raise
            found[position] = error
        else:
            if metrics is not None:
                found[position] = metrics
    return found


def portable(outcome: Outcome) -> Outcome:
    """Return an outcome that every process can unpickle: an error of a plugin's type becomes a `WorkerError`."""
    if not isinstance(outcome, Exception):
        return outcome
    message = format_error(outcome)
    for kind in KEPT:
        if isinstance(outcome, kind):
            return kind(message)
    return WorkerError(f"{type(outcome).__name__}: {message}")
