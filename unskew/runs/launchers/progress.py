"""Progress of jobs on the console: a bar, or a line for each job, and each error once."""

import contextlib
import sys
from collections.abc import Iterator, Sequence

from unskew.engine.run_dir import RunDir
from unskew.runs.launchers.in_process import InProcess
from unskew.runs.launchers.jobs import Job, Launcher, Outcome, WorkerError
from unskew.utils import processes
from unskew.utils.errors import MissingWeightsError, format_error
from unskew.utils.logging import warnings_once


def launch_jobs(jobs: Sequence[Job], unit: str, launcher: Launcher | None = None) -> Iterator[tuple[int, Outcome]]:
    """Execute jobs; yield the position of each and its metrics or its error, as they finish.

    The console shows a progress bar or, without a terminal, a line for each job. A failing job does not stop the
    others: its error is printed and yielded, and its ``log.txt`` has the traceback. Errors that several jobs share are
    printed once, with the number of jobs at the end. Missing weights stop all jobs. With UNSKEW_DEBUG set an error is
    raised. It is also raised if several processes work together, unless it is a mistake in data or config, which all of
    them meet: a process that continued alone would deadlock.

    Args:
        jobs: runs or evaluations.
        unit: the word for a job.
        launcher: default: one job after another in this process.
    """
    from tqdm import tqdm

    main = processes.is_main()
    failures: dict[str, list[int]] = {}  # the numbers of the jobs by error
    bar = tqdm(total=len(jobs), desc=f"{unit}s", unit=unit, disable=None if main else True)
    with warnings_once(), bar, contextlib.closing((launcher or InProcess()).outcomes(jobs)) as outcomes:
        for position, outcome, remark in outcomes:
            job, number = jobs[position], position + 1
            label = f"{unit} {number} of {len(jobs)}, {job.label}"
            if main and isinstance(outcome, Exception):
                same = failures.setdefault(_without_place(job, outcome), [])
                same.append(number)
                error = _failure(job, outcome) if len(same) == 1 else f"failed as {unit} {same[0]} did"
                tqdm.write(f"{label}: {error}", file=sys.stderr)
            elif main and bar.disable:
                earlier = f", {remark}" if remark else ""
                print(f"{label}{_numbers(outcome)}{earlier}", file=sys.stderr, flush=True)
            bar.set_postfix_str(job.label, refresh=False)
            bar.update()
            yield position, outcome
            if isinstance(outcome, MissingWeightsError):
                break
    for numbers in failures.values():
        if len(numbers) > 1:
            print(f"{len(numbers)} {unit}s failed with the error of {unit} {numbers[0]}", file=sys.stderr)


def _failure(job: Job, error: Exception) -> str:
    """Return one line; for other errors than mistakes in data or config, with their type and the log's path."""
    if isinstance(error, ValueError | OSError | FloatingPointError) or not job.place:
        return format_error(error)
    kind = "" if isinstance(error, WorkerError) else f"{type(error).__name__}: "
    return f"{kind}{format_error(error)} ({RunDir(job.place).log})"


def _without_place(job: Job, error: Exception) -> str:
    """Return an error's message without the job's folder, to recognise the same error of another job."""
    return format_error(error).replace(str(job.place), "") if job.place else format_error(error)


def _numbers(outcome: Outcome) -> str:
    metrics = outcome if isinstance(outcome, dict) else {}
    shown = {name: metrics.get(name) for name in ("accuracy", "seconds")}
    return "".join(f", {name} {value:.1f}" for name, value in shown.items() if isinstance(value, int | float))
