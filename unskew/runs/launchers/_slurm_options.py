"""Options of sbatch in the form ``partition=gpu,time=2:00:00``, and their translation for submitit."""

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

TIME = "2:00:00"
CPUS = 4
SIGNAL = "90"  # seconds from the signal that requeues a task to its time limit
REQUEUES = 10  # after time limits; preempted tasks are requeued without a limit

_UNLIMITED = 10 * 365 * 24 * 60  # minutes, for submitit, which needs a number

# Options of submitit that are lists.
_KINDS: dict[str, Callable[[str], list[str]]] = {
    "setup": lambda text: [text],
    "teardown": lambda text: [text],
    "srun_args": shlex.split,
}

# Options that the launcher sets, with the reason.
_REFUSED = {
    "array": "the launcher makes the array: use --jobs N for the number of tasks at once",
    "array_parallelism": "use --jobs N for the number of tasks at once",
    "signal": "use signal_delay_s=SECONDS for the time between the signal and the time limit",
    "clusters": "set the variable SLURM_CLUSTERS, which squeue and scancel read, too",
    **dict.fromkeys(("output", "error", "open_mode"), "the logs of the tasks are in .slurm in the output folder"),
    **dict.fromkeys(("wrap", "wait", "parsable", "test_only", "use_srun", "stderr_to_stdout"), "omit it"),
}
_ONE = ("nodes", "ntasks", "ntasks_per_node")  # a task of the array is one process


@dataclass(frozen=True)
class SlurmOptions:
    """The options of an array job.

    Attributes:
        parameters: arguments of submitit's ``update_parameters``.
        max_num_timeout: how often a task is requeued after its time limit.
    """

    parameters: Mapping[str, Any] = field(default_factory=dict)
    max_num_timeout: int = REQUEUES


def slurm_options(text: str, known: frozenset[str], threads: int | None = None) -> SlurmOptions:
    """Return the options of an array job: those of the user, and defaults for the others.

    Args:
        text: options of sbatch without dashes in front, see `parse`.
        known: the parameters of submitit; it passes all others to sbatch as they are.
        threads: the threads of a run, the default of cpus_per_task.

    Raises:
        ValueError: an option is written in another way, or the launcher sets it.
    """
    given = parse(text)
    time = given.pop("time", TIME)
    delay = _number("signal_delay_s", given.pop("signal_delay_s", SIGNAL))
    if minutes(time) * 60 <= delay:
        raise ValueError(f"--slurm: time={time} must be longer than signal_delay_s, which is {delay} seconds")
    requeues = _number("max_num_timeout", given.pop("max_num_timeout", str(REQUEUES)))
    if not {"cpus_per_task", "cpus_per_gpu"} & set(given):
        given["cpus_per_task"] = str(threads or CPUS)
    parameters: dict[str, Any] = {"job_name": "unskew", "wckey": None, "time": minutes(time), "signal_delay_s": delay}
    others: dict[str, Any] = {"time": time, "requeue": True}  # as the user wrote it; a cluster may forbid requeueing
    for name, value in given.items():
        if name in _REFUSED or (name in _ONE and value != "1"):
            raise ValueError(f"--slurm: {name}={value} cannot be set: {_REFUSED.get(name, 'a task is one process')}")
        if name not in _ONE:
            (parameters if name in known else others)[name] = _converted(name, value)
    if "cpus_per_task" in given:  # srun does not take them over from sbatch since SLURM 22.05
        parameters["srun_args"] = [*parameters.get("srun_args", ()), f"--cpus-per-task={given['cpus_per_task']}"]
    return SlurmOptions({**parameters, "additional_parameters": others}, requeues)


def parse(text: str) -> dict[str, str]:
    """Return the options in a text by name, with underscores instead of dashes.

    A part without "=" belongs to the value before it.

    Raises:
        ValueError: a part has no name or no value, or a name is given twice.

    Examples:
        >>> from unskew.runs.launchers._slurm_options import parse
        >>> parse("partition=gpu,long,time=2:00:00,gpus-per-node=1")
        {'partition': 'gpu,long', 'time': '2:00:00', 'gpus_per_node': '1'}
    """
    found: dict[str, str] = {}
    name = ""
    for part in filter(None, text.split(",")):
        key, sign, value = part.partition("=")
        if not sign:
            if not name:
                raise ValueError(f"--slurm must be NAME=VALUE,... such as partition=gpu,time=2:00:00 (got '{text}')")
            found[name] += f",{part}"
            continue
        name = key.strip().removeprefix("--").replace("-", "_")
        if not re.fullmatch(r"[a-z]\w*", name) or not value.strip():
            raise ValueError(f"--slurm must be NAME=VALUE,... with the names of sbatch (got '{part}')")
        if name in found:
            raise ValueError(f"--slurm: {name} is given twice")
        found[name] = value.strip()
    if text and not found:
        raise ValueError(f"--slurm must be NAME=VALUE,... such as partition=gpu,time=2:00:00 (got '{text}')")
    return found


def minutes(text: str) -> int:
    """Return a time of SLURM in minutes, rounded up.

    Args:
        text: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S; 0, UNLIMITED or INFINITE for no limit.

    Raises:
        ValueError: it has another form.
    """
    if text.upper() in ("UNLIMITED", "INFINITE", "0"):
        return _UNLIMITED
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise ValueError(f"--slurm: time must be minutes, 2:00:00 or 1-12:00:00 (got '{text}')")
    first, second, third = (int(part or 0) for part in match.groups()[1:])
    if match[1] is not None:
        seconds = int(match[1]) * 86_400 + first * 3600 + second * 60 + third
    elif match[4] is not None:
        seconds = first * 3600 + second * 60 + third
    else:
        seconds = first * 60 + second
    return max(1, -(-seconds // 60))


def _converted(name: str, value: str) -> Any:
    if name in _KINDS:
        return _KINDS[name](value)
    return True if value.lower() == "true" else value


def _number(name: str, value: str) -> int:
    if not (value.isdecimal() and value.isascii()):
        raise ValueError(f"--slurm: {name} must be a whole number (got '{value}')")
    return int(value)
