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


def split(parts: Sequence[Bundle], count: int) -> list[Bundle]:
    """Halve the longest bundles until there are ``count``, or until each bundle is a single job.

    Example:
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
