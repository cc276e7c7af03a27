"""The launcher for SLURM: an array job of submitit, whose tasks are bundles of runs.

The process that submits may end: the same command finds the tasks that are queued or running, and waits for them.
"""

import shutil
import sys
import time
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from pathlib import Path

from filelock import FileLock

from unskew.runs.launchers._slurm_cluster import Cluster, SlurmCluster, has_ended
from unskew.runs.launchers._slurm_options import CPUS
from unskew.runs.launchers._slurm_tasks import Notes, Place, Task, place_of, submitted, write_tasks
from unskew.runs.launchers.bundles import bundles, split
from unskew.runs.launchers.jobs import Job, Outcome, Remark, WorkerError, settled
from unskew.runs.launchers.options import Options
from unskew.utils.errors import format_error
from unskew.utils.files import write_error

FOLDER = ".slurm"  # in the output folder; `unskew table` finds no run in it
JOBS_PER_TASK = 4  # a task takes some time to load PyTorch, a tower and features
MOST_TASKS = 64

NOTES_SECONDS = 2.0  # between two looks at the notes of the tasks
QUEUE_SECONDS = 20.0  # between two calls of squeue
_SILENCE = 600.0  # seconds without an answer of squeue, after which waiting ends
_COMPLETING = 60.0  # seconds to wait for cancelled tasks, whose processes may still write


def build(options: Options, output: str | Path) -> "Slurm":
    """Return the launcher for SLURM.

    Args:
        options: the choice of the user.
        output: the folder of all runs, on a file system that all nodes share.

    Raises:
        ValueError: submitit or SLURM is missing, or an option of --slurm is wrong.
    """
    return Slurm(SlurmCluster(options.slurm), Path(output) / FOLDER, options.jobs, options.detach)


class Slurm:
    """Executes jobs in tasks of an array job.

    Args:
        cluster: the queue.
        folder: the folder of all submissions.
        at_once: tasks at once; ``None``: as many as the cluster has room for.
        detach: submit and return at once.
    """

    def __init__(self, cluster: Cluster, folder: Path, at_once: int | None = None, detach: bool = False) -> None:
        self.cluster, self.folder = cluster, folder.absolute()
        self.at_once, self.detach = at_once, detach
        self._said: set[str] = set()  # the states that `_warn` has printed

    def outcomes(self, jobs: Sequence[Job]) -> Generator[tuple[int, Outcome, Remark], None, None]:
        """Yield the position, the outcome and a remark of each job as jobs end; submit those that no task has.

        Closing the iterator, or an interrupt, cancels the tasks that it waits for.

        Raises:
            ValueError: sbatch refuses the options, or the controller does not answer.
            OSError: the files of the tasks cannot be written.
        """
        found = settled(jobs)
        for position, outcome in found.items():
            yield position, outcome, "finished earlier" if isinstance(outcome, dict) else ""
        left = [position for position in range(len(jobs)) if position not in found]
        if not left:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock", timeout=300):
                queued = self._attach_or_submit(jobs, left)
        except OSError as error:
            if error.strerror:  # not a lock that another command holds
                raise write_error(self.folder, error) from error
            raise
        if self.detach:
            return
        try:
            yield from self._wait(jobs, queued)
        except (KeyboardInterrupt, GeneratorExit):
            self.cluster.cancel(sorted({place.task for place in queued.values()}))
            raise

    # --- submission ---------------------------------------------------------------------------------

    def _attach_or_submit(self, jobs: Sequence[Job], left: Sequence[int]) -> dict[int, Place]:
        """Return the places of the jobs that are queued or running, after those that no task has are submitted."""
        known = submitted(self.folder)
        before = {position: place for position in left if (place := place_of(jobs[position], known))}
        states = self._states(before.values())
        notes = {place.folder: Notes(place.folder) for place in before.values()}
        ended, began = ({folder: note.numbers(kind) for folder, note in notes.items()} for kind in ("json", "started"))
        queued: dict[int, Place] = {}
        problems: Counter[str] = Counter()
        for position, place in before.items():
            if place.number in ended[place.folder]:  # a finished run without an error was deleted since
                if error := notes[place.folder].error(place.number):
                    problems[format_error(error)] += 1
            elif has_ended(states[place.task]):
                problems[str(_lost(place, states[place.task]))] += 1
            else:
                queued[position] = place
        for problem, count in problems.items():
            _say(f"{count} failed before, submitted again: {problem}")
        new = [position for position in left if position not in queued]
        # A run that broke its task is the last of its bundle, so that it does not stop the others again.
        new.sort(key=lambda position: position in before and _in_progress(before[position], began, ended))
        if new:
            queued |= self._submit(jobs, new)
        self._report(len(jobs), queued, states, new)
        self._warn(states)
        return dict(sorted(queued.items()))

    def _states(self, places: Collection[Place]) -> dict[str, str]:
        """Return the states of tasks, when no cancelled one is ending: its processes could still write its runs."""
        limit = time.monotonic() + _COMPLETING
        while True:
            states = self.cluster.states(_named(places))
            if "COMPLETING" not in states.values() or time.monotonic() > limit:
                return states
            time.sleep(NOTES_SECONDS)

    def _submit(self, jobs: Sequence[Job], new: Sequence[int]) -> dict[int, Place]:
        """Submit jobs as one array job; return their places."""
        parts = bundles([jobs[position] for position in new])
        count = self.at_once or min(MOST_TASKS, -(-len(new) // JOBS_PER_TASK))
        parts = split(parts, count)
        seconds, rest = divmod(time.time_ns(), 10**9)
        folder = self.folder / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(seconds))}-{rest:09d}"
        tasks = [Task(folder, [(number, jobs[new[number]]) for number in part], Path.cwd()) for part in parts]
        folder.mkdir()
        try:
            names = self.cluster.submit(tasks, folder, self.at_once)
        except BaseException:
            shutil.rmtree(folder)
            raise
        write_tasks(folder, [(name, task.jobs) for name, task in zip(names, tasks, strict=True)])
        return {
            new[number]: Place(folder, number, name)
            for name, task in zip(names, tasks, strict=True)
            for number, _ in task.jobs
        }

    def _report(self, total: int, queued: Mapping[int, Place], states: Mapping[str, str], new: Sequence[int]) -> None:
        """Print how many jobs are finished, running and queued, and what the user can do."""
        started = {folder: Notes(folder).numbers("started") for folder in {place.folder for place in queued.values()}}
        active = {name for name, state in states.items() if state == "RUNNING"}
        running = sum(p.task in active and p.number in started[p.folder] for p in queued.values())
        _say(f"{total - len(queued)} of {total} done, {running} running, {len(queued) - running} queued")
        numbers = list(dict.fromkeys(place.task.partition("_")[0] for place in queued.values()))
        named = ", ".join(numbers)
        if new:
            place = queued[new[0]]
            tasks = len({queued[position].task for position in new})
            _say(f"SLURM job {numbers[-1]}: submitted {len(new)} in {tasks} tasks, with their logs in '{place.folder}'")
        if self.detach:
            _say(
                f"Repeat the command for the progress and the table. The queue: squeue -j {','.join(numbers)}; "
                f"to cancel: scancel {' '.join(numbers)}"
            )
        else:
            _say(f"Waiting for SLURM job {named}; Ctrl-C cancels it. If this command is killed, repeat it to attach")

    def _warn(self, states: Mapping[str, str]) -> None:
        """Print the reasons for which SLURM may never start tasks, each once."""
        for state, count in Counter(state for state in states.values() if "(" in state).items():
            if state not in self._said:
                self._said.add(state)
                _say(
                    f"SLURM says {state} of {count} tasks: if it stays, they may ask for more than a node has; "
                    f"cancel them and change --slurm, such as cpus_per_task (default {CPUS})"
                )

    # --- waiting ------------------------------------------------------------------------------------

    def _wait(self, jobs: Sequence[Job], queued: Mapping[int, Place]) -> Iterator[tuple[int, Outcome, Remark]]:
        """Yield jobs as they end; a job whose task ended without a note of it gets a `WorkerError`."""
        waiting = dict(queued)
        suspects: dict[str, str] = {}  # tasks that had ended at the last look, with their states
        answered = looked = time.monotonic()
        while waiting:
            for position, outcome in _noted(jobs, waiting).items():
                del waiting[position]
                yield position, outcome, ""
            if time.monotonic() - looked < QUEUE_SECONDS:
                time.sleep(NOTES_SECONDS if waiting else 0)
                continue
            looked = time.monotonic()
            try:
                states = self.cluster.states(_named(waiting.values()))
            except ValueError:
                if looked - answered > _SILENCE:
                    raise
                continue
            answered = looked
            self._warn(states)
            ended = {name: state for name, state in states.items() if has_ended(state)}
            # The notes were read between the two looks, so a note that is missing now will not come.
            for position, place in list(waiting.items()):
                if place.task in ended and place.task in suspects:
                    del waiting[position]
                    yield position, _lost(place, suspects[place.task]), ""
            suspects = ended


def _noted(jobs: Sequence[Job], waiting: Mapping[int, Place]) -> dict[int, Outcome]:
    """Return the outcomes of the jobs that a note calls ended; the metrics come from the jobs' folders."""
    ended = {folder: Notes(folder).numbers("json") for folder in {place.folder for place in waiting.values()}}
    found: dict[int, Outcome] = {}
    finished: list[int] = []
    for position, place in waiting.items():
        if place.number in ended[place.folder]:
            if error := Notes(place.folder).error(place.number):
                found[position] = error
            else:
                finished.append(position)
    metrics = settled([jobs[position] for position in finished]) if finished else {}
    return found | {finished[number]: outcome for number, outcome in metrics.items()}


def _in_progress(place: Place, began: Mapping[Path, set[int]], ended: Mapping[Path, set[int]]) -> bool:
    return place.number in began[place.folder] - ended[place.folder]


def _lost(place: Place, state: str) -> WorkerError:
    cause = "left the queue" if state == "VANISHED" else f"ended as {state}"
    return WorkerError(f"SLURM task {place.task} {cause} before the run was finished; its log: '{place.log}'")


def _named(places: Collection[Place]) -> set[tuple[str, str]]:
    return {(place.task, place.folder.name) for place in places}


def _say(text: str) -> None:
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
