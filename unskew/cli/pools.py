"""Pools of processes among which passes over large files are spread."""

import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LAUNCHERS = ("local", "ray")


@contextmanager
def open_pool(launcher: str, jobs: int | None) -> Iterator[Any]:
    """Return a pool with ``map(function, items)``, or None for this process alone; close it afterwards.

    Args:
        launcher: ``local`` starts processes on this computer, ``ray`` uses the cluster at ``RAY_ADDRESS`` or starts
            Ray on this computer.
        jobs: Number of processes; None: 1, or all CPUs of Ray.

    Raises:
        ValueError: Ray is not installed, or has fewer CPUs than ``jobs``.
    """
    if launcher == "ray":
        with _ray_pool(jobs) as pool:
            yield pool
    elif jobs is None or jobs == 1:
        yield None
    else:  # spawned processes do not inherit the locks of PyTorch's threads
        with multiprocessing.get_context("spawn").Pool(jobs) as pool:
            yield pool


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
