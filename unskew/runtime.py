"""What surrounds a run: random seeds, log files, versions, and accelerate's per-process state."""

import atexit
import contextlib
import functools
import logging
import os
import platform
import random
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

logger = logging.getLogger("unskew")

PRECISIONS = ("fp32", "fp16", "bf16", "amp")
_PACKAGES = ("unskew", "torch", "torchvision", "accelerate", "open_clip_torch", "numpy", "pillow")


def set_random_seed(seed: int) -> None:
    """Seed Python's, numpy's and PyTorch's global generators; 0 is a seed, a negative number does nothing."""
    if seed < 0:
        return
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - third-party code draws from it
    # Without a device torch.manual_seed only queues calls for one, with a stack trace each, at every epoch.
    has_device = torch.cuda.is_available() or torch.backends.mps.is_available()
    (torch if has_device else torch.default_generator).manual_seed(seed)


def collect_env_info() -> str:
    """Versions and devices, one line each."""
    lines = [f"Python {platform.python_version()} on {platform.platform()}"]
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            lines.append(f"{package} {version(package)}")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines.append(f"GPU: {', '.join(devices) or 'none'}")
    return "\n".join(lines)


class LinesOnStream(logging.Handler):
    """Lines on a stream, above the progress bars that may be on the terminal."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.stream_name = name  # looked up at each line: the stream may have been redirected since

    def emit(self, record: logging.LogRecord) -> None:
        stream = getattr(sys, self.stream_name)
        tqdm.write(self.format(record), file=stream)
        stream.flush()


class _LogFile(logging.FileHandler):
    """A log file that a run does without where it cannot be written: what the run is for will say so if it matters."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        warn_once(f"the log '{self.baseFilename}' cannot be written ({error.strerror})")

    def close(self) -> None:
        with contextlib.suppress(OSError):  # said above
            super().close()


def setup_logger(output_dir=None, console: bool = True) -> contextlib.ExitStack:
    """Write the project's log lines to ``output_dir/log.txt`` (appending) and to standard output.

    Args:
        output_dir: a folder, or the path of a .txt or .log file; ``None`` for no file.
        console: ``False`` leaves only warnings, on standard error.

    Returns:
        Closing it, or leaving it as a context, removes what was set up, so that each run in a process can
        have its own file. Leaving it by an error writes the traceback into the file.

    Raises:
        ValueError: the file cannot be written.
    """
    handlers: list[logging.Handler] = [LinesOnStream("stdout" if console else "stderr")]
    handlers[0].setLevel(logging.INFO if console else logging.WARNING)
    if output_dir is not None:
        path = Path(output_dir)
        path = path if path.suffix in (".txt", ".log") else path / "log.txt"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(_LogFile(path, encoding="utf-8", errors="backslashreplace"))
        except OSError as error:
            raise ValueError(f"the log '{path}' cannot be written ({error.strerror}); choose another folder") from error
    stack = contextlib.ExitStack()
    stack.callback(logger.setLevel, logger.level)
    stack.callback(setattr, logger, "propagate", logger.propagate)
    logger.propagate = False  # a library's logging.warning() gives the root logger a handler: each line twice
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(message)s"))  # bare lines: CoOp's scripts compare whole lines
        logger.addHandler(handler)
        stack.callback(handler.close)
        stack.callback(logger.removeHandler, handler)
    stack.push(functools.partial(_write_down, handlers[1:]))
    logger.setLevel(logging.INFO)
    return stack


def _write_down(handlers: Sequence[logging.Handler], kind, error, trace) -> None:
    if isinstance(error, Exception):
        record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, "Stopped", (), (kind, error, trace))
        for handler in handlers:
            handler.handle(record)


_said: set[str] = set()


def warn_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        logger.warning(message)


def build_accelerator(precision: str = "fp32", use_cuda: bool = True):
    """accelerate's `Accelerator` for one trainer.

    accelerate keeps device and precision per process and refuses a second choice; trainers that follow each
    other in one process may differ, so its state is forgotten first.

    Args:
        precision: fp32; bf16 (autocast); amp (autocast in fp16 with loss scaling, on a CPU in bf16); fp16 (as amp, on a
            CPU fp32, which is said once).
        use_cuda: ``False`` forces the CPU.

    Raises:
        ValueError: an unknown precision.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if precision not in PRECISIONS:
        raise ValueError(f"TRAINER.PREC must be one of {', '.join(PRECISIONS)}, got '{precision}'")
    mixed = {"fp32": "no", "bf16": "bf16", "amp": "fp16", "fp16": "fp16"}[precision]
    if mixed == "fp16" and not (use_cuda and torch.cuda.is_available()):
        mixed = "bf16" if precision == "amp" else "no"
        if precision == "fp16":
            warn_once("fp16 needs a GPU: this run computes in fp32")
    in_group = torch.distributed.is_available() and torch.distributed.is_initialized()
    AcceleratorState._reset_state(reset_partial_state=not in_group)
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    # On a machine without a GPU accelerate forms a group of processes only if it is told that the CPU is meant.
    accelerator = Accelerator(mixed_precision=mixed, cpu=not use_cuda or (several and not torch.cuda.is_available()))
    if several and not in_group:
        atexit.register(_let_go)
    if not accelerator.is_main_process:
        logger.setLevel(logging.WARNING)
    return accelerator


def _let_go() -> None:
    # Gloo's threads need Python's lock to free the tensors of the last exchange. Past the interpreter's end they would
    # abort the process, and to destroy the group would be to wait for them while holding that lock.
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        time.sleep(0.5)
