"""What the benchmarks share: the machine's name, medians, and the file with all numbers."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from unskew.files import write_atomically


def machine(device: str = "cpu") -> str:
    """The processor or GPU, and what runs on it."""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = f"{named[0] if named else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    return f"{name}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def median_seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """The median over calls, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def write(path: str, rows: Sequence[dict], device: str = "cpu") -> None:
    """``{"machine": .., "rows": [..]}``."""
    write_atomically(path, json.dumps({"machine": machine(device), "rows": list(rows)}, indent=1) + "\n")
