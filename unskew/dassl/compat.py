"""What scripts of PyTorch 1's time ask of a current PyTorch; applied for `python -m unskew.dassl` and `--plugin`."""

import functools
import multiprocessing
import os
import pickle
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

import torch

from unskew.dassl.data import Datum
from unskew.engine import checkpoint
from unskew.utils import safe_pickle


def apply() -> None:
    """Give scripts the names that have moved, and files of others, of which nothing is run."""
    _amp_names()
    pickle.load = _restricted_for_samples(pickle.load)
    torch.load = _reading_old_checkpoints(torch.load)
    if not hasattr(re, "template"):  # gone from Python 3.13; imported by some, used by none
        re.template = re.compile
    if sys.platform == "linux":
        # Python 3.14 starts worker processes anew, and these would not find `dassl`.
        multiprocessing.set_start_method("fork", force=True)


def _amp_names() -> None:
    """``torch.cuda.amp``'s classes are ``torch.amp``'s for a GPU: deprecated, and said at every use, or gone."""
    if not hasattr(torch.cuda, "amp"):
        torch.cuda.amp = sys.modules["torch.cuda.amp"] = ModuleType("torch.cuda.amp")
    for name in ("GradScaler", "autocast"):
        if not hasattr(torch.cuda.amp, name):
            setattr(torch.cuda.amp, name, functools.partial(getattr(torch.amp, name), "cuda"))
    for name in ("cuda.amp", "jit"):
        warnings.filterwarnings("ignore", f".?torch.{name}.* is deprecated", FutureWarning)


def _restricted_for_samples(load):
    """`pickle.load`, but files of few-shot samples and other .pkl are read without running anything in them."""

    @functools.wraps(load)
    def wrapped(file, **options):
        name = getattr(file, "name", None)  # a number for a pipe
        path = Path(os.fsdecode(name)) if isinstance(name, str | bytes | os.PathLike) else Path()
        if path.suffix.lower() == ".pkl" or "split_fewshot" in path.absolute().parts[:-1]:
            return safe_pickle.read_plain(file, Datum, **options)
        return load(file, **options)

    return wrapped


def _reading_old_checkpoints(load):
    """`torch.load`, which is safe by default, with arrays of numbers, and our reader of CoOp's own checkpoints."""

    @functools.wraps(load)
    def wrapped(f, *args, **kwargs):
        if "weights_only" in kwargs:  # a script's own choice; our reader, too, asks for it
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
