"""Files of tensors. Reading those of others runs no code, and a small file takes little memory."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from unskew.utils.derived_tensors import evaluate
from unskew.utils.errors import check_regular
from unskew.utils.safe_pickle import check_torch_file

# Types of tensors by their names in the safetensors format.
_NAMES = {
    **{torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.bool: "BOOL"},
    **{torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64"},
    **{torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64"},
}

# Types that hold numbers and that PyTorch can compare and convert.
NUMBERS = tuple(dtype for dtype in _NAMES if dtype != torch.bool)


def read_npy(path: Path) -> np.ndarray:
    """Return the array in a ``.npy`` file; its header may not claim more bytes than the file has.

    The memory is that of the file: pages are read when they are used, and writing to the array changes no file.

    Raises:
        ValueError: the file holds Python objects or several arrays; other exceptions are in `DAMAGE`.
    """
    check_regular(path)
    array = np.load(path, mmap_mode="c", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError("it holds several arrays; save one array with numpy.save")
    return np.asarray(array, dtype=array.dtype.newbyteorder("="))


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
    """Return the tensors in a ``.safetensors`` file, also those that its formulas give, see `derived_tensors`.

    Raises:
        ValueError: the path is no regular file; the exceptions of a damaged file are in `DAMAGE`.
    """
    check_regular(path)
    with safe_open(path, framework="pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # the file is no dict
        return evaluate(held, file.metadata() or {})


def write_safetensors(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors to an open file in the safetensors format, straight from their memory.

    Bytes of names and metadata that are not UTF-8, as in some paths, are written as escapes: readers want UTF-8.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))  # so that all data are aligned
    header: dict[str, object] = {}
    if metadata:
        header["__metadata__"] = {_utf8(key): _utf8(value) for key, value in metadata.items()}
    end = 0
    for name, tensor in ordered.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[_utf8(name)] = {"dtype": _NAMES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in ordered.values():
        file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _utf8(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


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
