"""Bundles of jobs that share a dataset and backbones, so that a worker loads a tower and its features once."""

from collections.abc import Hashable, Sequence
from typing import TypeAlias

from unskew.runs.launchers.jobs import Job

Bundle: TypeAlias = list[int]  # positions of jobs


def bundles(jobs: Sequence[Job]) -> list[Bundle]:
    """Return the positions of the jobs in bundles that share a dataset and backbones, in the order of the jobs."""
    found: dict[Hashable, Bundle] = {}
    for number, job in enumerate(jobs):
        found.setdefault(job.shares, []).append(number)
    return list(found.values())


def choose(left: Sequence[Bundle], workers: Sequence[int], current: int | None = None) -> int | None:
    """Return the number of the bundle from which an idle worker takes its next job.

    The worker stays with its bundle while jobs are left there. Otherwise it takes the longest bundle that no worker
    has. If all have a worker, it joins the bundle with the most jobs per worker.

    Args:
        left: the jobs of each bundle that no worker has begun.
        workers: the number of workers at each bundle, without the idle one.
        current: the bundle of the worker's last job.

    Returns:
        The number of a bundle; ``None`` if no job is left.

    Examples:
        >>> from unskew.runs.launchers import choose
        >>> choose([[], [4], [5, 6]], [0, 0, 1], current=0), choose([[], [], [5, 6]], [0, 0, 1], current=0)
        (1, 2)
    """
    if current is not None and left[current]:
        return current
    numbers = [number for number, part in enumerate(left) if part]
    return max(numbers, key=lambda n: (not workers[n], len(left[n]) / (workers[n] + 1)), default=None)


def split(parts: Sequence[Bundle], count: int) -> list[Bundle]:
    """Halve the longest bundles until there are ``count``, or until each bundle is a single job.

    Examples:
        >>> from unskew.runs.launchers import split
        >>> split([[0, 1, 2, 3], [4]], 3)
        [[0, 1], [2, 3], [4]]
    """
    parts = [list(part) for part in parts]
    while len(parts) < count and max(map(len, parts), default=0) > 1:
        longest = max(range(len(parts)), key=lambda number: len(parts[number]))
        part = parts[longest]
        middle = (len(part) + 1) // 2
        parts[longest : longest + 1] = [part[:middle], part[middle:]]
    return parts
