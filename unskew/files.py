"""Writing files whole: aside first, then renamed into place."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Write ``path`` so that a reader sees the old file or the new one, never a part.

    Args:
        content: text (as UTF-8), bytes, or a function that writes to the binary file it is given.

    Raises:
        OSError: it cannot be written (a full disk); the file is named and what was there before is kept.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with aside.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
        os.replace(aside, path)
    except OSError as error:  # a failed write() does not know its file's name
        reason = f"cannot write '{path}': {error.strerror}; make room there and run the same command again"
        raise type(error)(error.errno, reason) from error
    finally:
        aside.unlink(missing_ok=True)
