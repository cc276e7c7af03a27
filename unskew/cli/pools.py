"""Pools of processes among which passes over large files are spread."""

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from unskew.utils import processes

LAUNCHERS = ("local", "ray")

Result = TypeVar("Result")


@contextmanager
def open_pool(launcher: str, jobs: int | None) -> Iterator[Any]:
    """Return a pool with ``map(function, items)``, or None for this process alone; close it afterwards.

    Args:
        launcher: ``local`` starts processes on this computer, ``ray`` uses the cluster at ``RAY_ADDRESS`` or starts
            Ray on this computer.
        jobs: Number of processes; None: 1, or all CPUs of Ray.

    Raises:
        ValueError: Ray is not installed, or has fewer CPUs than ``jobs``.
        ChildProcessError: A signal has ended a local process.
    """
    if launcher == "ray":
        with _ray_pool(jobs) as pool:
            yield pool
    elif jobs is None or jobs == 1:
        yield None
    else:
        with _local_pool(jobs) as pool:
            yield pool


class _LocalPool(ProcessPoolExecutor):
    """Processes that ignore Ctrl-C from their start; this process ends them. They start when they are needed."""

    def submit(self, function: Callable[..., Result], /, *args: Any, **options: Any) -> "Future[Result]":
        """Submit a call; a new process inherits the signals that are blocked."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return super().submit(function, *args, **options)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _local_pool(jobs: int) -> Iterator[Any]:
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # these processes do not inherit the locks of PyTorch's threads
    pool = _LocalPool(jobs, context, initializer=processes.end_with, initargs=(os.getpid(),))
    try:
        yield pool
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            message = "a process of --jobs was killed, perhaps because the memory is full: choose a smaller --jobs"
            raise ChildProcessError(message) from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _ray_pool(jobs: int | None) -> Iterator[Any]:
    try:
        import ray
        from ray.util.multiprocessing import Pool
    except ImportError:
        raise ValueError("--launcher ray needs Ray: pip install 'unskew[ray]'") from None
    started = not ray.is_initialized()
    if started:  # at RAY_ADDRESS, if it is set
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    try:
        free = int(ray.cluster_resources().get("CPU", 0))
        if jobs is not None and jobs > free:
            raise ValueError(f"--jobs {jobs} is more than the {free} CPUs of Ray: choose a smaller number")
        with Pool(jobs) as pool:
            yield pool
            pool.close()
            pool.join()
    except ray.exceptions.RayTaskError as error:  # its message has the traceback of the worker
        raise error.cause from None
    finally:
        if started:
            ray.shutdown()
