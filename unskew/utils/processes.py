"""The processes of one run: their number, and the exchanges in which all of them take part.

``accelerate launch``, ``torchrun`` and ``unskew train --devices`` start the processes and number them in the
environment variables RANK and WORLD_SIZE. The exchanges use the CPU. They do nothing in a process without a group.
"""

import contextlib
import datetime
import functools
import io
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

INTERRUPTED = 130  # the exit code

LAUNCHER = "UNSKEW_LAUNCHER"  # environment variable: the process of --devices that started this one

_launcher = 0  # the same process, once this one watches it

# A process may wait long for the main one, which may wait for another run. A process that ends is noticed at once.
_PATIENCE = datetime.timedelta(days=7)
_SHORT = datetime.timedelta(seconds=2)


class PeerError(RuntimeError):
    """An error of another process, which reports it."""


def rank() -> int:
    """Return the number of this process."""
    return int(os.environ.get("RANK") or 0)


def count() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def cores() -> int:
    """Return this process's share of the machine's CPU cores, at least 1."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


def is_main() -> bool:
    """Return whether this process writes the files and prints the lines."""
    return rank() == 0


def end_with(parent: int) -> None:
    """End this process soon after its parent has ended, for instance because that was killed.

    Args:
        parent: the number of the parent process, the launcher of --devices.
    """
    global _launcher
    _launcher = parent

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def quieten() -> None:
    """Drop the output of a process other than the main one, except errors: no lines, bars or warnings of libraries."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open until the process ends
    sys.stderr = _NoTerminal(sys.stderr.buffer, errors="backslashreplace", line_buffering=True)
    warnings.simplefilter("ignore")


class _NoTerminal(io.TextIOWrapper):
    """A stream on which no progress bar appears."""

    def isatty(self) -> bool:
        return False


# --- exchanges ---------------------------------------------------------------------------------------


def in_group() -> bool:
    """Return whether this process belongs to a group of several."""
    if count() == 1:
        return False
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


@functools.cache
def _channel() -> Any:
    from torch import distributed

    return distributed.new_group(backend="gloo", timeout=_PATIENCE)


def exchange(value: T) -> list[T]:
    """Return the values of all processes, by rank; all of them must call this."""
    if not in_group():
        return [value]
    from torch import distributed

    values: list[Any] = [None] * count()
    distributed.all_gather_object(values, value, group=_channel())
    return values


def wait() -> None:
    """Wait until all processes have come here."""
    exchange(None)


def from_main(make: Callable[[], T]) -> T:
    """Return the main process's result of a function, which the others do not call."""
    if not in_group():
        return make()
    with together():
        value = make() if is_main() else None
    return exchange(value)[0]  # type: ignore[return-value]


def share(items: Any) -> Any:
    """Return this process's items: every n-th of n processes."""
    return items[rank() :: count()] if in_group() else items


def gather(rows: "Tensor | None", total: int, active: bool = True) -> "Tensor":
    """Return the rows [N, ...] of all items in their order, in each process.

    Args:
        rows: rows [n, ...] of this process's `share`; ``None`` without items.
        total: N.
        active: ``False`` for rows of this process alone.
    """
    if rows is not None and not (active and in_group()):
        return rows
    parts = exchange(None if rows is None else rows.cpu())
    first = next(part for part in parts if part is not None)
    merged = first.new_empty(total, *first.shape[1:])
    for number, part in enumerate(parts):
        if part is not None:
            merged[number :: len(parts)] = part
    return merged if rows is None else merged.to(rows.device)


class Share(NamedTuple):
    """This process's part of a batch. A process without an image takes the first one, with a weight of 0.

    Attributes:
        rows: the places of its images in the batch.
        size: images in the batch.
        weight: factor of its mean loss, so that the mean over the processes is the mean over the batch.
    """

    rows: range
    size: int
    weight: float

    @classmethod
    def of(cls, size: int, rank: int, world: int) -> "Share":
        """Return the share of process ``rank`` of ``world`` in a batch of ``size`` images."""
        rows = range(rank, size, world)
        return cls(rows or range(1), size, len(rows) * world / size)


# --- errors ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def together(active: bool = True) -> Iterator[None]:
    """Run a block that may fail in some processes alone, and raise the error of the first of them in all.

    The block must not exchange anything. Without this, a process that fails would leave the others waiting.

    Args:
        active: ``False`` for a block of this process alone.
    """
    if not (active and in_group()):
        yield
        return
    mine: Exception | None = None
    try:
        yield
    except Exception as error:
        mine = error
    errors = exchange(None if mine is None else _described(mine))
    for number, found in enumerate(errors):
        if found is not None:
            if mine is not None and number == rank():
                raise mine
            kind, text = found
            raise kind(text) from None


def _described(error: Exception) -> tuple[type[Exception], str]:
    from unskew.utils.errors import format_error

    kinds = (FileNotFoundError, FloatingPointError, ValueError, OSError, MemoryError)  # the mistakes of users
    return next((kind for kind in kinds if isinstance(error, kind)), PeerError), format_error(error)


def post(text: str, code: int) -> None:
    """Tell the other processes that this one ends with an error.

    Args:
        text: the message.
        code: the exit code.
    """
    interrupted_import = code == INTERRUPTED and "torch" not in sys.modules  # a second import would fail
    if count() > 1 and not interrupted_import:
        with contextlib.suppress(RuntimeError):  # there is no store
            _store().set(f"error {rank()}", f"{code} {text}")


def reports(text: str, code: int) -> bool:
    """Return whether this process prints an error: the main one, or another one whose error the main one lacks.

    An interrupt is printed by the launcher of --devices, or else by the main process.

    Args:
        text: the message.
        code: the exit code.
    """
    post(text, code)
    if code == INTERRUPTED:
        return is_main() and not _launcher
    return is_main() or _posted(0) != (code, text)


def lost_peer(error: Exception) -> tuple[int, str] | None:
    """Return an exit code and a message about a lost process, "" if another one prints it; ``None`` for other errors.

    Args:
        error: the error of this process.

    Raises:
        KeyboardInterrupt: the lost process was interrupted.
    """
    if count() == 1:
        return None
    from torch import distributed

    is_network = isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    )
    if not (is_network or isinstance(error, PeerError)):
        return None
    for number in range(count()):
        if number != rank() and (found := _posted(number)):
            if found[0] == INTERRUPTED:
                raise KeyboardInterrupt from error
            return found[0], ""
    return 1, "another process of this run has ended" if is_main() else ""


def _posted(number: int) -> tuple[int, str] | None:
    """Return the exit code and the message of a process, ``None`` if it has not posted any for some seconds."""
    try:
        store, key = _store(), f"error {number}"
        last = time.monotonic() + _SHORT.total_seconds()
        while not store.check([key]):
            if time.monotonic() > last:
                return None
            time.sleep(0.05)
        code, _, text = store.get(key).decode().partition(" ")
    except RuntimeError:  # the store has ended
        return None
    return int(code), text


def _store() -> Any:
    """Return the store of the launcher, for messages of processes that do not wait for each other."""
    from torch import distributed

    address, port = os.environ.get("MASTER_ADDR", "localhost"), int(os.environ.get("MASTER_PORT") or 29500)
    store = distributed.TCPStore(address, port, is_master=False, timeout=_SHORT, wait_for_workers=False)
    return distributed.PrefixStore("unskew", store)
