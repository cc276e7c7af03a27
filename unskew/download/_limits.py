"""Limits of a download in bytes and time, so that a server which never ends cannot fill the disk or hang a program."""

import time

SIZE = 50 * 2**30  # bytes of a file whose size neither the source nor the server gives; the largest known one has 40

STALL = 300.0  # seconds in which at least `PROGRESS` bytes must come

PROGRESS = 2**18

LONGEST = 6 * 3600.0  # seconds for a file, and more for a large one:

SLOWEST = 2**18  # bytes per second, over the whole file


class LimitError(Exception):
    """A download reached a limit; the message is a few words."""


class TooLarge(LimitError):
    """The server sends without end; what it sent is of no use."""


class Stalled(Exception):
    """Too few bytes came lately; another attempt may be faster."""


class Watch:
    """The clock of one download from one mirror, over all its attempts."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.begin(0)

    def begin(self, size: int) -> None:
        """Start an attempt that continues after ``size`` bytes."""
        self._seen, self._since = size, time.monotonic()

    def check(self, size: int, total: int) -> None:
        """Compare the progress with the limits.

        Args:
            size: bytes so far.
            total: bytes of the complete file; 0 if unknown.

        Raises:
            LimitError: the file is too large, or takes too long.
            Stalled: the data come too slowly.
        """
        now = time.monotonic()
        if not total and size > SIZE:
            raise TooLarge(f"more than {SIZE} bytes, and the server does not give the size")
        allowed = LONGEST + total / SLOWEST
        if now - self._started > allowed:
            raise LimitError(f"not complete after {allowed / 3600:.1f} hours; run the same command again to resume")
        if size >= self._seen + PROGRESS:
            self._seen, self._since = size, now
        elif now - self._since > STALL:
            raise Stalled(f"fewer than {PROGRESS} bytes in {STALL:.0f} s")
