"""Checkpoints in Dassl's layout: written whole or not at all, read without running anything in them.

    <folder>/<model_name>/model.pth.tar-<epoch>  model-best.pth.tar  checkpoint (names the last one written)

A file holds tensors and plain values only: ``state_dict, epoch, optimizer, scheduler, val_result``.
"""

import hashlib
import logging
import pickle
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from unskew.utils.errors import DAMAGE
from unskew.utils.files import write_atomically

logger = logging.getLogger("unskew")

# CoOp and its followers leave these to be made anew from the class names, so that a prompt moves to other classes.
REBUILT = ("token_prefix", "token_suffix")

# Where the objects in CoOp's own files come from: a scheduler and what it drags along. They are not kept.
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


def save(state: Mapping, path) -> None:
    """Save tensors and plain values to ``path``; a reader sees the old file or the new one, never half of it.

    Raises:
        ValueError: something in ``state`` is neither; its place is named.
    """
    plain = _plain(state, "")
    write_atomically(path, lambda file: torch.save(plain, file))


def _plain(value, place: str):
    """``value`` with its tensors detached and numpy's numbers as Python's."""
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
    state: dict, save_dir, is_best: bool = False, remove_module_from_keys: bool = True, model_name: str = ""
) -> None:
    """Save one model's state as ``save_dir/model.pth.tar-<epoch>`` and name it in ``save_dir/checkpoint``.

    Args:
        state: ``state_dict`` and ``epoch`` at least.
        is_best: copy it to ``model-best.pth.tar`` too.
        remove_module_from_keys: drop the prefix "module." that parallel wrappers add.
        model_name: file name in place of ``model.pth.tar-<epoch>``.
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


def _readable(state: Mapping) -> dict:
    """The states of optimiser and scheduler; ``None`` for one with objects in it, at which a run must not end."""
    kept = {}
    for name in state.keys() & {"optimizer", "scheduler"}:
        try:
            kept[name] = _plain(state[name], name)
        except ValueError as error:
            logger.warning(f"The state of the {name} is not saved: {error}")
            kept[name] = None
    return kept


def _without_rebuilt(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if not key.endswith(REBUILT)}


# --- reading -----------------------------------------------------------------------------------------


class _Dropped:
    """Stands for an object of a foreign class while its file is read; does nothing and is not kept."""

    def __init__(self, *args, **kwargs) -> None:
        pass

    def __setstate__(self, state) -> None:
        pass


def _dropped_mapping(*args) -> OrderedDict:
    """In place of ``defaultdict``, which is filled after it is made."""
    return OrderedDict()


def load_checkpoint(path) -> dict:
    """Read a checkpoint onto the CPU.

    Files of CoOp and its followers, which pickled their scheduler, are read too: ``state_dict``, ``epoch``
    and ``val_result`` of them. Nothing in a file is ever called. ``token_prefix`` and ``token_suffix`` are
    left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint, is cut short, or holds anything but tensors and plain values.
    """
    if path is None:
        raise ValueError("no checkpoint was given: the path is None")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at '{path}'")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        content = _load_foreign(path)
    except DAMAGE as error:
        raise _broken(path) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"'{path}' holds a {type(content).__name__}, not a checkpoint")
    if isinstance(content.get("state_dict"), Mapping):
        content["state_dict"] = _without_rebuilt(content["state_dict"])
    return content


def _broken(path: Path) -> ValueError:
    return ValueError(f"'{path}' is not a checkpoint or is cut short; delete it and train again, or copy it anew")


def _load_foreign(path: Path) -> dict:
    """A file that names classes: those of a scheduler become `_Dropped`, any other is refused."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (*DAMAGE, pickle.UnpicklingError) as error:
        raise _broken(path) from error
    refused = sorted(n for n in names if n not in _DROPPED_NAMES and not n.startswith(_DROPPED_MODULES))
    if refused:
        raise ValueError(
            f"'{path}' was not loaded: it asks for {', '.join(refused)}, and a checkpoint may hold tensors and "
            "plain values only"
        )
    harmless = [(_dropped_mapping if name.endswith(".defaultdict") else _Dropped, name) for name in names]
    try:
        with torch.serialization.safe_globals(harmless):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (*DAMAGE, pickle.UnpicklingError) as error:
        raise _broken(path) from error
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise ValueError(f"'{path}' has no 'state_dict'; it is not a checkpoint of a Dassl trainer")
    weights = OrderedDict((key, value) for key, value in content["state_dict"].items() if isinstance(value, Tensor))
    numbers = {key: content.get(key) for key in ("epoch", "val_result") if isinstance(content.get(key), int | float)}
    return {"state_dict": weights, **numbers}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source="") -> None:
    """Load a ``state_dict`` that may lack `REBUILT` keys, and nothing else.

    Raises:
        ValueError: other keys are missing or left over, or a shape differs.
    """
    try:
        result = model.load_state_dict(weights, strict=False)
    except (RuntimeError, ValueError) as error:  # shapes differ; other classes, another backbone
        raise ValueError(f"'{source}' does not fit the model: {' '.join(str(error).split())}") from error
    missing = [key for key in result.missing_keys if not key.endswith(REBUILT)]
    unexpected = [key for key in result.unexpected_keys if not key.endswith(REBUILT)]
    if missing or unexpected:
        raise ValueError(
            f"'{source}' does not fit the model: it lacks {missing or 'nothing'} and has {unexpected or 'nothing'} "
            "that the model does not know"
        )


def last_checkpoint(folder) -> Path | None:
    """The file that ``folder/checkpoint`` names, if both are there."""
    note = Path(folder) / "checkpoint"
    lines = note.read_text(encoding="utf-8").split() if note.is_file() else []
    path = Path(folder) / Path(lines[0]).name if lines else None
    return path if path is not None and path.is_file() else None


def restore(checkpoint: Mapping, model: nn.Module, optimizer=None, scheduler=None, scaler=None, source="") -> int:
    """Put a loaded checkpoint's states back; returns the epoch to go on from."""
    load_weights(model, checkpoint["state_dict"], source)
    for name, part in (("optimizer", optimizer), ("scheduler", scheduler), ("scaler", scaler)):
        if part is not None and checkpoint.get(name) is not None:
            part.load_state_dict(checkpoint[name])
        elif part is not None and name == "scheduler":  # a pickled one was not read: a step an epoch leads there too
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that no step of the optimiser came before
                for _ in range(checkpoint["epoch"]):
                    part.step()
        elif part is not None:
            logger.warning(f"'{source}' has no state of the {name}, which starts anew")
    return checkpoint["epoch"]


def digest(classnames: Sequence[str]) -> Tensor:
    """A hash of names in their order, as one integer that a checkpoint can hold."""
    return torch.tensor(int.from_bytes(hashlib.sha256("\n".join(classnames).encode()).digest()[:7], "big"))


def bind(module: nn.Module, classnames: Sequence[str]) -> None:
    """Make the classes a part of the module's state, as the buffer ``classes``.

    From now on ``load_state_dict`` raises a ``ValueError`` for weights of other classes. Those that do not say of which
    they are, as the published trainers save them, are taken.
    """
    module.register_buffer("classes", digest(classnames))
    module.register_load_state_dict_pre_hook(_check)


def _check(module: nn.Module, state: dict[str, Tensor], prefix: str, *_) -> None:
    theirs = state.setdefault(f"{prefix}classes", module.classes)
    if not torch.equal(theirs.cpu(), module.classes.cpu()):
        raise ValueError(
            "these weights were trained on other classes, and each of their rows is bound to one; train them again, or "
            "test on the classes that they are of"
        )
