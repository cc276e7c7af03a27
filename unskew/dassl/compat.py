"""What scripts of PyTorch 1's time ask of a current PyTorch; applied for `python -m unskew.dassl` and `--plugin`."""

import functools
import multiprocessing
import os
import pickle
import re
import sys
import warnings
from types import ModuleType

import numpy as np
import torch

from unskew import checkpoint

# What arrays of numbers are pickled by, for files that scripts `torch.load`; none of it runs what stands in a file.
_MAKERS = [np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
_ARRAYS = [
    *(np.ndarray, np.dtype, *(type(np.dtype(code)) for code in "?bhilqBHILQefd")),
    *((make, f"numpy.{core}.multiarray.{make.__name__}") for core in ("core", "_core") for make in _MAKERS),
]


def apply() -> None:
    """Give scripts the names that have moved, and files that are older than `torch.load`'s rules."""
    _amp_names()
    torch.serialization.add_safe_globals(_ARRAYS)
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


def _reading_old_checkpoints(load):
    """`torch.load`, which is safe by default, and where that refuses a file, our reader of CoOp's own checkpoints."""

    @functools.wraps(load)
    def wrapped(f, *args, **kwargs):
        try:
            return load(f, *args, **kwargs)
        except pickle.UnpicklingError:
            named = isinstance(f, str | os.PathLike)
            if not named or "weights_only" in kwargs:  # which our reader asks for
                raise
            return checkpoint.load_checkpoint(f)

    return wrapped
