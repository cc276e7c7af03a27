"""The cost of a run: peak memory, trained parameters, labelled images, images encoded and found in the cache."""

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unskew.clip.image_counts import ImageCount

# Keys of costs in metrics.json; a run measures its seconds itself.
NAMES = ("seconds", "peak_memory_mb", "trained_parameters", "images_encoded", "images_cached", "labelled_images")

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Costs:
    """The costs of the run that trains inside `measured`."""

    def __init__(self, images: "ImageCount", resettable: bool) -> None:
        self._images, self._resettable = images, resettable

    def of(self, trainer: Any) -> dict[str, object]:
        """Return the costs by name, after the training, with those of `counts_of`.

        ``peak_memory_mb`` is in millions of bytes; ``peak_memory_of`` names the memory. That of a GPU is the memory of
        PyTorch's tensors. On a CPU it is the resident memory of the process, during this run where the system can
        reset it (Linux), else since the process has started.
        """
        from unskew.engine.results import counts_of

        costs = {**_peak(trainer, self._resettable), **counts_of(trainer)}
        if not self._images.is_empty:
            costs |= {"images_encoded": self._images.encoded, "images_cached": self._images.cached}
        return costs


@contextlib.contextmanager
def measured(cuda: bool = True) -> Iterator[Costs]:
    """Measure the costs of the run inside the ``with`` block, apart from those of earlier runs of the process.

    Args:
        cuda: whether the run may use a GPU.
    """
    import torch

    from unskew.clip.image_counts import counting

    if cuda and torch.cuda.is_available():
        torch.cuda.init()
        for number in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(number)
    with counting() as images:
        yield Costs(images, _reset_resident())


def _peak(trainer: Any, resettable: bool) -> dict[str, object]:
    import torch

    device = torch.device(getattr(trainer, "device", "cpu"))
    if device.type == "cuda":
        return {"peak_memory_mb": _megabytes(torch.cuda.max_memory_allocated(device)), "peak_memory_of": "GPU"}
    resident = _resident() if resettable else None
    if resident is not None:
        return {"peak_memory_mb": _megabytes(resident), "peak_memory_of": "process during the run"}
    with contextlib.suppress(ImportError):  # Windows has no such module
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        bytes_each = 1 if sys.platform == "darwin" else 1024
        return {"peak_memory_mb": _megabytes(usage * bytes_each), "peak_memory_of": "process since its start"}
    return {}


def _megabytes(number: int) -> float:
    return round(number / 1e6, 1)


def _reset_resident() -> bool:
    """Set the process's peak to its present resident memory, see proc_pid_clear_refs(5); return whether that works."""
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError:
        return False
    return _resident() is not None


def _resident() -> int | None:
    """Return the peak resident memory of the process in bytes since the last reset, on Linux."""
    try:
        match = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None
