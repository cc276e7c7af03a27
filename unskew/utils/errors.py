"""What is said of an error."""

import os
import sys
from collections.abc import Callable


def format_error(error: BaseException) -> str:
    """The last line of the message: a loader's worker process puts a traceback and the error's own name before it."""
    text = error.strerror if isinstance(error, OSError) and error.filename is None and error.strerror else str(error)
    lines = text.strip().splitlines() or [type(error).__name__]
    return lines[-1].removeprefix(f"{type(error).__name__}: ")


# What reading a damaged file may end in, besides an unknown class.
DAMAGE = (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError, OSError)


def exit_code(command: Callable[[], object], hint: str = "") -> int:
    """Run something that a person asked for.

    Args:
        hint: said behind a mistake's line.

    Returns:
        0; 2 for a user's mistake, said in one line (with UNSKEW_DEBUG set, it raises); 130 for an interrupt.
    """
    try:
        command()
    except (ValueError, OSError, FloatingPointError) as error:  # the last of a loss that is not finite
        if os.environ.get("UNSKEW_DEBUG"):
            raise
        print(f"unskew: error: {format_error(error)}{hint}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nunskew: interrupted; finished runs are kept, the same command goes on from there", file=sys.stderr)
        return 130
    return 0
