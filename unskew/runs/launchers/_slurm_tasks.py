"""Tasks of an array job of SLURM, and the files by which the process that submitted them follows their runs.

Each submission has a folder below ``<output>/.slurm``: ``tasks.json`` names the tasks and the folders of their runs,
``notes`` has a file for each run that began and each that ended, and submitit adds the logs and its own files.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unskew.data.snapshot import Snapshot
from unskew.runs import libraries
from unskew.runs.launchers.jobs import KEPT, Job, Outcome, WorkerError, outcome_of, portable
from unskew.utils.errors import MissingWeightsError
from unskew.utils.files import read_json, write_json

_ERRORS = {kind.__name__: kind for kind in (*KEPT, WorkerError)}


@dataclass(frozen=True)
class Place:
    """A run in a submission.

    Attributes:
        folder: the folder of the submission.
        number: the number of the run in the submission.
        task: the task of SLURM, "123_0".
    """

    folder: Path
    number: int
    task: str

    @property
    def log(self) -> Path:
        """The error log of the task."""
        return self.folder / f"{self.task}_0_log.err"


class Notes:
    """The files of a submission's runs: ``3.started`` when run 3 begins, ``3.json`` when it ends.

    The metrics of a finished run are in its own folder; the note of another holds its error.

    Args:
        folder: the folder of the submission.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "notes"

    def start(self, number: int) -> None:
        """Note that a run begins."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"{number}.started").touch()

    def end(self, number: int, outcome: Outcome) -> None:
        """Note that a run ended, with its error if it has one."""
        outcome = portable(outcome)
        failed = isinstance(outcome, Exception)
        note = {"error": type(outcome).__name__, "message": str(outcome)} if failed else {}
        write_json(note, self.folder / f"{number}.json")

    def numbers(self, kind: str) -> set[int]:
        """Return the runs that have a note: "started" or "json"."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return set()
        parts = (name.partition(".") for name in names)
        return {int(number) for number, _, ending in parts if ending == kind and number.isdecimal()}

    def error(self, number: int) -> Exception | None:
        """Return the error of a run that ended; ``None`` for a finished one."""
        note = read_json(self.folder / f"{number}.json")
        return _ERRORS.get(note["error"], WorkerError)(note["message"]) if note else None


@dataclass(frozen=True)
class Task:
    """A bundle of jobs, which submitit pickles. A task that is requeued skips the jobs that ended before.

    Attributes:
        folder: the folder of the submission.
        jobs: the jobs with their numbers in the submission.
        directory: the current folder of the process that submits, to which relative paths refer.
    """

    folder: Path
    jobs: Sequence[tuple[int, Job]]
    directory: Path

    def __call__(self) -> None:
        """Execute the jobs that have not ended; missing weights stop the bundle, whose jobs share the backbones."""
        from submitit.core.utils import UncompletedJobError

        os.chdir(self.directory)
        libraries.allow_freezing()
        notes, data = Notes(self.folder), Snapshot()
        ended = notes.numbers("json")
        left = [(number, job) for number, job in self.jobs if number not in ended]
        for position, (number, job) in enumerate(left):
            notes.start(number)
            with data.used():
                outcome, _ = outcome_of(job)
            if isinstance(outcome, UncompletedJobError):  # submitit raises it anywhere in a run
                advice = "raise time or max_num_timeout of --slurm, then repeat the command, which resumes"
                for other, _ in left[position:]:
                    notes.end(other, WorkerError(f"the task reached its time limit too often: {advice}"))
                raise outcome
            notes.end(number, outcome)
            if isinstance(outcome, MissingWeightsError):
                break

    def checkpoint(self) -> object:
        """Return the task for the queue when submitit requeues it; its runs resume from their own checkpoints."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)


def write_tasks(folder: Path, tasks: Sequence[tuple[str, Sequence[tuple[int, Job]]]]) -> None:
    """Write the names of the tasks of a submission and the folders of their runs."""
    content = [{"task": name, "runs": {number: _place(job) for number, job in jobs}} for name, jobs in tasks]
    write_json(content, folder / "tasks.json")


def submitted(folder: Path) -> dict[str, Place]:
    """Return the last submission of each run by the run's folder.

    Args:
        folder: the folder of all submissions; their names are in the order of their times.
    """
    found: dict[str, Place] = {}
    for file in sorted(folder.glob("*/tasks.json")):
        for task in read_json(file):
            for number, place in task["runs"].items():
                found[place] = Place(file.parent, int(number), task["task"])
    return found


def place_of(job: Job, known: dict[str, Place]) -> Place | None:
    """Return the last submission of a job; ``None`` if there is none."""
    return known.get(_place(job))


def _place(job: Job) -> str:
    return os.path.abspath(job.place or "")
