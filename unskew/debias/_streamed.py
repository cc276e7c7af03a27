"""Passes over *sources*: logits ``[N, C]`` that are read block by block.

A source has ``is_source = True``, ``shape``, ``device``, ``dtype``, ``block_rows`` and ``source[slice] -> [n, C]``. A
pass applies a kernel to parts of the rows and returns one result per part, in order. N alone decides the parts, and
each part is computed by one thread, so that sums over the parts have the same bits with any pool.
"""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeGuard, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

# Rows of a part, and the most parts. A small part costs as much to send to a pool as to compute.
PART_ROWS = 8192
MOST_PARTS = 1024

# Numbers in a block that a kernel computes at once: 16 MB in float64.
BLOCK_NUMBERS = 2**21
BLOCK_ROWS = 4096

# Bytes of the results that a pool may hold for the parts that are not yet added.
WAITING_BYTES = 2**29

Result = TypeVar("Result")


class Source(Protocol):
    """Logits ``[N, C]`` that are read by slices of rows."""

    @property
    def is_source(self) -> bool:
        """True."""

    @property
    def block_rows(self) -> int:
        """Rows to read at once."""

    @property
    def shape(self) -> tuple[int, int]:
        """N and C."""

    @property
    def device(self) -> torch.device:
        """Device of the blocks."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the blocks."""

    def __len__(self) -> int:
        """Return N."""

    def __getitem__(self, rows: slice) -> Tensor:
        """Read some rows, ``[n, C]``."""


Block = tuple[slice, list[Tensor]]  # rows and the logits of each source
Kernel = Callable[[Iterator[Block], Any], Result]


def is_source(logits: object) -> TypeGuard[Source]:
    """Return whether logits are read block by block."""
    return getattr(logits, "is_source", False) is True


def parts(samples: int) -> list[slice]:
    """Return the parts of the rows. They depend on N alone."""
    count = max(1, min(samples // PART_ROWS, MOST_PARTS))
    ends = [samples * number // count for number in range(count + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(ends)]


def over_parts(
    kernel: Kernel[Result],
    sources: Sequence[Source],
    extras: Sequence[Any] | None = None,
    *,
    pool: Any = None,
    name: str = "",
    result_bytes: int = 0,
) -> Iterator[Result]:
    """Yield the result of a kernel for each of the `parts`, in order.

    Without a pool each thread of PyTorch computes one part at a time. A single thread reads its next block meanwhile.

    Args:
        kernel: Takes the blocks of a part and its extra value. A pool of processes needs one that can be pickled.
        sources: ``[N, C]`` each.
        extras: A value for each part, or None.
        pool: An object whose ``map(function, items)`` keeps the order, or None.
        name: Of the progress bar.
        result_bytes: Size of a result, which limits the number of parts in work.
    """
    whole = parts(len(sources[0]))
    items = list(zip(whole, extras or itertools.repeat(None), strict=extras is not None))
    bar = tqdm(total=len(whole), desc=name, unit="part", delay=2, leave=False, disable=None)
    with _one_thread() as threads, bar:
        at_once = max(1, WAITING_BYTES // max(1, result_bytes))
        if pool is not None:
            results = _by_pool(_Part(kernel, sources), items, pool, at_once)
        elif min(threads, at_once) > 1 and len(whole) > 1:
            results = _by_threads(_Part(kernel, sources), items, min(threads, at_once))
        else:
            results = _alone(kernel, sources, items)
        for result in results:
            bar.update()
            yield result


class _Part(NamedTuple):
    """A function of one part for a pool."""

    kernel: Kernel[Any]
    sources: Sequence[Source]

    def __call__(self, item: tuple[slice, Any]) -> Any:
        return self.compute(item)

    def compute(self, item: tuple[slice, Any]) -> Any:
        """Return the result of a part, computed by one thread."""
        if torch.get_num_threads() != 1:  # in a process of a pool: more threads would sum in another order
            torch.set_num_threads(1)
        part, extra = item
        return self.kernel(read_ahead(self.sources, _blocks(part, self.sources)), extra)


def _by_pool(function: _Part, items: list[tuple[slice, Any]], pool: Any, at_once: int) -> Iterator[Any]:
    mapped = getattr(pool, "imap", pool.map)
    for start in range(0, len(items), max(8, at_once)):
        yield from mapped(function, items[start : start + max(8, at_once)])


def _by_threads(function: _Part, items: list[tuple[slice, Any]], threads: int) -> Iterator[Any]:
    with ThreadPoolExecutor(threads) as executor:
        waiting: collections.deque[Future[Any]] = collections.deque()
        waiting.extend(executor.submit(function.compute, item) for item in items[:threads])
        for item in itertools.chain(items[threads:], itertools.repeat(None, threads)):
            if not waiting:
                return
            result = waiting.popleft().result()
            if item is not None:
                waiting.append(executor.submit(function.compute, item))
            yield result


def _alone(kernel: Kernel[Any], sources: Sequence[Source], items: list[tuple[slice, Any]]) -> Iterator[Any]:
    blocks = [_blocks(part, sources) for part, _ in items]
    reader = read_ahead(sources, itertools.chain.from_iterable(blocks))
    for rows, (_, extra) in zip(blocks, items, strict=True):
        yield kernel(itertools.islice(reader, len(rows)), extra)


def _blocks(part: slice, sources: Sequence[Source]) -> list[slice]:
    """Return the blocks of a part that are read at once: multiples of the blocks that are computed at once."""
    step = computed_rows(sources[0].shape[1])
    step *= max(1, min(source.block_rows for source in sources) // step)
    return [slice(start, min(start + step, part.stop)) for start in range(part.start, part.stop, step)]


def computed_rows(classes: int) -> int:
    """Return the rows that a kernel computes at once."""
    return max(1, min(BLOCK_ROWS, BLOCK_NUMBERS // classes))


def computed_blocks(rows: slice, classes: int) -> Iterator[slice]:
    """Split a block into slices of its rows, from 0, that are computed at once."""
    count, step = rows.stop - rows.start, computed_rows(classes)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def read_ahead(sources: Sequence[Source], slices: Iterable[slice]) -> Iterator[Block]:
    """Yield blocks; a thread reads the next one."""

    def read(rows: slice) -> Block:
        return rows, [source[rows] for source in sources]

    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as executor:
        pending = None
        for rows in slices:
            following = executor.submit(read, rows)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def to_tensor(array: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """Return a tensor of an array, which a pool may have made read-only."""
    return torch.from_numpy(np.require(array, requirements="W")).to(device)


@contextmanager
def _one_thread() -> Iterator[int]:
    """Compute with one thread per operation; yield the number of threads before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
