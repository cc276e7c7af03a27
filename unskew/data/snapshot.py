"""A snapshot of the data: within one run or sweep, each list of images and each file's state is read once.

The runs of a sweep are compared with each other, so all of them see the images as they are when the sweep first looks
at them. An image that is added, removed or replaced meanwhile is noticed by the next call, because the fingerprints of
the sweep's runs hold the earlier state. Outside a snapshot, each call looks at the files again.
"""

import functools
import os
import stat
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_Result = TypeVar("_Result")

# Size, times of modification and change in nanoseconds, and 1 for a regular file. A plain tuple costs least memory.
State = tuple[int, int, int, int]

_PART = 64  # paths of a thread's task

_current: ContextVar["Snapshot | None"] = ContextVar("snapshot", default=None)  # other threads have their own


class Snapshot:
    """The memory of `remember`, `file_states` and `kept`, which lives as long as the object.

    Examples:
        >>> from unskew.data.snapshot import Snapshot, remember
        >>> with Snapshot().used():
        ...     first, second = remember("key", lambda: 1), remember("key", lambda: 2)
        >>> first, second, remember("key", lambda: 3)
        (1, 1, 3)
    """

    def __init__(self) -> None:
        self._kept: dict[str, dict] = {}

    @contextmanager
    def used(self) -> Iterator[None]:
        """Use this snapshot in a block, unless the block is inside that of another snapshot."""
        if _current.get() is not None:
            yield
            return
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


def with_snapshot(function: Callable[_P, _Result]) -> Callable[_P, _Result]:
    """Decorate a function so that each call uses a new `Snapshot`, unless it is inside that of another one."""

    @functools.wraps(function)
    def inside(*args: _P.args, **kwargs: _P.kwargs) -> _Result:
        with Snapshot().used():
            return function(*args, **kwargs)

    return inside


def kept(name: str) -> dict[Any, Any]:
    """Return the dictionary of a name in the current snapshot; outside a snapshot, a new one."""
    snapshot = _current.get()
    return {} if snapshot is None else snapshot._kept.setdefault(name, {})


def remember(key: Hashable, read: Callable[[], _Result]) -> _Result:
    """Return the result of ``read``, which is called once for a key in a snapshot. Errors are not kept.

    Args:
        key: all that decides the result, apart from the files.
        read: reads files. Its result is shared, so the caller must not change it.
    """
    results = kept("results")
    if key not in results:
        results[key] = read()
    return results[key]


def file_states(paths: Sequence[str]) -> list[State | None]:
    """Return the states of files, ``None`` for a missing file, which the next call looks for again."""
    known, places = kept("states"), [os.path.abspath(path) for path in paths]
    new = [place for place in dict.fromkeys(places) if place not in known]
    known.update((place, state) for place, state in zip(new, map_in_threads(file_state, new), strict=True) if state)
    return [known.get(place) for place in places]


def map_in_threads(read: Callable[[str], _Result], paths: Sequence[str]) -> list[_Result]:
    """Call a function for each path in threads; a network disk answers slowly, but many requests at once."""
    parts = [paths[first : first + _PART] for first in range(0, len(paths), _PART)]
    if len(parts) < 2:
        return [read(path) for path in paths]
    with ThreadPoolExecutor(16) as pool:  # a task for each path would take longer than to read its state
        return list(chain.from_iterable(pool.map(lambda part: [read(path) for path in part], parts)))


def file_state(path: str) -> State | None:
    """Return the present state of a file, ``None`` if it is missing."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: the name holds a null character
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, int(stat.S_ISREG(found.st_mode))
