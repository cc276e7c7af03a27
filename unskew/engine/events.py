"""Tensorboard events that a full disk cannot stop: one warning, and training continues without them."""

import functools
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

logger = logging.getLogger("unskew")


class EventWriter:
    """A ``SummaryWriter`` whose methods do nothing after a file error.

    Args:
        log_dir: the folder of the events.
    """

    def __init__(self, log_dir: str | Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._log_dir = log_dir
        self._writer: SummaryWriter | None = None
        self._previous_hook = threading.excepthook
        threading.excepthook = self._excepthook
        self._writer = self._guarded(SummaryWriter)(log_dir=str(log_dir))

    def __getattr__(self, name: str) -> Any:
        """Return a method of the writer, or a function that does nothing if the writer has failed."""
        if self.__dict__.get("_writer") is None:
            return lambda *args, **kwargs: None
        attribute = getattr(self._writer, name)
        return self._guarded(attribute) if callable(attribute) else attribute

    def close(self) -> None:
        """Write the pending events and close the file."""
        if self._writer is not None:
            self._guarded(self._writer.close)()
        if threading.excepthook == self._excepthook:
            threading.excepthook = self._previous_hook

    def _guarded(self, function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args, **kwargs) -> Any:
            try:
                return function(*args, **kwargs)
            except OSError as error:
                self._writer = None
                logger.warning(
                    f"the tensorboard events in '{self._log_dir}' cannot be written ({error.strerror or error}); "
                    "training continues without them"
                )
                return None

        return call

    def _excepthook(self, args: threading.ExceptHookArgs) -> None:
        """Drop the traceback of tensorboard's thread: the next call raises the same error."""
        from_events = type(args.thread).__module__.startswith("tensorboard.")
        if not (from_events and issubclass(args.exc_type, OSError)):
            self._previous_hook(args)
