"""Error messages, exit codes, and the exceptions that damaged files raise."""

import contextlib
import csv
import lzma
import os
import pickle
import select
import signal
import stat
import struct
import sys
import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from unskew.utils import processes

# Reading a damaged file, of any format, may raise any of these.
DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, NameError),
    *(OSError, RuntimeError, StopIteration, SyntaxError, TypeError, ValueError),
    *(csv.Error, lzma.LZMAError, pickle.PickleError, struct.error, tarfile.TarError, tokenize.TokenError),
    *(zipfile.BadZipFile, zlib.error, SafetensorError),
)

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check_regular(path: str | Path) -> int:
    """Return the size of a regular file in bytes, without opening it: a pipe would block, and a device has no end.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the path is a folder, a pipe, a device or a socket.
    """
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        kind = _KINDS.get(stat.S_IFMT(state.st_mode), "no regular file")
        raise ValueError(f"'{path}' is {kind}: give a regular file")
    return state.st_size


class MissingWeightsError(FileNotFoundError):
    """The weights of a backbone are not on this machine and cannot be downloaded, so no run on it can start."""


def format_error(error: BaseException) -> str:
    """Return an error's message as one line.

    A loader's worker process puts a traceback and the error's type before the message, which is then the last line.
    """
    try:
        text = (
            error.strerror if isinstance(error, OSError) and error.filename is None and error.strerror else str(error)
        )
    except Exception:  # of any kind: the error may be a plugin's
        text = ""
    if "Traceback (most recent call last)" in text:
        text = text.strip().splitlines()[-1].removeprefix(f"{type(error).__name__}: ")
    return " ".join(text.split()) or type(error).__name__


CLOSED_PIPE = 141  # the exit code of a Unix tool whose reader has ended: 128 + SIGPIPE


def exit_code(command: Callable[[], int | None], hint: str = "") -> int:
    """Run a command of the user and turn its errors into an exit code.

    Args:
        command: the function to run; it may return an exit code.
        hint: text to append to an error's line.

    Returns:
        The command's own code, or 0; 2 for a user's mistake, which is printed as one line (with UNSKEW_DEBUG set, it is
        raised instead); 130 for an interrupt; 141, without a message, if the reader of the output (such as
        head) has ended.
    """
    try:
        return _code_of(command, hint)
    except KeyboardInterrupt:
        if processes.count() > 1:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher sends it once more
        text = "\nunskew: interrupted; run the same command again to resume (finished runs are kept)"
        return _print_error(text, processes.INTERRUPTED)


def _code_of(command: Callable[[], int | None], hint: str) -> int:
    try:
        code = command()
        sys.stdout.flush()  # the last lines may be for a reader that has ended
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:  # FloatingPointError: an infinite loss
        if isinstance(error, BrokenPipeError) and _reader_has_ended():
            return CLOSED_PIPE
        if os.environ.get("UNSKEW_DEBUG"):
            raise
        return _print_error(f"unskew: error: {format_error(error)}{hint}", 2)
    except SystemExit:  # of the parser, after a help text; the interpreter would complain that it cannot flush
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _reader_has_ended()
        raise
    except Exception as error:
        if lost := processes.lost_peer(error):
            code, text = lost
            return _print_error(f"unskew: error: {text}", code) if text else code
        processes.post(format_error(error), 1)
        raise
    return code or 0


def _print_error(text: str, code: int) -> int:
    """Print an error, once for all processes of a run, and return its exit code."""
    if not processes.reports(text, code):
        return code
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        _reader_has_ended()
    return code


def _reader_has_ended() -> bool:
    """Return whether the reader of standard output or error has ended; the rest of that output is then dropped."""
    ended = False
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, OSError):  # a stream without a file descriptor
            poll = select.poll()
            poll.register(stream.fileno(), 0)
            if any(event & select.POLLERR for _, event in poll.poll(0)):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # the interpreter flushes again at its exit
                ended = True
    return ended
