"""A run's file of predictions, ``predictions.safetensors``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unskew.utils.blocks import row_blocks
from unskew.utils.derived_tensors import Sum, expressible, full_precision, memory_of, split
from unskew.utils.files import write_atomically
from unskew.utils.tensor_files import read_safetensors, write_safetensors

if TYPE_CHECKING:
    from unskew.engine.evaluator import EvaluatorBase


def collect(evaluator: "EvaluatorBase", dtype: str) -> dict[str, Tensor | Sum]:
    """Return the content of the file after a test; a plugin's evaluator may keep no predictions.

    Args:
        evaluator: the evaluator after the test.
        dtype: ``TEST.PARTS_DTYPE``, the type of all logits except the prediction.
    """
    predictions: dict[str, Tensor] = getattr(evaluator, "predictions", dict)()
    sums = expressible(getattr(evaluator, "sums", {}), predictions)
    sums = {name: terms for name, terms in sums.items() if _is_sum(predictions, name, *terms)}
    tensors = {name: tensor for name, tensor in predictions.items() if name not in sums}
    if dtype == "float16" and "logits" in tensors:
        tensors = _in_float16(tensors)
    if len(labels := tensors.get("labels", torch.empty(0))) and labels.dtype == torch.int64:
        tensors["labels"] = _narrowed(labels)
    return {**tensors, **sums}


def _narrowed(labels: Tensor) -> Tensor:
    """Return labels in the first of two smaller integer types that holds them, else as they are."""
    for dtype in (torch.int16, torch.int32):
        if torch.equal(labels.to(dtype).long(), labels):
            return labels.to(dtype)
    return labels


def _is_sum(tensors: Mapping[str, Tensor], name: str, first: str, second: str | Tensor) -> bool:
    """Return whether a tensor is the sum of its terms to the bit; an evaluator may have changed or dropped one."""
    whole, base = tensors[name], tensors[first]
    term = second.cpu() if isinstance(second, Tensor) else tensors[second]
    if not whole.numel() or (whole.shape, whole.dtype) != (base.shape, base.dtype):
        return False
    if term.shape not in (whole.shape, whole.shape[1:]):
        return False
    blocks = row_blocks(len(whole), whole[0].numel())
    per_row = term.ndim == whole.ndim
    return all(
        torch.equal(whole[rows], (base[rows] + (term[rows] if per_row else term)).to(base.dtype)) for rows in blocks
    )


def _in_float16(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all tensors but the prediction and integers in float16; one with larger numbers is kept as it is."""
    distinct = {memory_of(tensor): tensor for tensor in tensors.values()}
    exact, largest = memory_of(tensors["logits"]), torch.finfo(torch.float16).max
    for key, tensor in distinct.items():
        if key != exact and tensor.is_floating_point() and tensor.abs().amax() <= largest:
            distinct[key] = tensor.half()
    return {name: distinct[memory_of(tensor)] for name, tensor in tensors.items()}


def write(path: Path, content: Mapping[str, Tensor | Sum]) -> None:
    """Write the file; store a tensor with several names once, and a sum of other tensors as its formula."""
    held, formulas = split(content)
    write_atomically(path, lambda file: write_safetensors(file, held, formulas))


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of the file by name, in float32 where the file has float16, and labels in int64.

    Raises:
        OSError: the file cannot be read; the other exceptions of a damaged file are in `DAMAGE`.
    """
    tensors = {name: full_precision(tensor) for name, tensor in read_safetensors(path).items()}
    if "labels" in tensors:
        tensors["labels"] = tensors["labels"].long()
    return tensors
