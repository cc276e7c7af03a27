"""Error messages, exit codes, and the exceptions that damaged files raise."""

import os
import sys
from collections.abc import Callable

# Reading a damaged file may raise any of these; a reader adds the exceptions of its own format.
DAMAGE = (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError, OSError)


def format_error(error: BaseException) -> str:
    """Return an error's message as one line.

    A loader's worker process puts a traceback and the error's type before the message, which is then the last line.
    """
    text = error.strerror if isinstance(error, OSError) and error.filename is None and error.strerror else str(error)
    if "Traceback (most recent call last)" in text:
        text = text.strip().splitlines()[-1].removeprefix(f"{type(error).__name__}: ")
    return " ".join(text.split()) or type(error).__name__


def exit_code(command: Callable[[], object], hint: str = "") -> int:
    """Run a command of the user and turn its errors into an exit code.

    Args:
        command: the function to run.
        hint: text to append to an error's line.

    Returns:
        0 for success; 2 for a user's mistake, which is printed as one line (with UNSKEW_DEBUG set, it is raised
        instead); 130 for an interrupt.
    """
    try:
        command()
    except (ValueError, OSError, FloatingPointError) as error:  # FloatingPointError: the loss is not finite
        if os.environ.get("UNSKEW_DEBUG"):
            raise
        print(f"unskew: error: {format_error(error)}{hint}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nunskew: interrupted; run the same command again to resume (finished runs are kept)", file=sys.stderr)
        return 130
    return 0
