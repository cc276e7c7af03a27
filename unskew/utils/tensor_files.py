"""Reading of tensors from files that others wrote: no code runs, and a small file takes little memory."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from unskew.utils.errors import check_regular
from unskew.utils.safe_pickle import check_torch_file

# Types that hold numbers and that PyTorch can compare and convert.
NUMBERS = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64),
)


def read_npy(path: Path) -> np.ndarray:
    """Return the array in a ``.npy`` file; its header may not claim more bytes than the file has.

    Raises:
        ValueError: the file holds Python objects or several arrays; other exceptions are in `DAMAGE`.
    """
    check_regular(path)
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError("it holds several arrays; save one array with numpy.save")
    return np.array(array, dtype=array.dtype.newbyteorder("="))


def read_torch(path: Path) -> Any:
    """Return what a file of `torch.save` holds, on the CPU.

    Raises:
        ValueError: the file is damaged or no regular file; other exceptions are in `DAMAGE`.
    """
    check_torch_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch warns of protocols and types; `check_dense` refuses them
        return torch.load(path, map_location="cpu", weights_only=True)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a ``.safetensors`` file.

    Raises:
        ValueError: the path is no regular file; the exceptions of a damaged file are in `DAMAGE`.
    """
    check_regular(path)
    return load_file(path)


def check_dense(tensor: Tensor) -> Tensor:
    """Return a tensor's data if it holds real numbers, each of them once in its memory.

    Raises:
        ValueError: it is sparse, quantised, complex, without data, or repeats its numbers by its strides.
    """
    dense = tensor.layout == torch.strided and not tensor.is_meta
    if not dense or tensor.dtype not in NUMBERS:
        raise ValueError(f"it must be a dense tensor of real numbers (got {tensor.dtype}, {tensor.layout})")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"its shape {list(tensor.shape)} is expanded: save tensor.contiguous() instead")
    return tensor.detach()
