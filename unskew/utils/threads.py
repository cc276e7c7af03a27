"""Number of CPU threads: the environment variable ``UNSKEW_THREADS``, or the flag ``--threads``."""

import contextlib
import os
from collections.abc import Iterator

VARIABLE = "UNSKEW_THREADS"
_MOST = 1024


def check(text: str, source: str) -> int:
    """Return a number of threads.

    Args:
        text: the number.
        source: the flag or the variable, for the error message.

    Raises:
        ValueError: it is not a whole number from 1 to 1024.
    """
    if not (text.isdecimal() and text.isascii() and len(text) < 5 and 1 <= int(text) <= _MOST):
        raise ValueError(f"{source} must be a whole number from 1 to {_MOST} (got '{text}')")
    return int(text)


def requested() -> int | None:
    """Return the number in ``UNSKEW_THREADS``; ``None`` if it is not set."""
    text = os.environ.get(VARIABLE, "")
    return check(text, VARIABLE) if text else None


@contextlib.contextmanager
def override(number: int | None) -> Iterator[None]:
    """Set ``UNSKEW_THREADS`` while a command runs; ``None`` leaves it."""
    before = os.environ.get(VARIABLE)
    if number is not None:
        os.environ[VARIABLE] = str(number)
    try:
        yield
    finally:
        if number is not None:
            os.environ.pop(VARIABLE, None)
            os.environ.update({} if before is None else {VARIABLE: before})


@contextlib.contextmanager
def limit(number: int | None) -> Iterator[None]:
    """Let PyTorch use a number of threads, and restore the caller's; ``None`` leaves it."""
    import torch

    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if number is not None:
            torch.set_num_threads(before)
