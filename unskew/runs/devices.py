"""The processes of `unskew train --devices N`, started by PyTorch's launcher."""

import contextlib
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from yacs.config import CfgNode

import unskew
from unskew.utils import processes, threads

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def check(number: int, use_cuda: bool) -> bool:
    """Return whether to start processes: more than one is wanted, and this process is not one of them.

    Args:
        number: of processes.
        use_cuda: whether the run may use GPUs.

    Raises:
        ValueError: the number is below 1, differs from the processes that run already, or exceeds the GPUs (without a
            GPU, the CPU cores; two processes are always possible).
    """
    if number < 1:
        raise ValueError(f"--devices must be at least 1 (got {number})")
    if processes.count() > 1:
        if processes.count() != number:
            raise ValueError(
                f"--devices {number} is inside a launcher with {processes.count()} processes: omit --devices"
            )
        return False
    gpus = _gpus(use_cuda)
    if 0 < gpus < number:
        raise ValueError(f"--devices {number} is more than the {gpus} visible GPUs: lower it, or set USE_CUDA False")
    if not gpus and number > max(2, _cores()):
        raise ValueError(f"--devices {number} is more than the {_cores()} CPU cores: lower it")
    return number > 1


def _gpus(use_cuda: bool) -> int:
    import torch

    return torch.cuda.device_count() if use_cuda and torch.cuda.is_available() else 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start(words: Sequence[str], number: int, cfg: CfgNode) -> int:
    """Run a command of `unskew` in several processes that form a group, and return its exit code.

    The processes print their own errors, each message once.

    Args:
        words: of the command.
        number: of processes.
        cfg: the run's config.

    Raises:
        KeyboardInterrupt: this process or one of the group was interrupted.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _share_threads(number, _gpus(cfg.USE_CUDA))
    places = [str(Path(unskew.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ[processes.LAUNCHER] = str(os.getpid())
    os.environ["PYTHONPATH"] = os.pathsep.join(places)  # the processes use this copy of the package
    with _quiet_launcher(), tempfile.TemporaryDirectory() as folder:
        launch = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=number,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(launch, sys.executable)("-m", "unskew", *words)
        except ChildFailedError as error:
            code = _code(error.get_first_failure()[1].exitcode)
        except SignalException as error:
            code = 128 + int(error.sigval)
        else:
            code = 0
    if code == processes.INTERRUPTED:
        raise KeyboardInterrupt
    return code


def _share_threads(number: int, gpus: int) -> None:
    """Give each process its share of the CPU's cores, unless the user chose a number of threads."""
    if not gpus and threads.requested() is None and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = str(max(1, _cores() // number))


def _code(status: int) -> int:
    """Return the exit code for the status of a failed process; report a process that a signal has ended."""
    if status >= 0:
        return status
    name = signal.Signals(-status).name
    hint = ", for instance because the memory is full" if -status == signal.SIGKILL else ""
    print(f"unskew: error: a process of this run was ended by {name}{hint}", file=sys.stderr, flush=True)
    return 128 - status


@contextlib.contextmanager
def _quiet_launcher() -> Iterator[None]:
    """Drop the launcher's log lines, which repeat the errors of the processes, and restore the signal handlers."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)
        for number, handler in before.items():
            signal.signal(number, handler)
