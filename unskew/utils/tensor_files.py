"""Files of tensors. Reading those of others runs no code, and a small file takes little memory."""

import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

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
    header = _header({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in ordered.items()}, metadata)
    file.write(header)
    for tensor in ordered.values():
        file.write(_data(tensor))


# Bytes in which the metadata of a file must fit whose metadata are known last.
METADATA_ROOM = 2**16


class Blocks(NamedTuple):
    """A large tensor as its blocks of rows.

    Attributes:
        shape: Of the whole tensor.
        dtype: Of the blocks.
        rows: The blocks ``[n, ...]``, in order.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: Iterable[Tensor]


def write_large_safetensors(
    file: BinaryIO, tensors: Mapping[str, Tensor | Blocks], metadata: Callable[[], Mapping[str, str]]
) -> None:
    """Write tensors in the safetensors format, large ones block by block.

    Args:
        file: An open file that can seek.
        tensors: The tensors by name.
        metadata: Is called after the last block.

    Raises:
        ValueError: Blocks do not have the given shape, or the metadata need more than `METADATA_ROOM` bytes.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))  # so that all data are aligned
    entries = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in ordered.items()}
    empty = _header(entries, {}, METADATA_ROOM)
    file.write(empty)
    for name, tensor in ordered.items():
        length = 0
        for block in tensor.rows if isinstance(tensor, Blocks) else [tensor]:
            if block.dtype != tensor.dtype or block.shape[1:] != tensor.shape[1:]:
                raise ValueError(
                    f"a block of '{name}' is {block.dtype} {list(block.shape)}; the tensor {entries[name]}"
                )
            file.write(_data(block))
            length += len(block)
        if length != tensor.shape[0]:
            raise ValueError(f"the blocks of '{name}' have {length} rows instead of {tensor.shape[0]}")
    header = _header(entries, metadata(), METADATA_ROOM)
    if len(header) != len(empty):
        raise ValueError(f"the metadata need more than {METADATA_ROOM} bytes")
    file.seek(0)
    file.write(header)
    file.seek(0, 2)


def _header(
    entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str], room: int = 0
) -> bytes:
    """Return the header of tensors in the order of the file, with spaces up to ``room`` bytes of metadata."""
    header: dict[str, object] = {}
    end = 0
    for name, (dtype, shape) in entries.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[_utf8(name)] = {"dtype": _NAMES[dtype], "shape": [*shape], "data_offsets": [begin, end]}
    least = len(json.dumps(header, separators=(",", ":")).encode()) + room if room else 0
    if metadata:
        header = {"__metadata__": {_utf8(key): _utf8(value) for key, value in metadata.items()}, **header}
    text = json.dumps(header, separators=(",", ":")).encode().ljust(least)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _data(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


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
