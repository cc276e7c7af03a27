"""Checkpoints in Dassl's layout, written atomically and read without running code from them.

    <folder>/<model_name>/model.pth.tar-<epoch>  model-best.pth.tar  checkpoint (a text file with the last file's name)

A file holds tensors and plain values only: ``state_dict, epoch, optimizer, scheduler, val_result``.
"""

import hashlib
import logging
import math
import os
import pickle
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unskew.utils.errors import DAMAGE
from unskew.utils.files import write_atomically
from unskew.utils.safe_pickle import check_torch_file

logger = logging.getLogger("unskew")

# CoOp's buffers that are rebuilt from the class names, so that a learned prompt works for other classes.
REBUILT = ("token_prefix", "token_suffix")

# Modules and names of objects in CoOp's files: a pickled scheduler and its parts. They are not loaded.
_DROPPED_MODULES = ("dassl.", "torch.optim.")

_DROPPED_NAMES = (
    "builtins.dict",
    "collections.defaultdict",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)

BEST = "model-best.pth.tar"


# --- writing -----------------------------------------------------------------------------------------


def save(state: Mapping[str, Any], path: str | Path) -> None:
    """Save tensors and plain values to ``path`` atomically.

    Raises:
        ValueError: ``state`` holds another object; the message has its key.
    """
    plain = _plain(state, "")
    write_atomically(path, lambda file: torch.save(plain, file))


def _plain(value: Any, place: str) -> Any:
    """Return ``value`` with its tensors detached and NumPy's numbers as Python's."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return {_plain(key, place): _plain(item, f"{place}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_plain(item, f"{place}[{number}]") for number, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if value is None or type(value) in (bool, int, float, str):
        return value
    for kind in (float, int, str):  # subclasses, such as numpy's float64
        if isinstance(value, kind):
            return kind(value)
    raise ValueError(f"a checkpoint holds tensors and plain values only; '{place}' is a {type(value).__name__}")


def save_checkpoint(
    state: Mapping[str, Any],
    save_dir: str | Path,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Save one model's state as ``save_dir/model.pth.tar-<epoch>`` and write its name to ``save_dir/checkpoint``.

    Args:
        state: a dict with at least ``state_dict`` and ``epoch``.
        save_dir: the model's folder.
        is_best: copy the file to ``model-best.pth.tar`` too.
        remove_module_from_keys: remove the prefix "module." that parallel wrappers add.
        model_name: file name instead of ``model.pth.tar-<epoch>``.
    """
    save_dir = Path(save_dir)
    save_dir.mkdir(parents=True, exist_ok=True)
    weights = _without_rebuilt(state["state_dict"])
    if remove_module_from_keys:
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    path = save_dir / (model_name or f"model.pth.tar-{state['epoch']}")
    save({**state, **_readable(state), "state_dict": weights}, path)
    write_atomically(save_dir / "checkpoint", f"{path.name}\n")
    logger.info(f"Checkpoint saved to {path}")
    if is_best:
        with path.open("rb") as source:
            write_atomically(save_dir / BEST, lambda file: shutil.copyfileobj(source, file))
        logger.info(f"Best checkpoint saved to {save_dir / BEST}")


def prune(folder: str | Path, epoch: int, keep: int, frequency: int = 0) -> None:
    """Delete the numbered checkpoints of a model before ``epoch``; the best one and later ones stay.

    Args:
        folder: the model's folder.
        epoch: the number of the last checkpoint, which is written already.
        keep: how many checkpoints stay, with the last one; negative: all whose number is a multiple of ``frequency``.
        frequency: epochs between checkpoints; 0: there are none of this kind.
    """
    earlier = sorted(number for number in saved_epochs(folder) if number < epoch)
    if keep < 0:
        outdated = [number for number in earlier if not frequency or number % frequency]
    else:
        outdated = earlier[: max(0, len(earlier) - keep + 1)]
    for number in outdated:
        (Path(folder) / f"model.pth.tar-{number}").unlink(missing_ok=True)


def saved_epochs(folder: str | Path) -> list[int]:
    """Return the numbers of the checkpoints ``model.pth.tar-<epoch>`` in a model's folder."""
    numbers = (path.name.rpartition("-")[2] for path in Path(folder).glob("model.pth.tar-*"))
    return [int(number) for number in numbers if number.isdecimal()]


def _readable(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain states of optimizer and scheduler; warn and return ``None`` for a state that holds objects."""
    kept: dict[str, Any] = {}
    for name in state.keys() & {"optimizer", "scheduler"}:
        try:
            kept[name] = _plain(state[name], name)
        except ValueError as error:
            logger.warning(f"the state of the {name} is not saved: {error}")
            kept[name] = None
    return kept


def _without_rebuilt(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if not key.endswith(REBUILT)}


# --- reading -----------------------------------------------------------------------------------------


class _Dropped:
    """A placeholder for an object of a foreign class while its file is read."""

    def __init__(self, *args, **kwargs) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _dropped_mapping(*args) -> OrderedDict:
    """Replace a ``defaultdict``, which the unpickler fills after its creation."""
    return OrderedDict()


class ForeignObjectsError(ValueError):
    """A file holds objects of classes that are not read from files."""


def load_checkpoint(path: str | os.PathLike | None) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, without running code from it.

    Files of CoOp and its followers hold a pickled scheduler; ``state_dict``, ``epoch`` and ``val_result`` are read from
    them. The buffers `REBUILT` are removed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint, is truncated, or holds other objects than tensors and plain values.
    """
    if path is None:
        raise ValueError("the path of the checkpoint is None: pass the path of a file")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint at '{path}': check the path, or train first")
    check_torch_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        content = _load_foreign(path)
    except DAMAGE as error:
        raise _broken(path) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"'{path}' holds a {type(content).__name__}, not a checkpoint")
    if "state_dict" not in content:
        return dict(content)
    _check_values(path, content)
    return {**content, "state_dict": _without_rebuilt(content["state_dict"])}


def _check_values(path: Path, content: Mapping) -> None:
    """Raise ``ValueError`` unless the values of a checkpoint have their types."""
    weights = content["state_dict"]
    if not isinstance(weights, Mapping) or not all(isinstance(key, str) for key in weights):
        raise ValueError(f"'{path}' is damaged: its state_dict must hold tensors by name; train again")
    for key, value in weights.items():
        if isinstance(value, Tensor) and (value.layout != torch.strided or value.is_meta or value.is_quantized):
            raise ValueError(f"'{path}' is damaged: '{key}' must be a dense tensor (got {value.layout}); train again")
    for key, kinds in (("epoch", int), ("val_result", int | float | None)):
        if not isinstance(content.get(key, 0), kinds):
            raise ValueError(f"'{path}' is damaged: {key} is {content[key]!r:.80}; train again")


def _broken(path: Path) -> ValueError:
    text = "is not a checkpoint, is truncated, or holds objects in an old format: copy it again, or train again"
    return ValueError(f"'{path}' {text}")


def _load_foreign(path: Path) -> dict[str, Any]:
    """Read a file that holds objects: replace the parts of a scheduler by `_Dropped`, refuse other classes."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except DAMAGE as error:
        raise _broken(path) from error
    refused = sorted(n for n in names if n not in _DROPPED_NAMES and not n.startswith(_DROPPED_MODULES))
    if refused:
        raise ForeignObjectsError(
            f"'{path}' was not loaded: it holds objects of {', '.join(refused)}; save only tensors and plain values "
            "in a checkpoint"
        )
    harmless: list[Callable | tuple[Callable, str]] = [
        (_dropped_mapping if name.endswith(".defaultdict") else _Dropped, name) for name in names
    ]
    try:
        with torch.serialization.safe_globals(harmless):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        raise _broken(path) from error
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise ValueError(f"'{path}' has no 'state_dict': give a checkpoint of a Dassl trainer")
    weights = OrderedDict((key, value) for key, value in content["state_dict"].items() if isinstance(value, Tensor))
    numbers = {key: content.get(key) for key in ("epoch", "val_result") if isinstance(content.get(key), int | float)}
    return {"state_dict": weights, **numbers}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str | Path = "") -> None:
    """Load a ``state_dict`` that may lack only `REBUILT` keys.

    Args:
        model: the module.
        weights: its ``state_dict``.
        source: the file, for error messages.

    Raises:
        ValueError: other keys are missing or unexpected, or a shape differs.
    """
    try:
        result = model.load_state_dict(weights, strict=False)
    except DAMAGE as error:  # other shapes, classes or backbone
        raise ValueError(f"'{source}' does not fit the model: {' '.join(str(error).split())}") from error
    missing = [key for key in result.missing_keys if not key.endswith(REBUILT)]
    unexpected = [key for key in result.unexpected_keys if not key.endswith(REBUILT)]
    if missing or unexpected:
        raise ValueError(
            f"'{source}' does not fit the model (missing keys: {missing or 'none'}, unexpected keys: "
            f"{unexpected or 'none'}); load it into the model that it was saved from"
        )


def last_checkpoint(folder: str | Path) -> Path | None:
    """Return the file that ``folder/checkpoint`` names, if both exist."""
    note = Path(folder) / "checkpoint"
    lines = note.read_text(encoding="utf-8", errors="replace").split() if note.is_file() else []
    path = Path(folder) / Path(lines[0]).name if lines else None
    return path if path is not None and path.is_file() else None


def best_result(folder: str | Path) -> float:
    """Return the score on val of the best checkpoint in a model's folder; minus infinity without one."""
    path = Path(folder) / BEST
    result = load_checkpoint(path).get("val_result") if path.is_file() else None
    return -math.inf if result is None else result


def copy_best(source_dir: str | Path, target_dir: str | Path) -> None:
    """Copy the best checkpoint, if there is one, from a model's folder to another."""
    source, target = Path(source_dir) / BEST, Path(target_dir) / BEST
    if source.is_file() and source.resolve() != target.resolve():
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, source.read_bytes())


def restore(
    checkpoint: Mapping[str, Any],
    model: nn.Module,
    optimizer: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
    source: str | Path | None = "",
) -> int:
    """Load a checkpoint's states into the model and, if given, its optimizer, scheduler and loss scaler.

    Returns:
        The epoch to continue from.
    """
    load_weights(model, checkpoint["state_dict"], source or "")
    for name, target in (("optimizer", optimizer), ("scheduler", scheduler), ("scaler", scaler)):
        if target is None:
            continue
        if checkpoint.get(name) is not None:
            try:
                target.load_state_dict(checkpoint[name])
            except DAMAGE as error:
                raise ValueError(
                    f"'{source}' does not fit: its {name} is of another model or damaged; train again"
                ) from error
        elif name == "scheduler":  # a pickled scheduler was not read; one step per epoch gives the same state
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # PyTorch warns that no optimizer step came first
                for _ in range(checkpoint["epoch"]):
                    target.step()
        else:
            logger.warning(f"'{source}' has no state of the {name}, which starts from scratch")
    return checkpoint["epoch"]


# --- the classes and the shapes of a module's weights -----------------------------------------------


def class_fingerprint(classnames: Sequence[str]) -> Tensor:
    """Return a hash of the class names in their order, as one integer for a checkpoint."""
    return torch.tensor(int.from_bytes(hashlib.sha256("\n".join(classnames).encode()).digest()[:7], "big"))


def bind_to_classes(module: nn.Module, classnames: Sequence[str]) -> None:
    """Add a fingerprint of the classes to the module's state, as the buffer ``classes``.

    After this, ``load_state_dict`` raises a ``ValueError`` for weights of other classes. It accepts weights without
    a fingerprint, such as those of the published trainers.
    """
    module.register_buffer("classes", class_fingerprint(classnames))
    module.register_load_state_dict_pre_hook(_check_classes)


def _check_classes(module: nn.Module, state: dict[str, Tensor], prefix: str, *_) -> None:
    expected = module.get_buffer("classes")
    if not torch.equal(state.setdefault(f"{prefix}classes", expected).cpu(), expected.cpu()):
        raise ValueError(
            "the weights were trained on other classes, and each row belongs to one class: train again, or test on the "
            "classes of the training"
        )


def bind_to_shape(module: nn.Module, name: str, keys: str) -> None:
    """Let ``load_state_dict`` raise a ``ValueError`` with the config keys that decide the shape of a parameter.

    Args:
        module: the module.
        name: its parameter.
        keys: the config keys, for the message.
    """

    def check(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        expected, found = (
            module.get_parameter(name).shape,
            state.get(f"{prefix}{name}", module.get_parameter(name)).shape,
        )
        if expected != found:
            raise ValueError(f"{name} is {list(found)} there and {list(expected)} here: set {keys} as in the training")

    module.register_load_state_dict_pre_hook(check)
