"""What is said of an error."""


def one_line(error: BaseException) -> str:
    """The last line of the message: a loader's worker process puts a traceback and the error's own name before it."""
    text = error.strerror if isinstance(error, OSError) and error.filename is None and error.strerror else str(error)
    lines = text.strip().splitlines() or [type(error).__name__]
    return lines[-1].removeprefix(f"{type(error).__name__}: ")
