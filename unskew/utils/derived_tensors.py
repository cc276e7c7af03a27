"""Tensors that a file need not hold: other names of a tensor, and exact sums.

The metadata of a safetensors file have a formula for each, "name" or "name + name".
"""

from collections.abc import Collection, Mapping
from itertools import islice

import torch
from torch import Tensor

# The terms of a tensor that is exactly their sum: the first by name, the second by name or, for each column, itself.
Sum = tuple[str, str | Tensor]

_PLUS = " + "

# Ending of the name under which a file holds the second term of a sum.
_TERM = ".term"

# Of a file with more sums, none is computed: a small file must take little memory.
_MOST_SUMS = 64


def expressible(sums: Mapping[str, Sum], names: Collection[str]) -> dict[str, Sum]:
    """Return the sums that `evaluate` can give back: their terms are no sums, and there are not too many.

    Args:
        sums: terms by name.
        names: all names of the file.
    """

    def fits(name: str, first: str, second: str | Tensor) -> bool:
        terms = [first] if isinstance(second, Tensor) else [first, second]
        known = all(term in names and term not in sums and _PLUS not in term for term in terms)
        return known and name in names and name + _TERM not in names

    return dict(islice(((name, terms) for name, terms in sums.items() if fits(name, *terms)), _MOST_SUMS))


def split(content: Mapping[str, Tensor | Sum]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors that a file must hold, and the formulas of the other names; `evaluate` is the inverse.

    A tensor that has several names is held under the first. The sums must be `expressible`.
    """
    held: dict[str, Tensor] = {}
    formulas: dict[str, str] = {}
    owners: dict[tuple, str] = {}  # names by memory
    for name, value in content.items():
        if isinstance(value, Tensor):
            owner = owners.setdefault(memory_of(value), name)
            if owner == name or _PLUS in owner:
                held[name] = value
            else:
                formulas[name] = owner
        else:
            first, second = value
            if isinstance(second, Tensor):
                held[name + _TERM], second = second, name + _TERM
            formulas[name] = f"{first}{_PLUS}{second}"
    return held, formulas


def evaluate(held: Mapping[str, Tensor], formulas: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors of a file by name, with those of the formulas; ignore the metadata of other programs."""
    terms = {name: formula.split(_PLUS) for name, formula in formulas.items()}
    named = {name: held[names[0]] for name, names in terms.items() if len(names) == 1 and names[0] in held}
    tensors = {**named, **held}
    sums = {name: names for name, names in terms.items() if len(names) == 2 and {*names} <= tensors.keys()}
    if len(sums) > _MOST_SUMS:
        return tensors
    for name, names in sums.items():
        first, second = (full_precision(tensors[term]) for term in names)
        if name not in tensors and second.shape in (first.shape, first.shape[1:]):
            tensors[name] = (first + second).to(first.dtype)
    terms_only = {name + _TERM for name in sums}
    return {name: tensor for name, tensor in tensors.items() if name not in terms_only}


def full_precision(tensor: Tensor) -> Tensor:
    """Return a tensor of float16 in float32, and any other as it is."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def memory_of(tensor: Tensor) -> tuple:
    """Return a key that tensors share if they are the same numbers in memory."""
    return tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride()
