"""Patches that let scripts written for PyTorch 1 run on a current PyTorch, and make their files safe to read.

Applied by `python -m unskew.dassl` and by `--plugin`.
"""

import functools
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.optim import lr_scheduler

from unskew.dassl import moved
from unskew.dassl.data import Datum
from unskew.engine import checkpoint
from unskew.utils import safe_pickle

_ADVICE = "replace it or, if you trust it, put `--trust {}` before the name of the script in `python -m unskew.dassl`"

_trusted: set[str] = set()


def apply(trusted: Iterable[str | Path] = ()) -> None:
    """Restore names that PyTorch and Python moved, and read pickled files without running code from them.

    Args:
        trusted: files that may run code when the script reads them.
    """
    _trusted.update(map(os.path.realpath, trusted))
    moved.restore()
    pickle.load = _restricted_for_samples(pickle.load)
    torch.load = _reading_old_checkpoints(torch.load)
    if sys.platform == "linux":
        # From Python 3.14 worker processes are not forked by default, and new ones would not find `dassl`.
        multiprocessing.set_start_method("fork", force=True)


def _path_of(file: Any) -> Path:
    """Return the path of a file or of an open file; an empty one if it has none."""
    name = getattr(file, "name", file)  # an integer for a pipe
    return Path(os.fsdecode(name)) if isinstance(name, str | bytes | os.PathLike) else Path()


def _is_trusted(path: Path) -> bool:
    return path != Path() and os.path.realpath(path) in _trusted


def _restricted_for_samples(load: Callable) -> Callable:
    """Return `pickle.load`, changed to read few-shot samples and other .pkl files without running code from them."""

    @functools.wraps(load)
    def wrapped(file: Any, **options: Any) -> Any:
        path = _path_of(file)
        is_plain = path.suffix.lower() in (".pkl", ".pickle") or "split_fewshot" in path.absolute().parts[:-1]
        if not is_plain or _is_trusted(path):
            return load(file, **options)
        base = sys.modules.get(Datum.__module__)  # of a real Dassl, if it is in use
        return safe_pickle.read_plain(file, getattr(base, "Datum", Datum), _ADVICE.format(path), **options)

    return wrapped


def _reading_old_checkpoints(load: Callable) -> Callable:
    """Return `torch.load`, changed to read also NumPy arrays and CoOp's checkpoints, still without running code."""

    @functools.wraps(load)
    def wrapped(f: Any, *args: Any, **kwargs: Any) -> Any:
        if "weights_only" in kwargs:  # the script's choice; `load_checkpoint` sets it too
            return load(f, *args, **kwargs)
        args = args[:1]  # without a module for pickle, with which PyTorch would run code
        kwargs.pop("pickle_module", None)
        path = _path_of(f)
        if _is_trusted(path):
            return load(f, *args, **kwargs, weights_only=False)
        try:
            with torch.serialization.safe_globals([*safe_pickle.array_stand_ins(), *_training_state()]):
                content = load(f, *args, **kwargs)
        except pickle.UnpicklingError:
            if not isinstance(f, str | os.PathLike):
                raise
            return _load_checkpoint(f)
        return safe_pickle.with_arrays(content, getattr(f, "name", f))

    return wrapped


def _load_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    try:
        return checkpoint.load_checkpoint(path)
    except checkpoint.ForeignObjectsError as error:
        raise ValueError(f"{error}; {_ADVICE.format(path)}") from error


@functools.cache
def _training_state() -> list[Any]:
    """Return the classes in the state of a schedule: Dassl's warm-up holds another schedule and its optimizer."""
    classes = [*vars(torch.optim).values(), *vars(lr_scheduler).values()]
    kinds = (torch.optim.Optimizer, lr_scheduler.LRScheduler)
    harmless = [cls for cls in classes if isinstance(cls, type) and issubclass(cls, kinds)]
    return [*harmless, (_mapping, "collections.defaultdict"), (dict, "builtins.dict")]


def _mapping(*_: object) -> dict:
    """Return the replacement of a `defaultdict`, which PyTorch does not fill without running code."""
    return {}
