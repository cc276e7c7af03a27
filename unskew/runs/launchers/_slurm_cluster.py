"""The commands of SLURM: submission through submitit, the states of tasks from squeue, cancellation by scancel."""

import contextlib
import io
import os
import shlex
import shutil
import site
import subprocess
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import unskew
from unskew.runs.launchers._slurm_options import SlurmOptions, slurm_options
from unskew.runs.launchers._slurm_tasks import Task
from unskew.utils import threads
from unskew.utils.errors import format_error

# States in which a task has ended; in all others SLURM still knows what to do with it.
_ENDED = frozenset(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT VANISHED".split()
)
# Reasons for which a task waits without a mistake of the user.
_USUAL = frozenset("None Priority Resources Dependency BeginTime JobArrayTaskLimit Cleaning".split())
_SECONDS = 120  # for a command of SLURM, which waits for a busy controller


class Cluster(Protocol):
    """A queue of tasks: SLURM, or processes of this computer in tests."""

    def submit(self, tasks: Sequence[Task], folder: Path, at_once: int | None) -> list[str]:
        """Submit tasks with their files in a folder; return their names."""

    def states(self, tasks: Collection[tuple[str, str]]) -> dict[str, str]:
        """Return the states of tasks by name, given their names and those of their folders."""

    def cancel(self, tasks: Sequence[str]) -> None:
        """Cancel tasks."""


def has_ended(state: str) -> bool:
    """Return whether a task in this state runs no more and is not in the queue."""
    return state in _ENDED


class SlurmCluster:
    """The cluster of the SLURM commands on the PATH.

    Args:
        text: the options of the user, see `slurm_options`.

    Raises:
        ValueError: submitit or SLURM is missing, or an option is wrong.
    """

    def __init__(self, text: str) -> None:
        try:
            import submitit
        except ImportError:
            raise ValueError("--launcher slurm needs submitit: run pip install 'unskew[slurm]'") from None
        missing = [name for name in ("sbatch", "squeue", "scancel", "srun") if not shutil.which(name)]
        if missing:
            raise ValueError(
                f"--launcher slurm needs SLURM's {', '.join(missing)}: run the command where they are on the PATH, "
                "such as a login node, or choose --launcher local"
            )
        known = frozenset(submitit.SlurmExecutor._valid_parameters())
        self.options: SlurmOptions = slurm_options(text, known, threads.requested())

    def submit(self, tasks: Sequence[Task], folder: Path, at_once: int | None) -> list[str]:
        """Submit an array job with the environment of this process; return the names of its tasks.

        Raises:
            ValueError: sbatch refuses it; the message is sbatch's.
        """
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = submitit.SlurmExecutor(folder, max_num_timeout=self.options.max_num_timeout)
        parameters = dict(self.options.parameters)
        parameters["setup"] = [*_exports(parameters.get("cpus_per_task")), *parameters.get("setup", ())]
        executor.update_parameters(**parameters, array_parallelism=at_once or len(tasks))
        try:
            with contextlib.redirect_stderr(io.StringIO()), _outside_of_a_job():  # submitit prints the message, too
                jobs = executor.submit_array(tasks)
        except (FailedJobError, FailedSubmissionError) as error:
            message = format_error(error).replace("sbatch: error: ", "").replace("sbatch: ", "")
            if "configuration source" in message or "resolve_ctls" in message:
                raise ValueError(
                    "this computer belongs to no SLURM cluster, as sbatch finds no slurm.conf: run the command on a "
                    "login node, set SLURM_CONF, or choose --launcher local"
                ) from None
            raise ValueError(f"sbatch refuses the array job: {message} (change --slurm)") from None
        except KeyboardInterrupt:
            self.cancel([script.name.partition("_")[0] for script in folder.glob("*_submission.sh")])
            raise
        return [job.job_id for job in jobs]

    def states(self, tasks: Collection[tuple[str, str]]) -> dict[str, str]:
        """Return the states of tasks as squeue names them, "VANISHED" for those that it does not know.

        An unusual reason is a part of the state: "PENDING (PartitionConfig)".

        SLURM forgets a task some minutes after its end, and its numbers may begin again. A task counts if its batch
        script is in the folder of its submission.

        Raises:
            ValueError: the controller does not answer.
        """
        found = dict.fromkeys((name for name, _ in tasks), "VANISHED")
        if not found:
            return found
        numbers = ",".join(sorted({name.partition("_")[0] for name in found}))
        command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r|%o", f"--jobs={numbers}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            raise ValueError("squeue does not answer: repeat the command later, which attaches again") from None
        if done.returncode and "Invalid job id" not in done.stderr:
            message = " ".join(done.stderr.split())
            raise ValueError(f"{message}: repeat the command later, which attaches again")
        folders = dict(tasks)
        for line in done.stdout.splitlines():
            name, state, reason, script = line.split("|", 3)
            if folders.get(name) == Path(script).parent.name:
                found[name] = f"{state} ({reason})" if state == "PENDING" and reason not in _USUAL else state
        return found

    def cancel(self, tasks: Sequence[str]) -> None:
        """Cancel tasks; kill those that run, which would otherwise ignore the cancellation for KillWait seconds."""
        for options in (["--signal=KILL"], []):
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(["scancel", "--quiet", *options, *tasks], capture_output=True, timeout=_SECONDS)


def _exports(cpus: str | None) -> list[str]:
    """Return lines of the batch script that export the Python path, the threads and the settings of this process."""
    home = Path(unskew.__file__).parents[1]
    installed = str(home) in {*site.getsitepackages(), site.getusersitepackages()}
    given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    path = list(dict.fromkeys([*([] if installed else [str(home)]), *given]))
    values = {name: value for name, value in sorted(os.environ.items()) if name.startswith("UNSKEW_")}
    values |= {"PYTHONPATH": os.pathsep.join(path)} if path else {}
    if count := os.environ.get("OMP_NUM_THREADS") or threads.requested() or cpus:
        values["OMP_NUM_THREADS"] = str(count)
    values["SLURM_EXPORT_ENV"] = "ALL"  # for srun, also if sbatch exports nothing
    return [f"export {name}={shlex.quote(value)}" for name, value in values.items()]


@contextlib.contextmanager
def _outside_of_a_job() -> Iterator[None]:
    """Hide the variables of a SLURM job that this process is a part of, which sbatch would take for options."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    from submitit.helpers import clean_env

    config = os.environ.get("SLURM_CONF")
    with clean_env():
        if config:
            os.environ["SLURM_CONF"] = config
        yield
