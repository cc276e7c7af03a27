"""Import of the libraries that training needs: PyTorch, open_clip and their companions, half a million objects.

None of them is ever garbage, but each full collection visits them all, and so does the one at the end of the process.
"""

import gc
import importlib

_may_freeze = False


def allow_freezing() -> None:
    """Let `freeze` work in this process, which must hold no objects of a user: it would never free their cycles."""
    global _may_freeze
    _may_freeze = True


def freeze() -> None:
    """Import the libraries without garbage collection and exclude them from it, once in the process of a command.

    In other processes this does nothing: each library is imported where it is used.
    """
    global _may_freeze
    if not _may_freeze:
        return
    _may_freeze = False
    gc.disable()
    try:
        for name in ("unskew.engine.clip_trainer", "open_clip"):
            importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()
