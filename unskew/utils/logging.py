"""What surrounds a run: random seeds, log files, versions, and accelerate's per-process state."""

import contextlib
import functools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

logger = logging.getLogger("unskew")


class LinesOnStream(logging.Handler):
    """Lines on a stream, above the progress bars that may be on the terminal."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.stream_name = name  # looked up at each line: the stream may have been redirected since

    def emit(self, record: logging.LogRecord) -> None:
        stream = getattr(sys, self.stream_name)
        tqdm.write(self.format(record), file=stream)
        stream.flush()


class _LogFile(logging.FileHandler):
    """A log file that a run does without where it cannot be written: what the run is for will say so if it matters."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        warn_once(f"the log '{self.baseFilename}' cannot be written ({error.strerror})")

    def close(self) -> None:
        with contextlib.suppress(OSError):  # said above
            super().close()


def setup_logger(output_dir=None, console: bool = True) -> contextlib.ExitStack:
    """Write the project's log lines to ``output_dir/log.txt`` (appending) and to standard output.

    Args:
        output_dir: a folder, or the path of a .txt or .log file; ``None`` for no file.
        console: ``False`` leaves only warnings, on standard error.

    Returns:
        Closing it, or leaving it as a context, removes what was set up, so that each run in a process can
        have its own file. Leaving it by an error writes the traceback into the file.

    Raises:
        ValueError: the file cannot be written.
    """
    handlers: list[logging.Handler] = [LinesOnStream("stdout" if console else "stderr")]
    handlers[0].setLevel(logging.INFO if console else logging.WARNING)
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
    logger.propagate = False  # a library's logging.warning() gives the root logger a handler: each line twice
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(message)s"))  # bare lines: CoOp's scripts compare whole lines
        logger.addHandler(handler)
        stack.callback(handler.close)
        stack.callback(logger.removeHandler, handler)
    stack.push(functools.partial(_write_down, handlers[1:]))
    logger.setLevel(logging.INFO)
    return stack


def _write_down(handlers: Sequence[logging.Handler], kind, error, trace) -> None:
    if isinstance(error, Exception):
        record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, "Stopped", (), (kind, error, trace))
        for handler in handlers:
            handler.handle(record)


_said: set[str] = set()


def warn_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        logger.warning(message)
