"""The accelerator of a trainer, work shared among processes, and a summary of versions and devices."""

import atexit
import contextlib
import logging
import os
import platform
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unskew.utils.logging import warn_once

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("unskew")

PRECISIONS = ("fp32", "fp16", "bf16", "amp")

_PACKAGES = ("unskew", "torch", "torchvision", "accelerate", "open_clip_torch", "numpy", "pillow")


def collect_env_info() -> str:
    """Return the versions of the main packages and the devices, one line each."""
    lines = [f"Python {platform.python_version()} on {platform.platform()}"]
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            lines.append(f"{package} {version(package)}")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines.append(f"GPU: {', '.join(devices) or 'none'}")
    return "\n".join(lines)


def build_accelerator(precision: str = "fp32", use_cuda: bool = True) -> "Accelerator":
    """Build the `Accelerator` of one trainer.

    The library accelerate keeps device and precision per process and refuses to change them. Trainers that run one
    after another may differ, so its state is reset first.

    Args:
        precision: fp32; bf16 (autocast); amp (autocast in fp16 with loss scaling, on a CPU in bf16); fp16 (as amp, but
            on a CPU fp32 with one warning).
        use_cuda: ``False`` forces the CPU.

    Raises:
        ValueError: the precision is unknown.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if precision not in PRECISIONS:
        raise ValueError(f"TRAINER.PREC must be one of {', '.join(PRECISIONS)} (got '{precision}')")
    mixed = {"fp32": "no", "bf16": "bf16", "amp": "fp16", "fp16": "fp16"}[precision]
    if mixed == "fp16" and not (use_cuda and torch.cuda.is_available()):
        mixed = "bf16" if precision == "amp" else "no"
        if precision == "fp16":
            warn_once("fp16 needs a GPU: this run computes in fp32")
    in_group = torch.distributed.is_available() and torch.distributed.is_initialized()
    AcceleratorState._reset_state(reset_partial_state=not in_group)
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    # Without a GPU, accelerate joins several processes into a group only if it is told to use the CPU.
    accelerator = Accelerator(mixed_precision=mixed, cpu=not use_cuda or (several and not torch.cuda.is_available()))
    if several and not in_group:
        atexit.register(_wait_for_gloo)
    if not accelerator.is_main_process:
        logger.setLevel(logging.ERROR)  # the main process logs the same lines
    return accelerator


def _wait_for_gloo() -> None:
    """Give Gloo's threads time to free the tensors of the last exchange, for which they need Python's lock.

    After the interpreter's end they would abort the process. Destroying the group would wait for them with the lock
    held: a deadlock.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        time.sleep(0.5)


# --- several processes ------------------------------------------------------------------------------


def average(accelerator: "Accelerator | None", tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the means of tensors over the processes, in one exchange for each type of numbers."""
    if accelerator is None or accelerator.num_processes == 1:
        return tensors
    means = list(tensors)
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
        flat = accelerator.reduce(torch.cat([tensors[place].flatten() for place in places]), "mean")
        for place, part in zip(places, flat.split([tensors[place].numel() for place in places]), strict=True):
            means[place] = part.view(tensors[place].shape)
    return means


def average_gradients(accelerator: "Accelerator | None", optimizer: torch.optim.Optimizer) -> None:
    """Replace each gradient by its mean over processes.

    Accelerate's model wrapper cannot do this: a registered model may be a part of the module that is called.
    """
    if accelerator is None or accelerator.num_processes == 1:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    for parameter, mean in zip(parameters, average(accelerator, [p.grad for p in parameters]), strict=True):
        parameter.grad = mean


def broadcast_states(accelerator: "Accelerator", models: Iterable[nn.Module]) -> None:
    """Copy the main process's weights and buffers to all processes (batch norms see other images in each)."""
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import broadcast

    for model in models:
        for tensor in model.state_dict().values():
            tensor.copy_(broadcast(tensor.detach().clone()))
