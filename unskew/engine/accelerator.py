"""accelerate's per-process state, versions and devices."""

import atexit
import contextlib
import logging
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version

import torch

from unskew.utils.logging import warn_once

logger = logging.getLogger("unskew")

PRECISIONS = ("fp32", "fp16", "bf16", "amp")

_PACKAGES = ("unskew", "torch", "torchvision", "accelerate", "open_clip_torch", "numpy", "pillow")


def collect_env_info() -> str:
    """Versions and devices, one line each."""
    lines = [f"Python {platform.python_version()} on {platform.platform()}"]
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            lines.append(f"{package} {version(package)}")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines.append(f"GPU: {', '.join(devices) or 'none'}")
    return "\n".join(lines)


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
