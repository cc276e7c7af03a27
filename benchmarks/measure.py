"""Helpers of the benchmarks: description of the machine, times, peak memory, a table and a JSON file."""

import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from tabulate import tabulate

from unskew.utils.files import write_atomically


def machine() -> str:
    """Describe the processor, threads, GPU if any, and version of torch in one line."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    threads = torch.get_num_threads()
    return ", ".join([processor, f"{threads} thread{'s' * (threads > 1)}", *gpu, f"torch {torch.__version__}"])


def synchronize() -> None:
    """Wait for the GPU if one is in use; otherwise its work would be missing from a time."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def seconds(call: Callable[[], object]) -> float:
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """Return the median time of ``repeats`` calls; warm up before if the first call is slower."""
    return statistics.median(seconds(call) for _ in range(repeats))


def peak_bytes(prepare: Callable[..., Callable[[], object]], *arguments) -> tuple[int | None, int | None]:
    """Measure the memory of a call: GPU memory in this process if it uses the GPU, else the memory of a new process.

    torch counts the bytes on a GPU exactly, so that a new process, which takes seconds, is not needed there.

    Args:
        prepare: a top-level function that returns the call; on a GPU the call runs once before, to warm up.
        arguments: arguments of ``prepare``; they must pickle.

    Returns:
        The peak of bytes during the call minus the bytes before it, and the bytes before it; None if the system does
        not report them (other systems than Linux).
    """
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return _peak_bytes(prepare, *arguments)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_bytes, prepare, *arguments).result()


def _peak_bytes(prepare: Callable[..., Callable[[], object]], *arguments) -> tuple[int | None, int | None]:
    call = prepare(*arguments)
    if torch.cuda.is_initialized():
        call()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - held, held
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        return None, None
    reset.write_text("5")  # reset the peak
    held = _status_bytes(status, "VmRSS")
    call()
    return _status_bytes(status, "VmHWM") - held, held


def _status_bytes(status: Path, key: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def matmul_speed(rows: int, width: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Operations per second of the matrix product [rows, width] x [width, 4 width]; a multiply-add counts as 2."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, width, generator=generator).to(device, dtype) for n in (rows, 4 * width))
    F.linear(x, weight)
    return 8 * rows * width**2 / median_seconds(lambda: F.linear(x, weight), 20)


def copy_speed(device: str = "cpu") -> float:
    """Bytes per second, read and written, of copying a tensor larger than the caches."""
    x = torch.ones(32 << 20, device=device)
    y = torch.empty_like(x)
    y.copy_(x)
    return 2 * x.nbytes / median_seconds(lambda: y.copy_(x), 5)


def table(rows: Sequence[dict], columns: dict[str, str]) -> str:
    """Format rows as a Markdown table; ``columns`` maps keys to headings. None is "not measured"."""
    cells = [["not measured" if row[key] is None else row[key] for key in columns] for row in rows]
    return tabulate(cells, list(columns.values()), "github", floatfmt=".4g")


def mib(count: int | None) -> float | None:
    return None if count is None else count / 2**20


def write(path: str, rows: Sequence[dict]) -> None:
    """Write ``{"machine": .., "rows": [..]}``; do nothing without a path."""
    if path:
        write_atomically(path, json.dumps({"machine": machine(), "command": sys.argv, "rows": list(rows)}) + "\n")
