"""Log lines of a run, on the console and in a file."""

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from unskew.utils import processes

logger = logging.getLogger("unskew")


class LinesOnStream(logging.Handler):
    """A handler that writes lines to a stream above any progress bars on the terminal."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.stream_name = name  # looked up at each line, because the stream may be redirected later

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        from tqdm import tqdm  # slow to import, and many commands log nothing

        stream = getattr(sys, self.stream_name)
        try:
            tqdm.write(self.format(record), file=stream)
            stream.flush()
        except BrokenPipeError:  # the reader of the pipe, such as head, has ended; the run continues
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _LogFile(logging.FileHandler):
    """A FileHandler that warns once instead of failing when the file cannot be written."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        warn_once(f"the log '{self.baseFilename}' cannot be written ({error.strerror})")

    def close(self) -> None:
        with contextlib.suppress(OSError):  # handleError has warned
            super().close()


def setup_logger(output_dir: str | Path | None = None, console: bool = True) -> contextlib.ExitStack:
    """Write log lines to standard output and append them to ``output_dir/log.txt``.

    Args:
        output_dir: a folder, or the path of a .txt or .log file; ``None`` for no file.
        console: if ``False``, the console gets only warnings, on standard error.

    Returns:
        A context manager that removes the handlers when it is closed, so that each run in a process can have a file
        of its own. If an exception leaves the context, its traceback is written to the file.

    Raises:
        ValueError: the file cannot be written.
    """
    handlers: list[logging.Handler] = [LinesOnStream("stdout" if console else "stderr")]
    handlers[0].setLevel(logging.INFO if console else logging.WARNING)
    handlers[0].addFilter(_is_new)
    if output_dir is not None:
        path = Path(output_dir)
        path = path if path.suffix in (".txt", ".log") else path / "log.txt"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(_LogFile(path, encoding="utf-8", errors="backslashreplace"))
        except OSError as error:
            raise ValueError(f"the log '{path}' cannot be written ({error.strerror}); choose another folder") from error
    stack = contextlib.ExitStack()
    stack.callback(logger.setLevel, logger.level)
    stack.callback(setattr, logger, "propagate", logger.propagate)
    logger.propagate = False  # the root logger may have a handler too: each line would appear twice
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(message)s"))  # CoOp's parsers compare whole lines
        logger.addHandler(handler)
        stack.callback(handler.close)
        stack.callback(logger.removeHandler, handler)
    stack.push(functools.partial(_log_traceback, handlers[1:]))
    logger.setLevel(logging.INFO if processes.is_main() else logging.ERROR)
    return stack


def _log_traceback(
    handlers: Sequence[logging.Handler],
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    if kind is not None and isinstance(error, Exception):
        record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, "Stopped", (), (kind, error, trace))
        for handler in handlers:
            handler.handle(record)


_shown: set[str] | None = None


@contextlib.contextmanager
def warnings_once() -> Iterator[None]:
    """Show equal warnings once on the console, also those of several runs; the log file of each run has them all."""
    global _shown
    before = _shown
    _shown = set() if before is None else before
    try:
        yield
    finally:
        _shown = before


def _is_new(record: logging.LogRecord) -> bool:
    if _shown is None or record.levelno != logging.WARNING:
        return True
    message = record.getMessage()
    is_new = message not in _shown
    _shown.add(message)
    return is_new


_warned: set[str] = set()


@contextlib.contextmanager
def errors_only() -> Iterator[None]:
    """Drop warnings, for work that the user did not ask for."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def warn_once(message: str) -> None:
    """Log a warning, unless the same one was logged before in this process."""
    if message not in _warned:
        _warned.add(message)  # before the handlers, which may warn of themselves
        logger.warning(message)
