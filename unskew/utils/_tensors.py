"""Tensors in plain pickles, rebuilt without running code from the file.

PyTorch pickles a tensor as a call of a function of ``torch._utils`` on a storage, and a storage as the bytes of a file
of `torch.save`. The functions here replace these calls and check their arguments.
"""

import io
from collections import OrderedDict
from collections.abc import Callable
from typing import Any


def permitted(module: str, name: str, check: Callable[[bytes], None]) -> object | None:
    """Return the replacement of a name of PyTorch, or ``None`` for a name that plain tensors do not need.

    Args:
        module: the module that a pickle asks for.
        name: the name in it.
        check: raises ``ValueError`` for the bytes of a storage that would fill the memory.
    """
    if module.partition(".")[0] != "torch":
        return None
    if (module, name) == ("torch.storage", "_load_from_bytes"):
        return lambda content: _storage(content, check)
    if (module, name) in _FUNCTIONS:
        return _FUNCTIONS[module, name]
    import torch

    found = getattr(torch, name, None) if module == "torch" else None
    return found if isinstance(found, torch.dtype) else None


def _storage(content: object, check: Callable[[bytes], None]) -> Any:
    """Return a storage from the bytes of a file of `torch.save`; a GPU's is put on the CPU where there is no GPU."""
    import torch

    if not isinstance(content, bytes):
        raise ValueError("it holds a storage without bytes")
    check(content)
    device = None if torch.cuda.is_available() else "cpu"
    storage = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    if not isinstance(storage, torch.TypedStorage):
        raise ValueError(f"it holds a {type(storage).__name__} as the storage of a tensor")
    return storage


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any = False, *_: object) -> Any:
    """Return a view of a storage, which must hold all its elements; hooks are dropped."""
    import torch

    if not isinstance(storage, torch.TypedStorage):
        raise ValueError("it holds a tensor without a storage")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"it holds a tensor of shape {size} and strides {stride}")
    numbers_held = storage._size()
    end = 0 if 0 in size else 1 + offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if end > numbers_held:
        raise ValueError(f"it holds a tensor of shape {size} whose storage has {numbers_held} numbers")
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad is True, OrderedDict())


def _parameter(data: Any, requires_grad: Any = True, *_: object) -> Any:
    import torch

    if not isinstance(data, torch.Tensor):
        raise ValueError("it holds a parameter without a tensor")
    return torch.nn.Parameter(data, requires_grad is True)


def _size(lengths: Any = ()) -> Any:
    import torch

    return torch.Size(lengths)


def _device(kind: Any, index: Any = None) -> Any:
    import torch

    return torch.device(kind) if index is None else torch.device(kind, index)


_FUNCTIONS: dict[tuple[str, str], Callable] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
}
