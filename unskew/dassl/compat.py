"""Patches that let scripts written for PyTorch 1 run on a current PyTorch, and make their files safe to read.

Applied by `python -m unskew.dassl` and by `--plugin`.
"""

import functools
import multiprocessing
import os
import pickle
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from unskew.dassl.data import Datum
from unskew.engine import checkpoint
from unskew.utils import safe_pickle


def apply() -> None:
    """Restore names that PyTorch and Python moved, and read pickled files without running code from them."""
    _amp_names()
    pickle.load = _restricted_for_samples(pickle.load)
    torch.load = _reading_old_checkpoints(torch.load)
    if not hasattr(re, "template"):  # removed in Python 3.13; some scripts import it, none uses it
        vars(re)["template"] = re.compile
    if sys.platform == "linux":
        # From Python 3.14 worker processes are not forked by default, and new ones would not find `dassl`.
        multiprocessing.set_start_method("fork", force=True)


def _amp_names() -> None:
    """Restore ``torch.cuda.amp``'s classes, which are deprecated or removed, and silence their warnings."""
    if not hasattr(torch.cuda, "amp"):
        vars(torch.cuda)["amp"] = sys.modules["torch.cuda.amp"] = ModuleType("torch.cuda.amp")
    for name in ("GradScaler", "autocast"):
        if not hasattr(torch.cuda.amp, name):
            setattr(torch.cuda.amp, name, functools.partial(getattr(torch.amp, name), "cuda"))
    for name in ("cuda.amp", "jit"):
        warnings.filterwarnings("ignore", f".?torch.{name}.* is deprecated", FutureWarning)


def _restricted_for_samples(load: Callable) -> Callable:
    """Return `pickle.load`, changed to read few-shot samples and other .pkl files without running code from them."""

    @functools.wraps(load)
    def wrapped(file: Any, **options: Any) -> Any:
        name = getattr(file, "name", None)  # an integer for a pipe
        path = Path(os.fsdecode(name)) if isinstance(name, str | bytes | os.PathLike) else Path()
        if path.suffix.lower() == ".pkl" or "split_fewshot" in path.absolute().parts[:-1]:
            return safe_pickle.read_plain(file, Datum, **options)
        return load(file, **options)

    return wrapped


def _reading_old_checkpoints(load: Callable) -> Callable:
    """Return `torch.load`, changed to read also NumPy arrays and CoOp's checkpoints, still without running code."""

    @functools.wraps(load)
    def wrapped(f: Any, *args: Any, **kwargs: Any) -> Any:
        if "weights_only" in kwargs:  # the script's choice; `load_checkpoint` sets it too
            return load(f, *args, **kwargs)
        try:
            with torch.serialization.safe_globals(safe_pickle.array_stand_ins()):
                content = load(f, *args, **kwargs)
        except pickle.UnpicklingError:
            if not isinstance(f, str | os.PathLike):
                raise
            return checkpoint.load_checkpoint(f)
        return safe_pickle.with_arrays(content, getattr(f, "name", f))

    return wrapped
