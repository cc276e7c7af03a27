"""Checks and conversions of arrays."""

import logging
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from unskew.utils.tensor_files import NUMBERS

# Fits refuse larger logits: no model gives them, and the solvers need thousands of passes beyond 1e10.
LARGEST_LOGIT = 1e8

logger = logging.getLogger("unskew")

# A function of two `Array` arguments takes two NumPy arrays or two tensors, and returns the same kind.
Array = TypeVar("Array", np.ndarray, Tensor)


def to_tensor(array: Any) -> Tensor:
    """Convert an array, a tensor or a sequence of numbers to a detached tensor, without a copy if possible.

    Raises:
        ValueError: The array does not hold real numbers.
    """
    if isinstance(array, Tensor):
        if array.layout != torch.strided or array.is_meta or array.dtype not in NUMBERS:
            raise ValueError(f"an array must be dense and hold real numbers (got {array.dtype}, {array.layout})")
        return array.detach()
    values = np.asarray(array)
    if values.dtype.kind not in "iuf":
        raise ValueError(f"an array must hold real numbers (got dtype {values.dtype})")
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind == "u" and values.dtype.itemsize > 1:
        values = values.astype(np.int64)  # PyTorch cannot compare these
    if not values.flags.writeable or any(stride < 0 for stride in values.strides):
        values = values.copy()
    return torch.from_numpy(values)


def to_logits(array: Any) -> Tensor:
    """Convert as `to_tensor`, and integers to floating-point numbers of the library's default precision."""
    tensor = to_tensor(array)
    if tensor.is_floating_point():
        return tensor
    return tensor.to(torch.get_default_dtype() if isinstance(array, Tensor) else torch.float64)


# --- probabilities and cosines instead of logits ------------------------------------------------------

# Rows of probabilities sum to one within ROUNDING, as bfloat16 rounds them, plus the rounding of each class to four
# digits. The precision of the array does not tell: bfloat16 is often converted to float32 before it is saved.
ROUNDING, DIGIT, MOST_ROUNDING = 5e-3, 5e-5, 0.1

# Cosines are recognised in at least so many values; fewer logits may be small by chance.
FEWEST_COSINES = 20
COSINE_DEVIATION = 0.25


def as_logits(*, cosines: bool = False, **arrays: Any) -> tuple[Tensor, ...]:
    """Convert arrays ``[N, C]`` or ``[M, N, C]`` as `to_logits`, and take the logarithm of probabilities.

    Args:
        cosines: Warn of cosines too, if the result depends on the scale of the logits.
        **arrays: The arrays by the name that the one warning has for them.
    """
    tensors = {name: to_logits(array) for name, array in arrays.items()}
    members = {name: [*tensor] if tensor.ndim == 3 else [tensor] for name, tensor in tensors.items()}
    least = recognise(members, cosines)
    return tuple(
        torch.stack([*map(log_probabilities, members[name], values)]).view(tensors[name].shape)
        if any(values)
        else tensors[name]
        for name, values in least.items()
    )


def recognise(arrays: dict[str, list[Tensor]], cosines: bool = False) -> dict[str, list[float]]:
    """Return the `least_probability` of each array by its name; warn of probabilities and cosines."""
    least = {name: [least_probability(each) for each in several] for name, several in arrays.items()}
    similar = [name for name, several in arrays.items() if cosines and any(map(_are_cosines, several))]
    warn_of([name for name, values in least.items() if any(values)], similar)
    return least


def warn_of(probabilities: list[str], cosines: list[str]) -> None:
    """Warn that arrays, by their names, hold probabilities or else cosines."""
    if probabilities:
        names = " and ".join(probabilities)
        logger.warning(f"{names}: the rows are probabilities, and their logarithm is used; pass logits instead")
    elif cosines:
        logger.warning(
            f"{' and '.join(cosines)}: all values are in [-1, 1], like cosines; multiply cosines by the model's logit "
            "scale (100 for CLIP)"
        )


def least_probability(logits: Tensor) -> float:
    """Return the smallest positive value if the rows are probabilities, and 0 if not.

    A column alone has no probabilities to recognise, and rows of one 1 among zeros may be votes.
    """
    if logits.ndim != 2 or not len(logits) or logits.shape[1] < 2:
        return 0.0
    if not (sum_to_one(logits[:1]) and sum_to_one(logits)):  # the first row decides for nearly all logits
        return 0.0
    least = float(torch.where(logits > 0, logits, torch.inf).amin())
    return least if least < 1 else 0.0


def sum_to_one(rows: Tensor) -> bool:
    """Return whether all rows are like probabilities."""
    tolerance = min(ROUNDING + DIGIT * rows.shape[1], MOST_ROUNDING)
    return bool(rows.amin() >= 0) and bool(((rows.sum(1, dtype=torch.float64) - 1).abs() <= tolerance).all())


def log_probabilities(probabilities: Tensor, least: float) -> Tensor:
    """Return the logarithm, at least float32, with ``least`` for zeros; logits (``least`` is 0) are only converted."""
    values = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
    return torch.where(values > 0, values, least).log() if least else values


def _are_cosines(logits: Tensor) -> bool:
    """Return whether logits are like cosines: few of them in [-1, 1] tell nothing, and whole numbers are votes."""
    if logits.ndim != 2 or logits.shape[1] < 2 or logits.numel() < FEWEST_COSINES or bool(logits[0].abs().amax() > 1):
        return False
    if not bool(logits.abs().amax() <= 1) or bool((logits == logits.round()).all()):
        return False
    deviation = float((logits.double() - logits.mean(1, keepdim=True, dtype=torch.float64)).square().mean().sqrt())
    return 0 < deviation < COSINE_DEVIATION


# --- kinds, priors and shapes --------------------------------------------------------------------------


def uses_numpy(**arrays: Any) -> bool:
    """Return whether the results must be NumPy arrays: always, unless the arguments are tensors.

    Raises:
        ValueError: Some arguments are tensors and others NumPy arrays.
    """
    tensors = [name for name, array in arrays.items() if isinstance(array, Tensor)]
    numpy = [name for name, array in arrays.items() if isinstance(array, np.ndarray)]
    if tensors and numpy:
        raise ValueError(
            f"{tensors[0]} is a torch tensor and {numpy[0]} a NumPy array; pass all arrays as the same kind"
        )
    return not tensors


def to_kind(result: Tensor, numpy: bool) -> Any:
    """Return the result as a NumPy array if `uses_numpy` asks for one."""
    return result.detach().cpu().numpy() if numpy else result


def to_prior(values: Any, name: str, classes: int, like: Tensor | torch.device) -> Tensor:
    """Return a log prior ``[C]`` on a device or, given logits, on their device and in their precision.

    A constant may be added to a log prior. Only ``log_target`` may be minus infinity, for classes that do not occur.

    Raises:
        ValueError: The prior is not ``[C]``, not finite, or holds probabilities instead of their logarithms.
    """
    prior = to_logits(values)
    if prior.shape != (classes,):
        raise ValueError(f"{name} must be [C] with C = {classes} (got {list(prior.shape)})")
    finite = prior if name != "log_target" else prior[prior != -torch.inf]
    if not len(finite) or not finite.isfinite().all():
        raise ValueError(f"{name} must hold finite log probabilities (got {int((~prior.isfinite()).sum())} others)")
    if classes > 1 and (prior >= 0).all() and abs(float(prior.double().sum()) - 1) < 1e-4:
        raise ValueError(f"{name} holds probabilities: pass their logarithm")
    return prior.to(like)


def check_same_shape(zs: Any, ft: Any) -> None:
    """Raise a ``ValueError`` unless both models' logits are ``[N, C]``."""
    if len(zs.shape) != 2 or tuple(zs.shape) != tuple(ft.shape):
        raise ValueError(f"zs and ft must both be [N, C] (got {list(zs.shape)} and {list(ft.shape)})")


def check_finite(logits: Tensor) -> Tensor:
    """Raise a ``ValueError`` unless the logits are ``[N, C]`` and finite; return the largest absolute value."""
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits must be [N, C] with N and C of at least 1 (got {list(logits.shape)})")
    ends = torch.stack(logits.aminmax())  # NaN is both ends; 20 times faster than a test of each logit
    if not ends.isfinite().all():
        finite = logits.isfinite()
        row, column = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"{int((~finite).sum())} of {logits.numel()} logits are NaN or infinite, the first in row {row}, "
            f"column {column}"
        )
    return ends.double().abs().max()


@overload
def check_logits(logits: Any, labels: None, dtype: torch.dtype | None = torch.float64) -> tuple[Tensor, None]: ...
@overload
def check_logits(logits: Any, labels: Any, dtype: torch.dtype | None = torch.float64) -> tuple[Tensor, Tensor]: ...
def check_logits(logits: Any, labels: Any, dtype: torch.dtype | None = torch.float64) -> tuple[Tensor, Tensor | None]:
    """Return logits ``[N, C]`` and labels ``[N]`` as tensors on one device.

    Args:
        logits: ``[N, C]``, finite.
        labels: ``[N]``, integers in 0..C-1, or None.
        dtype: Type of the returned logits; None keeps their type.

    Raises:
        ValueError: Wrong shapes, labels out of range, or logits that are not finite or above 1e8.
    """
    logits = to_logits(logits)
    device = "cpu" if logits.device.type == "mps" else logits.device  # mps has no float64
    logits = logits.to(device, dtype)
    largest = float(check_finite(logits))
    if largest > LARGEST_LOGIT:
        raise ValueError(f"logits must be at most {LARGEST_LOGIT:g} in size to be fitted (got {largest:.3g})")
    if labels is None:
        return logits, None
    return logits, check_labels(labels, logits)


def check_labels(labels: Any, logits: Tensor) -> Tensor:
    """Return labels ``[N]`` as an int64 tensor on the device of the logits ``[N, C]``.

    Raises:
        ValueError: The labels are not N integers in 0..C-1.
    """
    labels = to_tensor(labels).to(logits.device)
    if labels.shape != logits.shape[:1] or labels.is_floating_point():
        kind = str(labels.dtype).removeprefix("torch.")
        found = f"{len(labels)}" if labels.ndim == 1 and kind.startswith("int") else f"{kind} {list(labels.shape)}"
        raise ValueError(f"labels must be {len(logits)} integers, one for each row of logits (got {found})")
    low, high, classes = int(labels.min()), int(labels.max()), logits.shape[1]
    if low < 0 or high >= classes:
        raise ValueError(f"labels must be in 0..{classes - 1}, the columns of logits (got {low}..{high})")
    return labels.long()
